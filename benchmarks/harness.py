"""What every benchmark needs: fair timing, memory, and a record of where.

Machines drift: another process starts, a clock slows down. So things that are
compared are measured in turns within one process, one sample each per round,
every second round in reverse order, and compared round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.training.environment import environment

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
MEBI = 2**20


@dataclasses.dataclass(frozen=True)
class Samples:
  """Seconds per call of several variants, measured in turns.

  Attributes:
    seconds: variant -> one figure per round.
    calls: variant -> calls of which each figure is the mean.
  """

  seconds: Mapping[str, list[float]]
  calls: Mapping[str, int]

  def median(self, name: str) -> float:
    """The median over the rounds, in seconds per call."""
    return statistics.median(self.seconds[name])

  def fastest(self, name: str) -> float:
    """The least of the rounds, the one that was disturbed least."""
    return min(self.seconds[name])

  def ratio(self, first: str, second: str) -> float:
    """The median over the rounds of first / second."""
    pairs = zip(self.seconds[first], self.seconds[second], strict=True)
    return statistics.median(a / b for a, b in pairs)

  def interval(self, first: str, second: str) -> list[float]:
    """Nine tenths of the medians of resampled rounds of first / second."""
    pairs = zip(self.seconds[first], self.seconds[second], strict=True)
    ratios = [a / b for a, b in pairs]
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    return [
      round(float(q), 4) for q in np.quantile(np.median(draws, 1), (0.05, 0.95))
    ]


def interleave(
  variants: Mapping[str, Callable[[], Any]],
  *,
  repetitions: int,
  warm_up: int = 1,
  sample_seconds: float = 0.0,
  clock: Callable[[], float] = time.perf_counter,
) -> Samples:
  """Times variants in turns.

  Args:
    variants: functions by name; each returns when its work is done.
    repetitions: rounds; a round takes one sample of each variant.
    warm_up: untimed calls of each variant before the first round.
    sample_seconds: calls are repeated until a sample takes at least about so
      long, so that fast variants are not measured by the clock's noise.
    clock: tells the time in seconds.

  Returns:
    The samples.

  Raises:
    ValueError: there is nothing to measure.
  """
  if repetitions < 1 or not variants:
    raise ValueError(
      f"repetitions={repetitions} of {len(variants)} variants: expected at "
      "least one of each"
    )
  calls = {}
  for name, call in variants.items():
    for _ in range(warm_up):
      call()
    once = max(_sample(call, 1, clock), 1e-9)
    calls[name] = max(1, math.ceil(sample_seconds / once))
  seconds: dict[str, list[float]] = {name: [] for name in variants}
  for repetition in range(repetitions):
    names = list(variants)
    for name in reversed(names) if repetition % 2 else names:
      seconds[name].append(_sample(variants[name], calls[name], clock))
  return Samples(seconds, calls)


def _sample(
  call: Callable[[], Any], calls: int, clock: Callable[[], float]
) -> float:
  """Mean seconds of one of `calls` calls."""
  began = clock()
  for _ in range(calls):
    call()
  return (clock() - began) / calls


@dataclasses.dataclass
class Memory:
  """Resident memory of this process, in MiB, around a piece of work.

  Attributes:
    before_mib: when it began.
    peak_mib: the high-water mark while it ran; NaN until it ended.
    reset: whether the mark was set back at the beginning; if the system
      cannot do that, the peak is that of the process so far.
  """

  before_mib: float
  peak_mib: float = math.nan
  reset: bool = True

  def record(self) -> dict[str, float | bool]:
    """The figures, rounded, for a JSON record."""
    return {
      "before_mib": round(self.before_mib),
      "peak_mib": round(self.peak_mib),
      "reset": self.reset,
    }


@contextlib.contextmanager
def memory_high_water() -> Iterator[Memory]:
  """Measures the peak of the resident memory inside the `with` block."""
  try:
    _CLEAR.write_text("5")
    reset = True
  except OSError:
    reset = False
  memory = Memory(_resident_mib("VmRSS"), reset=reset)
  yield memory
  memory.peak_mib = _resident_mib("VmHWM")


def _resident_mib(field: str) -> float:
  """A field of the process's status; elsewhere than on Linux, the peak."""
  if _STATUS.exists():
    for line in _STATUS.read_text().splitlines():
      if line.startswith(field + ":"):
        return int(line.split()[1]) / 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / (MEBI if platform.system() == "Darwin" else 1024)


def add_output(parser: argparse.ArgumentParser) -> None:
  """Adds the option of `emit`."""
  parser.add_argument(
    "--output", type=Path, help="also write the record, indented, here"
  )


def emit(record: Mapping[str, Any], output: Path | None) -> None:
  """Prints a record as one JSON line, and writes it to a file if asked."""
  if output:
    output.write_text(json.dumps(record, indent=2) + "\n")
  print(json.dumps(record))


def machine() -> str:
  """The processor's model and the system, without the host's name."""
  model = platform.processor() or platform.machine()
  cpuinfo = Path("/proc/cpuinfo")
  if cpuinfo.exists():
    for line in cpuinfo.read_text().splitlines():
      if line.startswith("model name"):
        model = line.partition(":")[2].strip()
        break
  return f"{model}, {platform.machine()}, {platform.system()}"


def cores() -> int:
  """The cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def load() -> float:
  """Runnable processes of the machine, averaged over the last minute."""
  return round(os.getloadavg()[0], 2)


def record(**versions: str) -> dict[str, Any]:
  """Where and with what the benchmark runs.

  Args:
    **versions: of packages beside those of jaxkd.

  Returns:
    A JSON tree: machine, cores, devices, load, memory, versions, commit.
  """
  described = environment()
  pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return {
    "machine": machine(),
    "cores": cores(),
    "memory_gib": round(pages / 2**30, 1),
    "devices": described["devices"],
    "load_average_1min_at_start": load(),
    "versions": {
      "python": described["python"],
      **described["versions"],
      **versions,
    },
    "XLA_FLAGS": described["XLA_FLAGS"],
    "commit": described["commit"],
  }
