"""Trains MST-Distill on meshes of eight devices; prints what it saw as JSON.

A script, since the number of devices is fixed when JAX starts.
"""

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.parallel import Mesh, Placement
from jaxkd.training.program import Programs
from tests.methods import toys

MESHES = {
  "one": Mesh(),
  "data": Mesh(data=8),
  "fsdp": Mesh(fsdp=8),
  "both": Mesh(data=4, fsdp=2),
}


def train(mesh: Mesh) -> tuple[list, Programs]:
  """Twenty steps of every stage on batches of 16; returns the record."""
  method = toys.mst_distill(
    teacher_layers=("fc1",),
    aux_layers=("fc1",),
    epochs_s1=4,
    epochs_s2=4,
    epochs=4,
  )
  programs = Programs(method)
  with tempfile.TemporaryDirectory() as folder:
    trainer = toys.trainer(
      method,
      Path(folder),
      splits=toys.splits(train=76, validation=12),
      batch_size=16,
      placement=Placement(mesh),
      programs=programs,
      settings={"log_every_steps": 1},
    )
    trainer.fit()
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines], programs


def largest_shares(programs: Programs) -> dict[str, float]:
  """The part of each parameter matrix of stage 3 that one device holds."""
  step = programs.phases["distil"].step
  state, _ = step.executable.output_shardings
  shapes, _ = step.lowered.out_info
  shares = jax.tree.map(
    lambda sharding, leaf: (
      np.prod(sharding.shard_shape(leaf.shape)) / np.prod(leaf.shape)
    ),
    state.params["student"],
    shapes.params["student"],
  )
  return {name: float(layer["kernel"]) for name, layer in shares.items()}


def placed(mesh: Mesh) -> list[int]:
  """The shape of the part of a parameter that a device is given."""
  state, _ = toys.begin(toys.mst_distill(), toys.batch(16))
  state = jax.device_put(state, Placement(mesh).of(state))
  kernel = state.params["student"]["fc1"]["kernel"]
  return list(kernel.addressable_shards[0].data.shape)


def too_many() -> str:
  """What is said when devices are missing."""
  try:
    _ = Mesh(data=4, fsdp=4).devices
  except ConfigError as error:
    return str(error)
  return ""


def main() -> None:
  """Prints the JSON."""
  seen = {"devices": jax.device_count(), "message": too_many()}
  for name, mesh in MESHES.items():
    lines, programs = train(mesh)
    seen[name] = {
      "lines": lines,
      "shares": largest_shares(programs),
      "placed": placed(mesh),
    }
  json.dump(seen, sys.stdout)


if __name__ == "__main__":
  main()
