"""The training step: exact means, what moves and what stays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, nets
from jaxkd.errors import ConfigError
from jaxkd.method import Loss, hits
from jaxkd.network import Network
from tests.methods import toys
from tests.training.step_tools import Watched, host, make, run, toy


def _with_teacher(*updates, **options):
  networks = {"teacher": toys.teacher(), **toys.student()}
  return toy(*updates, networks=networks, **options)


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
    run(toy(toys.update(optimizer=optimizer, accumulate=n)), [batch, batch])
    for n in (1, parts)
  )
  # The same mean, divided at another place.
  tolerance = {"rtol": 1e-6, "atol": 1e-8}
  chex.assert_trees_all_close(whole[0].params, micro[0].params, **tolerance)
  chex.assert_trees_all_close(whole[1], micro[1], rtol=1e-6)


def test_a_batch_that_cannot_be_split_is_refused():
  with pytest.raises(ConfigError, match="accumulate=3: the batch of 8 cannot"):
    run(toy(toys.update(accumulate=3)), [toys.batch(8)])


def test_one_step_is_that_of_the_optimizer_on_the_mean():
  batch, update = toys.batch(8, real=5), toys.update()
  method = toy(update)
  start, _ = toys.begin(method, batch)
  state, (metrics,) = run(method, [batch])

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
  method = toy(toys.update())
  start = host(toys.begin(method, batch)[0].params)
  state, (metrics,) = run(method, [batch])
  chex.assert_trees_all_equal(host(state.params), start)
  assert metrics["finite"]


# Several updates.


def test_an_update_is_made_every_so_many_steps():
  update = toys.update(every=3)
  step, state, frozen = make(toy(update), toys.batch(4))
  moved, weights = [], []
  for _ in range(7):
    before = host(state.params["student"]["fc1"]["kernel"])
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

  method = toy(
    toys.update(name="a", loss=append(1)),
    toys.update(name="b", loss=append(2)),
    first_memory={"digits": jnp.float32(0)},
  )
  state, _ = run(method, [toys.batch(4)] * 2)
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
  state, (metrics,) = run(method, [batch])
  moved = {"params": state.params["student"]}
  gap = target - toys.mlp().apply(moved, batch)[0].logits
  np.testing.assert_allclose(metrics["gap"][0], 4 * jnp.mean(gap**2), rtol=1e-4)


def test_a_metric_with_the_name_of_its_update_is_refused():
  with pytest.raises(ConfigError, match="'task' reports a metric of its own"):
    run(toy(toys.update(name="task")), [toys.batch(4)])


def test_two_updates_that_report_one_metric_are_refused():
  updates = [toys.update(name=name) for name in "ab"]
  with pytest.raises(ConfigError, match="two updates report the metric 'acc"):
    run(toy(*updates), [toys.batch(4)])


# What is trained, frozen, donated.


def test_the_state_changes_in_place():
  method, batch = toy(toys.update(optimizer=optax.adam(1e-2))), toys.batch(4)
  step, state, frozen = make(method, batch)
  plan = step.lower(state, frozen, batch).compile().memory_analysis()
  states = sum(x.nbytes for x in jax.tree.leaves(state.optimizer))
  assert plan.alias_size_in_bytes > 1.4 * states  # and parameters
  assert plan.temp_size_in_bytes < states


def test_the_state_is_donated_and_the_frozen_trees_are_not():
  batch = toys.batch(4)
  step, state, frozen = make(_with_teacher(toys.update(loss=distil)), batch)
  before = host(frozen)
  step(state, frozen, batch)
  kept = (state.params, state.optimizer, state.step, state.failed)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(kept))
  chex.assert_trees_all_equal(host(frozen), before)


def test_a_frozen_role_is_no_part_of_the_state():
  method = _with_teacher(toys.update(loss=distil))
  state, frozen = toys.begin(method, toys.batch(4))
  assert list(state.params) == ["student"]
  assert list(frozen["params"]) == ["teacher"]


def test_a_part_of_a_role_is_trained_and_the_rest_stays_bit_for_bit():
  method = toy(
    toys.update(("student/fc2",), optimizer=optax.adamw(0.1, weight_decay=0.1))
  )
  batch = toys.batch(4)
  start = host(toys.begin(method, batch)[0])
  state, _ = run(method, [batch] * 3)
  before, after = start.params["student"], host(state.params["student"])
  for layer in ("fc1", "fc3"):
    chex.assert_trees_all_equal(before[layer], after[layer])
  assert not np.array_equal(before["fc2"]["kernel"], after["fc2"]["kernel"])
  moments = state.optimizer["loss"][0].mu
  assert list(moments["student"]) == ["fc2"]


def test_a_target_is_computed_live_unless_the_batch_has_it():
  method, batch = toys.kd(), toys.batch(4)
  _, (live,) = run(method, [batch], phase=1)
  state, frozen = toys.begin(method, batch, phase=1)
  variables = {"params": frozen["params"]["teacher"]}
  logits = toys.teacher().apply(variables, batch)[0].logits
  _, (given,) = run(method, [{**batch, "teacher_logits": logits}], phase=1)
  chex.assert_trees_all_close(live, given, rtol=1e-6)
  shifted = {**batch, "teacher_logits": logits + jnp.eye(4)}
  _, (other,) = run(method, [shifted], phase=1)
  assert abs(other["kd"][0] - live["kd"][0]) > 1e-3


# Memory, random draws, precision.


def test_memory_is_carried_from_step_to_step():
  def loss(view, batch, step):
    logits = view.student(batch).logits
    task = losses.cross_entropy(logits, batch["label"])
    average = 0.9 * view.memory["average"] + 0.1 * jnp.mean(task)
    memory = {"average": average}
    return Loss.mean(task, metrics={"task": task}, memory=memory)

  memory = {"average": jnp.float32(0), "untouched": jnp.float32(7)}
  method = toy(toys.update(loss=loss), first_memory=memory)
  state, record = run(method, [toys.batch(4)] * 3)
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
    method = toy(toys.update(loss=loss, accumulate=parts))
    _, record = run(method, [toys.batch(4)] * 3)
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

  _, record = run(toy(toys.update(loss=loss)), [toys.batch(4)] * 5)
  assert [float(m["epoch"][0]) for m in record] == [0, 0, 1, 1, 2]


def test_half_precision_networks_are_trained_in_float32():
  module = nets.MLP(features=(16, 8, toys.CLASSES), dtype=jnp.bfloat16)
  update = toys.update(optimizer=optax.adam(1e-2))
  batches = [toys.batch(32)] * 30
  rough = toy(update, networks={"student": Network(module)})
  state, record = run(rough, batches)
  _, exact = run(toy(update), batches)
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
  state, frozen = toys.begin(toy(), batch)
  logits = toys.mlp().apply({"params": state.params["student"]}, batch)[0]
  expected = hits(logits.logits, batch)[:6].sum()
  _, (metrics,) = run(toy(), [batch])
  assert metrics["accuracy"] == (expected, 6)


def test_batch_statistics_of_a_trained_role_move():
  method = toy(toys.update(), networks={"student": Network(Watched())})
  state, _ = run(method, [toys.batch(8)])
  stats = state.collections["student"]["batch_stats"]["bn"]
  assert stats["mean"].any()
