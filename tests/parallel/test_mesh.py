"""Meshes and placement rules on the devices that there are."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxkd.errors import ConfigError
from jaxkd.parallel import (
  Frozen,
  FSDPRules,
  Mesh,
  MLPRules,
  Placement,
  ReplicatedRules,
)
from jaxkd.training.state import Best
from tests.methods import toys


def test_one_device_is_the_trivial_mesh():
  devices = Mesh().devices
  assert devices.axis_names == ("data", "fsdp", "tensor")
  assert devices.size == 1


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_a_size_below_one_is_refused(axis):
  with pytest.raises(ConfigError, match=rf"Mesh.{axis}=0: expected at least 1"):
    Mesh(**{axis: 0})


def test_more_devices_than_there_are_is_refused():
  needed = 2 * jax.device_count()
  message = f"data={needed}, fsdp=1, tensor=1 needs {needed} devices, there are"
  with pytest.raises(ConfigError, match=message):
    _ = Mesh(data=needed).devices


def test_a_batch_that_cannot_be_split_is_refused():
  mesh = Mesh(data=4, fsdp=2)
  mesh.check_batch(24)
  message = "batch_size=20 cannot be split over data=4 x fsdp=2: .* of 8"
  with pytest.raises(ConfigError, match=message):
    mesh.check_batch(20)


def test_roles_without_rules_are_split_over_fsdp():
  placement = Placement(Mesh(), {"teacher": (("fc1", (None, "tensor")),)})
  leaf = np.zeros((4, 4))
  layers = {"fc1": leaf, "fc2": leaf}
  specs = jax.tree.map(
    lambda sharding: sharding.spec,
    placement.of({"params": {"teacher": layers, "student": layers}}),
  )["params"]
  assert specs["teacher"]["fc1"] == PartitionSpec(None, "tensor")
  assert specs["teacher"]["fc2"] == PartitionSpec()
  assert specs["student"]["fc1"] == PartitionSpec()  # fsdp has one part


def test_a_batch_is_split_over_data_and_fsdp():
  placement = Placement(Mesh())
  batch = placement.put_batch({"image": np.ones((4, 3), np.float32)})
  assert batch["image"].sharding.spec == PartitionSpec(("data", "fsdp"))


@pytest.mark.parametrize("field", ["rules", "frozen"])
def test_a_role_that_is_not_there_is_refused(field):
  value = {"rules": FSDPRules(), "frozen": Frozen()}[field]
  placement = Placement(Mesh(), **{field: {"techer": value}})
  message = f"{field}: no role 'techer', did you mean 'teacher'\\? \\(has stu"
  with pytest.raises(ConfigError, match=message):
    placement.check_roles(["student", "teacher"])
  placement.check_roles(["student", "teacher", "techer"])


def test_rules_are_checked_before_anything_is_placed():
  shapes = {"teacher": {"fc1": {"kernel": jax.ShapeDtypeStruct((4, 6), "f4")}}}
  rules = {"teacher": (("fc2", ()),), "student": (("fc9", ()),)}
  with pytest.raises(ConfigError, match="did you mean 'fc1'"):
    Placement(Mesh(), rules).check(shapes)
  rules["teacher"] = (("fc1/kernel", (None, None, "tensor")),)
  with pytest.raises(ConfigError, match=r"fc1/kernel of shape \[4, 6\] has 2"):
    Placement(Mesh(), rules).check(shapes)


RULES = {"student": MLPRules(), "teacher": ReplicatedRules()}
# What is called like a role must not be taken for one.
OPTIMIZERS = {
  "adam": optax.adam(1e-2),
  "masked": optax.masked(
    optax.adam(1e-2), {"student": {"fc1": True, "fc2": False, "fc3": True}}
  ),
  "injected": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
  "parted": optax.multi_transform(
    {"teacher": optax.adam(1e-2), "student": optax.set_to_zero()},
    {"student": {"fc1": "teacher", "fc2": "student", "fc3": "teacher"}},
  ),
  "factored": optax.adafactor(1e-2, min_dim_size_to_factor=2),
  "chained": optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_lie_where_their_parameters_do(name):
  update = toys.update(optimizer=OPTIMIZERS[name], name="teacher")
  method = toys.Toy(networks=toys.student(), updates=(update,))
  state, _ = toys.begin(method, toys.batch(8))
  placement = Placement(Mesh(), RULES)
  placed = placement.of((state, Best.of(state)))
  found, specs = (
    {
      jax.tree_util.keystr(path): getattr(leaf, kind)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree, kind in ((state, "shape"), (placed[0], "spec"))
  )
  expected = PartitionSpec(None, "tensor")
  kernel = "['student']['fc1']['kernel']"
  assert specs[f".params{kernel}"] == expected
  whole = [
    path
    for path in specs
    if path.endswith(kernel) and found[path] == found[f".params{kernel}"]
  ]
  others = set(specs) - set(whole)
  moments = {"chained": 1, "factored": 0}.get(name, 2)
  assert len(whole) == 1 + moments
  assert {specs[path] for path in whole} == {expected}
  for path in others:
    if path.startswith(".optimizer") and "student" not in path:
      assert specs[path] == PartitionSpec(), path
    if path.endswith(kernel):  # factored: rows and columns
      assert specs[path] == PartitionSpec(), path
  best = placed[1].params["student"]["fc1"]["kernel"].spec
  assert best == expected


def test_an_average_in_memory_lies_where_its_role_does():
  kernel = np.zeros((4, 4), np.float32)
  params = {"student": {"fc1": {"kernel": kernel}}}
  memory = {"average": params, "queue": kernel, "other": {"kernel": kernel}}
  placed = Placement(Mesh(), RULES).of({"params": params, "memory": memory})
  specs = jax.tree.map(lambda sharding: sharding.spec, placed["memory"])
  assert specs == {
    "average": {"student": {"fc1": {"kernel": PartitionSpec(None, "tensor")}}},
    "queue": PartitionSpec(),
    "other": {"kernel": PartitionSpec()},
  }
