"""What every public loss promises; one without an entry fails here."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd import catalog, losses
from tests.losses.entries import entries

ENTRIES = entries()
# Described like losses, but values on the way to one: nothing is minimal.
PARTS = {
  "balanced_assignment",
  "implicit_reward",
  "log_ratio_advantage",
  "mixed_importance",
  "reward_to_go",
  "teacher_reward",
  "whiten",
}


def _which(condition):
  names = [name for name, entry in ENTRIES.items() if condition(entry)]
  return pytest.mark.parametrize("name", names)


ALL = _which(lambda entry: True)
SMOOTH = _which(lambda entry: entry.differentiable)
LOGITS = _which(lambda entry: entry.differentiable and entry.logits)


def _arrays(entry, batch=6, leading=()):
  shape = (*leading, batch, *entry.shape[1:])
  random = np.random.default_rng(sum(shape))
  return tuple(
    jnp.asarray(random.normal(size=shape), jnp.float32) for _ in "st"
  )


@functools.cache
def _compiled(entry):
  """The loss and its gradient, compiled once for all promises."""
  if not entry.differentiable:
    return jax.jit(lambda *arrays: (entry.call(*arrays), None))

  @jax.jit
  def both(student, teacher, where):
    values, pull = jax.vjp(lambda s: entry.call(s, teacher, where), student)
    return values, pull(jnp.ones_like(values))[0]

  return both


def _call(entry, student, teacher, where=None):
  return _compiled(entry)(student, teacher, where)[0]


def _gradient(entry, student, teacher, where=None):
  return _compiled(entry)(student, teacher, where)[1]


def test_every_public_loss_has_an_entry():
  assert catalog.public().keys() - PARTS <= set(ENTRIES) <= set(losses.__all__)


@ALL
def test_the_result_has_one_value_per_example_or_is_a_scalar(name):
  entry = ENTRIES[name]
  values = _call(entry, *_arrays(entry))
  assert values.shape == (() if entry.batch_level else (6,))


@pytest.mark.slow  # runs every operation by itself
@ALL
def test_jit_changes_nothing(name):
  entry = ENTRIES[name]
  student, teacher = _arrays(entry)
  compiled = _call(entry, student, teacher)
  expected = entry.call(student, teacher, None)
  np.testing.assert_allclose(compiled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # compiles every loss once more
@ALL
def test_vmap_equals_a_loop(name):
  entry = ENTRIES[name]
  student, teacher = _arrays(entry, leading=(3,))
  values = jax.jit(jax.vmap(lambda s, t: entry.call(s, t, None)))(
    student, teacher
  )
  for value, s, t in zip(values, student, teacher, strict=True):
    expected = _call(entry, s, t)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # compiles every loss once more
@SMOOTH
def test_half_precision_is_computed_in_float32(name):
  entry = ENTRIES[name]
  student, teacher = (x.astype(jnp.bfloat16) for x in _arrays(entry))
  values = _call(entry, student, teacher)
  assert values.dtype == jnp.float32
  exact = (x.astype(jnp.float32) for x in (student, teacher))
  expected = _call(entry, *exact)
  np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)
  assert _gradient(entry, student, teacher).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  "name",
  [
    name
    if name in ("dist", "pkt", "rkd", "similarity_preserving")
    else pytest.param(name, marks=pytest.mark.slow)
    for name, entry in ENTRIES.items()
    if entry.batch_level and entry.differentiable
  ],
)
def test_a_batch_on_eight_devices_gives_what_one_gives(name):
  entry = ENTRIES[name]
  arrays = _arrays(entry, batch=16)

  @jax.jit
  def both(student, teacher):
    loss = lambda s: entry.call(s, teacher, None)
    return jax.value_and_grad(loss)(student)

  mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  value, gradient = both(*(jax.device_put(x, sharding) for x in arrays))
  expected, its_gradient = both(*arrays)
  assert len(value.sharding.device_set) == 8
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, its_gradient, rtol=1e-4, atol=1e-6)


@_which(lambda entry: entry.finite)
def test_huge_inputs_give_finite_values_and_gradients(name):
  entry = ENTRIES[name]
  student, teacher = (1e4 * jnp.sign(x) for x in _arrays(entry))
  assert np.isfinite(_call(entry, student, teacher)).all()
  if entry.differentiable:
    assert np.isfinite(_gradient(entry, student, teacher)).all()


@_which(lambda entry: entry.finite)
def test_equal_entries_everywhere_give_finite_values_and_gradients(name):
  entry = ENTRIES[name]
  student, teacher = (jnp.zeros_like(x) for x in _arrays(entry))
  assert np.isfinite(_call(entry, student, teacher)).all()
  if entry.differentiable:
    assert np.isfinite(_gradient(entry, student, teacher)).all()


@_which(lambda entry: entry.absent and entry.differentiable)
def test_a_class_at_minus_infinity_in_both_leaves_all_finite(name):
  entry = ENTRIES[name]
  student, teacher = (x.at[:, 2].set(-jnp.inf) for x in _arrays(entry))
  assert np.isfinite(_call(entry, student, teacher)).all()
  assert np.isfinite(_gradient(entry, student, teacher)).all()


@pytest.mark.slow  # compiles every loss once more
@LOGITS
def test_one_class_costs_nothing(name):
  entry = ENTRIES[name]
  student, teacher = (x[..., :1] for x in _arrays(entry))
  values = _call(entry, student, teacher)
  np.testing.assert_array_equal(values, np.zeros_like(values))
  gradient = _gradient(entry, student, teacher)
  np.testing.assert_array_equal(gradient, np.zeros_like(student))


@pytest.mark.slow  # compiles every loss once more
@SMOOTH
def test_a_batch_of_one_gives_the_value_of_its_example(name):
  entry = ENTRIES[name]
  student, teacher = _arrays(entry)
  one = _call(entry, student[:1], teacher[:1])
  if not entry.batch_level:
    expected = _call(entry, student, teacher)[:1]
    np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
  elif entry.masks:
    expected = _call(entry, student, teacher, jnp.arange(6) < 1)
    np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
  assert np.isfinite(one).all()
  assert np.isfinite(_gradient(entry, student[:1], teacher[:1])).all()


@_which(lambda entry: entry.masks)
def test_nan_in_masked_rows_reaches_neither_value_nor_gradient(name):
  entry = ENTRIES[name]
  student, teacher = _arrays(entry)
  where = jnp.array([1, 0, 1, 1, 0, 1], jnp.float32)
  real = where > 0
  rows = real.reshape(6, *(1,) * (student.ndim - 1))
  poisoned, bad = (jnp.where(rows, x, jnp.nan) for x in (student, teacher))
  values = _call(entry, poisoned, bad, where)
  expected = _call(entry, student[real], teacher[real])
  if not entry.batch_level:
    np.testing.assert_array_equal(values[~real], 0)
    values = values[real]
  np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
  if not entry.differentiable:
    return
  gradient = _gradient(entry, poisoned, bad, where)
  np.testing.assert_array_equal(gradient[~real], 0)
  expected = _gradient(entry, student[real], teacher[real])
  np.testing.assert_allclose(gradient[real], expected, rtol=1e-4, atol=1e-6)


@_which(lambda entry: entry.differentiable and not entry.batch_level)
def test_an_example_does_not_depend_on_the_others(name):
  entry = ENTRIES[name]
  student, teacher = _arrays(entry)
  poisoned = student.at[3].set(jnp.nan)
  others = np.arange(6) != 3
  for f in (
    lambda s: _call(entry, s, teacher),
    lambda s: _gradient(entry, s, teacher),
  ):
    np.testing.assert_allclose(
      f(poisoned)[others], f(student)[others], rtol=1e-6, atol=1e-7
    )


@_which(lambda entry: entry.differentiable and entry.best is not None)
def test_the_best_student_stays_where_it_is(name):
  entry = ENTRIES[name]
  _, teacher = _arrays(entry)
  student = entry.best(teacher)
  if entry.least is not None:
    values = _call(entry, student, teacher)
    np.testing.assert_allclose(values, entry.least, atol=1e-6)
  gradient = _gradient(entry, student, teacher)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)


@LOGITS
def test_a_constant_added_to_all_logits_changes_nothing(name):
  entry = ENTRIES[name]
  student, teacher = _arrays(entry)
  shifted = _call(entry, student + 3, teacher - 2)
  expected = _call(entry, student, teacher)
  np.testing.assert_allclose(shifted, expected, rtol=1e-4, atol=1e-6)


@_which(lambda entry: entry.differentiable and not entry.stops)
def test_gradients_equal_finite_differences(name):
  entry = ENTRIES[name]
  student, teacher = _arrays(entry, batch=4)
  direction = np.random.default_rng(9).normal(size=student.shape)
  direction = jnp.asarray(direction, jnp.float32)

  def along(step):
    return _call(entry, student + step * direction, teacher).sum()

  step = entry.step
  slope = (along(step) - along(-step)) / (2 * step)
  exact = jnp.sum(_gradient(entry, student, teacher) * direction)
  chex.assert_trees_all_close(exact, slope, rtol=5e-3, atol=1e-3)
