"""From a source to batches, in an order that a single integer restores.

An epoch's order is a function of (seed, epoch), and batch k of the endless
stream a function of k: Grain's iterator therefore stores one number, and a
fresh process continues exactly, also with another number of processes.
Grain's own shuffle works an example at a time, 3 ms for a batch of 32; here
a batch is one gather.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxkd.data import checks, randomness
from jaxkd.data.source import ArraySource

if TYPE_CHECKING:
  import grain

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Feed:
  """Examples in an order: an endless stream of batches, reshuffled every epoch.

  Attributes:
    source: The examples.
    batch_size: Examples in a batch over all processes.
    seed: Decides the order of every epoch.
    replace: Every example of every batch is drawn from all of them, instead of
      each once in an epoch; no batch is then filled up.
  """

  source: ArraySource
  batch_size: int
  seed: int
  replace: bool = False

  def __post_init__(self):
    """Raises `ConfigError` for a number out of range."""
    checks.require_integer("batch_size", self.batch_size, 1)
    checks.require_integer("seed", self.seed, 0, 2**64 - 1)

  def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which examples are in batch number `step`, and which count.

    Args:
      step: Number of the batch, from 0 on.

    Returns:
      Example numbers [B], and the mask [B], 0 where the batch is filled up.
    """
    if self.replace:
      drawn = randomness.draws(
        self.batch_size,
        among=len(self.source),
        seed=self.seed,
        purpose="drawn with replacement",
        round_index=int(step),
      )
      return _rows(drawn, self.batch_size, 0)
    steps = steps_per_epoch(self.source, self.batch_size)
    epoch, step = divmod(int(step), steps)
    order = randomness.permutation(
      len(self.source), seed=self.seed, purpose="epoch order", round_index=epoch
    )
    return _rows(order, self.batch_size, step)

  def batch(self, step: int, process: int = 0, processes: int = 1) -> Batch:
    """Returns batch number `step`, or one process's part of it."""
    size = self.batch_size // processes
    part = slice(process * size, (process + 1) * size)
    rows, mask = self.rows(step)
    return {**self.source.take(rows[part]), "mask": mask[part]}


@dataclasses.dataclass(frozen=True)
class _BatchAt:
  """Batch number k of all feeds together, the names of those beside first."""

  feed: Feed
  beside: Mapping[str, Feed]
  process: int
  processes: int

  def __call__(self, step: int) -> Batch:
    where = (step, self.process, self.processes)
    batch = self.feed.batch(*where)
    for name, feed in self.beside.items():
      batch |= {f"{name}/{k}": v for k, v in feed.batch(*where).items()}
    return batch


def stream(
  feed: Feed,
  *,
  beside: Mapping[str, Feed] | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> "grain.DatasetIterator":
  """Returns an endless iterator of batches.

  An epoch of a feed has `steps_per_epoch` batches; its last batch is filled up
  with the epoch's first examples, whose mask is 0. `get_state()` and
  `set_state()` save and restore the position exactly.

  Args:
    feed: The main stream.
    beside: Further streams, each with epochs of its own; their entries are
      called `<name>/<entry>`.
    process_index: Which process this is, 0..process_count-1.
    process_count: Process p gets the p-th of `process_count` equal consecutive
      parts of each batch: the parts of all processes, concatenated in order,
      are the batch of a single process.

  Raises:
    ConfigError: An argument is out of range, or `process_count` does not
      divide `batch_size`.
  """
  import grain

  checks.require_integer("process_count", process_count, 1)
  checks.require_integer("process_index", process_index, 0, process_count - 1)
  beside = dict(beside or {})
  for each in (feed, *beside.values()):
    checks.require(
      each.batch_size % process_count == 0,
      "batch_size",
      each.batch_size,
      f"a multiple of process_count = {process_count}",
    )
  dataset = grain.MapDataset.range(sys.maxsize).map(
    _BatchAt(feed, beside, process_index, process_count)
  )
  in_memory = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(dataset.to_iter_dataset(in_memory))


def steps_per_epoch(source: ArraySource, batch_size: int) -> int:
  """Returns the number of batches in an epoch, the filled-up one included."""
  checks.require_integer("batch_size", batch_size, 1)
  return -(-len(source) // batch_size)


def batches(
  source: ArraySource,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Returns one pass in the source's order; the last batch is padded.

  Args:
    source: The examples.
    batch_size: Examples in a batch; padding has mask 0.
    process_index: As in `stream`.
    process_count: As in `stream`.
  """
  steps = steps_per_epoch(source, batch_size)
  order = np.arange(len(source))
  size = batch_size // process_count
  own = slice(process_index * size, (process_index + 1) * size)
  parts = (_rows(order, batch_size, step) for step in range(steps))
  return ({**source.take(rows[own]), "mask": mask[own]} for rows, mask in parts)


def fingerprint(source: ArraySource) -> str:
  """Returns the sha256, in hex, of all names, dtypes, shapes and bytes.

  Of entries that lie beside the source, their own fingerprints.
  """
  digest = hashlib.sha256()
  for kind, arrays in (("array", source.arrays), ("table", source.tables)):
    for name, array in sorted(arrays.items()):
      header = (kind, name, array.dtype.name, array.dtype.str, array.shape)
      digest.update(repr(header).encode())
      digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  for beside in source.beside:
    digest.update(beside.fingerprint.encode())
  return digest.hexdigest()


def _rows(
  order: np.ndarray, batch_size: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
  positions = np.arange(step * batch_size, (step + 1) * batch_size)
  mask = (positions < len(order)).astype(np.float32)
  return order[positions % len(order)], mask
