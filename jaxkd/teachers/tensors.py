"""Tensors in files, each of which is read by itself."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.errors import RefusedInput, did_you_mean

MOST_AXES = 32  # of an array in NumPy 1


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file.

  Attributes:
    shape: its shape.
    dtype: its dtype.
    read: reads it into new memory.
    storage: equal for tensors that are the same bytes; None if alone.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  storage: Hashable = None

  @property
  def nbytes(self) -> int:
    """Bytes of it in memory."""
    return math.prod(self.shape) * self.dtype.itemsize


class Tensors(Mapping[str, Tensor]):
  """The tensors of a checkpoint, by name.

  Attributes:
    source: what it is called in messages.
  """

  def __init__(self, source: str, tensors: Mapping[str, Tensor]):
    self.source = source
    self._tensors = dict(tensors)

  def __getitem__(self, name: str) -> Tensor:
    if name not in self._tensors:
      raise RefusedInput(
        f"{self.source} has no tensor {name!r}"
        + did_you_mean(name, self._tensors)
      )
    return self._tensors[name]

  def __contains__(self, name: object) -> bool:
    return name in self._tensors

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)


def twin(names: Iterable[str]) -> str | None:
  """The first name that is there twice, None if all differ."""
  counts = collections.Counter(names)
  return next((name for name, count in counts.items() if count > 1), None)


def parse_json(content: bytes) -> Any:
  """Reads JSON in which no key may be there twice.

  Raises:
    ValueError: it is something else.
  """
  try:
    return json.loads(content, object_pairs_hook=_without_twins)
  except RecursionError as error:
    raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
  """Reads a JSON file, or says what is wrong with it."""
  try:
    return parse_json(path.read_bytes())
  except OSError as error:
    raise RefusedInput(f"cannot read {path}: {error.strerror}") from error
  except ValueError as error:
    raise RefusedInput(f"{path} is not JSON: {error}") from error


def read_range(path: Path, start: int, size: int, name: str) -> np.ndarray:
  """Reads bytes of a file into new memory.

  Args:
    path: the file.
    start: of the bytes.
    size: how many.
    name: of the tensor that they hold.

  Raises:
    RefusedInput: if the file cannot be read or ends before.
  """
  content = np.empty(size, np.uint8)
  view, done = memoryview(content), 0
  try:
    with path.open("rb", buffering=0) as file:
      file.seek(start)
      while done < size:
        count = file.readinto(view[done:])
        if not count:
          break
        done += count
  except OSError as error:
    raise RefusedInput(f"cannot read {path}: {error.strerror}") from error
  if done < size:
    raise RefusedInput(f"{path} ended within tensor {name!r}")
  return content


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  repeated = twin(name for name, _ in pairs)
  if repeated is not None:
    raise ValueError(f"the key {repeated!r} is there twice")
  return dict(pairs)
