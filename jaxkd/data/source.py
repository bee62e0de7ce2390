"""Arrays that answer to an example's number, and what a task must provide."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxkd.errors import ConfigError

Decode = Callable[[np.ndarray], np.ndarray]


class Beside(Protocol):
  """Further entries, which lie elsewhere under the examples' numbers.

  Attributes:
    fingerprint: a digest of all of them.
  """

  fingerprint: str

  def take(
    self, examples: np.ndarray, augmentations: np.ndarray | None
  ) -> Mapping[str, np.ndarray]:
    """Gathers entries.

    Args:
      examples: example numbers, [B].
      augmentations: what was done to each example, as the source's entry
        `augmentation` says, [B]; None where it has no such entry.

    Returns:
      Name to array [B, ...].
    """
    ...


class ArraySource:
  """Examples in memory: a Grain random-access source that also gathers rows.

  An entry may be stored small and expanded a batch at a time: rows that many
  examples share lie once in a table, and a decode function makes, say,
  float32 in 0-1 of uint8. An `index` entry, the example's number, is added.
  """

  def __init__(
    self,
    arrays: Mapping[str, Any],
    *,
    tables: Mapping[str, Any] | None = None,
    decode: Mapping[str, Decode] | None = None,
  ):
    """Checks the arrays and keeps them without a copy.

    Args:
      arrays: Entry name to array [N, ...], all with the same N of at least 1.
      tables: Entry name to array [M, ...]; the array of that name in `arrays`
        then holds row numbers [N] into the table.
      decode: Entry name to a function from stored rows [B, ...] to the values
        [B, ...] of a batch.

    Raises:
      ConfigError: Lengths differ, an array has no examples or holds Python
        objects, a name is reserved, or a row number is outside its table.
    """
    self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
    self.tables = {
      name: np.asarray(table) for name, table in (tables or {}).items()
    }
    self._decode = dict(decode or {})
    self.beside: tuple[Beside, ...] = ()
    self._length = _common_length(self.arrays)
    numbers = np.arange(self._length, dtype=np.int32)
    if not np.array_equal(self.arrays.setdefault("index", numbers), numbers):
      raise ConfigError(
        "entry 'index' is reserved for the numbers 0..N-1 of the examples; "
        "expected another name"
      )
    if "mask" in self.arrays:
      raise ConfigError("entry 'mask' is reserved: a batch sets it itself")
    for name in [*self.tables, *self._decode]:
      if name not in self.arrays:
        raise ConfigError(
          f"table or decode function for {name!r}: expected one of the "
          f"entries {sorted(self.arrays)}"
        )
    for name, table in self.tables.items():
      _check_rows(name, self.arrays[name], len(table))

  def __len__(self) -> int:
    """Returns the number of examples N."""
    return self._length

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Returns one example: name to array without the leading axis."""
    rows = self.take(np.asarray([index]))
    return {name: array[0] for name, array in rows.items()}

  def __repr__(self) -> str:
    shapes = {name: array.shape[1:] for name, array in self.arrays.items()}
    return f"ArraySource({self._length} examples, {shapes})"

  def take(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Gathers examples.

    Args:
      indices: Example numbers [B], each in 0..N-1.

    Returns:
      Name to array [B, ...], shared rows looked up and entries decoded.
    """
    indices = np.asarray(indices)
    rows = {name: array[indices] for name, array in self.arrays.items()}
    for name, table in self.tables.items():
      rows[name] = table[rows[name]]
    for name, decode in self._decode.items():
      rows[name] = decode(rows[name])
    for beside in self.beside:
      rows |= beside.take(rows["index"], rows.get("augmentation"))
    return rows

  def subset(self, rows: Sequence[int] | np.ndarray) -> "ArraySource":
    """Returns some of the examples; they keep their `index`.

    Args:
      rows: Example numbers [n], each in 0..N-1.

    Raises:
      ConfigError: There is no row.
    """
    rows = np.asarray(rows, np.int64)
    if not len(rows):
      raise ConfigError("a subset of 0 examples: expected at least 1")
    chosen = copy.copy(self)
    chosen.arrays = {name: array[rows] for name, array in self.arrays.items()}
    chosen._length = len(rows)
    return chosen

  def with_entry(self, name: str, array: Any) -> "ArraySource":
    """Returns a source with one more entry, e.g. cached teacher targets.

    Args:
      name: Entry name, not yet in the source.
      array: Values [N, ...] in the order of the examples.

    Raises:
      ConfigError: The name is taken or the length is not N.
    """
    if name in self.arrays:
      raise ConfigError(
        f"entry {name!r} is taken: expected a name other than "
        f"{sorted(self.arrays)}"
      )
    return ArraySource(
      {**self.arrays, name: array}, tables=self.tables, decode=self._decode
    )._with(self.beside)

  def with_beside(self, beside: Sequence[Beside]) -> "ArraySource":
    """Returns a source with further entries that are read when taken.

    Args:
      beside: What is asked for them, by the examples' numbers.
    """
    return self._with((*self.beside, *beside))

  def _with(self, beside: tuple[Beside, ...]) -> "ArraySource":
    chosen = copy.copy(self)
    chosen.beside = beside
    return chosen


def _common_length(arrays: Mapping[str, np.ndarray]) -> int:
  for name, array in arrays.items():
    if array.dtype == object:
      raise ConfigError(
        f"entry {name!r} holds Python objects: expected a numeric array"
      )
    if array.ndim == 0:
      raise ConfigError(
        f"entry {name!r} has no example axis: expected [N, ...]"
      )
  lengths = {name: len(array) for name, array in arrays.items()}
  if len(set(lengths.values())) != 1 or not all(lengths.values()):
    raise ConfigError(
      f"entries have lengths {lengths}: expected one length of at least 1"
    )
  return next(iter(lengths.values()))


def _check_rows(name: str, rows: np.ndarray, length: int) -> None:
  if not np.issubdtype(rows.dtype, np.integer) or rows.ndim != 1:
    raise ConfigError(
      f"entry {name!r} is {rows.dtype} {rows.shape}: expected integer row "
      "numbers [N] into its table"
    )
  if rows.min() < 0 or rows.max() >= length:
    raise ConfigError(
      f"entry {name!r} has row numbers {rows.min()}..{rows.max()}: expected "
      f"0..{length - 1}, the rows of its table"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
  """The parts of a task's data; no example is in two of the first three.

  Attributes:
    train: for training.
    validation: for choosing.
    test: read once, at the end.
    others: further parts by name, such as examples without labels.
  """

  train: ArraySource
  validation: ArraySource
  test: ArraySource
  others: Mapping[str, ArraySource] = dataclasses.field(default_factory=dict)

  @property
  def parts(self) -> dict[str, ArraySource]:
    """All parts by name."""
    named = ("train", "validation", "test")
    return {**{name: getattr(self, name) for name in named}, **self.others}

  def part(self, name: str) -> ArraySource:
    """A part by name.

    Raises:
      ConfigError: there is none of that name.
    """
    if name not in self.parts:
      raise ConfigError(
        f"split {name!r}: expected one of " + ", ".join(self.parts)
      )
    return self.parts[name]


@runtime_checkable
class Task(Protocol):
  """Data of one problem; any object with these attributes will do.

  A task is a frozen dataclass, so that equal fields mean equal data.
  """

  @property
  def name(self) -> str:
    """Short lower-case name, used in reports."""
    ...

  @property
  def num_classes(self) -> int:
    """Number of classes C; labels are 0..C-1."""
    ...

  @property
  def batch_size(self) -> int:
    """Examples in a training batch over all processes."""
    ...

  def splits(self, seed: int) -> Splits:
    """Returns the data; the split and every random draw depend on `seed`."""
    ...
