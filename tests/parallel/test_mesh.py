"""Meshes and placement rules on the devices that there are."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxkd.errors import ConfigError
from jaxkd.parallel import REPLICATED, Mesh, Placement


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


class Unbuilt:
  """A mesh of which only the sizes are known."""

  fsdp = 4


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((12, 16), (None, "fsdp")),
    ((16, 12), ("fsdp",)),
    ((12, 6), ("fsdp",)),
    ((4, 6), ()),  # parts of one row are not worth it
    ((7, 9), ()),
    ((), ()),
    ((3, 3, 8, 16), (None, None, None, "fsdp")),
  ],
)
def test_fsdp_parts_the_largest_dimension_that_divides(shape, spec):
  placement = Placement(Unbuilt())
  assert placement._spec("largest", shape) == PartitionSpec(*spec)


def test_rules_of_a_role_come_first_and_without_a_match_it_is_replicated():
  rules = {
    "teacher": ((r"head/kernel$", (None, "tensor")), (r"bias", ())),
    "student": REPLICATED,
  }
  placement = Placement(Mesh(), rules)
  leaf = np.zeros((4, 4))
  layers = {"head": {"kernel": leaf}, "stem": {"kernel": leaf}}
  specs = jax.tree.map(
    lambda sharding: sharding.spec,
    placement.of({"params": {"teacher": layers, "student": layers}}),
  )["params"]
  assert specs["teacher"]["head"]["kernel"] == PartitionSpec(None, "tensor")
  assert specs["teacher"]["stem"]["kernel"] == PartitionSpec()
  assert specs["student"]["head"]["kernel"] == PartitionSpec()


def test_a_batch_is_split_over_data_and_fsdp():
  placement = Placement(Mesh())
  batch = placement.put_batch({"image": np.ones((4, 3), np.float32)})
  assert batch["image"].sharding.spec == PartitionSpec(("data", "fsdp"))
