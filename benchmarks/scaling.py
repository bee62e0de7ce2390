"""What it costs to split a step: over devices, and into micro-batches.

    python -m benchmarks.scaling [--quick] [--networks NAME ...]
      [--output FILE]

KD's compiled step, as `benchmarks.overhead` builds it, in three comparisons.

`devices`: on 1, 2, 4 and 8 virtual CPU devices, a process each, the batch of
all devices the same, along `data` and along `fsdp`. They share the cores that
one device has alone, so `over_one` is what partitioning costs, not a speed-up:
1 is free. Bytes are of one device, those of collectives what it exchanges.

`micro_batches`: the batch in 1, 2, 4 and 8 parts whose gradients are added, on
one device; `time_over_one` and `temporaries_over_one` against the batch in one.

`loader`: the seconds in which `pipeline.stream` makes a batch, and in which it
is made and placed, as shares of the step that takes it; below 1 the loader
keeps up. `small` has the perceptrons' examples of 784 numbers, `image` color
images, stored as bytes and decoded to float32, with the residual networks. The
last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import harness, overhead
from benchmarks.pairs import PAIRS, Pair
from benchmarks.scaling_worker import Worker, chosen, meshes
from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource
from jaxkd.parallel import Mesh, Placement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """How much is measured.

  Attributes:
    repetitions: rounds.
    sample_seconds: fast steps are repeated until a sample takes so long.
    devices: numbers of virtual devices, one of them 1.
    steps: that a process makes when it is asked; asking takes some 0.1 ms.
    micro_batches: numbers of parts, one of them 1.
    images: in the source of images.
    image_size: their side.
  """

  repetitions: int = 15
  sample_seconds: float = 0.2
  devices: tuple[int, ...] = (1, 2, 4, 8)
  steps: int = 5
  micro_batches: tuple[int, ...] = (1, 2, 4, 8)
  images: int = 1024
  image_size: int = 224


FULL = Budget()
QUICK = Budget(
  repetitions=3,
  sample_seconds=0.0,
  devices=(1, 2, 8),
  steps=1,
  micro_batches=(1, 2, 8),
  images=64,
  image_size=32,
)


def by_devices(name: str, budget: Budget, quick: bool) -> dict[str, Any]:
  """The step of a pair on every mesh, over that on one device."""
  found: dict[str, dict[str, Any]] = {}
  calls = {}
  with contextlib.ExitStack() as stack:
    for devices in budget.devices:
      worker = stack.enter_context(Worker(name, devices, quick))
      first = worker.described()
      for kind in meshes(devices):
        found[f"{kind}_{devices}"] = first[kind]
        calls[f"{kind}_{devices}"] = worker.call(kind, budget.steps)
    samples = harness.interleave(
      calls,
      repetitions=budget.repetitions,
      sample_seconds=budget.sample_seconds,
    )
  for variant, row in found.items():
    row["step_ms"] = round(1e3 * samples.median(variant) / budget.steps, 3)
    row["over_one"] = round(samples.ratio(variant, "data_1"), 4)
    row["over_one_interval"] = samples.interval(variant, "data_1")
  return found


def by_micro_batches(pair: Pair, budget: Budget) -> dict[str, Any]:
  """The step of a pair with its batch in parts, over that with one part."""
  steps = {
    str(parts): overhead.library_step(pair, micro_batches=parts)
    for parts in budget.micro_batches
  }
  temporaries = {n: step.memory["temporary"] for n, step in steps.items()}
  samples = harness.interleave(
    {parts: step.call for parts, step in steps.items()},
    repetitions=budget.repetitions,
    sample_seconds=budget.sample_seconds,
  )
  return {
    parts: {
      "step_ms": round(1e3 * samples.median(parts), 3),
      "time_over_one": round(samples.ratio(parts, "1"), 4),
      "time_over_one_interval": samples.interval(parts, "1"),
      "temporary_bytes": temporaries[parts],
      "temporaries_over_one": round(temporaries[parts] / temporaries["1"], 4),
    }
    for parts in steps
  }


def decoded(images: np.ndarray) -> np.ndarray:
  """Bytes as float32 in 0-1."""
  return images.astype(np.float32) / np.float32(255)


def images(budget: Budget) -> ArraySource:
  """Random color images stored as bytes, with labels."""
  rng = np.random.default_rng(0)
  shape = (budget.images, budget.image_size, budget.image_size, 3)
  return ArraySource(
    {
      "image": rng.integers(0, 256, shape, np.uint8),
      "label": rng.integers(0, 10, budget.images, np.int32),
    },
    decode={"image": decoded},
  )


def loader(budget: Budget, quick: bool) -> dict[str, Any]:
  """Batches of both sources beside the steps that take them."""
  small, large = chosen("mlp", quick), chosen("resnet", quick)
  large = dataclasses.replace(large, extent=budget.image_size)
  sources = {
    "small": (small, small.source(16 * small.batch_size)),
    "image": (large, images(budget)),
  }
  return {
    name: batches(pair, source, budget)
    for name, (pair, source) in sources.items()
  }


def batches(pair: Pair, source: ArraySource, budget: Budget) -> dict[str, Any]:
  """Examples a second of the stream and of the step, and their shares."""
  stream = pipeline.stream(pipeline.Feed(source, pair.batch_size, 0))
  placement = Placement(Mesh())
  samples = harness.interleave(
    {
      "stream": lambda: next(stream),
      "placed": lambda: jax.block_until_ready(
        placement.put_batch(next(stream))
      ),
      "step": overhead.library_step(pair).call,
    },
    repetitions=budget.repetitions,
    sample_seconds=budget.sample_seconds,
  )
  return {
    "batch_size": pair.batch_size,
    "example_shape": source[0]["image"].shape,
    "examples_per_s": {
      name: round(pair.batch_size / samples.median(name))
      for name in samples.seconds
    },
    "stream_over_step": round(samples.ratio("stream", "step"), 5),
    "placed_over_step": round(samples.ratio("placed", "step"), 5),
    "placed_over_step_interval": samples.interval("placed", "step"),
  }


def measure(
  budget: Budget, names: Sequence[str], quick: bool
) -> dict[str, Any]:
  """Runs everything.

  Args:
    budget: how much is measured.
    names: of the pairs.
    quick: whether the networks are tiny.

  Returns:
    The JSON record.
  """
  record = {
    "benchmark": "scaling",
    **harness.record(),
    **dataclasses.asdict(budget),
    "networks": {},
  }
  for name in names:
    pair = chosen(name, quick)
    found = {
      "batch_size": pair.batch_size,
      "devices": by_devices(name, budget, quick),
      "micro_batches": by_micro_batches(pair, budget),
    }
    record["networks"][name] = found
    report(name, found)
  record["loader"] = loader(budget, quick)
  return {**record, "load_average_1min_at_end": harness.load()}


def report(name: str, found: dict[str, Any]) -> None:
  """Prints the ratios of a pair for people."""
  over = "  ".join(
    f"{k} {v['over_one']:.2f}" for k, v in found["devices"].items()
  )
  parts = "  ".join(
    f"{k} {v['time_over_one']:.2f} ({v['temporaries_over_one']:.2f})"
    for k, v in found["micro_batches"].items()
  )
  print(
    f"{name:8s} over one device: {over}\n"
    f"{'':8s} micro-batches over one, time (temporaries): {parts}",
    file=sys.stderr,
  )


def main(arguments: list[str] | None = None) -> None:
  """Parses the command line and prints the record."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--quick", action="store_true", help="tiny networks")
  parser.add_argument(
    "--networks", nargs="+", choices=PAIRS, default=list(PAIRS)
  )
  harness.add_output(parser)
  options = parser.parse_args(arguments)
  budget = QUICK if options.quick else FULL
  result = measure(budget, options.networks, options.quick)
  harness.emit(result, options.output)


if __name__ == "__main__":
  main()
