"""Reads a workdir from disk, trusting nothing of what it holds."""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from jaxkd.errors import RefusedInput

MAIN = "main"  # the label of the experiment's own method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One training run: a method or control with one seed.

  Attributes:
    label: "main" or the control's label.
    seed: the seed.
    rows: the lines of metrics.jsonl, checked.
    evaluation: evaluation.json, {} while there is none.
    timing: timing.json, {} while there is none.
    proofs: proofs.json, {} while there is none.
  """

  label: str
  seed: int
  rows: list[dict[str, Any]]
  evaluation: dict[str, Any]
  timing: dict[str, Any]
  proofs: dict[str, Any]

  def series(
    self, name: str, split: str, phase: str | None = None
  ) -> dict[int, float]:
    """Returns step -> value of a metric, in one phase or in all."""
    return {
      row["step"]: row["metrics"][name]
      for row in self.rows
      if row["split"] == split
      and name in row["metrics"]
      and phase in (None, row["phase"])
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workdir:
  """What a finished or running experiment has left on disk.

  Attributes:
    path: the folder.
    summary: summary.json, {} while there is none.
    runs: all runs, "main" first, by label and seed.
    texts: the text of config.gin, command.txt where present.
    environment: environment.json, {} if absent.
  """

  path: pathlib.Path
  summary: dict[str, Any]
  runs: list[Run]
  texts: dict[str, str]
  environment: dict[str, Any]

  @property
  def labels(self) -> list[str]:
    """The labels of the runs, "main" first."""
    return list(dict.fromkeys(run.label for run in self.runs))

  @property
  def phases(self) -> list[str]:
    """The names of the phases of all runs, in the order they began."""
    first: dict[str, int] = {}
    for run in self.runs:
      for row in run.rows:
        step = first.setdefault(row["phase"], row["step"])
        first[row["phase"]] = min(step, row["step"])
    return sorted(first, key=first.__getitem__)

  @property
  def metrics(self) -> list[str]:
    """The names of all metrics, in order of appearance."""
    return list(
      dict.fromkeys(
        name for run in self.runs for row in run.rows for name in row["metrics"]
      )
    )

  def of(self, label: str) -> list[Run]:
    """Returns the runs of one label."""
    return [run for run in self.runs if run.label == label]


def read(path: str | os.PathLike) -> Workdir:
  """Reads an experiment's workdir.

  Args:
    path: the folder that a training command wrote.

  Returns:
    Its content; what has not been written yet is empty.

  Raises:
    RefusedInput: the folder is not a workdir, holds no runs, or a file in it
      is not what it must be.
  """
  folder = pathlib.Path(path)
  check_marker(folder)
  found = []
  for run in sorted((folder / "runs").glob("*/seed_*")):
    seed = run.name.removeprefix("seed_")
    if run.is_dir() and seed.isdecimal():
      found.append((run.parent.name != MAIN, run.parent.name, int(seed), run))
  if not found:
    raise RefusedInput(
      f"{folder} holds no runs, expected runs/<label>/seed_<n>: has training"
      " begun?"
    )
  runs = [_read_run(label, seed, run) for _, label, seed, run in sorted(found)]
  texts = {
    name: (folder / name).read_text(errors="replace")
    for name in ("config.gin", "command.txt")
    if (folder / name).is_file()
  }
  return Workdir(
    path=folder,
    summary=read_json(folder / "summary.json"),
    runs=runs,
    texts=texts,
    environment=read_json(folder / "environment.json"),
  )


def check_marker(folder: pathlib.Path) -> None:
  """Refuses a folder that jaxkd did not make.

  Raises:
    RefusedInput: the folder has no valid jaxkd.json.
  """
  if not (folder / "jaxkd.json").is_file():
    raise RefusedInput(
      f"{folder} is not a jaxkd workdir: expected a folder with jaxkd.json"
    )
  found = read_json(folder / "jaxkd.json").get("format")
  if found != 1:
    raise RefusedInput(
      f"{folder / 'jaxkd.json'} has format {found!r}, expected 1: was it"
      " written by a newer jaxkd?"
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns a JSON file's object, {} if there is no file.

  Raises:
    RefusedInput: the file is not a JSON object.
  """
  if not path.is_file():
    return {}
  try:
    content = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise RefusedInput(f"{path} is not JSON: {error}") from error
  if not isinstance(content, dict):
    raise RefusedInput(f"{path} holds no JSON object")
  return content


def number(value: Any) -> float:
  """Returns a JSON value as a float: null is nan, "nan" and "inf" are read.

  Raises:
    RefusedInput: the value is not a number.
  """
  if value is None:
    return math.nan
  try:
    if not isinstance(value, bool):
      return float(value)
  except (TypeError, ValueError, OverflowError):
    pass
  raise RefusedInput(f"{value!r} is not a number")


def numbers(values: Any) -> np.ndarray:
  """Returns a JSON list of numbers as [n] float64.

  Raises:
    RefusedInput: the value is not a list of numbers.
  """
  if not isinstance(values, list):
    raise RefusedInput(f"{values!r} is not a list of numbers")
  return np.asarray([number(value) for value in values], np.float64)


def _read_run(label: str, seed: int, folder: pathlib.Path) -> Run:
  return Run(
    label=label,
    seed=seed,
    rows=_read_rows(folder / "metrics.jsonl"),
    evaluation=read_json(folder / "evaluation.json"),
    timing=read_json(folder / "timing.json"),
    proofs=read_json(folder / "proofs.json"),
  )


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads metrics.jsonl; a last line without its end is being written."""
  if not path.is_file():
    return []
  *lines, _ = path.read_bytes().split(b"\n")
  rows = []
  for i, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
      rows.append(
        {
          "phase": str(row["phase"]),
          "step": int(row["step"]),
          "split": str(row["split"]),
          "metrics": {k: number(v) for k, v in row["metrics"].items()},
        }
      )
    except (
      *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
      *(OverflowError, RefusedInput),
    ) as error:
      raise RefusedInput(
        f"{path}:{i} is not a line of metrics ({type(error).__name__}: {error})"
      ) from error
  return rows
