"""Distils tiny nets on meshes of eight devices; prints lines of JSON.

A script, since the number of devices is fixed when JAX starts.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd import config, experiment
from jaxkd.data import pipeline
from jaxkd.parallel import (
  Frozen,
  Mesh,
  MLPRules,
  Placement,
  ReplicatedRules,
  TransformerRules,
)
from jaxkd.training.program import Programs
from tests.methods import toys
from tests.parallel import hlo, tiny

ROOT = Path(__file__).parents[2]
KINDS = ("mlp", "vit", "decoder")
MIXED = Mesh(data=2, fsdp=2, tensor=2)
HOST = {"teacher": Frozen(memory="pinned_host")}
STEPS = 20


def placements(kind: str) -> dict[str, Placement]:
  """One device, and the ways of eight."""
  split = MLPRules if kind == "mlp" else TransformerRules
  both = {role: split(fsdp=True) for role in ("teacher", "student")}
  return {
    "one": Placement(Mesh()),
    "data": Placement(Mesh(data=8)),
    "fsdp": Placement(Mesh(fsdp=8)),
    "tensor teacher": Placement(MIXED, {"teacher": split()}),
    "tensor both": Placement(MIXED, both),
  }


def train(kind: str, placement: Placement, **options: Any) -> dict[str, Any]:
  """Makes twenty steps; tells their losses and what the program sends."""
  method = tiny.distill(kind, **options)
  program, (state, frozen, _) = tiny.compiled(method, kind, placement)
  trained = sum(x.nbytes for x in jax.tree.leaves(state.params))
  batches = pipeline.batches(tiny.source(kind, 5 * tiny.BATCH, 0), tiny.BATCH)
  batches, losses = list(batches), []
  for step in range(STEPS):
    batch = placement.put_batch(batches[step % 5])
    state, metrics = program.step(state, frozen, batch)
    losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
  text = program.step.executable.as_text()
  return {
    "losses": losses,
    "gathered": sorted(hlo.gathered(text)),
    "gathered_bytes": hlo.gathered_bytes(text),
    "reduced_bytes": hlo.reduced_bytes(text),
    "trained_bytes": trained,
  }


def run(placement: Placement) -> dict[str, Any]:
  """A whole run with validation and checkpoints; tells how arrays lie."""
  method = tiny.distill("mlp")
  programs = Programs(method)
  with tempfile.TemporaryDirectory() as folder:
    toys.trainer(
      method,
      Path(folder),
      splits=tiny.splits("mlp"),
      batch_size=tiny.BATCH,
      placement=placement,
      programs=programs,
      settings={"log_every_steps": 1, "checkpoint_every_steps": 7},
    ).fit()
    lines = toys.lines(Path(folder))
  losses = [line["metrics"]["loss"] for line in lines]
  return {"losses": losses, "shares": shares(programs)}


def shares(programs: Programs) -> dict[str, float]:
  """The part of what belongs to a kernel that a device holds."""
  program = programs.phases["distil"]
  state, _ = program.step.executable.output_shardings
  shapes, _ = program.step.lowered.out_info
  moments = state.optimizer["loss"][0]
  best = program.keep_best.executable.output_shardings
  trees = {
    "params": state.params,
    "mu": moments.mu,
    "nu": moments.nu,
    "best": best.params,
  }
  size = shapes.params["student"]["fc1"]["kernel"].shape
  return {
    name: float(
      np.prod(tree["student"]["fc1"]["kernel"].shard_shape(size))
      / np.prod(size)
    )
    for name, tree in trees.items()
  }


def example() -> dict[str, Any]:
  """Rehearses the experiment of the repository."""
  file = ROOT / "experiments" / "placed" / "digits.gin"
  built = config.load(
    str(file), overrides=["teacher/Frozen.memory = 'pinned_host'"]
  )
  with tempfile.TemporaryDirectory() as folder:
    return dict(
      experiment.smoke(built, Path(folder) / "run").summary["metrics"]
    )


def see(name: str, seen: Any) -> None:
  """Prints a line of JSON."""
  sys.stdout.write(json.dumps({name: seen}) + "\n")
  sys.stdout.flush()


def main() -> None:
  """Prints what every case shows."""
  for kind in KINDS:
    for name, placement in placements(kind).items():
      see(f"{kind}, {name}", train(kind, placement))
  data = Placement(Mesh(data=8))
  see("accumulated", train("mlp", data, accumulate=4))
  apart = {"scan_layers": False, "depth": 1}
  for name, rules in (
    ("tensor", {"teacher": TransformerRules(), "student": ReplicatedRules()}),
    ("fsdp", {"student": ReplicatedRules()}),
  ):
    placement = Placement(Mesh(data=4, **{name: 2}), rules)
    seen = train("decoder", placement, student=apart, teacher=apart)
    see(f"apart, {name}", seen)
  see("run, one", run(Placement(Mesh())))
  rules = {"teacher": MLPRules(), "student": MLPRules(fsdp=True)}
  see("run, host", run(Placement(MIXED, rules, HOST)))
  see("example", example())


if __name__ == "__main__":
  main()
