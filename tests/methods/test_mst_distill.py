"""MST-Distill beyond the reference vectors: routing, options, stages."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.method import Step
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.training.step import make_step
from tests.methods import toys

MASKS = ("teacher_1", "teacher_2", "aux_1", "aux_2")
KEY = jax.random.key(0)


@functools.cache
def _inputs(roles):
  """What the roles of these names are given, but for the batch's size."""
  del roles
  return usage(toys.mst_distill(), toys.batch(8)).inputs


def _start(method, batch):
  """Draws variables; they depend on shapes and names, not on options."""
  if batch["image"].ndim > 2:
    return initialise(method, KEY, usage(method, batch).inputs)
  inputs = _inputs(tuple(method.roles))
  given = {role: inputs[role] for role in method.roles}
  return initialise(method, KEY, given)


def _batch(size, **options):
  """A batch with made-up logits of four specialists."""
  random = np.random.default_rng(1)
  logits = random.normal(size=(size, 4, 4)).astype(np.float32)
  return {**toys.batch(size, **options), "specialists": logits}


def _distil(method, batch, *, epoch=0):
  """Returns the loss of stage 3 and gradients of student and gate."""
  params, collections = _start(method, batch)

  def mean(trained):
    view = Nets(method.roles, {**params, **trained}, collections, rng=KEY)
    step = Step(index=jnp.int32(0), epoch=jnp.int32(epoch))
    loss = method.distil(view, batch, step)
    return loss.total / loss.weight, loss

  trained = {role: params[role] for role in ("student", "gate")}
  run = jax.value_and_grad(mean, has_aux=True)
  (value, loss), gradients = jax.jit(run)(trained)
  return value, loss, gradients


def _terms(loss):
  return {
    name: total / weight for name, (total, weight) in loss.metrics.items()
  }


def _size(tree):
  return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


# Routing.


def test_each_example_learns_from_its_own_teacher():
  method, batch = toys.mst_distill(), _batch(32)
  params, collections = _start(method, batch)
  view = Nets(method.roles, params, collections)
  gate = view.gate({"logits": view.student(batch).logits}).value
  params["gate"]["net"]["fc2"]["bias"] -= gate.mean(0)  # choices now differ

  @jax.jit
  def terms(batch):
    view = Nets(method.roles, params, collections)
    return _terms(method.distil(view, batch, Step(index=0, epoch=0)))

  whole = terms(batch)
  assert sum(whole[f"route/{name}"] > 0 for name in MASKS) > 1
  alone = [
    terms({name: rows[n : n + 1] for name, rows in batch.items()})["kd"]
    for n in range(32)
  ]
  np.testing.assert_allclose(whole["kd"], np.mean(alone), rtol=1e-5)


def test_all_teachers_are_averaged_when_all_are_chosen():
  method, batch = toys.mst_distill(k=4), _batch(8)
  _, loss, _ = _distil(method, batch)
  view = Nets(method.roles, *_start(method, batch))
  student, teachers = view.student(batch).logits, batch["specialists"]
  kd = [losses.kl(student, teachers[:, n], temperature=4.0) for n in range(4)]
  np.testing.assert_allclose(_terms(loss)["kd"], np.mean(kd), rtol=1e-5)


def test_random_routing_is_uniform():
  method = toys.mst_distill(random_routing=True)
  batch = toys.batch(50)
  batch["specialists"] = np.zeros((50, 4, 4), np.float32)
  params, collections = _start(method, batch)

  def counts(rng):
    view = Nets(method.roles, params, collections, rng=rng)
    loss = method.distil(view, batch, Step(index=0, epoch=0))
    return jnp.stack([loss.metrics[f"route/{name}"][0] for name in MASKS])

  seen = jax.jit(jax.vmap(counts))(jax.random.split(KEY, 80)).sum(0)
  assert seen.sum() == 4000
  chi_square = ((seen - 1000) ** 2 / 1000).sum()
  assert chi_square < 16.27  # 0.1% with 3 degrees of freedom


def test_random_routing_measures_no_routes_on_the_test_split():
  method, batch = toys.mst_distill(random_routing=True), toys.batch(4)
  params, collections = _start(method, batch)
  assert method.measure(Nets(method.roles, params, collections), batch) == {}
  learned = toys.mst_distill()
  measures = learned.measure(Nets(learned.roles, params, collections), batch)
  np.testing.assert_allclose(sum(measures.values()), np.ones(4))


# Gradients of the gate.


def test_the_gate_learns_from_load_balance_alone():
  batch = _batch(8)
  _, _, without = _distil(toys.mst_distill(w_lb=0.0), batch)
  _, _, balance = _distil(toys.mst_distill(w_task=0.0, w_kl=0.0), batch)
  _, _, whole = _distil(toys.mst_distill(), batch)
  assert _size(without["gate"]) == 0
  assert _size(whole["gate"]) > 1e-5
  chex.assert_trees_all_close(balance["gate"], whole["gate"], atol=1e-7)


def test_straight_through_gives_the_gate_a_kd_gradient_and_no_other_loss():
  plain = toys.mst_distill(w_lb=0.0)
  through = dataclasses.replace(plain, gate_weighting="straight_through")
  batch = _batch(8)
  value, _, _ = _distil(plain, batch)
  same, _, gradients = _distil(through, batch)
  np.testing.assert_allclose(value, same, rtol=1e-6)
  assert _size(gradients["gate"]) > 1e-5


@pytest.mark.parametrize("stop", [False, True])
def test_load_balance_reaches_the_student_unless_it_is_stopped(stop):
  method = toys.mst_distill(w_task=0.0, w_kl=0.0, stop_gate_input=stop)
  _, _, gradients = _distil(method, _batch(8))
  assert (_size(gradients["student"]) == 0) is stop
  assert _size(gradients["gate"]) > 1e-5


@pytest.mark.parametrize(("scale", "factor"), [(None, 0.25), (1.0, 1.0)])
def test_load_balance_is_scaled(scale, factor):
  method, batch = toys.mst_distill(lb_scale=scale), _batch(8, real=6)
  _, loss, _ = _distil(method, batch)
  params, collections = _start(method, batch)
  view = Nets(method.roles, params, collections)
  gate = view.gate({"logits": view.student(batch).logits}).value
  expected = factor * losses.load_balance_kl(gate[:6])
  np.testing.assert_allclose(_terms(loss)["load_balance"], expected, rtol=1e-4)


def test_weights_of_later_epochs_scale_the_terms():
  method, batch = toys.mst_distill(), _batch(8)
  value, loss, _ = _distil(method, batch, epoch=31)
  terms = _terms(loss)
  expected = terms["task"] + 0.25 * terms["kd"] + 0.9**4 * terms["load_balance"]
  np.testing.assert_allclose(value, expected, rtol=1e-5)


# Roles, masks, phases.


def test_masks_attend_over_the_dimensions_of_a_feature():
  params, _ = _start(toys.mst_distill(), toys.batch(4))
  for name, size, hidden in (("teacher_1", 16, 8), ("aux_2", 8, 4)):
    net = params[name]["net"]
    assert net["embed"]["kernel"].shape == (size, hidden * size)
    assert net["attention"]["query"]["kernel"].shape == (hidden, 2, hidden // 2)


def test_a_stage_trains_what_it_names():
  method = toys.mst_distill()
  trained = {p.name: p.trains(tuple(method.roles)) for p in method.phases}
  assert trained == {
    "collaborate": ("student", "aux", "teacher")[::-1],
    "specialise": MASKS,
    "distil": ("student", "gate"),
  }


@pytest.mark.slow
def test_every_mask_has_its_own_optimizer_and_loss():
  method, batch = toys.mst_distill(), toys.batch(8)
  specialise = method.phases[1]
  state, frozen = toys.begin(method, batch, phase=1)
  moments = {k: list(v[0].mu) for k, v in state.optimizer.items()}
  assert moments == {f"specialise/{name}": [name] for name in MASKS}
  step = jax.jit(make_step(method, specialise, steps_per_epoch=1))
  after, metrics = step(state, frozen, batch)
  view = Nets(method.roles, frozen["params"] | state.params)
  student = view.student(batch).logits
  for name in MASKS:
    kd = method.kd(method.masked(view, batch, name)[0], student)
    total, weight = metrics[f"specialise/{name}"]
    np.testing.assert_allclose(total / weight, kd.mean(), rtol=1e-4)
    assert 0 < metrics[f"mask_mean/{name}"][0] / 8 < 1
    before = state.params[name]["net"]["fc"]["kernel"]
    assert _size(after.params[name]["net"]["fc"]["kernel"] - before) > 1e-3


def test_every_stage_ends_where_its_own_validation_is_lowest():
  method, batch = toys.mst_distill(), toys.batch(8, real=6)
  params, collections = _start(method, batch)
  view = Nets(method.roles, params, collections)
  values = [
    float(loss.total / loss.weight)
    for loss in (p.validate(view, batch) for p in method.phases)
  ]
  student = view.student(batch).logits
  task = losses.cross_entropy(student, batch["label"])[:6].mean()
  masks = [
    method.kd(method.masked(view, batch, name)[0], student)[:6].mean()
    for name in MASKS
  ]
  together = sum(
    losses.cross_entropy(view[role](batch).logits, batch["label"])[:6].mean()
    for role in ("teacher", "aux", "student")
  )
  expected = (together, np.mean(masks), task)
  np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.slow
def test_the_student_starts_stage_three_from_its_weights_of_stage_one(tmp_path):
  still = toys.mst_distill(use_masks=False, epochs=1, lr=0.0)
  whole = toys.trainer(still, tmp_path / "whole").fit().params["student"]
  first = dataclasses.replace(still, epochs=0)
  alone = toys.trainer(first, tmp_path / "first").fit().params["student"]
  fresh = _start(still, toys.batch(8))[0]["student"]
  chex.assert_trees_all_equal(whole, alone)
  assert _size(jax.tree.map(jnp.subtract, fresh, dict(whole))) > 1e-3


def test_moments_of_stage_one_are_not_carried():
  state, _ = toys.begin(toys.mst_distill(), toys.batch(4), phase=2)
  (adam, _) = state.optimizer["loss"]
  assert isinstance(adam, optax.ScaleByAdamState)
  assert adam.count == 0
  assert _size(adam.mu) == 0


@pytest.mark.parametrize(
  ("options", "roles", "phases"),
  [
    ({"epochs_s2": 0}, {*MASKS, "gate"}, ["collaborate", "distil"]),
    ({"use_masks": False}, {"gate"}, ["collaborate", "distil"]),
    ({"epochs": 0}, {*MASKS}, ["collaborate", "specialise"]),
    ({"epochs": 0, "epochs_s2": 0}, set(), ["collaborate"]),
  ],
)
def test_a_stage_of_no_length_is_left_out(options, roles, phases):
  method = toys.mst_distill(**options)
  assert set(method.roles) == {"teacher", "aux", "student"} | roles
  assert [phase.name for phase in method.phases] == phases
  assert set(usage(method, toys.batch(4)).inputs) == set(method.roles)


def test_without_masks_the_specialists_are_the_plain_networks():
  method, batch = toys.mst_distill(use_masks=False), toys.batch(4)
  params, collections = _start(method, batch)
  view = Nets(method.roles, params, collections)
  logits = method.specialist_logits(view, batch)
  plain = [view[role](batch).logits for role in ("teacher", "aux")]
  for n in range(4):
    np.testing.assert_array_equal(logits[:, n], plain[n // 2])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      {"k": 5},
      r"MSTDistill.k=5: expected 1 to 4, .* \(teacher_1, teacher_2, aux_1, aux",
    ),
    ({"k": 0}, "MSTDistill.k=0: expected 1 to 4"),
    ({"lb": "l2"}, "MSTDistill.lb='l2': expected one of kl, cv"),
    (
      {"gate_weighting": "soft"},
      "gate_weighting='soft': expected one of none,",
    ),
  ],
)
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    toys.mst_distill(**options)


def test_a_layer_that_does_not_exist_is_named_with_its_role():
  method = toys.mst_distill(aux_layers=("fc1", "fc9"))
  with pytest.raises(ConfigError, match="role 'aux': edit path 'fc9': no such"):
    usage(method, toys.batch(4))


# Dense prediction.


class Pixels(nn.Module):
  """Logits [B, H, W, 4] of any maps side by side."""

  @nn.compact
  def __call__(self, *maps):
    x = nn.Conv(8, (3, 3), name="conv")(jnp.concatenate(maps, axis=-1))
    return nn.Conv(4, (1, 1), name="head")(nn.relu(x))


def _dense():
  """Returns MST-Distill on maps and a batch whose last example is padding."""
  random = np.random.default_rng(0)
  method = toys.mst_distill(
    student=Network(Pixels()),
    aux=Network(Pixels(), inputs=("audio",)),
    teacher=Network(Pixels(), inputs=("image", "audio")),
    teacher_layers=("conv",),
    aux_layers=("conv",),
    ignore_label=0,
  )
  batch = {
    "image": random.normal(size=(4, 6, 5, 3)).astype(np.float32),
    "audio": random.normal(size=(4, 6, 5, 2)).astype(np.float32),
    "label": random.integers(0, 4, (4, 6, 5)).astype(np.int32),
    "mask": np.array([1, 1, 1, 0], np.float32),
  }
  batch["label"][1] = 0  # an example without any label
  return method, batch


def test_dense_labels_count_where_they_are_not_ignored():
  method, batch = _dense()
  random = np.random.default_rng(1)
  logits = random.normal(size=(4, 6, 5, 4)).astype(np.float32)

  def mean(logits):
    task = method.task(logits, batch)
    return jnp.sum(task * batch["mask"]) / jnp.sum(batch["mask"])

  value, gradient = jax.value_and_grad(mean)(logits)
  real = (batch["label"] != 0) & (batch["mask"][:, None, None] > 0)
  cross_entropy = losses.cross_entropy(logits, batch["label"])
  np.testing.assert_allclose(value, cross_entropy[real].mean(), rtol=1e-5)
  np.testing.assert_array_equal(gradient[~real], 0)


@pytest.mark.slow
def test_all_stages_train_on_maps_with_a_dense_gate():
  method, batch = _dense()
  params, _ = _start(method, batch)
  assert "pointwise" in params["gate"]["net"]
  assert "spatial_reduce" in params["teacher_1"]["net"]
  for n, phase in enumerate(method.phases):
    state, frozen = toys.begin(method, batch, phase=n)
    step = jax.jit(make_step(method, phase, steps_per_epoch=1))
    after, metrics = step(state, frozen, batch)
    assert metrics["finite"]
    for role in state.params:
      moved = jax.tree.map(jnp.subtract, after.params[role], state.params[role])
      assert _size(moved) > 1e-4


def test_dense_distillation_is_the_mean_over_positions():
  method, _ = _dense()
  random = np.random.default_rng(1)
  student, teacher = random.normal(size=(2, 4, 6, 5, 4)).astype(np.float32)
  values = losses.kl(student, teacher, temperature=4.0)
  np.testing.assert_allclose(
    method.kd(student, teacher), values.mean((1, 2)), rtol=1e-5
  )
