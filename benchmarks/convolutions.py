"""Convolutions and poolings on a CPU: XLA's, and what could be won.

    python -m benchmarks.convolutions [--quick] [--kernels NAME ...]
      [--output FILE]

Result and gradients of the kernels of a few networks in several ways (see
`benchmarks.kernels`), float32. `xla_over` is the time of XLA's convolution or
window reduction over a way's: above 1 the way is faster. `in_use_over` is the
same for the way that jaxkd takes; from it come `ours_to_win`, the ways that
are more than 1.1 times faster with nine tenths of the rounds' ratios' medians
above 1, and `not_ours`, all others. If torch can be imported, PyTorch is timed
in turns with them, with as many threads and the faster order of axes;
`over_torch` is the way in use over it. The last line printed is one JSON
object.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import harness, kernels
from benchmarks.kernels import SPECS, Case, Spec
from jaxkd import allocator

try:
  from benchmarks import torch_convolutions
except ImportError:
  torch_convolutions = None

CLEAR = 1.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """How much is measured.

  Attributes:
    repetitions: rounds.
    sample_seconds: fast calls are repeated until a sample takes so long.
  """

  repetitions: int = 15
  sample_seconds: float = 0.1


FULL = Budget()
QUICK = Budget(repetitions=3, sample_seconds=0.0)


def compiled(case: Case, way: str) -> Callable[[], tuple]:
  """A call that computes result and gradients and waits for them."""
  given = case.gradient(), *case.arrays
  program = jax.jit(case.forward_and_backward(way)).lower(*given).compile()
  return lambda: jax.block_until_ready(program(*given))


def difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
  """The largest difference of any array, over the largest value in it.

  Args:
    found: arrays.
    expected: as many, with as many elements.
  """
  largest = 0.0
  for ours, theirs in zip(found, expected, strict=True):
    theirs = np.asarray(theirs)
    gap = np.abs(np.asarray(ours).reshape(theirs.shape) - theirs).max()
    largest = max(largest, float(gap / np.abs(theirs).max()))
  return largest


def compare(spec: Spec, budget: Budget) -> dict[str, Any]:
  """Times all ways of one kernel in turns."""
  case = kernels.case(spec)
  calls: dict[str, Callable[[], Any]] = {
    way: compiled(case, way) for way in case.ways
  }
  values = {way: jax.tree.leaves(call()) for way, call in calls.items()}
  peers = {}
  if torch_convolutions is not None:
    peers = torch_convolutions.peers(spec, case)
    values |= {name: peer.arrays() for name, peer in peers.items()}
  samples = harness.interleave(
    calls | peers,
    repetitions=budget.repetitions,
    sample_seconds=budget.sample_seconds,
  )
  used = min(case.in_use, key=samples.median)
  others = [way for way in case.ways if way not in case.in_use]
  found = {
    **dataclasses.asdict(spec),
    "in_use": used,
    "ms": {
      name: round(1e3 * samples.median(name), 4) for name in samples.seconds
    },
    "xla_over": {
      way: round(samples.ratio(case.xla, way), 4)
      for way in case.ways
      if way != case.xla
    },
    "in_use_over": {way: ratio(samples, used, way) for way in others},
    "largest_difference": {
      name: difference(value, values[case.xla])
      for name, value in values.items()
      if name != case.xla
    },
  }
  if peers:
    peer = min(peers, key=samples.median)
    found["over_torch"] = ratio(samples, used, peer)
  return found


def ratio(samples: harness.Samples, first: str, second: str) -> dict[str, Any]:
  """The median of the rounds of first / second, and its interval."""
  return {
    "ratio": round(samples.ratio(first, second), 4),
    "interval": samples.interval(first, second),
  }


def sorted_out(
  found: Mapping[str, Mapping[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
  """Which ways would be faster than those in use.

  Args:
    found: for each kernel its `in_use_over`: ratio and interval by way.

  Returns:
    `ours_to_win`, the ways that are clearly faster, the best first, and
    `not_ours`, all others; each with kernel, way, ratio and interval.
  """
  rows = [
    {"kernel": kernel, "way": way, **over}
    for kernel, row in found.items()
    for way, over in row["in_use_over"].items()
  ]
  rows.sort(key=lambda row: -row["ratio"])
  clear = [row["ratio"] > CLEAR and row["interval"][0] > 1 for row in rows]
  pairs = list(zip(rows, clear, strict=True))
  return {
    "ours_to_win": [row for row, won in pairs if won],
    "not_ours": [row for row, won in pairs if not won],
  }


def measure(
  budget: Budget, names: Sequence[str], quick: bool
) -> dict[str, Any]:
  """Runs everything.

  Args:
    budget: how much is measured.
    names: of the kernels.
    quick: whether they are tiny.

  Returns:
    The JSON record.
  """
  peer = {}
  if torch_convolutions is not None:
    peer = torch_convolutions.record(harness.cores())
  head = {
    "benchmark": "convolutions",
    **harness.record(**peer.get("versions", {})),
    "torch_threads": peer.get("threads"),
    **dataclasses.asdict(budget),
  }
  found = {}
  for name in names:
    spec = kernels.small(SPECS[name]) if quick else SPECS[name]
    found[name] = compare(spec, budget)
    report(name, found[name])
  return {
    **head,
    "kernels": found,
    **sorted_out(found),
    "load_average_1min_at_end": harness.load(),
  }


def report(name: str, found: Mapping[str, Any]) -> None:
  """Prints a line for people."""
  times = "  ".join(f"{way} {ms:.2f}" for way, ms in found["ms"].items())
  print(f"{name:22s} ms: {times}; in use: {found['in_use']}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
  """Parses the command line and prints the record."""
  allocator.keep()  # as `jaxkd run` does
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--quick", action="store_true", help="tiny kernels")
  parser.add_argument(
    "--kernels", nargs="+", choices=SPECS, default=list(SPECS)
  )
  harness.add_output(parser)
  options = parser.parse_args(arguments)
  if jax.default_backend() != "cpu":
    parser.error(
      f"these are kernels of a CPU, not of a {jax.default_backend()}: "
      "expected JAX_PLATFORMS=cpu"
    )
  budget = QUICK if options.quick else FULL
  result = measure(budget, options.kernels, options.quick)
  harness.emit(result, options.output)


if __name__ == "__main__":
  main()
