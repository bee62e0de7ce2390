"""What the vectors do not say of dense, box and candidate losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses


def _maps(*shape):
  random = np.random.default_rng(sum(shape))
  return [jnp.asarray(random.normal(size=shape), jnp.float32) for _ in "st"]


def test_a_constant_added_to_a_channel_changes_no_channel_wise_loss():
  student, teacher = _maps(2, 3, 4, 5)
  shift = jnp.arange(5.0).reshape(1, 1, 1, 5)
  np.testing.assert_allclose(
    losses.cwd(student + shift, teacher),
    losses.cwd(student, teacher),
    rtol=1e-5,
  )


def test_the_scale_of_a_patch_does_not_matter():
  student, teacher = _maps(2, 2, 3, 3, 4)
  np.testing.assert_allclose(
    losses.patch_correspondence(student, 100 * teacher, temperature=0.1),
    losses.patch_correspondence(student, teacher, temperature=0.1),
    rtol=1e-4,
  )


def test_a_soft_argmax_finds_the_row_and_the_column():
  scores = jnp.zeros((3, 4)).at[2, 1].set(1.0)
  np.testing.assert_allclose(losses.soft_argmax(scores), [2, 1], atol=1e-6)


def test_targets_need_one_place_per_source_patch():
  student, _ = _maps(2, 2, 3, 3, 4)
  with pytest.raises(
    ValueError, match=r"point_regression: .* target \(2, 1, 2\)"
  ):
    losses.point_regression(
      student, jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 1, 2))
    )


def test_a_map_is_read_in_the_middle_of_its_cells_and_0_outside():
  maps, _ = _maps(1, 3, 4, 2)
  places = jnp.array([[[2.5, 1.5], [3.0, 0.5], [-9.0, 1.0], [4.5, 1.5]]])
  values = losses.sample_points(maps, places)[0]
  np.testing.assert_allclose(values[0], maps[0, 1, 2], rtol=1e-6)
  between = (maps[0, 0, 2] + maps[0, 0, 3]) / 2
  np.testing.assert_allclose(values[1], between, rtol=1e-6)
  np.testing.assert_array_equal(values[2:], 0)


def test_boxes_that_do_not_count_are_not_read():
  student, teacher = _maps(2, 4, 4, 3)
  places = jnp.full((2, 2, 9, 2), 1.3).at[:, 1].set(jnp.nan)
  where = jnp.array([[True, False]] * 2)

  def loss(student):
    return losses.point_features(student, teacher, places, where=where)

  value, gradient = jax.value_and_grad(loss)(student)
  assert value > 0
  assert np.isfinite(gradient).all()
  assert not jnp.any(gradient[:, 3])


def test_an_uncertain_teacher_regresses_less():
  teacher = jnp.array([[9.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
  student = teacher + 1

  def gradient(per_example):
    def loss(student):
      return losses.dynamic_contrastive(
        student, teacher, alpha=1.0, per_example=per_example
      )

    return jax.grad(loss)(student)[:, 0]

  sure, unsure = gradient(per_example=True)
  assert sure > 1.5 * unsure
  same, as_well = gradient(per_example=False)
  np.testing.assert_allclose(same, as_well, rtol=1e-6)
