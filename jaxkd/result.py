"""What a finished experiment shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd import report
from jaxkd.evaluation import statistics


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished experiment.

  Attributes:
    workdir: its folder.
    summary: the content of summary.json.
  """

  workdir: Path
  summary: Mapping[str, Any]

  def rows(self) -> list[dict[str, str]]:
    """Test accuracy of every predictor: mean and 95% interval over seeds."""
    inputs = self.summary["inputs"]
    found = {
      name.removesuffix("/accuracy"): values
      for name, values in self.summary["metrics"].items()
      if name.endswith("/accuracy")
    }
    return [
      {
        "network": name,
        "reads": ", ".join(inputs.get(name, ())),
        "test accuracy": interval_text(values),
        "seeds": str(len(values)),
      }
      for name, values in found.items()
    ]

  def table(self) -> str:
    """The rows as a Markdown table."""
    return report.table(self.rows())

  def shares(self) -> str:
    """Routing shares on the test split, in one line; empty without a gate."""
    routes = {
      name.removeprefix("route/"): np.mean(values)
      for name, values in self.summary["metrics"].items()
      if name.startswith("route/")
    }
    parts = (f"{name} {share:.0%}" for name, share in routes.items())
    return "routing: " + ", ".join(parts) if routes else ""

  def plot(self) -> dict[str, Path]:
    """Draws the report; returns its files by name."""
    return report.build(self.workdir)


def interval_text(values: Sequence[float]) -> str:
  """Percent: "71.3 [70.1, 72.5]", or the mean alone for one seed."""
  mean, low, high = statistics.mean_interval(values)
  text = f"{100 * mean:.1f}"
  return (
    text if np.isnan(low) else f"{text} [{100 * low:.1f}, {100 * high:.1f}]"
  )
