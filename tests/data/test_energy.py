"""PCA removes the stated share of the variance, the least important first."""

import numpy as np
import pytest

from jaxkd.data.energy import LowEnergy


@pytest.fixture(scope="module")
def images() -> np.ndarray:
  rng = np.random.default_rng(0)
  mixed = (
    rng.normal(size=(400, 12))
    * np.geomspace(40, 1, 12)
    @ np.linalg.qr(rng.normal(size=(12, 12)))[0]
  )
  return np.clip(np.round(mixed + 128), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("removed", [0.1, 0.5, 0.75])
def test_it_keeps_just_over_the_remaining_energy(images, removed):
  after = LowEnergy.fit(images, removed)(images)
  held = after.var(0).sum() / images.astype(float).var(0).sum()
  values = np.linalg.eigvalsh(np.cov(images.T.astype(float)))
  assert 1 - removed - 1e-3 <= held
  count = LowEnergy.fit(images, removed).components.shape[1]
  one_less = values[::-1][: count - 1].sum() / values.sum()
  assert one_less < 1 - removed


def test_removing_nothing_returns_the_images(images):
  np.testing.assert_allclose(LowEnergy.fit(images, 0.0)(images), images, atol=1)


def test_it_equals_the_projection_of_a_singular_value_decomposition(images):
  kept = LowEnergy.fit(images, 0.5)
  centred = images - images.mean(0)
  axes = np.linalg.svd(centred)[2][: kept.components.shape[1]]
  expected = centred @ axes.T @ axes + images.mean(0)
  np.testing.assert_allclose(kept(images), expected, atol=0.2)


def test_another_set_of_images_is_projected_on_the_fitted_components(images):
  kept = LowEnergy.fit(images[:200], 0.5)
  np.testing.assert_array_equal(kept(images)[200:], kept(images[200:]))


def test_the_order_of_summation_does_not_change_a_bit(images):
  forward = LowEnergy.fit(images, 0.5)
  backward = LowEnergy.fit(images[::-1], 0.5)
  np.testing.assert_array_equal(forward(images), backward(images))
