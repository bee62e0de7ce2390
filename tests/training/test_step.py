"""The training step: exact means, what moves, what stays, and failures."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkd import losses, nets
from jaxkd.errors import ConfigError
from jaxkd.method import Loss, hits
from jaxkd.network import Network
from jaxkd.training.step import first_failure, make_step
from tests.methods import toys


def _make(method, batch, *, phase=0):
  """Returns the jitted step of a phase, its state and the frozen trees."""
  state, frozen = toys.begin(method, batch, phase=phase)
  step = make_step(method, method.phases[phase], steps_per_epoch=2)
  return jax.jit(step, donate_argnums=0), state, frozen


def _run(method, batches, **options):
  """Returns the state and the metrics after steps on these batches."""
  step, state, frozen = _make(method, batches[0], **options)
  record = []
  for batch in batches:
    state, metrics = step(state, frozen, batch)
    record.append(metrics)
  return state, record


def _host(tree):
  """Copies arrays, keys as numbers, to the host."""

  def copy(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return np.array(leaf)

  return jax.tree.map(copy, tree)


def _toy(*updates, networks=None, **options):
  networks = networks or toys.student()
  return toys.Toy(networks=networks, updates=updates, **options)


def _with_teacher(*updates, **options):
  networks = {"teacher": toys.teacher(), **toys.student()}
  return _toy(*updates, networks=networks, **options)


def distil(view, batch, step):
  """KL to a teacher that is run at every step."""
  del step
  student = view.student(batch).logits
  kd = losses.kl(student, view.teacher(batch).logits)
  return Loss.mean(kd, where=batch["mask"], metrics={"kd": kd})


# Accumulation.


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_of_uneven_masks_is_exact(parts):
  batch = toys.batch(8, real=3)  # the last micro-batches have no example
  optimizer = optax.adam(1e-2)
  whole, micro = (
    _run(_toy(toys.update(optimizer=optimizer, accumulate=n)), [batch, batch])
    for n in (1, parts)
  )
  # The same mean, divided at another place.
  tolerance = {"rtol": 1e-6, "atol": 1e-8}
  chex.assert_trees_all_close(whole[0].params, micro[0].params, **tolerance)
  chex.assert_trees_all_close(whole[1], micro[1], rtol=1e-6)


def test_a_batch_that_cannot_be_split_is_refused():
  with pytest.raises(ConfigError, match="accumulate=3: the batch of 8 cannot"):
    _run(_toy(toys.update(accumulate=3)), [toys.batch(8)])


def test_one_step_is_that_of_the_optimizer_on_the_mean():
  batch, update = toys.batch(8, real=5), toys.update()
  method = _toy(update)
  start, _ = toys.begin(method, batch)
  state, (metrics,) = _run(method, [batch])

  def mean(params):
    logits = toys.mlp().apply({"params": params}, batch)[0].logits
    task = losses.cross_entropy(logits, batch["label"])
    return jnp.mean(task[:5])

  loss, gradient = jax.value_and_grad(mean)(start.params["student"])
  expected = jax.tree.map(
    lambda p, g: p - 0.1 * g, start.params["student"], gradient
  )
  chex.assert_trees_all_close(state.params["student"], expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"][0], 5 * loss, rtol=1e-5)
  assert metrics["loss"][1] == metrics["accuracy"][1] == 5


def test_a_batch_without_a_real_example_changes_no_parameter():
  batch = toys.batch(4, real=0)
  method = _toy(toys.update())
  start = _host(toys.begin(method, batch)[0].params)
  state, (metrics,) = _run(method, [batch])
  chex.assert_trees_all_equal(_host(state.params), start)
  assert metrics["finite"]


# Several updates.


def test_an_update_is_made_every_so_many_steps():
  update = toys.update(every=3)
  step, state, frozen = _make(_toy(update), toys.batch(4))
  moved, weights = [], []
  for _ in range(7):
    before = _host(state.params["student"]["fc1"]["kernel"])
    state, metrics = step(state, frozen, toys.batch(4))
    after = state.params["student"]["fc1"]["kernel"]
    moved.append(not np.array_equal(before, after))
    weights.append(float(metrics["loss"][1]))
  assert moved == [True, False, False, True, False, False, True]
  assert weights == [4, 0, 0, 4, 0, 0, 4]


def test_updates_of_one_step_are_made_in_their_order():
  def append(digit):
    def loss(view, batch, step):
      digits = 10 * view.memory["digits"] + digit
      quiet = toys.label(view, batch, step).replace(metrics={})
      return quiet.replace(memory={"digits": digits})

    return loss

  method = _toy(
    toys.update(name="a", loss=append(1)),
    toys.update(name="b", loss=append(2)),
    first_memory={"digits": jnp.float32(0)},
  )
  state, _ = _run(method, [toys.batch(4)] * 2)
  assert state.memory["digits"] == 1212


def test_the_second_update_sees_what_the_first_one_changed():
  def follow(view, batch, step):
    del step
    gap = view.teacher(batch).logits - view.student(batch).logits
    return Loss.mean((gap**2).mean(-1), metrics={"gap": (gap**2).mean(-1)})

  batch = toys.batch(4)
  second = toys.update(("teacher",), follow, name="second")
  method = _with_teacher(toys.update(name="first"), second)
  start, _ = toys.begin(method, batch)
  teacher = {"params": start.params["teacher"]}
  target = toys.teacher().apply(teacher, batch)[0].logits
  state, (metrics,) = _run(method, [batch])
  moved = {"params": state.params["student"]}
  gap = target - toys.mlp().apply(moved, batch)[0].logits
  np.testing.assert_allclose(metrics["gap"][0], 4 * jnp.mean(gap**2), rtol=1e-4)


def test_a_metric_with_the_name_of_its_update_is_refused():
  with pytest.raises(ConfigError, match="'task' reports a metric of its own"):
    _run(_toy(toys.update(name="task")), [toys.batch(4)])


def test_two_updates_that_report_one_metric_are_refused():
  updates = [toys.update(name=name) for name in "ab"]
  with pytest.raises(ConfigError, match="two updates report the metric 'acc"):
    _run(_toy(*updates), [toys.batch(4)])


# What is trained, frozen, donated.


def test_the_state_is_donated_and_the_frozen_trees_are_not():
  batch = toys.batch(4)
  step, state, frozen = _make(_with_teacher(toys.update(loss=distil)), batch)
  before = _host(frozen)
  step(state, frozen, batch)
  kept = (state.params, state.optimizer, state.step, state.failed)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(kept))
  chex.assert_trees_all_equal(_host(frozen), before)


def test_a_frozen_role_is_no_part_of_the_state():
  method = _with_teacher(toys.update(loss=distil))
  state, frozen = toys.begin(method, toys.batch(4))
  assert list(state.params) == ["student"]
  assert list(frozen["params"]) == ["teacher"]


def test_a_part_of_a_role_is_trained_and_the_rest_stays_bit_for_bit():
  method = _toy(
    toys.update(("student/fc2",), optimizer=optax.adamw(0.1, weight_decay=0.1))
  )
  batch = toys.batch(4)
  start = _host(toys.begin(method, batch)[0])
  state, _ = _run(method, [batch] * 3)
  before, after = start.params["student"], _host(state.params["student"])
  for layer in ("fc1", "fc3"):
    chex.assert_trees_all_equal(before[layer], after[layer])
  assert not np.array_equal(before["fc2"]["kernel"], after["fc2"]["kernel"])
  moments = state.optimizer["loss"][0].mu
  assert list(moments["student"]) == ["fc2"]


def test_a_target_is_computed_live_unless_the_batch_has_it():
  method, batch = toys.kd(), toys.batch(4)
  _, (live,) = _run(method, [batch], phase=1)
  state, frozen = toys.begin(method, batch, phase=1)
  variables = {"params": frozen["params"]["teacher"]}
  logits = toys.teacher().apply(variables, batch)[0].logits
  _, (given,) = _run(method, [{**batch, "teacher_logits": logits}], phase=1)
  chex.assert_trees_all_close(live, given, rtol=1e-6)
  shifted = {**batch, "teacher_logits": logits + jnp.eye(4)}
  _, (other,) = _run(method, [shifted], phase=1)
  assert abs(other["kd"][0] - live["kd"][0]) > 1e-3


# Failures.


class Watched(nn.Module):
  """A net with batch statistics."""

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nets.BatchNorm(name="bn")(nn.Dense(6, name="fc")(x), train=train)
    return nn.Dense(toys.CLASSES, name="head")(x)


@jax.custom_vjp
def _trap(x, armed):
  """The identity, with a NaN gradient where armed."""
  del armed
  return x


_trap.defvjp(
  lambda x, armed: (x, armed),
  lambda armed, g: (jnp.where(armed, jnp.nan, g), jnp.zeros_like(armed)),
)


def _failing(kind):
  """Returns a method whose step 2 is not finite, and its batches."""

  def loss(view, batch, step):
    logits = view.student(batch).logits
    bad = (step.index == 2).astype(jnp.float32)
    if kind == "gradient":
      logits = _trap(logits, bad)
    task = losses.cross_entropy(logits, batch["label"])
    if kind == "loss":
      task = task + jnp.log(1 - bad)
    seen = view.memory["seen"] + 1
    return Loss.mean(task, where=batch["mask"], memory={"seen": seen})

  method = _toy(
    toys.update(loss=loss, optimizer=optax.adam(1e-2)),
    networks={"student": Network(Watched())},
    first_memory={"seen": jnp.float32(0)},
  )
  batches = [toys.batch(8) for _ in range(5)]
  if kind == "batch":
    batches[2]["image"][3, 5] = np.nan
  return method, batches


@pytest.mark.parametrize("kind", ["batch", "loss", "gradient"])
def test_nothing_of_a_step_that_is_not_finite_is_kept(kind):
  method, batches = _failing(kind)
  step, state, frozen = _make(method, batches[0])
  seen, finite = [], []
  for batch in batches:
    state, metrics = step(state, frozen, batch)
    seen.append(_host(state))
    finite.append(bool(metrics["finite"]))
  assert [int(s.step) for s in seen] == [1, 2, 3, 4, 5]
  assert [int(s.failed) for s in seen] == [-1, -1, 2, 2, 2]
  assert finite[:3] == [True, True, False]
  assert seen[1].memory["seen"] == 2
  for later in seen[2:]:
    chex.assert_trees_all_equal(
      later.replace(step=0, failed=0), seen[1].replace(step=0, failed=0)
    )


def _shooting(scale):
  """SGD whose learning rate at step 2 is so large."""
  return optax.sgd(lambda count: jnp.where(count == 2, scale, 0.1))


@pytest.mark.parametrize("every", [1, 2])
def test_parameters_that_overflow_are_found_by_the_next_update(every):
  update = toys.update(
    optimizer=optax.chain(optax.trace(0.9), _shooting(jnp.inf)), every=every
  )
  method = _toy(update)
  step, state, frozen = _make(method, toys.batch(8))
  seen, finite, looked = [], [], []
  for _ in range(3 * every + 3):
    state, metrics = step(state, frozen, toys.batch(8))
    seen.append(_host(state))
    looked.append(int(first_failure(method.phases[0], state)))
    finite.append(bool(metrics["finite"]))
  bad, found = 2 * every, 3 * every
  assert finite == [True] * found + [False] * 3
  assert [int(s.failed) for s in seen] == [-1] * found + [found] * 3
  assert looked[: bad + 1] == [-1] * bad + [bad]
  for later in seen[found + 1 :]:  # and nothing is moved any more
    chex.assert_trees_all_equal(
      later.replace(step=0), seen[found].replace(step=0)
    )


def test_large_parameters_are_finite_though_their_sum_is_not():
  method, batch = _toy(toys.update()), toys.batch(4)
  step, state, frozen = _make(method, batch)
  bias = state.params["student"]["fc3"]["bias"]
  large = jax.tree.map(lambda x: x, state.params)
  large["student"]["fc3"]["bias"] = jnp.full_like(bias, 3e38)
  state, metrics = step(state.replace(params=large), frozen, batch)
  assert metrics["finite"]
  assert first_failure(method.phases[0], state) == -1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_entry_of_a_large_array_is_found_whatever_the_others_are(dtype):
  method, batch = _toy(toys.update()), toys.batch(4)
  _, state, _ = _make(method, batch)
  largest = float(jnp.finfo(dtype).max)
  large = np.full((7, 30, 100), largest, dtype)
  look = jax.jit(functools.partial(first_failure, method.phases[0]))

  def failed(array):
    params = {"student": {"kernel": array}}
    return look(state.replace(step=jnp.int32(5), params=params))

  for signs in (1, np.where(np.arange(7) % 2, -1, 1)[:, None, None]):
    array = (large * signs).astype(dtype)
    assert failed(array) == -1
    for bad in (np.nan, np.inf, -np.inf):
      changed = array.copy()
      changed[3, 17, 51] = bad
      assert failed(changed) == 4


def test_the_state_changes_in_place():
  method, batch = _toy(toys.update(optimizer=optax.adam(1e-2))), toys.batch(4)
  step, state, frozen = _make(method, batch)
  plan = step.lower(state, frozen, batch).compile().memory_analysis()
  states = sum(x.nbytes for x in jax.tree.leaves(state.optimizer))
  assert plan.alias_size_in_bytes > 1.4 * states  # and parameters
  assert plan.temp_size_in_bytes < states


def test_a_nan_in_padding_does_not_stop_a_phase():
  def loss(view, batch, step):
    del step
    task = losses.cross_entropy(
      view.student(batch).logits, batch["label"], where=batch["mask"]
    )
    noted = jnp.where(batch["mask"] > 0, 1.0, jnp.nan)
    return Loss.mean(task * noted, where=batch["mask"])

  state, _ = _run(_toy(toys.update(loss=loss)), [toys.batch(8, real=5)])
  assert state.failed == -1


# Memory, random draws, precision.


def test_memory_is_carried_from_step_to_step():
  def loss(view, batch, step):
    logits = view.student(batch).logits
    task = losses.cross_entropy(logits, batch["label"])
    average = 0.9 * view.memory["average"] + 0.1 * jnp.mean(task)
    memory = {"average": average}
    return Loss.mean(task, metrics={"task": task}, memory=memory)

  memory = {"average": jnp.float32(0), "untouched": jnp.float32(7)}
  method = _toy(toys.update(loss=loss), first_memory=memory)
  state, record = _run(method, [toys.batch(4)] * 3)
  expected = 0.0
  for metrics in record:
    expected = 0.9 * expected + 0.1 * float(metrics["task"][0]) / 4
  np.testing.assert_allclose(state.memory["average"], expected, rtol=1e-5)
  assert state.memory["untouched"] == 7


def test_draws_differ_between_steps_and_micro_batches_and_repeat_in_a_rerun():
  def loss(view, batch, step):
    noise = jax.random.normal(view.key("noise"))
    total = Loss.mean(view.student(batch).logits.sum(-1))
    return total.replace(metrics={"noise": (noise, jnp.float32(1))})

  def draws(parts):
    method = _toy(toys.update(loss=loss, accumulate=parts))
    _, record = _run(method, [toys.batch(4)] * 3)
    return [float(m["noise"][0]) for m in record]

  single, both = draws(1), draws(2)
  assert draws(1) == single
  assert len(set(single)) == 3
  second = np.subtract(both, single)  # those of the second micro-batch
  assert np.abs(second - single).min() > 1e-3


def test_the_epoch_of_a_step_counts_passes_over_the_data():
  def loss(view, batch, step):
    total = Loss.mean(view.student(batch).logits.sum(-1))
    epoch = step.epoch.astype(jnp.float32)
    return total.replace(metrics={"epoch": (epoch, jnp.float32(1))})

  _, record = _run(_toy(toys.update(loss=loss)), [toys.batch(4)] * 5)
  assert [float(m["epoch"][0]) for m in record] == [0, 0, 1, 1, 2]


def test_half_precision_networks_are_trained_in_float32():
  module = nets.MLP(features=(16, 8, toys.CLASSES), dtype=jnp.bfloat16)
  update = toys.update(optimizer=optax.adam(1e-2))
  batches = [toys.batch(32)] * 30
  rough = _toy(update, networks={"student": Network(module)})
  state, record = _run(rough, batches)
  _, exact = _run(_toy(update), batches)
  first, last = (float(record[n]["loss"][0]) / 32 for n in (0, -1))
  assert last < 0.8 * first
  np.testing.assert_allclose(last, exact[-1]["loss"][0] / 32, rtol=0.05)
  leaves = jax.tree.leaves((state.params, state.optimizer))
  assert {leaf.dtype for leaf in leaves} == {
    jnp.dtype("float32"),
    jnp.dtype("int32"),
  }


def test_accuracy_is_that_before_the_update_on_the_real_examples():
  batch = toys.batch(8, real=6)
  state, frozen = toys.begin(_toy(), batch)
  logits = toys.mlp().apply({"params": state.params["student"]}, batch)[0]
  expected = hits(logits.logits, batch)[:6].sum()
  _, (metrics,) = _run(_toy(), [batch])
  assert metrics["accuracy"] == (expected, 6)


def test_batch_statistics_of_a_trained_role_move():
  method = _toy(toys.update(), networks={"student": Network(Watched())})
  state, _ = _run(method, [toys.batch(8)])
  stats = state.collections["student"]["batch_stats"]["bn"]
  assert stats["mean"].any()
