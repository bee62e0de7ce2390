"""Seconds per step and peak memory of MST-Distill, beside PyTorch.

    python -m benchmarks.mst_distill [--quick] [--output FILE]

The AV-MNIST networks on random data, batch 16. What is timed is what a run
executes: the compiled step of each phase, the caching of the specialised
teachers' logits, and the input pipeline. The last line printed is one JSON
object. If torch can be imported, the same in PyTorch is measured in turns
with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource, Splits
from jaxkd.experiment import count_params
from jaxkd.method import initialise
from jaxkd.methods.mst_distill import MSTDistill
from jaxkd.nets import CNNI, LeNet5, ThreeLayerCNN
from jaxkd.network import Network
from jaxkd.parallel import Mesh, Placement
from jaxkd.training.loop import Trainer
from jaxkd.training.phase import Settings
from jaxkd.training.program import Programs, build
from jaxkd.training.state import create
from jaxkd.training.workdir import Run

try:
  import torch

  from benchmarks.torch_mst import TorchMST
except ImportError:
  torch = None

EPOCHS = 100
SECONDS_OF = {"torch_stage1": "stage1", "torch_stage2": "stage2"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """How much is measured.

  Attributes:
    hidden_dim_factor: of the mask networks; 2 is the paper's.
    repetitions: samples of every figure.
    images: training examples.
    batch_size: examples in a step.
    cache_batch_size: examples in a batch when logits are cached.
    sample_seconds: fast steps are repeated until a sample takes so long.
  """

  hidden_dim_factor: int = 2
  repetitions: int = 15
  images: int = 2048
  batch_size: int = 16
  cache_batch_size: int = 256
  sample_seconds: float = 0.3


FULL = Budget()
QUICK = Budget(
  hidden_dim_factor=8,
  repetitions=3,
  images=256,
  cache_batch_size=64,
  sample_seconds=0.1,
)


def random_splits(images: int) -> Splits:
  """Random examples of AV-MNIST's shapes."""
  rng = np.random.default_rng(0)

  def source(size):
    return ArraySource(
      {
        "image": rng.random((size, 28, 28, 1), np.float32),
        "audio": rng.random((size, 112, 112, 1), np.float32),
        "label": rng.integers(0, 10, size, np.int32),
      }
    )

  return Splits(train=source(images), validation=source(16), test=source(16))


def av_mnist_method(hidden_dim_factor: int) -> MSTDistill:
  """MST-Distill with the paper's AV-MNIST networks, image student."""
  return MSTDistill(
    student=Network(LeNet5(), inputs=("image",)),
    aux=Network(ThreeLayerCNN(), inputs=("audio",)),
    teacher=Network(CNNI(), inputs=("image", "audio")),
    teacher_layers=("concat", "fc1"),
    aux_layers=("conv2", "conv3"),
    hidden_dim_factor=hidden_dim_factor,
  )


class Ours:
  """jaxkd's compiled steps, one phase after the other."""

  def __init__(self, budget: Budget, splits: Splits):
    """Draws the variables."""
    self.budget, self.splits = budget, splits
    self.method = av_mnist_method(budget.hidden_dim_factor)
    self.placement = Placement(Mesh())
    self.batch = next(pipeline.batches(splits.train, budget.batch_size))
    self.usage = Programs(self.method).usage(self.batch)
    self.compile_s: dict[str, float] = {}
    self._variables = initialise(
      self.method, jax.random.key(0), self.usage.inputs
    )

  def frozen(self, phase_name: str) -> tuple[Any, Any, Any]:
    """A phase, its fresh state, and the trees frozen beside it, placed."""
    phase = next(p for p in self.method.phases if p.name == phase_name)
    state, frozen = create(
      self.method,
      phase,
      jax.tree.map(lambda x: x.copy(), self._variables),
      used=self.usage.roles[phase_name],
      rng=jax.random.key(0),
      memory=self.method.memory,
    )
    state, frozen = jax.device_put(
      (state, frozen), self.placement.of((state, frozen))
    )
    return phase, state, frozen

  def step(
    self, name: str, phase_name: str, batch: Any = None
  ) -> Callable[[], None]:
    """Builds and compiles a phase's step, as a call that makes one step.

    Args:
      name: under which the compile time is recorded.
      phase_name: the phase.
      batch: a batch with cached targets; by default one without.

    Returns:
      The call.
    """
    phase, state, frozen = self.frozen(phase_name)
    batch = self.placement.put_batch(self.batch if batch is None else batch)
    began = time.perf_counter()
    program = build(
      self.method,
      phase,
      state=state,
      best=None,
      frozen=frozen,
      batch=batch,
      validation_batch=batch,
      steps_per_epoch=pipeline.steps_per_epoch(
        self.splits.train, self.budget.batch_size
      ),
      placement=self.placement,
    )
    program.compile()
    self.compile_s[name] = round(time.perf_counter() - began, 2)

    def call():
      nonlocal state
      state, metrics = program.step(state, frozen, batch)
      jax.block_until_ready((state, metrics))

    return call

  def cache(self) -> tuple[ArraySource, float]:
    """The training examples with their cached logits, and its seconds.

    The time includes the compilation, which every run pays.
    """
    phase, _, frozen = self.frozen("distil")
    trainer = Trainer(
      method=self.method,
      splits=self.splits,
      seed=0,
      batch_size=self.budget.batch_size,
      run=Run(Path(tempfile.gettempdir())),
      settings=Settings(evaluation_batch_size=self.budget.cache_batch_size),
      placement=self.placement,
    )
    began = time.perf_counter()
    source = trainer._with_cached_targets(phase, self.splits.train, frozen)
    return source, time.perf_counter() - began

  def feed(self, source: ArraySource) -> Callable[[], None]:
    """A call that fetches the next batch and puts it on the device."""
    stream = pipeline.stream(
      source, batch_size=self.budget.batch_size, seed=0
    )

    def call():
      jax.block_until_ready(self.placement.put_batch(next(stream)))

    return call


def torch_batch(batch: dict[str, np.ndarray]) -> dict[str, Any]:
  """The batch, channels first."""
  moved = {
    name: torch.from_numpy(np.moveaxis(batch[name], -1, 1).copy())
    for name in ("image", "audio")
  }
  return {**moved, "label": torch.from_numpy(batch["label"]).long()}


def torch_steps(budget: Budget, stage: int, batch: Any) -> dict[str, Any]:
  """PyTorch's steps of a stage, by name; none without torch."""
  if torch is None:
    return {}
  torch.manual_seed(0)
  peer = TorchMST(hidden_dim_factor=budget.hidden_dim_factor)
  peer.begin(stage)
  batch = torch_batch(batch)
  if stage < 3:
    step = getattr(peer, f"stage{stage}")
    return {f"torch_stage{stage}": lambda: step(batch)}
  logits = peer.specialist_logits(batch)
  return {
    "torch_stage3": lambda: peer.stage3(batch),
    "torch_stage3_student": lambda: peer.student_step(batch, logits),
  }


def measure(budget: Budget) -> dict[str, Any]:
  """Runs all stages.

  Args:
    budget: how much is measured.

  Returns:
    The JSON record.
  """
  result = describe(budget)
  ours = Ours(budget, random_splits(budget.images))
  result["parameters"] = count_params(ours.method, ours.batch)
  memory, seconds, ratios = {}, {}, {}

  def timed(stage, steps, pairs):
    steps |= torch_steps(budget, stage, ours.batch)
    samples = harness.interleave(
      steps,
      repetitions=budget.repetitions,
      warm_up=2,
      sample_seconds=budget.sample_seconds,
    )
    seconds.update({name: samples.median(name) for name in samples.seconds})
    for name, (first, second) in pairs.items():
      if second in steps:
        ratios[name] = round(samples.ratio(first, second), 3)
    report(samples)

  for stage, phase in ((1, "collaborate"), (2, "specialise")):
    name, peer = f"stage{stage}", f"torch_stage{stage}"
    with harness.memory_high_water() as memory[name]:
      step = ours.step(name, phase)
      step()
    timed(stage, {name: step}, {f"{name}_over_torch": (name, peer)})
    del step
    gc.collect()
  with harness.memory_high_water() as memory["cache"]:
    source, seconds["cache"] = ours.cache()
  cached = next(pipeline.batches(source, budget.batch_size))
  with harness.memory_high_water() as memory["stage3_cached"]:
    from_cache = ours.step("stage3_cached", "distil", cached)
    from_cache()
  with harness.memory_high_water() as memory["stage3_live"]:
    live = ours.step("stage3_live", "distil")
    live()
  timed(
    3,
    {
      "stage3_live": live,
      "stage3_cached": from_cache,
      "input": ours.feed(source),
    },
    {
      "stage3_live_over_torch": ("stage3_live", "torch_stage3"),
      "stage3_cached_over_torch": ("stage3_cached", "torch_stage3"),
      "stage3_cached_over_torch_student": (
        "stage3_cached", "torch_stage3_student"
      ),
    },
  )  # fmt: skip
  return {
    **result,
    **{f"{name}_s": round(value, 6) for name, value in seconds.items()},
    **whole_stage(seconds, result["steps_per_epoch"]),
    "paired_ratios": ratios,
    "compile_s": ours.compile_s,
    "memory": {name: value.record() for name, value in memory.items()},
    "load_average_1min_at_end": harness.load(),
  }


def describe(budget: Budget) -> dict[str, Any]:
  """The record's head: where, with what, and how much."""
  peer = {}
  if torch is not None:
    torch.set_num_threads(harness.cores())
    peer = {"torch": torch.__version__}
  return {
    "benchmark": "mst_distill",
    **harness.record(**peer),
    **dataclasses.asdict(budget),
    "steps_per_epoch": -(-budget.images // budget.batch_size),
    "epochs": EPOCHS,
  }


def whole_stage(
  seconds: dict[str, float], steps_per_epoch: int
) -> dict[str, Any]:
  """Stage 3 over all epochs, computed from the measured figures.

  Args:
    seconds: by name, per step; `cache` for all examples.
    steps_per_epoch: steps of an epoch.

  Returns:
    The computed entries of the record.
  """
  steps = EPOCHS * steps_per_epoch
  live = steps * (seconds["stage3_live"] + seconds["input"])
  cached = steps * (seconds["stage3_cached"] + seconds["input"])
  cached += seconds["cache"]
  return {
    "stage3_live_epochs_s": round(live, 3),
    "stage3_cached_epochs_s": round(cached, 3),
    "cached_speedup": round(live / cached, 2),
    "stage3_student_share_speedup": round(
      seconds["stage3_live"] / seconds["stage3_cached"], 2
    ),
    "computed": {
      "stage3_live_epochs_s": (
        "epochs * steps_per_epoch * (stage3_live_s + input_s)"
      ),
      "stage3_cached_epochs_s": (
        "epochs * steps_per_epoch * (stage3_cached_s + input_s) + cache_s"
      ),
      "cached_speedup": "stage3_live_epochs_s / stage3_cached_epochs_s",
      "stage3_student_share_speedup": "stage3_live_s / stage3_cached_s",
    },
  }


def report(samples: harness.Samples) -> None:
  """Prints medians and ranges, for people."""
  for name, values in samples.seconds.items():
    print(
      f"{name:22s} {samples.median(name):9.5f} s "
      f"[{min(values):.5f}, {max(values):.5f}] x{samples.calls[name]}",
      file=sys.stderr,
    )


def main(arguments: list[str] | None = None) -> None:
  """Parses the command line and prints the record."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--quick", action="store_true", help="small masks, few repetitions"
  )
  parser.add_argument(
    "--output", type=Path, help="also write the record, indented, here"
  )
  options = parser.parse_args(arguments)
  result = measure(QUICK if options.quick else FULL)
  if options.output:
    options.output.write_text(json.dumps(result, indent=2) + os.linesep)
  print(json.dumps(result))


if __name__ == "__main__":
  main()
