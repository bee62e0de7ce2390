"""What every public loss promises; one without an entry here fails."""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """How the contract calls a loss.

  Attributes:
    call: student [B, C], teacher [B, C], where [B] or None -> the loss.
    best: teacher -> the student at which the loss is 0.
    batch_level: whether the loss is one number for the batch.
    masks: whether it takes `where`.
    differentiable: whether the student gets a gradient.
  """

  call: Callable[[Array, Array, Array | None], Array]
  best: Callable[[Array], Array] = lambda teacher: teacher
  batch_level: bool = False
  masks: bool = False
  differentiable: bool = True


def _teachers(teacher):
  return jnp.stack([teacher, jnp.roll(teacher, 1, axis=-1)], axis=1)


def _routed(student, teacher, where):
  del where
  chosen = jnp.zeros((len(student), 1), jnp.int32)
  return losses.routed_kl(student, _teachers(teacher), chosen)


def _mixture(student, teacher, where):
  del where
  gate = jnp.zeros((len(student), 2), student.dtype)
  return losses.mixture_kl(student, jnp.stack([teacher] * 2, axis=1), gate)


def _certain(teacher):
  return 1e4 * jax.nn.one_hot(teacher.argmax(-1), teacher.shape[-1])


ENTRIES = {
  "cross_entropy": Entry(
    call=lambda s, t, w: losses.cross_entropy(s, t.argmax(-1), where=w),
    best=_certain,
    masks=True,
  ),
  "kl": Entry(
    call=lambda s, t, w: losses.kl(s, t, temperature=2.0, where=w), masks=True
  ),
  "load_balance_cv": Entry(
    call=lambda s, t, w: losses.load_balance_cv(s, where=w),
    best=jnp.zeros_like,
    batch_level=True,
    masks=True,
  ),
  "load_balance_kl": Entry(
    call=lambda s, t, w: losses.load_balance_kl(s, where=w),
    best=jnp.zeros_like,
    batch_level=True,
    masks=True,
  ),
  "mixture_kl": Entry(call=_mixture),
  "routed_kl": Entry(call=_routed),
  "top_k_teachers": Entry(
    call=lambda s, t, w: losses.top_k_teachers(s, 1)[:, 0],
    differentiable=False,
  ),
}
ALL = pytest.mark.parametrize("name", losses.__all__)
SMOOTH = pytest.mark.parametrize(
  "name", [name for name, entry in ENTRIES.items() if entry.differentiable]
)


def _logits(*shape, scale=1.0):
  random = np.random.default_rng(sum(shape))
  return tuple(
    jnp.asarray(scale * random.normal(size=shape), jnp.float32) for _ in "st"
  )


def _gradient(entry, student, teacher, where=None):
  return jax.grad(lambda s: entry.call(s, teacher, where).sum())(student)


def test_every_public_loss_has_an_entry():
  assert sorted(ENTRIES) == sorted(losses.__all__)


@ALL
def test_the_result_has_one_value_per_example_or_is_a_scalar(name):
  entry = ENTRIES[name]
  values = entry.call(*_logits(6, 5), None)
  assert values.shape == (() if entry.batch_level else (6,))


@ALL
def test_jit_changes_nothing(name):
  call, (student, teacher) = ENTRIES[name].call, _logits(6, 5)
  compiled = jax.jit(call)(student, teacher, None)
  np.testing.assert_allclose(
    compiled, call(student, teacher, None), rtol=1e-5, atol=1e-7
  )


@ALL
def test_vmap_equals_a_loop(name):
  call, (student, teacher) = ENTRIES[name].call, _logits(3, 6, 5)
  values = jax.vmap(lambda s, t: call(s, t, None))(student, teacher)
  for value, s, t in zip(values, student, teacher, strict=True):
    np.testing.assert_allclose(value, call(s, t, None), rtol=1e-5, atol=1e-7)


@SMOOTH
def test_half_precision_logits_are_computed_in_float32(name):
  entry = ENTRIES[name]
  student, teacher = (x.astype(jnp.bfloat16) for x in _logits(64, 50))
  values = entry.call(student, teacher, None)
  assert values.dtype == jnp.float32
  exact = (x.astype(jnp.float32) for x in (student, teacher))
  np.testing.assert_allclose(values, entry.call(*exact, None), rtol=1e-5)
  assert _gradient(entry, student, teacher).dtype == jnp.bfloat16


@ALL
def test_huge_logits_give_finite_values_and_gradients(name):
  entry, (student, teacher) = ENTRIES[name], _logits(6, 5)
  student, teacher = (1e4 * jnp.sign(x) for x in (student, teacher))
  assert np.isfinite(entry.call(student, teacher, None)).all()
  if entry.differentiable:
    assert np.isfinite(_gradient(entry, student, teacher)).all()


@SMOOTH
def test_a_class_at_minus_infinity_in_the_teacher_leaves_all_finite(name):
  entry, (student, teacher) = ENTRIES[name], _logits(6, 5)
  teacher = teacher.at[:, 2].set(-jnp.inf)
  assert np.isfinite(entry.call(student, teacher, None)).all()
  assert np.isfinite(_gradient(entry, student, teacher)).all()


@ALL
def test_one_class_costs_nothing(name):
  entry, (student, teacher) = ENTRIES[name], _logits(6, 1)
  values = entry.call(student, teacher, None)
  np.testing.assert_array_equal(values, np.zeros_like(values))
  if entry.differentiable:
    gradient = _gradient(entry, student, teacher)
    np.testing.assert_array_equal(gradient, np.zeros_like(student))


@SMOOTH
def test_a_batch_of_one_gives_the_value_of_its_example(name):
  entry, (student, teacher) = ENTRIES[name], _logits(6, 5)
  one = entry.call(student[:1], teacher[:1], None)
  if entry.batch_level:
    where = jnp.arange(6) < 1
    expected = entry.call(student, teacher, where)
  else:
    expected = entry.call(student, teacher, None)[:1]
  np.testing.assert_allclose(one, expected, rtol=1e-5)
  assert np.isfinite(_gradient(entry, student[:1], teacher[:1])).all()


@pytest.mark.parametrize(
  "name", [name for name, entry in ENTRIES.items() if entry.masks]
)
def test_nan_in_masked_rows_reaches_neither_value_nor_gradient(name):
  entry, (student, teacher) = ENTRIES[name], _logits(6, 5)
  where = jnp.array([1, 0, 1, 1, 0, 1], jnp.float32)
  real = where > 0
  poisoned, bad = (
    jnp.where(real[:, None], x, jnp.nan) for x in (student, teacher)
  )
  values = entry.call(poisoned, bad, where)
  expected = entry.call(student[real], teacher[real], None)
  if not entry.batch_level:
    np.testing.assert_array_equal(values[~real], 0)
    values = values[real]
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  gradient = _gradient(entry, poisoned, bad, where)
  np.testing.assert_array_equal(gradient[~real], 0)
  expected = _gradient(entry, student[real], teacher[real])
  np.testing.assert_allclose(gradient[real], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
  "name",
  [
    name
    for name, entry in ENTRIES.items()
    if entry.differentiable and not entry.batch_level
  ],
)
def test_an_example_does_not_depend_on_the_others(name):
  entry, (student, teacher) = ENTRIES[name], _logits(6, 5)
  poisoned = student.at[3].set(jnp.nan)
  others = np.arange(6) != 3
  for f in (
    lambda s: entry.call(s, teacher, None),
    lambda s: _gradient(entry, s, teacher),
  ):
    np.testing.assert_array_equal(f(poisoned)[others], f(student)[others])


@SMOOTH
def test_the_best_student_costs_nothing_and_stays_where_it_is(name):
  entry, (_, teacher) = ENTRIES[name], _logits(6, 5)
  student = entry.best(teacher)
  np.testing.assert_allclose(entry.call(student, teacher, None), 0, atol=1e-6)
  gradient = _gradient(entry, student, teacher)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


@SMOOTH
def test_a_constant_added_to_all_logits_changes_nothing(name):
  entry, (student, teacher) = ENTRIES[name], _logits(6, 5)
  np.testing.assert_allclose(
    entry.call(student + 3, teacher - 2, None),
    entry.call(student, teacher, None),
    rtol=1e-4,
    atol=1e-6,
  )


@SMOOTH
def test_gradients_equal_finite_differences(name):
  entry = ENTRIES[name]
  student, teacher = _logits(4, 5)
  direction = jnp.asarray(np.random.default_rng(9).normal(size=(4, 5)))

  def along(step):
    return entry.call(student + step * direction, teacher, None).sum()

  step = 1e-2
  slope = (along(step) - along(-step)) / (2 * step)
  exact = jnp.sum(_gradient(entry, student, teacher) * direction)
  chex.assert_trees_all_close(exact, slope, rtol=5e-3, atol=1e-4)
