"""The streams of a phase: which examples, in what order, with what targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.data import pipeline
from jaxkd.data.pipeline import Feed
from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import ConfigError
from jaxkd.method import Batch, Method, Phase, Stream
from jaxkd.parallel import Mesh
from jaxkd.roles import key_of

MAIN = ""  # the name of the stream that counts epochs
DEVICE_BYTES = 2**28  # a split of validation up to this size stays there


def feeds(
  phase: Phase, splits: Splits, batch_size: int, rng: jax.Array
) -> dict[str, Feed]:
  """All examples of the streams' splits, the main stream under `MAIN`.

  Args:
    phase: the phase.
    splits: the data.
    batch_size: of streams that have none of their own.
    rng: the run's key; the names of phase and stream are folded in.

  Returns:
    Feeds by stream.

  Raises:
    ConfigError: there is no split of that name.
  """
  found = {}
  for name, stream in _streams(phase).items():
    label = f"{phase.name}/{name}" if name else phase.name
    bits = jax.random.bits(key_of(rng, f"stream/{label}"), dtype=np.uint32)
    size = (stream and stream.batch_size) or batch_size
    source = _source(phase, stream, splits, size)
    replace = stream is not None and stream.replace
    found[name] = Feed(source, size, int(bits), replace)
  return found


def picked(
  phase: Phase,
  full: Mapping[str, Feed],
  memory: Mapping[str, Any],
  with_targets: Callable[[ArraySource], ArraySource],
) -> dict[str, Feed]:
  """The feeds with targets, and of the rows that the streams ask for.

  Args:
    phase: the phase.
    full: all examples, from `feeds`.
    memory: what the method remembers when the phase begins.
    with_targets: adds cached targets to a split; called once for each.

  Returns:
    Feeds by stream.
  """
  found, ready = {}, {}
  for name, stream in _streams(phase).items():
    source = full[name].source
    if id(source) not in ready:
      ready[id(source)] = with_targets(source)
    source = ready[id(source)]
    if stream is not None and stream.rows is not None:
      source = source.subset(stream.rows(memory))
    found[name] = dataclasses.replace(full[name], source=source)
  return found


def join(found: Mapping[str, Feed], part: tuple[int, int] = (0, 1)) -> Any:
  """The endless stream of joined batches, or of one process's part of them."""
  beside = {name: feed for name, feed in found.items() if name != MAIN}
  index, count = part
  return pipeline.stream(
    found[MAIN], beside=beside, process_index=index, process_count=count
  )


def check_batches(mesh: Mesh, method: Method, sizes: Sequence[int]) -> None:
  """Checks that all batches can be split over a mesh.

  Args:
    mesh: the mesh.
    method: the method.
    sizes: of the main stream's batches, and of batches of other kinds.

  Raises:
    ConfigError: one cannot.
  """
  for size in sizes:
    mesh.check_batch(size)
  for phase in method.lasting_phases:
    for stream in phase.beside.values():
      mesh.check_batch(stream.batch_size or sizes[0])


def stays(source: ArraySource) -> bool:
  """Whether a split of validation stays on the devices during a phase."""
  example = source.take(np.zeros(1, np.int32))
  size = sum(rows.nbytes for rows in example.values())
  return size * len(source) <= DEVICE_BYTES


def examples(
  method: Method, splits: Splits, batch_size: int
) -> tuple[Batch, dict[str, Batch]]:
  """A batch for evaluation and one for every phase, without targets.

  Args:
    method: the method.
    splits: the data.
    batch_size: the task's.

  Returns:
    A batch of the training split, and batches by phase.
  """
  rng = jax.random.key(0)
  return next(pipeline.batches(splits.train, batch_size)), {
    phase.name: next(join(feeds(phase, splits, batch_size, rng)))
    for phase in method.lasting_phases
  }


def _streams(phase: Phase) -> dict[str, Stream | None]:
  return {MAIN: phase.stream, **phase.beside}


def _source(
  phase: Phase, stream: Stream | None, splits: Splits, batch_size: int
) -> ArraySource:
  if stream is None:
    return ArraySource({"index": np.arange(batch_size, dtype=np.int32)})
  try:
    return splits.part(stream.split)
  except ConfigError as error:
    raise ConfigError(f"phase {phase.name!r}: {error}") from error
