"""A process with so many virtual devices that makes steps when it is asked.

    python -m benchmarks.scaling_worker NETWORK DEVICES [--quick]

The first line printed describes the step on each mesh, as JSON. Then each line
`MESH STEPS` read is answered by a line when the steps are made, so that the
processes of a comparison can take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import overhead
from benchmarks.pairs import PAIRS, Pair, small
from jaxkd import allocator
from jaxkd.parallel import Mesh, Placement, collectives

QUICK_BATCH = 8
_FLAG = "--xla_force_host_platform_device_count"


def chosen(name: str, quick: bool) -> Pair:
  """A pair of networks; a tiny one has a batch that splits in eight."""
  pair = PAIRS[name]
  if not quick:
    return pair
  return dataclasses.replace(small(pair), batch_size=QUICK_BATCH)


def meshes(devices: int) -> dict[str, Mesh]:
  """The meshes that are compared, all devices along one axis."""
  if devices == 1:
    return {"data": Mesh()}
  return {"data": Mesh(data=devices), "fsdp": Mesh(fsdp=devices)}


def flags(devices: int, given: str) -> str:
  """XLA's flags with another number of virtual devices."""
  others = re.sub(rf"{_FLAG}=\S+", "", given).split()
  return " ".join([*others, f"{_FLAG}={devices}"])


class Worker:
  """The other end: a process that is asked for steps."""

  def __init__(self, name: str, devices: int, quick: bool):
    """Starts it; it is ready when `described` has returned."""
    self._devices = devices
    self._process = subprocess.Popen(
      [
        *(sys.executable, "-m", "benchmarks.scaling_worker"),
        *(name, str(devices)),
        *(["--quick"] if quick else []),
      ],
      env={
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags(devices, os.environ.get("XLA_FLAGS", "")),
      },
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def described(self) -> dict[str, dict[str, Any]]:
    """What the process says of the step on each mesh; waits for it."""
    return json.loads(self._answer())

  def call(self, mesh: str, steps: int) -> Callable[[], str]:
    """A call that has some steps made on a mesh."""

    def made():
      self._process.stdin.write(f"{mesh} {steps}\n")
      self._process.stdin.flush()
      return self._answer()

    return made

  def __enter__(self) -> Worker:
    return self

  def __exit__(self, *_: object) -> None:
    self._process.terminate()
    self._process.communicate()

  def _answer(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        f"the process of {self._devices} devices has ended with "
        f"{self._process.wait()}; what it wrote to stderr says why"
      )
    return line


def described(step: overhead.Timed) -> dict[str, Any]:
  """What is known of a step beside its time; bytes are of one device."""
  sent = collectives.collectives(step.program.as_text())
  return {
    "first_loss": overhead.mean(step.call()),
    "planned_bytes": step.memory,
    "collectives": sum(each.count for each in sent),
    "collective_bytes": sum(each.count * each.bytes for each in sent),
  }


def serve(pair: Pair) -> None:
  """Compiles the steps on the devices there are, and makes those asked for."""
  steps = {
    kind: overhead.library_step(pair, placement=Placement(mesh))
    for kind, mesh in meshes(jax.device_count()).items()
  }
  first = {kind: described(step) for kind, step in steps.items()}
  print(json.dumps(first), flush=True)
  for line in sys.stdin:
    kind, count = line.split()
    for _ in range(int(count)):
      steps[kind].call()
    print("made", flush=True)


def main() -> None:
  """Checks that the devices are those asked for, and serves."""
  allocator.keep()  # as `jaxkd run` does
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("network", choices=PAIRS)
  parser.add_argument("devices", type=int)
  parser.add_argument("--quick", action="store_true")
  options = parser.parse_args()
  if jax.device_count() != options.devices:
    parser.error(
      f"devices={options.devices}: there are {jax.device_count()}; expected "
      f"XLA_FLAGS={_FLAG}={options.devices}"
    )
  serve(chosen(options.network, options.quick))


if __name__ == "__main__":
  main()
