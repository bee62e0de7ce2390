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
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import harness
from jaxkd.data import pipeline
from jaxkd.data.pipeline import Feed
from jaxkd.data.source import ArraySource, Splits
from jaxkd.method import Batch, Phase
from jaxkd.methods.mst_distill import MSTDistill
from jaxkd.nets import CNNI, LeNet5, ThreeLayerCNN
from jaxkd.network import Network
from jaxkd.parallel import Mesh, Placement
from jaxkd.roles import count_params, initialise
from jaxkd.training.phase import Settings
from jaxkd.training.program import Programs, build
from jaxkd.training.proofs import Watch
from jaxkd.training.state import State, create, frozen
from jaxkd.training.targets import cache_targets

try:
  from benchmarks import torch_mst
except ImportError:
  torch_mst = None

EPOCHS = 100


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
  repetitions: int = 9
  images: int = 2048
  batch_size: int = 16
  cache_batch_size: int = Settings().target_batch_size
  sample_seconds: float = 0.3


FULL = Budget()
QUICK = Budget(
  hidden_dim_factor=8,
  repetitions=3,
  images=128,
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


class Start(NamedTuple):
  """What a phase starts from, placed.

  Attributes:
    phase: the phase.
    state: its state.
    frozen: trees of the frozen roles.
  """

  phase: Phase
  state: State
  frozen: Any


class Ours:
  """jaxkd's compiled steps, one phase after the other."""

  def __init__(self, budget: Budget, splits: Splits):
    """Draws the variables."""
    self.budget, self.splits = budget, splits
    self.method = av_mnist_method(budget.hidden_dim_factor)
    self.placement = Placement(Mesh())
    self.batch = next(pipeline.batches(splits.train, budget.batch_size))
    self.usage = Programs(self.method).usage(splits, budget.batch_size)
    self.compile_s: dict[str, float] = {}

  def begin(self, phase_name: str) -> Start:
    """What a phase starts from, with freshly drawn variables."""
    phase = next(p for p in self.method.phases if p.name == phase_name)
    rng = jax.random.key(0)
    variables = initialise(self.method, rng, self.usage.inputs)
    memory, used = self.method.memory, self.usage.roles[phase_name]
    trees = (
      create(self.method, phase, variables, rng=rng, memory=memory),
      frozen(self.method, phase, variables, used=used),
    )
    return Start(phase, *jax.device_put(trees, self.placement.of(trees)))

  def step(
    self, name: str, start: Start, batch: Batch | None = None
  ) -> Callable[[], None]:
    """Builds and compiles a phase's step, as a call that makes one step.

    Args:
      name: under which the compile time is recorded.
      start: of the phase; its state is donated at the first call.
      batch: a batch with cached targets; by default one without.

    Returns:
      The call.
    """
    phase, state, given = start
    batch = self.placement.put_batch(self.batch if batch is None else batch)
    began = time.perf_counter()
    program = build(
      self.method,
      phase,
      state=state,
      best=None,
      frozen=given,
      batch=batch,
      validation_batch=batch,
      steps_per_epoch=pipeline.steps_per_epoch(
        self.splits.train, self.budget.batch_size
      ),
      placement=self.placement,
      watch=Watch(),
    )
    program.compile()
    self.compile_s[name] = round(time.perf_counter() - began, 2)

    def call():
      nonlocal state
      state, metrics = program.step(state, given, batch)
      jax.block_until_ready((state, metrics))

    return call

  def cache(self, start: Start) -> tuple[ArraySource, float]:
    """The training examples with their cached logits, and its seconds.

    The time includes the compilation, which every run pays.
    """
    began = time.perf_counter()
    source = cache_targets(
      self.method,
      start.phase,
      start.frozen,
      self.splits.train,
      batch_size=self.budget.cache_batch_size,
      placement=self.placement,
    )
    return source, time.perf_counter() - began

  def feed(self, source: ArraySource) -> Callable[[], None]:
    """A call that fetches the next batch and puts it on the device."""
    stream = pipeline.stream(Feed(source, self.budget.batch_size, seed=0))

    def call():
      jax.block_until_ready(self.placement.put_batch(next(stream)))

    return call


class Measurement:
  """One run of the benchmark: stage after stage, figures by name."""

  def __init__(self, budget: Budget):
    """Prepares the data."""
    self.budget = budget
    self.ours = Ours(budget, random_splits(budget.images))
    self.seconds: dict[str, float] = {}
    self.fastest: dict[str, float] = {}
    self.ratios: dict[str, float] = {}
    self.memory: dict[str, harness.Memory] = {}

  def early_stage(self, stage: int, phase_name: str) -> None:
    """Stage 1 or 2."""
    name, peer = f"stage{stage}", f"torch_stage{stage}"
    with harness.memory_high_water() as self.memory[name]:
      step = self.ours.step(name, self.ours.begin(phase_name))
      step()
    steps = {name: step, **self._peer(stage)}
    self._time(steps, [(name, peer)])

  def last_stage(self) -> None:
    """Stage 3 with cached and with live specialised teachers."""
    ours, memory = self.ours, self.memory
    start = ours.begin("distil")
    with harness.memory_high_water() as memory["cache"]:
      source, self.seconds["cache"] = ours.cache(start)
    batch = next(pipeline.batches(source, self.budget.batch_size))
    with harness.memory_high_water() as memory["stage3_cached"]:
      cached = ours.step("stage3_cached", start, batch)
      cached()
    start = start._replace(state=ours.begin("distil").state)
    with harness.memory_high_water() as memory["stage3_live"]:
      live = ours.step("stage3_live", start)
      live()
    steps = {
      "stage3_live": live,
      "stage3_cached": cached,
      "input": ours.feed(source),
      **self._peer(3),
    }
    self._time(
      steps,
      [
        ("stage3_live", "torch_stage3"),
        ("stage3_cached", "torch_stage3"),
        ("stage3_cached", "torch_stage3_student"),
      ],
    )

  def _peer(self, stage: int) -> dict[str, Callable[[], Any]]:
    """PyTorch's steps of a stage, by name; none without torch."""
    if torch_mst is None:
      return {}
    factor = self.budget.hidden_dim_factor
    return torch_mst.steps(stage, self.ours.batch, hidden_dim_factor=factor)

  def _time(
    self, steps: dict[str, Callable], pairs: list[tuple[str, str]]
  ) -> None:
    """Times steps in turns, and keeps medians and paired ratios."""
    samples = harness.interleave(
      steps,
      repetitions=self.budget.repetitions,
      warm_up=1,
      sample_seconds=self.budget.sample_seconds,
    )
    for name in steps:
      self.seconds[name] = samples.median(name)
      self.fastest[name] = round(samples.fastest(name), 6)
    for first, second in pairs:
      if second in steps:
        ratio = samples.ratio(first, second)
        self.ratios[f"{first}_over_{second}"] = round(ratio, 3)
    report(samples)


def measure(budget: Budget) -> dict[str, Any]:
  """Runs all stages.

  Args:
    budget: how much is measured.

  Returns:
    The JSON record.
  """
  head = describe(budget)
  run = Measurement(budget)
  run.early_stage(1, "collaborate")
  run.early_stage(2, "specialise")
  run.last_stage()
  return {
    **head,
    "parameters": count_params(run.ours.method.roles, run.ours.usage.inputs),
    **{f"{name}_s": round(value, 6) for name, value in run.seconds.items()},
    **whole_stage(run.seconds, head["steps_per_epoch"]),
    "fastest_s": run.fastest,
    "paired_ratios": run.ratios,
    "compile_s": run.ours.compile_s,
    "memory": {name: value.record() for name, value in run.memory.items()},
    "load_average_1min_at_end": harness.load(),
  }


def describe(budget: Budget) -> dict[str, Any]:
  """The record's head: where, with what, and how much."""
  peer = {} if torch_mst is None else torch_mst.record(harness.cores())
  return {
    "benchmark": "mst_distill",
    **harness.record(**peer.get("versions", {})),
    "torch_threads": peer.get("threads"),
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
  harness.add_output(parser)
  options = parser.parse_args(arguments)
  result = measure(QUICK if options.quick else FULL)
  harness.emit(result, options.output)


if __name__ == "__main__":
  main()
