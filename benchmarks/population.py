"""A population of runs against separate ones: end to end, and by the step.

    python -m benchmarks.population [--quick] [--output FILE]

End to end: KD on the audio-visual digits, where all networks are perceptrons,
by the command line: one process for all seeds side by side; one process for
each seed, one after the other, start and compilation included; and one process
that trains seed after seed. Each has a compilation cache of its own, empty at
the start. The numbers of every seed are compared.

By the step: the student's phase of the same experiment, for growing
populations, as a loop on the device and step by step from the host; and
settings of one seed, whose teacher is run at every step, against as many runs
with a teacher each. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from jaxkd import config
from jaxkd.experiment import Experiment
from jaxkd.runs import MAIN, Runs
from jaxkd.training.grid import Grid, Member, Together
from jaxkd.training.progress import Progress
from jaxkd.training.side_by_side import SideBySide
from jaxkd.training.workdir import Workdir

EXPERIMENT = Path("experiments/mst_distill/kd_multimodal.gin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """How much is measured.

  Attributes:
    seeds: of the population, end to end.
    repetitions: samples of every figure by the step.
    sizes: of populations, by the step.
    steps: in a sample.
    overrides: bindings for the runs end to end.
  """

  seeds: int = 16
  repetitions: int = 11
  sizes: tuple[int, ...] = (1, 4, 16, 64)
  steps: int = 100
  overrides: tuple[str, ...] = ()


FULL = Budget()
QUICK = Budget(
  seeds=2,
  repetitions=2,
  sizes=(1, 2),
  steps=10,
  overrides=("KD.teacher_epochs = 1", "KD.epochs = 1"),
)


def command(
  seeds: Sequence[int], workdir: Path, cache: Path, *more: str
) -> float:
  """Seconds of one process that runs some seeds."""
  began = time.perf_counter()
  subprocess.run(
    [
      *(sys.executable, "-m", "jaxkd", "run", str(EXPERIMENT)),
      *("--seeds", ",".join(map(str, seeds)), "--workdir", str(workdir)),
      *more,
    ],
    env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
    check=True,
    capture_output=True,
  )
  return time.perf_counter() - began


def end_to_end(budget: Budget) -> dict[str, Any]:
  """Seconds of all seeds in three ways, and how far their numbers differ."""
  seeds = range(budget.seeds)
  more = [part for text in budget.overrides for part in ("--set", text)]
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    caches = {n: root / f"cache_{n}" for n in ("joined", "apart", "in_a_row")}
    joined = command(
      seeds, root / "joined", caches["joined"], "--population", *more
    )
    apart = [
      command([seed], root / f"apart_{seed}", caches["apart"], *more)
      for seed in seeds
    ]
    row = command(seeds, root / "row", caches["in_a_row"], *more)
    numbers = _numbers(root / "joined")
    others = [_numbers(root / f"apart_{seed}") for seed in seeds]
  separate = {
    name: np.array([other[name][0] for other in others]) for name in numbers
  }
  return {
    "seeds": budget.seeds,
    "population_s": joined,
    "separate_s": sum(apart),
    "separate_each_s": apart,
    "one_process_in_a_row_s": row,
    "end_to_end_ratio": joined / sum(apart),
    "over_one_process_in_a_row": joined / row,
    "largest_difference": {
      name: float(np.abs(separate[name] - values).max())
      for name, values in numbers.items()
    },
  }


def _numbers(workdir: Path) -> dict[str, list[float]]:
  return json.loads((workdir / "summary.json").read_text())["metrics"]


def experiment() -> Experiment:
  """The student's phase alone, its teacher as it is drawn."""
  config.register_all()
  return config.load(str(EXPERIMENT), overrides=["KD.teacher_epochs = 0"])


def members(
  base: Experiment, seeds: Sequence[int], rates: Sequence[float], root: Path
) -> list[Member]:
  """Runs of some seeds and learning rates, ready to train.

  Args:
    base: the experiment.
    seeds: its seeds.
    rates: of every seed.
    root: for their files.
  """
  found = []
  for rate in rates:
    method = dataclasses.replace(base.method, lr=rate)
    runs = Runs(dataclasses.replace(base, method=method))
    place = Workdir(root / str(rate), {})
    for seed in seeds:
      trainer = runs.trainer(place, MAIN, seed)
      name = f"{rate}_{seed}"
      found.append(Member(name, method, seed, next(trainer.phases())))
  return found


def advancing(grid: Grid, *, rolled: bool, steps: int) -> Callable[[], None]:
  """A call that makes steps of all runs and waits."""
  made = SideBySide(Together(grid, sharded=False), Path(), rolled=rolled)
  made.place()
  made.compile(Progress(0, "", start=0, clock=time.monotonic))
  epoch = grid.first.work.steps_per_epoch

  def call():
    for start in range(0, steps, epoch):
      jax.block_until_ready(made.advance(start, min(steps, start + epoch)))

  return call


def alone(member: Member, steps: int) -> Callable[[], None]:
  """A call that makes steps of one run as its own loop does."""
  work = member.work
  state = jax.tree.map(lambda x: x.copy(), work.state)
  kept = [state]
  feed = work.feeds[""]

  def call():
    for step in range(steps):
      batch = work.placement.put_batch(feed.batch(step))
      kept[0], metrics = work.program.step(kept[0], work.frozen, batch)
    jax.block_until_ready((kept, metrics))

  return call


def by_the_step(budget: Budget, root: Path) -> dict[str, Any]:
  """Milliseconds of a step of one member, in populations of several sizes."""
  base, steps = experiment(), budget.steps
  found: dict[str, Any] = {}
  for size in budget.sizes:
    made = members(base, range(size), [1e-3], root / str(size))
    grid = Grid.of(made)
    samples = harness.interleave(
      {
        "alone": alone(made[0], steps),
        "rolled": advancing(grid, rolled=True, steps=steps),
        "step_by_step": advancing(grid, rolled=False, steps=steps),
      },
      repetitions=budget.repetitions,
    )
    found[str(size)] = {
      "alone_ms": 1e3 * samples.median("alone") / steps,
      "rolled_ms": 1e3 * samples.median("rolled") / steps / size,
      "step_by_step_ms": 1e3 * samples.median("step_by_step") / steps / size,
      "per_step_ratio": samples.ratio("rolled", "alone") / size,
      "step_by_step_ratio": samples.ratio("step_by_step", "alone") / size,
      "scan_over_dispatch": samples.ratio("rolled", "step_by_step"),
    }
  return found


def settings_of_a_seed(budget: Budget, root: Path) -> dict[str, Any]:
  """What it is worth that settings share the pass of a live teacher."""
  size = budget.sizes[-2]
  settings = dataclasses.replace(experiment().settings, cache_targets=False)
  base = dataclasses.replace(experiment(), settings=settings)
  rates = np.geomspace(1e-4, 1e-2, size).tolist()
  shared = Grid.of(members(base, [0], rates, root / "shared"))
  apart = Grid.of(members(base, range(size), [1e-3], root / "apart"))
  samples = harness.interleave(
    {
      "shared": advancing(shared, rolled=True, steps=budget.steps),
      "apart": advancing(apart, rolled=True, steps=budget.steps),
    },
    repetitions=budget.repetitions,
  )
  return {
    "runs": size,
    "shared_over_apart": samples.ratio("shared", "apart"),
  }


def measure(budget: Budget) -> dict[str, Any]:
  """Runs everything.

  Args:
    budget: how much is measured.

  Returns:
    The JSON record.
  """
  head = {
    "benchmark": "population",
    **harness.record(),
    **dataclasses.asdict(budget),
  }
  whole = end_to_end(budget)
  with tempfile.TemporaryDirectory() as folder:
    steps = by_the_step(budget, Path(folder))
    settings = settings_of_a_seed(budget, Path(folder))
  size = str(max(n for n in budget.sizes if n <= budget.seeds))
  return {
    **head,
    "end_to_end": whole,
    "members": steps,
    "live_teacher": settings,
    "end_to_end_ratio": whole["end_to_end_ratio"],
    "per_step_ratio": steps[size]["per_step_ratio"],
  }


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the benchmark and prints its record."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--quick", action="store_true")
  harness.add_output(parser)
  options = parser.parse_args(arguments)
  record = measure(QUICK if options.quick else FULL)
  harness.emit(record, options.output)


if __name__ == "__main__":
  main()
