"""Methods: patterns, exact means, the view of the roles, validation."""

import dataclasses
from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.method import (
  Loss,
  Method,
  Phase,
  Update,
  hits,
  label_loss,
)
from jaxkd.network import Network
from jaxkd.params import match, merge_params, split_params
from jaxkd.roles import Nets, initialise, key_of, usage
from tests.methods import toys

KEY = jax.random.key(0)
PARAMS = {
  "student": {"fc1": {"kernel": 1, "bias": 2}, "block": {"fc1": {"bias": 3}}},
  "teacher": {"fc1": {"bias": 4}},
}


@pytest.mark.parametrize(
  ("pattern", "path", "expected"),
  [
    ("student", "student/fc1/kernel", True),
    ("student/fc1", "student/fc1/kernel", True),
    ("student/fc1", "student/fc10/kernel", False),
    ("student/fc*", "student/fc10/kernel", True),
    ("student/*/kernel", "student/fc1/kernel", True),
    ("student/*/kernel", "student/block/fc1/kernel", False),
    ("student/**/kernel", "student/block/fc1/kernel", True),
    ("student/**/kernel", "student/kernel", True),
    ("**/bias", "teacher/fc1/bias", True),
    ("student/fc1/kernel/deep", "student/fc1/kernel", False),
    ("stud", "student/fc1/kernel", False),
    ("mask_*", "mask_2/embed/bias", True),
  ],
)
def test_patterns_name_subtrees(pattern, path, expected):
  assert match(pattern, path) is expected


@pytest.mark.parametrize(
  "patterns",
  [("student",), ("**/bias",), ("student/fc1", "teacher"), ("**",)],
)
def test_split_and_merge_are_a_round_trip(patterns):
  chosen, rest = split_params(PARAMS, patterns)
  assert merge_params(chosen, rest) == PARAMS
  assert merge_params(rest, chosen) == PARAMS
  assert len(jax.tree.leaves(chosen)) + len(jax.tree.leaves(rest)) == 4


def test_split_takes_what_a_pattern_names_and_no_more():
  chosen, rest = split_params(PARAMS, ("student/**/fc1/bias",))
  assert chosen == {
    "student": {"fc1": {"bias": 2}, "block": {"fc1": {"bias": 3}}}
  }
  assert rest == {
    "student": {"fc1": {"kernel": 1}},
    "teacher": {"fc1": {"bias": 4}},
  }


@pytest.mark.parametrize(
  ("pattern", "nearest"),
  [("studnt", "student"), ("student/fc2", "student/fc1")],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern, nearest):
  message = (
    rf"pattern '{pattern}' matches no parameter, did you mean '{nearest}'\? "
    r"\(roles: student, teacher\)"
  )
  with pytest.raises(ConfigError, match=message):
    split_params(PARAMS, (pattern,))


def test_a_mean_is_an_exact_sum_and_weight():
  values = jnp.arange(6.0).reshape(3, 2)
  loss = Loss.mean(values, metrics={"double": 2 * values[:, 0]})
  assert (loss.total, loss.weight) == (15, 6)
  assert loss.metrics["double"] == (12, 3)


@pytest.mark.parametrize(
  ("where", "total", "weight"),
  [([1, 0, 1], 10, 4), ([0, 0, 0], 0, 0), ([0.5, 0, 0], 0.5, 1)],
)
def test_a_mask_weighs_rows_and_covers_their_positions(where, total, weight):
  values = jnp.arange(6.0).reshape(3, 2)
  loss = Loss.mean(values, where=jnp.array(where))
  assert (loss.total, loss.weight) == (total, weight)


def test_a_batch_level_loss_weighs_as_many_as_there_are_examples():
  loss = Loss.mean(jnp.float32(3), where=jnp.array([1, 1, 0]))
  assert (loss.total, loss.weight) == (6, 2)
  assert Loss.mean(jnp.float32(3)).weight == 1


def test_nan_of_a_masked_row_reaches_neither_sum_nor_gradient():
  values, where = jnp.array([1.0, jnp.nan, 3.0]), jnp.array([1.0, 0.0, 1.0])

  def total(values):
    loss = Loss.mean(values, where=where, metrics={"same": values})
    return loss.total, loss

  gradient, loss = jax.grad(total, has_aux=True)(values)
  assert (loss.total, loss.weight) == (4, 2)
  assert loss.metrics["same"] == (4, 2)
  np.testing.assert_array_equal(gradient, [1, 0, 1])


def test_metrics_and_memory_carry_no_gradient():
  def total(x):
    loss = Loss.mean(x, metrics={"m": x**2}, memory={"kept": x**3})
    return loss.metrics["m"][0] + loss.memory["kept"].sum()

  np.testing.assert_array_equal(jax.grad(total)(jnp.ones(2)), [0, 0])


def test_half_precision_values_are_summed_in_float32():
  loss = Loss.mean(jnp.ones(3000, jnp.bfloat16))
  assert loss.total.dtype == jnp.float32
  assert loss.total == 3000


def test_the_label_loss_is_cross_entropy_with_accuracy():
  logits = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]))
  batch = {"label": jnp.array([0, 1, 1]), "mask": jnp.array([1.0, 1.0, 0.0])}
  loss = label_loss(logits, batch)
  np.testing.assert_allclose(loss.total, -np.log(0.5 * 0.75), rtol=1e-6)
  assert loss.metrics["accuracy"] == (2, 2)
  np.testing.assert_array_equal(hits(logits, batch), [True, True, False])


ROLES = {
  "student": Network(nets.MLP(features=(6, 3))),
  "teacher": Network(nets.MLP(features=(5, 3)), inputs=("audio",)),
}
BATCH = {"image": jnp.ones((2, 4)), "audio": jnp.ones((2, 7))}


def _nets(roles=None, **options):
  roles = roles or ROLES
  variables = {
    role: network.init(KEY, BATCH) for role, network in roles.items()
  }
  params = {role: dict(v).pop("params") for role, v in variables.items()}
  collections = {
    role: {k: x for k, x in v.items() if k != "params"}
    for role, v in variables.items()
  }
  return Nets(roles, params, collections, **options)


def test_roles_run_by_name_or_index_and_are_noted():
  view = _nets()
  np.testing.assert_array_equal(
    view.student(BATCH).logits, view["student"](BATCH).logits
  )
  assert view.used == {"student"}


def test_an_unknown_role_is_refused_with_the_nearest_name():
  message = r"no role 'studnet', did you mean 'student'\? \(has student, tea"
  with pytest.raises(ConfigError, match=message):
    _nets().studnet(BATCH)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    ({"batch": {"image": 1}}, "role 'teacher': the batch has no entry 'audio'"),
    ({"batch": BATCH, "taps": ("fc9",)}, "role 'teacher': tap path 'fc9'"),
    ({"batch": BATCH, "edits": {"f": abs}}, "role 'teacher': edit path 'f'"),
  ],
  ids=["entry", "tap", "edit"],
)
def test_errors_of_a_network_name_its_role(call, message):
  with pytest.raises(ConfigError, match=message):
    _nets().teacher(**call)


def test_a_random_key_needs_a_training_step():
  assert jnp.array_equal(_nets(rng=KEY).key("noise"), key_of(KEY, "noise"))
  with pytest.raises(ConfigError, match="no random key 'noise' outside"):
    _nets().key("noise")


def test_keys_by_name_are_the_same_in_every_version():
  data = jax.random.key_data(key_of(jax.random.key(0), "init/student"))
  np.testing.assert_array_equal(data, (1791839841, 1671783599))


class Noisy(nn.Module):
  """Dropout and batch statistics."""

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(64)(x))
    return nets.BatchNorm(name="bn")(x, train=train)


def test_only_trained_roles_run_as_in_training():
  roles = {role: Network(Noisy()) for role in ("student", "teacher")}
  view = _nets(roles, training=("student",), rng=KEY)
  before = view.collections
  first, second = view.student(BATCH).value, view.student(BATCH).value
  assert not np.allclose(first, second)  # each call has its own dropout
  same = view.teacher(BATCH).value, view.teacher(BATCH).value
  np.testing.assert_array_equal(*same)
  after = view.collections["student"]["batch_stats"]["bn"]["mean"]
  assert after.any()
  assert not view.collections["teacher"]["batch_stats"]["bn"]["mean"].any()
  assert before is view.collections
  still = view.student(BATCH, train=False).value
  np.testing.assert_array_equal(still, view.student(BATCH, train=False).value)


def test_usage_finds_the_shapes_of_masks_and_gate():
  batch = toys.batch(5)
  found = usage(toys.mst_distill(), batch)
  shapes = {
    role: {name: x.shape for name, x in given.items()}
    for role, given in found.inputs.items()
  }
  assert shapes["teacher"] == {"image": (5, 12), "audio": (5, 8)}
  assert shapes["student"] == {"image": (5, 12)}
  assert shapes["teacher_1"] == {"feature": (5, 16)}
  assert shapes["aux_2"] == {"feature": (5, 8)}
  assert shapes["gate"] == {"logits": (5, 4)}


def test_usage_tells_the_roles_of_every_phase():
  found = usage(toys.mst_distill(), toys.batch(5)).roles
  masks = {"teacher_1", "teacher_2", "aux_1", "aux_2"}
  trio = {"teacher", "aux", "student"}
  assert set(found["collaborate"]) == trio
  assert set(found["specialise"]) == trio | masks
  assert set(found["distil"]) == trio | masks | {"gate"}


def test_a_role_that_nothing_uses_is_refused():
  method = toys.Toy(networks={**toys.student(), "spare": toys.mlp()})
  with pytest.raises(ConfigError, match="role 'spare' is used by no loss"):
    usage(method, toys.batch(4))


def test_equal_roles_of_two_methods_start_equal():
  batch = toys.batch(4)
  first, second = (
    initialise(method, KEY, usage(method, batch).inputs)[0]
    for method in (toys.kd(), toys.mst_distill())
  )
  for role in ("student", "teacher"):
    chex.assert_trees_all_equal(first[role], second[role])
  assert not np.array_equal(
    second["teacher_1"]["net"]["fc"]["kernel"],
    second["aux_1"]["net"]["fc"]["kernel"],
  )


@dataclasses.dataclass(frozen=True)
class Ones:
  """Weights of ones, of some collections or of one layer."""

  layer: str | None = None

  def load(self, like):
    found = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), like)
    if self.layer is None:
      return found
    return {"params": {self.layer: found["params"][self.layer]}}

  def fingerprint(self):
    return "ones"


def started(weights):
  method = toys.kd()
  teacher = dataclasses.replace(method.roles["teacher"], weights=weights)
  method = dataclasses.replace(method, teacher=teacher)
  inputs = usage(method, toys.batch(4)).inputs
  return initialise(method, KEY, inputs)[0]


def test_a_network_with_weights_starts_from_them():
  found = started(Ones())["teacher"]
  jax.tree.map(
    np.testing.assert_array_equal, found, jax.tree.map(np.ones_like, found)
  )


def test_what_the_weights_do_not_hold_is_drawn_as_without_them():
  drawn, found = started(None), started(Ones(layer="fc1"))
  first = found["teacher"].pop("fc1")
  assert np.all(first["kernel"] == 1)
  drawn["teacher"].pop("fc1")
  assert found["teacher"]
  chex.assert_trees_all_equal(found, drawn)


def _update(**options):
  values = {"trainable": ("student",), "loss": None, "optimizer": optax.sgd(1)}
  return Update(**{**values, **options})


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"every": 0}, "Update.every=0: expected at least 1"),
    ({"accumulate": -1}, "Update.accumulate=-1: expected at least 1"),
    ({"trainable": ()}, r"Update.trainable=\(\): expected a tuple"),
    ({"trainable": "student"}, "Update.trainable='student': expected a tuple"),
  ],
)
def test_wrong_updates_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    _update(**options)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, r"'distil': give either epochs or steps \(epochs=None, steps=None"),
    ({"epochs": 1, "steps": 2}, r"\(epochs=1, steps=2\)"),
    ({"epochs": -1}, "phase 'distil': its length is below 0"),
    ({"steps": -1}, "phase 'distil': its length is below 0"),
    ({"steps": 1, "updates": ()}, r"updates need names .*, got \[\]"),
    (
      {"steps": 1, "updates": (_update(), _update())},
      r"updates need names of their own, got \['loss', 'loss'\]",
    ),
  ],
)
def test_wrong_phases_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    Phase(**{"name": "distil", "updates": (_update(),), **options})


def test_the_length_of_a_phase_is_in_steps_or_epochs():
  phase = Phase(name="distil", updates=(_update(),), epochs=3)
  assert phase.length(steps_per_epoch=7) == 21
  assert dataclasses.replace(phase, epochs=None, steps=5).length(7) == 5


def test_an_optimizer_may_be_made_for_the_number_of_its_updates():
  given = []

  def make(updates):
    given.append(updates)
    return optax.sgd(1.0)

  every = _update(optimizer=make)
  second = _update(optimizer=make, name="second", every=2)
  ready = _update(optimizer=optax.sgd(0.1), name="ready")
  phase = Phase(name="p", updates=(every, second, ready), epochs=3)
  planned = phase.planned(steps_per_epoch=7)
  assert given == [21, 11]
  assert planned.updates[2] is ready
  for update in planned.updates:
    assert isinstance(update.optimizer, optax.GradientTransformation)


@pytest.mark.parametrize(
  ("trainable", "expected"),
  [
    (("student",), ("student",)),
    (("teacher/head", "student/**"), ("student", "teacher")),
    (("**/lora",), ("student", "teacher", "mask_1")),
    (("mask_*",), ("mask_1",)),
  ],
)
def test_a_phase_trains_the_roles_of_its_patterns(trainable, expected):
  phase = Phase(name="p", updates=(_update(trainable=trainable),), steps=1)
  assert phase.trains(("student", "teacher", "mask_1")) == expected


def test_a_method_has_roles_phases_and_a_prediction():
  assert Method.__abstractmethods__ == {"roles", "phases", "predict"}
  method = toys.Toy(networks=toys.student())
  assert isinstance(method.roles, Mapping)
  assert isinstance(method.phases, Sequence)
  assert method.memory == {}
