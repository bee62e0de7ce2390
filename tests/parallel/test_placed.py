"""Types and memories of roles in compiled steps, on one device."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import config, data, experiment
from jaxkd.errors import ConfigError
from jaxkd.experiment import Experiment
from jaxkd.method import label_loss
from jaxkd.parallel import (
  Frozen,
  FSDPRules,
  Mesh,
  MLPRules,
  Placement,
  TransformerRules,
  frozen,
  held,
)
from jaxkd.roles import initialise, usage
from jaxkd.training.ideal import ideal
from jaxkd.training.outline import Outliner
from jaxkd.training.phase import Settings
from jaxkd.training.program import Programs
from tests.methods import toys
from tests.parallel import tiny

ROOT = pathlib.Path(__file__).parents[2]
ONE = Placement(Mesh())
BFLOAT16 = {"teacher": Frozen(dtype="bfloat16")}
HOST = {"teacher": Frozen(memory="pinned_host")}


def _dtypes(tree):
  return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def _products(text):
  """Types of the operands of all matrix products of a lowered program."""
  found = re.findall(
    r"dot_general .* : \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)", text
  )
  return [left for left, right in found if left == right]


def test_a_frozen_role_is_kept_in_bfloat16_and_computes_in_float32():
  placement = Placement(Mesh(), frozen=BFLOAT16)
  program, (state, given, batch) = tiny.compiled(
    tiny.distill("mlp"), "mlp", placement
  )
  assert _dtypes(given["params"]["teacher"]) == {"bfloat16"}
  arguments, _ = program.step.lowered.args_info
  assert _dtypes(arguments[1]["params"]) == {"bfloat16"}
  assert _dtypes(arguments[0].params) == {"float32"}
  assert set(_products(program.step.lowered.as_text())) == {"f32"}
  _, metrics = program.step(state, given, batch)
  exact, arguments = tiny.compiled(tiny.distill("mlp"), "mlp", ONE)
  _, expected = exact.step(*arguments)
  assert metrics["loss"][0] != expected["loss"][0]  # rounded weights
  np.testing.assert_allclose(metrics["loss"][0], expected["loss"][0], rtol=1e-2)


def test_a_role_learns_in_bfloat16_with_float32_masters():
  options = {"student": {"dtype": "bfloat16"}}
  program, (state, given, batch) = tiny.compiled(
    tiny.distill("mlp", **options), "mlp", ONE
  )
  products = _products(program.step.lowered.as_text())
  # Forward 3, of weights 3 and of inputs 2; the teacher 3.
  assert (products.count("bf16"), products.count("f32")) == (8, 3)
  state, metrics = program.step(state, given, batch)
  assert _dtypes(state.params) == {"float32"}
  moments = state.optimizer["loss"][0]
  assert _dtypes((moments.mu, moments.nu)) == {"float32"}
  assert metrics["loss"][0].dtype == jnp.float32


def test_a_role_is_kept_in_fewer_bits_from_its_last_phase_on(tmp_path):
  placement = Placement(Mesh(), frozen=BFLOAT16)
  method = toys.kd()
  programs = Programs(method)
  trainer = toys.trainer(
    method, tmp_path, placement=placement, programs=programs
  )
  fitted = trainer.fit()
  learned = programs.phases["teach"].step.lowered.args_info[0][0]
  assert _dtypes(learned.params["teacher"]) == {"float32"}
  shown = programs.phases["distil"].step.lowered.args_info[0][1]
  assert _dtypes(shown["params"]["teacher"]) == {"bfloat16"}
  assert _dtypes(fitted.params["teacher"]) == {"bfloat16"}
  assert _dtypes(fitted.params["student"]) == {"float32"}
  again = toys.trainer(method, tmp_path, placement=placement).fit(train=False)
  jax.tree.map(np.testing.assert_array_equal, again.params, fitted.params)


class Weights:
  """Half of the weights; remembers where they were to be put."""

  def load(self, like):
    self.like = like
    kernel = like["params"]["fc2"]["kernel"]
    value = jnp.ones(kernel.shape, kernel.dtype)
    return {
      "params": {"fc2": {"kernel": jax.device_put(value, kernel.sharding)}}
    }

  def fingerprint(self):
    return "ones"


def test_roles_are_drawn_and_loaded_where_they_lie():
  weights = Weights()
  networks = {"student": toys.mlp(), "teacher": toys.mlp()}
  networks["teacher"] = dataclasses.replace(
    networks["teacher"], weights=weights
  )
  method = toys.Toy(
    networks=networks, updates=(toys.update(("student", "teacher"), _both),)
  )
  inputs = usage(method, toys.batch(8)).inputs
  expected, _ = initialise(method, jax.random.key(0), inputs)
  placement = Placement(Mesh(), {"teacher": MLPRules()})
  placed, _ = initialise(method, jax.random.key(0), inputs, placement.of_role)
  jax.tree.map(np.testing.assert_array_equal, placed, expected)
  specs = jax.tree.map(
    lambda leaf: tuple(leaf.sharding.spec), placed["teacher"]
  )
  assert specs["fc1"] == {"kernel": (None, "tensor"), "bias": ("tensor",)}
  assert specs["fc2"] == {"kernel": ("tensor", None), "bias": ()}
  wanted = weights.like["params"]["fc2"]["kernel"]
  assert tuple(wanted.sharding.spec) == ("tensor", None)


def _both(nets, batch, step):
  del step
  return label_loss(
    nets.student(batch).logits + nets.teacher(batch).logits, batch
  )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "decoder"])
def test_a_role_can_be_computed_again_for_the_gradient(kind):
  found = {}
  for remat in (False, True):
    options = {"depth": 4, "scan_layers": True, "remat": remat}
    program, arguments = tiny.compiled(
      tiny.distill(kind, student=options), kind, ONE
    )
    memory = program.step.executable.memory_analysis()
    _, metrics = program.step(*arguments)
    found[remat] = (
      len(_products(program.step.lowered.as_text())),
      memory.temp_size_in_bytes,
      float(metrics["loss"][0]),
    )
  assert found[True][0] > found[False][0]
  assert found[True][1] < 0.8 * found[False][1]
  np.testing.assert_allclose(found[True][2], found[False][2], rtol=1e-6)


def _supported():
  try:
    frozen.check_memory("teacher", HOST["teacher"], ONE.replicated)
  except ConfigError:
    return False
  return True


@pytest.mark.skipif(not _supported(), reason="no memory of the host")
def test_a_frozen_role_stays_on_the_host_between_steps():
  placement = Placement(Mesh(), frozen=HOST)
  program, (state, given, batch) = tiny.compiled(
    tiny.distill("mlp"), "mlp", placement
  )
  inputs = program.step.executable.input_shardings[0]
  kinds = {s.memory_kind for s in jax.tree.leaves(inputs[1]["params"])}
  assert kinds == {"pinned_host"}
  usual = jax.devices()[0].default_memory().kind
  assert {s.memory_kind for s in jax.tree.leaves(inputs[0])} == {usual}
  assert {x.sharding.memory_kind for x in jax.tree.leaves(given)} == kinds
  exact, others = tiny.compiled(tiny.distill("mlp"), "mlp", ONE)
  _, metrics = program.step(state, given, batch)
  _, expected = exact.step(*others)
  assert metrics["loss"][0] == expected["loss"][0]


@pytest.mark.skipif(not _supported(), reason="no memory of the host")
@pytest.mark.parametrize(
  "cache",
  [pytest.param(False, marks=pytest.mark.slow), True],
  ids=["live", "cached"],
)
def test_a_run_with_a_teacher_on_the_host_is_the_usual_one(tmp_path, cache):
  results = []
  for name, how in (("device", {}), ("host", HOST)):
    trainer = toys.trainer(
      toys.kd(),
      tmp_path / name,
      placement=Placement(Mesh(), frozen=how),
      settings={"cache_targets": cache},
    )
    results.append(trainer.fit())
  usual, away = results
  teacher = jax.tree.leaves(away.params["teacher"])
  assert {x.sharding.memory_kind for x in teacher} == {"pinned_host"}
  jax.tree.map(np.testing.assert_array_equal, usual.params, away.params)


def _planned(how):
  """The phases of KD, made ready to plan."""
  return Outliner(
    method=toys.kd(),
    splits=toys.splits(),
    batch_size=8,
    settings=Settings(evaluation_batch_size=8, target_batch_size=8),
    placement=Placement(Mesh(), frozen=how),
  )


def test_a_plan_counts_frozen_roles_as_they_are_kept():
  bytes_of = {}
  for name, how in (("usual", {}), ("half", BFLOAT16)):
    last = list(_planned(how).outlines())[-1]
    bytes_of[name] = held(last.frozen["params"]["teacher"])
  assert bytes_of["usual"] == 4 * (20 * 16 + 16 + 16 * 8 + 8 + 8 * 4 + 4)
  assert bytes_of["half"] == bytes_of["usual"] // 2


@pytest.mark.skipif(not _supported(), reason="no memory of the host")
def test_a_plan_counts_no_bytes_for_what_the_host_keeps():
  planned = _planned(HOST)
  last = list(planned.outlines())[-1]
  assert held(last.frozen["params"]["teacher"]) == 0
  assert held(last.state.params["student"]) > 0
  alone = ideal(planned.method, last, planned.placement)
  assert alone.flops > 0


def test_a_memory_that_does_not_work_is_refused_at_the_start(monkeypatch):
  def fail(*arguments):
    raise ValueError("no such memory")

  placement = Placement(Mesh(), frozen=HOST)
  monkeypatch.setattr(frozen.jax, "device_put", fail)
  message = (
    r"frozen role 'teacher': memory='pinned_host' does not work on \w+ devices "
    r"with jax .* \(memories: .*\); expected memory='device'"
  )
  with pytest.raises(ConfigError, match=message):
    placement.check({"teacher": {"fc1": np.zeros((4, 4))}})


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      {"dtype": "bfloat"},
      "Frozen.dtype='bfloat': expected one of .*'bfloat16'",
    ),
    (
      {"memory": "host"},
      "Frozen.memory='host': expected one of .*'pinned_host'",
    ),
  ],
)
def test_choices_of_frozen_roles_are_checked(options, message):
  with pytest.raises(ConfigError, match=message):
    Frozen(**options)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      {"rules": {"techer": FSDPRules()}},
      "no role 'techer', did you mean 'teach",
    ),
    ({"frozen": {"tutor": Frozen()}}, "frozen: no role 'tutor'"),
    ({"rules": {"teacher": (("fc7", ()),)}}, "KD: rules of role 'teacher', .*"),
  ],
)
def test_an_experiment_is_refused_before_its_workdir(
  tmp_path, options, message
):
  folder = tmp_path / "run"
  module = toys.mlp(8, 10)
  made = Experiment(
    method=toys.kd(student=module, teacher=module),
    task=data.Digits(flat=True),
    **options,
  )
  with pytest.raises(ConfigError, match=message):
    experiment.run(made, folder)
  assert not folder.exists()


def test_a_config_places_every_role_in_its_own_way():
  path = ROOT / "experiments" / "placed" / "digits.gin"
  placement = config.load(str(path)).placement
  assert placement.mesh == Mesh(data=2, fsdp=2, tensor=2)
  assert placement.rules == {
    "teacher": TransformerRules(),
    "student": FSDPRules(),
  }
  assert placement.frozen == BFLOAT16
  rule = ("fc1/kernel$", ("...", None, "fsdp"))
  changed = config.load(
    str(path),
    overrides=[
      f"Experiment.rules = {{'teacher': ({rule!r},)}}",
      "teacher/Frozen.memory = 'pinned_host'",
      "student/VisionTransformer.dtype = 'bfloat16'",
    ],
  )
  roles = changed.method.roles
  assert roles["student"].module.dtype == "bfloat16"
  assert roles["teacher"].module.dtype is None
  changed = changed.placement
  assert changed.rules == {"teacher": (rule,)}
  assert changed.frozen["teacher"].memory == "pinned_host"
