"""Batches' entries from records, at random places."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.errors import RefusedInput, StorageError
from jaxkd.training.target_files.codec import Rows
from jaxkd.training.target_files.records import Layout

# Records are read one by one, here and there.
_OPTIONS = (
  "readahead_buffer_size:0,max_parallelism:1,index_storage_option:in_memory"
)
AT_ONCE = 2**21  # bytes: copied while they are in a core's cache


@dataclasses.dataclass(kw_only=True)
class Reader:
  """What a role showed of the examples of one split.

  Attributes:
    role: the role.
    layout: what records hold.
    shards: files; example n of augmentation a is record number a N + n.
    shard_examples: records in each of them but the last.
    examples: N.
    augmentations: the keys of what was done to the examples, in their order.
    fingerprint: a digest of all records.
  """

  role: str
  layout: Layout
  shards: tuple[Path, ...]
  shard_examples: int
  examples: int
  augmentations: tuple[int, ...]
  fingerprint: str
  _open: dict[int, Any] = dataclasses.field(default_factory=dict, repr=False)

  def take(
    self, examples: np.ndarray, augmentations: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """Entries of a batch, as `targets.Served` names them.

    Args:
      examples: numbers of the examples, [B].
      augmentations: the key of what was done to each, [B]; where the data are
        never changed, the only one there is.

    Raises:
      RefusedInput: there is no such example or augmentation.
      StorageError: a record is damaged; it is named.
    """
    logits, taps = self.read(examples, augmentations)
    if isinstance(logits, Rows):
      found = {"ids": logits.ids, "log_probs": logits.log_probs}
    else:
      found = {"logits": logits}
    return {f"{self.role}@{n}": x for n, x in {**found, **taps}.items()}

  def read(
    self, examples: np.ndarray, augmentations: np.ndarray | None = None
  ) -> tuple[np.ndarray | Rows, dict[str, np.ndarray]]:
    """Logits or top-k, and taps by path; see `take`."""
    examples = np.asarray(examples, np.int64)
    if augmentations is None:
      augmentations = np.full_like(examples, self.augmentations[0])
      if len(self.augmentations) > 1:
        raise RefusedInput(
          f"the targets of role {self.role!r} are of {len(self.augmentations)} "
          "augmentations, and the batch has no entry 'augmentation'"
        )
    numbers = self._numbers(examples, np.asarray(augmentations))
    try:
      return self.layout.decode(
        self._records(numbers),
        examples.tolist(),
        np.asarray(augmentations).tolist(),
      )
    except StorageError as error:
      raise StorageError(f"{self.shards[0].parent}: {error}") from error

  def _numbers(self, examples, augmentations) -> np.ndarray:
    known = np.asarray(self.augmentations)
    order = np.argsort(known)
    places = np.searchsorted(known, augmentations, sorter=order)
    places = order[np.minimum(places, len(known) - 1)]
    wrong = known[places] != augmentations
    outside = (examples < 0) | (examples >= self.examples)
    if wrong.any() or outside.any():
      row = np.flatnonzero(wrong | outside)[0]
      raise RefusedInput(
        f"no target of role {self.role!r} for example {examples[row]}, "
        f"augmentation {augmentations[row]}; there are {self.examples} "
        f"examples and augmentations {list(self.augmentations)}"
      )
    return places * self.examples + examples

  def _records(self, numbers: np.ndarray) -> Iterator[bytes]:
    """Records by number, read some at once."""
    shards, places = np.divmod(numbers, self.shard_examples)
    some = max(1, AT_ONCE // self.layout.record_bytes)
    for start in range(0, len(numbers), some):
      part = slice(start, start + some)
      found: dict[int, bytes] = {}
      for shard in np.unique(shards[part]):
        rows = np.flatnonzero(shards[part] == shard)
        read = self._read(int(shard), places[part][rows].tolist())
        found |= zip(rows.tolist(), read, strict=True)
      yield from (found[row] for row in sorted(found))

  def _read(self, shard: int, places: list[int]) -> list[bytes]:
    from array_record.python import array_record_module

    path = self.shards[shard]
    try:
      if shard not in self._open:
        self._open[shard] = array_record_module.ArrayRecordReader(
          str(path), _OPTIONS
        )
      return self._open[shard].read(places)
    except (RuntimeError, ValueError, IndexError) as error:
      reason = str(error).partition(";")[0]
      raise StorageError(f"{path.name} is damaged: {reason}") from error
