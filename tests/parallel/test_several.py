"""Methods with streams, memory and host functions, on several processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # starts several interpreters

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("mst_distill", "dho", "mmanet", "repblend")


def train(folder, count):
  """What the processes printed; their records lie in the folder."""
  flags = f"--xla_force_host_platform_device_count={4 // count}"
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": flags,
    "NPROC": "16",
  }
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = str(server.getsockname()[1])
  script = (sys.executable, "-m", "tests.parallel.several", str(folder), port)
  processes = [
    subprocess.Popen(
      [*script, str(count), str(rank), *NAMES],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(count)
  ]
  said = [process.communicate() for process in processes]
  assert [p.returncode for p in processes] == [0] * count, said
  return [
    json.loads((folder / f"digests_{rank}.json").read_text())
    for rank in range(count)
  ]


def lines(folder, name):
  text = (folder / name / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_two_processes_train_as_one(tmp_path):
  train(tmp_path / "one", 1)
  first, second = train(tmp_path / "two", 2)
  assert list(first) == list(NAMES)
  assert first == second
  for name in NAMES:
    one, two = lines(tmp_path / "one", name), lines(tmp_path / "two", name)
    assert len(one) == len(two) > 10
    for expected, found in zip(one, two, strict=True):
      assert {**found, "metrics": None} == {**expected, "metrics": None}
      assert found["metrics"] == pytest.approx(
        expected["metrics"], rel=1e-4, abs=1e-6
      ), name
