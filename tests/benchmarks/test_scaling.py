"""The scaling benchmark: equal steps, whatever they are split into."""

import json

import numpy as np
import pytest

from benchmarks import scaling, scaling_worker


def test_a_number_of_devices_replaces_the_one_given():
  flag = "--xla_force_host_platform_device_count"
  assert scaling_worker.flags(2, f"--a=1 {flag}=8 --b") == f"--a=1 --b {flag}=2"
  assert scaling_worker.flags(4, "") == f"{flag}=4"


def test_all_devices_of_a_mesh_lie_along_one_axis():
  assert list(scaling_worker.meshes(1)) == ["data"]
  for kind, mesh in scaling_worker.meshes(8).items():
    assert mesh.sizes[kind] == mesh.size == 8


def test_images_are_decoded_to_numbers_from_0_to_1():
  source = scaling.images(scaling.QUICK)
  image = source[0]["image"]
  assert source.arrays["image"].dtype == np.uint8
  assert image.dtype == np.float32
  assert 0 <= image.min() < 0.1 < 0.9 < image.max() <= 1


@pytest.fixture(scope="module")
def record(tmp_path_factory):
  path = tmp_path_factory.mktemp("scaling") / "record.json"
  scaling.main(["--quick", "--networks", "mlp", "--output", str(path)])
  return json.loads(path.read_text())


@pytest.mark.slow
def test_the_step_is_the_same_on_every_mesh(record):
  rows = record["networks"]["mlp"]["devices"]
  assert set(rows) == {"data_1", "data_2", "fsdp_2", "data_8", "fsdp_8"}
  losses = [row["first_loss"] for row in rows.values()]
  np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
  assert rows["data_1"]["over_one"] == 1
  assert rows["data_1"]["collectives"] == 0
  assert rows["data_8"]["collective_bytes"] > 0
  arguments = {
    name: row["planned_bytes"]["arguments"] for name, row in rows.items()
  }
  assert arguments["fsdp_8"] < arguments["data_8"]


@pytest.mark.slow
def test_micro_batches_and_loader_are_beside_the_step(record):
  rows = record["networks"]["mlp"]["micro_batches"]
  assert list(rows) == ["1", "2", "8"]
  assert rows["1"]["time_over_one"] == rows["1"]["temporaries_over_one"] == 1
  assert all(row["temporary_bytes"] > 0 for row in rows.values())
  assert set(record["loader"]) == {"small", "image"}
  for row in record["loader"].values():
    assert row["placed_over_step"] > 0
    assert set(row["examples_per_s"]) == {"stream", "placed", "step"}
    assert min(row["examples_per_s"].values()) > 0


@pytest.mark.slow
def test_a_process_that_ends_is_named():
  with (
    scaling_worker.Worker("unknown", 2, quick=True) as worker,
    pytest.raises(RuntimeError, match="process of 2 devices has ended with 2"),
  ):
    worker.described()
