"""Verified, atomic, asynchronous checkpoints of one run.

A step is one folder, `<directory>/<step>`, in the format of `treefile`: state,
position of the data stream, meta and digests, committed by one rename. `save`
copies the state to the host and returns; a thread of ours, not orbax's, writes
it, so that an error belongs to the save that caused it. A step counts only
when it is durable; older ones are deleted after that, never before.

`restore` takes the newest step whose every bit is what was written. Damage is
told by name and the older step is taken; a run whose steps are all damaged
stops, it never starts afresh.

A `Checkpoints` belongs to the one process that holds the workdir; another
that only reads takes `load_tree` on a step's folder. Where several processes
run, all of them call what is here: process 0 writes and chooses the step to
restore, the others give their parts of the state and read the same step.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxkd.errors import ConfigError, RefusedInput, StorageError
from jaxkd.parallel import processes
from jaxkd.training import files, treefile, trees
from jaxkd.training.trees import tree_digest

__all__ = [
  "Checkpoints",
  "Restored",
  "load_tree",
  "save_tree",
  "tree_digest",
]

PyTree = Any
_BAD = ".bad"
_STEP = re.compile("0|[1-9][0-9]*")
# What a killed save or deletion leaves.
_LEFTOVER = re.compile(r"\.[0-9]+\.(saving|old)")
_logger = logging.getLogger("jaxkd")


@dataclasses.dataclass(frozen=True)
class Restored:
  """What `Checkpoints.restore` found.

  Attributes:
    step: the step's number.
    state: a tree like the one asked for.
    meta: what the caller stored beside it.
  """

  step: int
  state: PyTree
  meta: dict[str, Any]


def _require_space(folder: Path, leaves: Mapping[str, trees.Leaf]) -> None:
  needed = 2 * sum(leaf.value.nbytes for leaf in leaves.values())
  with files.storage("write to", folder):
    free = shutil.disk_usage(folder).free
  if free < needed:
    raise StorageError(
      f"not enough space for a checkpoint in {folder}: {needed:,} bytes"
      f" needed, {free:,} free; make room and start again"
    )


def _encode(stream: Any) -> dict[str, Any] | None:
  """Takes the stream's position now, in a form that JSON holds."""
  if stream is None:
    return None
  position = stream.get_state()
  if isinstance(position, bytes):
    return {"bytes": base64.b64encode(position).decode("ascii")}
  return {"json": trees.plain(position, "the stream's state")}


def _decode(stored: Mapping[str, Any]) -> Any:
  if "bytes" in stored:
    return base64.b64decode(stored["bytes"])
  return stored["json"]


class Checkpoints:
  """The checkpoints of one run, written by one process.

  Attributes:
    directory: the folder of steps.
    keep: how many of the newest steps stay on disk.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
    if keep < 1:
      raise ConfigError(f"keep={keep} must be at least 1 checkpoint")
    self.directory = Path(os.path.abspath(directory))
    self.keep = keep
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    if not processes.is_main():
      return
    with files.storage("open", self.directory):
      self.directory.mkdir(parents=True, exist_ok=True)
      for entry in list(self.directory.iterdir()):
        if _LEFTOVER.fullmatch(entry.name):
          treefile.discard(entry)

  def steps(self) -> list[int]:
    """Returns the steps on disk, ascending, less those set aside."""
    with files.storage("list", self.directory):
      names = [entry.name for entry in self.directory.iterdir()]
    return sorted(int(name) for name in names if _STEP.fullmatch(name))

  @property
  def latest(self) -> int | None:
    """The newest step on disk, None if there is none."""
    return max(self.steps(), default=None)

  def save(
    self,
    step: int,
    state: PyTree,
    *,
    stream: Any = None,
    meta: Mapping[str, Any],
  ) -> None:
    """Copies the state to the host and writes it in the background.

    The buffers of `state` may be donated, and the stream moved on, as soon as
    this returns. The step is durable after `wait`.

    Args:
      step: number of the step, above all that are on disk.
      state: tree of arrays, typed PRNG keys and numbers.
      stream: iterator with `get_state`, whose position is stored.
      meta: plain JSON to be stored beside it.

    Raises:
      StorageError: the save before this one failed, or there is no space for
        this one (twice the state's bytes are asked for).
      ConfigError: the step is not new, or a leaf or meta cannot be stored.
    """
    self.wait()
    if not processes.is_main():
      trees.to_host(state, keep=False)
      return
    latest = self.latest
    if step < 0 or (latest is not None and step <= latest):
      raise ConfigError(
        f"cannot save step {step}: {self.directory} has step {latest};"
        " restore it, or use another --workdir"
      )
    body = {
      "step": int(step),
      "meta": trees.plain(dict(meta), "meta"),
      "stream": _encode(stream),
    }
    leaves = trees.to_host(state)
    _require_space(self.directory, leaves)
    self._thread = threading.Thread(
      target=self._write, args=(step, leaves, body), name="jaxkd-checkpoint"
    )
    self._thread.start()

  def _write(
    self,
    step: int,
    leaves: Mapping[str, trees.Leaf],
    body: Mapping[str, Any],
  ) -> None:
    """Writes a step, then deletes the oldest; runs in the thread."""
    try:
      treefile.write(self._folder(step), leaves, body)
      for old in self.steps()[: -self.keep]:
        doomed = self.directory / treefile.OLD.format(old)
        with files.storage("delete", self._folder(old)):
          os.rename(self._folder(old), doomed)
          treefile.discard(doomed)
    except BaseException as error:  # raised by the next wait
      self._error = error

  def _folder(self, step: int) -> Path:
    return self.directory / str(step)

  def wait(self) -> None:
    """Waits until the last save is durable.

    Raises:
      StorageError: it failed; the steps before it are intact.
    """
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    error, self._error = self._error, None
    if error is not None:
      raise error

  def close(self) -> None:
    """Waits for the last save; raises what `wait` raises."""
    self.wait()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: Any, *exception: Any) -> None:
    try:
      self.close()
    except StorageError as error:
      if kind is None:
        raise
      _logger.error("%s", error)

  def restore(self, like: PyTree, *, stream: Any = None) -> Restored | None:
    """Reads the newest step of which every bit is what was written.

    Damaged steps above it are renamed `<step>.bad` and named in a warning.

    Args:
      like: tree of arrays or `jax.ShapeDtypeStruct`: the structure, dtypes
        and shapes that the state must have, and where to put it.
      stream: iterator with `set_state`, set to the stored position.

    Returns:
      The step, its state and meta; None if no step was ever saved.

    Raises:
      RefusedInput: the state is intact, but not like `like`.
      StorageError: there are steps, and all are damaged.
    """
    self.wait()
    found: list[Restored] = []

    def choose() -> int | None:
      found.extend(self._newest(like, stream))
      return found[0].step if found else None

    step = processes.decide(choose)
    if step is not None and not found:
      files.wait_for(self._folder(step))
      try:
        found.append(self._intact(step, like, stream))
      except treefile.Damaged as error:
        raise StorageError(
          f"process {processes.rank()} cannot read {self._folder(step)}, which "
          f"process 0 could: {error}"
        ) from error
    return found[0] if found else None

  def _intact(self, step: int, like: PyTree, stream: Any) -> Restored:
    """Reads a step; raises `treefile.Damaged` or RefusedInput."""
    state, body = treefile.read(self._folder(step), like)
    if body["step"] != step:
      raise treefile.Damaged(f"its manifest is of step {body['step']}")
    if stream is not None:
      if body["stream"] is None:
        raise RefusedInput(f"{self._folder(step)} holds no stream position")
      stream.set_state(_decode(body["stream"]))
    return Restored(step, state, body["meta"])

  def _newest(self, like: PyTree, stream: Any) -> list[Restored]:
    """The newest intact step, if any was ever saved."""
    damaged: dict[int, str] = {}
    for step in reversed(self.steps()):
      try:
        found = self._intact(step, like, stream)
      except treefile.Damaged as error:
        damaged[step] = str(error)
        continue
      for bad, reason in damaged.items():
        self._set_aside(bad, reason, step)
      return [found]
    bad = {p.name: "set aside" for p in self.directory.glob(f"*{_BAD}*")}
    bad.update({str(step): reason for step, reason in damaged.items()})
    if bad:
      lines = "\n  ".join(f"{name}: {reason}" for name, reason in bad.items())
      raise StorageError(
        f"every checkpoint in {self.directory} is damaged:\n  {lines}\n"
        "put an intact copy back, or start in another --workdir"
      )
    return []

  def _set_aside(self, step: int, reason: str, used: int) -> None:
    """Renames a damaged step, now that an older one is known to be good."""
    target = self.directory / f"{step}{_BAD}"
    count = 1
    while target.exists():
      count += 1
      target = self.directory / f"{step}{_BAD}{count}"
    with files.storage("rename", self._folder(step)):
      os.rename(self._folder(step), target)
    _logger.warning(
      "checkpoint %d is damaged: %s; moved to %s, using step %d instead",
      step,
      reason,
      target,
      used,
    )


def save_tree(
  path: str | os.PathLike, tree: PyTree, *, meta: Mapping[str, Any]
) -> None:
  """Writes one tree to a folder; what was there before is replaced.

  Args:
    path: the folder.
    tree: tree of arrays, typed PRNG keys and numbers.
    meta: plain JSON to be stored beside it.

  Raises:
    StorageError: it could not be written.
    ConfigError: a leaf or meta cannot be stored.
  """
  path = Path(os.path.abspath(path))
  body = {"meta": trees.plain(dict(meta), "meta")}
  leaves = trees.to_host(tree, keep=processes.is_main())

  def write() -> None:
    with files.storage("create", path.parent):
      path.parent.mkdir(parents=True, exist_ok=True)
    _require_space(path.parent, leaves)
    treefile.write(path, leaves, body)

  processes.decide(write)


def load_tree(
  path: str | os.PathLike, like: PyTree | None = None
) -> tuple[PyTree, dict[str, Any]]:
  """Reads what `save_tree` wrote, or one step of a `Checkpoints`.

  Args:
    path: the folder.
    like: as in `Checkpoints.restore`. None: nested dicts by name, of NumPy
      arrays and typed keys.

  Returns:
    The tree and its meta.

  Raises:
    RefusedInput: there is no such folder, or its tree is not like `like`.
    StorageError: it is damaged.
  """
  path = Path(os.path.abspath(path))
  if not path.is_dir():
    raise RefusedInput(f"there is no saved tree at {path}")
  try:
    tree, body = treefile.read(path, like)
  except treefile.Damaged as error:
    raise StorageError(f"the saved tree {path} is damaged: {error}") from error
  return tree, body["meta"]
