"""One record: what a role showed of one example.

    example | augmentation | positions stored
    which positions are stored, a bit each (only if some are left out)
    a row for every position stored: logits, or top-k as `codec` writes it
    the taps, one after the other

Numbers are little-endian. Equal parts of all records lie at equal places, so
that a batch of them is read as one array. ArrayRecord keeps a hash of each
record and checks it whenever it is read.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd.errors import StorageError
from jaxkd.training.target_files.codec import Rows, TopKCodec

_HEAD = struct.Struct("<IqI")  # example, augmentation, positions stored
_ALIGNED = 64  # bytes: a CPU device takes such an array without a copy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """What records hold.

  Attributes:
    classes: C, the last axis of the logits.
    positions: the axes between examples and classes; () of a classifier.
    dtype: of the logits.
    codec: of top-k; None where all logits are kept.
    taps: shape [...] of an example and dtype, by path.
    where: the batch entry that says which positions are stored; "" for all.
    mapping: whether the network returned a mapping that has `logits`.
  """

  classes: int
  positions: tuple[int, ...]
  dtype: str
  codec: TopKCodec | None
  taps: Mapping[str, tuple[tuple[int, ...], str]]
  where: str = ""
  mapping: bool = False

  @property
  def count(self) -> int:
    """Positions of an example."""
    return math.prod(self.positions)

  @property
  def row_bytes(self) -> int:
    """Bytes of a position."""
    if self.codec is not None:
      return self.codec.row_bytes
    return self.classes * jnp.dtype(self.dtype).itemsize

  @property
  def record_bytes(self) -> int:
    """Bytes of a record of which all positions are stored."""
    return self._begin + self.count * self.row_bytes + self._tail

  @property
  def _begin(self) -> int:
    """Where the rows begin, after the head and the map of what is stored."""
    return _HEAD.size + (-(-self.count // 8) if self.where else 0)

  @property
  def _tail(self) -> int:
    return sum(_size(*tap) for tap in self.taps.values())

  def describe(self) -> dict[str, Any]:
    """As plain JSON."""
    codec = self.codec
    return {
      "logits": "all" if codec is None else "topk",
      "k": None if codec is None else codec.k,
      "bits": None if codec is None else codec.bits,
      "classes": self.classes,
      "positions": list(self.positions),
      "dtype": self.dtype,
      "taps": {
        p: [list(shape), kind] for p, (shape, kind) in self.taps.items()
      },
      "where": self.where,
      "mapping": self.mapping,
    }

  @classmethod
  def read(cls, described: Mapping[str, Any]) -> Layout:
    """The layout that `describe` described."""
    d, codec = described, None
    if d["k"] is not None:
      codec = TopKCodec(classes=d["classes"], k=d["k"], bits=d["bits"])
    return cls(
      classes=d["classes"],
      positions=tuple(d["positions"]),
      dtype=d["dtype"],
      codec=codec,
      taps={p: (tuple(shape), kind) for p, (shape, kind) in d["taps"].items()},
      where=d["where"],
      mapping=d["mapping"],
    )

  def rows(self, logits: np.ndarray | Rows) -> np.ndarray:
    """The positions of B examples as bytes, [B, positions, row_bytes].

    Args:
      logits: [B, *positions, C], or top-k with as many axes.
    """
    if self.codec is None:
      flat = np.ascontiguousarray(logits).reshape(-1, self.classes)
      data = flat.view(np.uint8)
    else:
      flat = [
        x.reshape(-1, *x.shape[1 + len(self.positions) :]) for x in logits
      ]
      data = self.codec.encode(Rows(*flat))
    return data.reshape(-1, self.count, self.row_bytes)

  def logits(self, rows: np.ndarray) -> np.ndarray | Rows:
    """What `rows` was given, from rows [B, positions, row_bytes]."""
    flat = np.ascontiguousarray(rows).reshape(-1, self.row_bytes)
    shape = (len(rows), *self.positions)
    if self.codec is None:
      return flat.view(jnp.dtype(self.dtype)).reshape(*shape, self.classes)
    found = self.codec.decode(flat)
    return Rows(*(x.reshape(*shape, *x.shape[1:]) for x in found))

  def encode(
    self,
    examples: Sequence[int],
    augmentation: int,
    rows: np.ndarray,
    taps: Mapping[str, np.ndarray],
    stored: np.ndarray,
  ) -> list[bytes]:
    """Writes the records of B examples.

    Args:
      examples: their numbers.
      augmentation: the key of what was done to them.
      rows: what `rows` returned.
      taps: [B, ...] by path.
      stored: which positions are, bool [B, positions].
    """
    records = []
    for n, example in enumerate(examples):
      kept = stored[n]
      parts = [
        _HEAD.pack(example, augmentation, int(kept.sum())),
        np.packbits(kept).tobytes() if self.where else b"",
        rows[n][kept].tobytes(),
        *(np.ascontiguousarray(taps[path][n]).tobytes() for path in self.taps),
      ]
      records.append(b"".join(parts))
    return records

  def decode(
    self,
    records: Iterable[bytes],
    examples: Sequence[int],
    augmentations: Sequence[int],
  ) -> tuple[np.ndarray | Rows, dict[str, np.ndarray]]:
    """Reads the records of B examples.

    Args:
      records: their records; each is copied before the next one is asked for.
      examples: their numbers, which the records must name too.
      augmentations: the keys of what was done to them, likewise.

    Returns:
      Logits or top-k, and taps [B, ...] by path. Positions that were not stored
      are NaN (class numbers: 0): a loss that reads them is not finite.

    Raises:
      StorageError: a record is damaged, or another example's.
    """
    size, begin = len(examples), self._begin
    maps = _Room(size * (begin - _HEAD.size))
    rows = _Room(size * self.count * self.row_bytes)
    taps = {path: _Room(size * _size(*tap)) for path, tap in self.taps.items()}
    for record, *given in zip(records, examples, augmentations, strict=True):
      view, at = memoryview(record), begin
      at += self._checked(record, *given) * self.row_bytes
      maps.add(view[_HEAD.size : begin])
      rows.add(view[begin:at])
      for path, room in taps.items():
        end = at + _size(*self.taps[path])
        room.add(view[at:end])
        at = end
    found = {
      path: taps[path].filled.view(jnp.dtype(dtype)).reshape(size, *shape)
      for path, (shape, dtype) in self.taps.items()
    }
    if not self.where:
      return self.logits(rows.filled.reshape(size, self.count, -1)), found
    stored = maps.filled.reshape(size, -1)
    stored = np.unpackbits(stored, axis=-1, count=self.count).astype(bool)
    return self._spread(rows.filled.reshape(-1, self.row_bytes), stored), found

  def _checked(self, record: bytes, example: int, augmentation: int) -> int:
    """How many positions a record holds, if it is whole and of the example."""
    what = f"the record of example {example}"
    if len(record) < self._begin:
      raise StorageError(f"{what} is damaged")
    *found, count = _HEAD.unpack_from(record)
    length = self._begin + count * self.row_bytes + self._tail
    if count > self.count or len(record) != length:
      raise StorageError(f"{what} is damaged")
    if found != [example, augmentation]:
      raise StorageError(
        f"{what}, augmentation {augmentation}, is that of example {found[0]}, "
        f"augmentation {found[1]}"
      )
    return count

  def _spread(self, rows: np.ndarray, stored: np.ndarray) -> Any:
    """Rows of the stored positions, at their places."""
    layout = dataclasses.replace(self, positions=())
    found = layout.logits(rows[:, None])
    shape = (len(stored), *self.positions)

    def spread(values):
      empty = np.nan if values.dtype.kind != "i" else 0
      whole = np.full((*stored.shape, *values.shape[1:]), empty, values.dtype)
      whole[stored] = values
      return whole.reshape(*shape, *values.shape[1:])

    return Rows(*map(spread, found)) if self.codec else spread(found)


class _Room:
  """Bytes that come one after the other, each copied once."""

  def __init__(self, size: int):
    room = np.empty(size + _ALIGNED, np.uint8)
    begin = -room.ctypes.data % _ALIGNED
    self._whole, self._at = room[begin : begin + size], 0

  def add(self, part: memoryview) -> None:
    end = self._at + len(part)
    self._whole[self._at : end] = part
    self._at = end

  @property
  def filled(self) -> np.ndarray:
    """What has come, uint8."""
    return self._whole[: self._at]


def _size(shape: tuple[int, ...], dtype: str) -> int:
  return math.prod(shape) * jnp.dtype(dtype).itemsize
