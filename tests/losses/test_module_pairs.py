"""The loss of a pair of modules: its divisors, its hard form, its labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

RANDOM = np.random.default_rng(1)
STUDENT, TEACHER = (
  jnp.asarray(RANDOM.normal(size=(5, 7)), jnp.float32) for _ in "st"
)
LABELS = jnp.array([0, 6, 3, 3, 1])


def _distilled(**options):
  return losses.module_pair(
    STUDENT, TEACHER, LABELS, teacher_weight=1.0, **options
  )


def test_dividing_by_all_entries_is_dividing_by_the_classes_once_more():
  whole = _distilled(kd_reduction="batchmean")
  np.testing.assert_allclose(
    whole, 7 * _distilled(kd_reduction="numel"), rtol=1e-6
  )
  np.testing.assert_allclose(whole, losses.kl(STUDENT, TEACHER), rtol=1e-6)


def test_a_hard_teacher_is_never_divided_by_the_classes():
  expected = losses.cross_entropy(STUDENT, TEACHER.argmax(-1))
  for reduction in ("batchmean", "numel"):
    values = _distilled(hard=True, kd_reduction=reduction, temperature=3.0)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_the_teachers_weight_takes_from_the_labels():
  at = lambda weight: losses.module_pair(
    STUDENT, TEACHER, LABELS, teacher_weight=weight
  )
  np.testing.assert_allclose(at(0.3), 0.7 * at(0.0) + 0.3 * at(1.0), rtol=1e-6)


def test_soft_labels_are_taken_as_they_are():
  smooth = 0.9 * jax.nn.one_hot(LABELS, 7) + 0.1 / 7
  values = losses.module_pair(STUDENT, TEACHER, smooth, label_smoothing=0.5)
  expected = losses.module_pair(STUDENT, TEACHER, LABELS)
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_another_divisor_is_refused():
  message = "module_pair: kd_reduction='sum'; expected one of batchmean, numel"
  with pytest.raises(ValueError, match=message):
    losses.module_pair(STUDENT, TEACHER, LABELS, kd_reduction="sum")
