"""One tree in one folder: verified leaf by leaf, committed by one rename.

    state/          the arrays, an orbax PyTree item; leaf `a` of `params` is
                    `params/a`, each component percent-escaped
    manifest.json   {"body": {"format", "meta", ..., "leaves"}, "sha256": of
                    the body}, where leaves holds for each leaf dtype, shape,
                    key implementation and sha256 of all that and its bytes

The folder is built under a temporary name, forced to the disk, read back, and
only then renamed: the one rename commits arrays, meta and digests together.

Orbax's plain checkpointer writes the arrays and tensorstore, on which it is
built, reads them; orbax's manager, its async checkpointer and its composite
handler are not used. They keep a failed step
in the cache of steps, report errors one save late, fsync neither their JSON
nor the parent folder, and cast to the dtype that is asked for without a word.
A manifest and a rename are smaller than the cures. What is written here is
read by orbax too: `PyTreeCheckpointer().restore(folder / "state")`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import RefusedInput, StorageError, did_you_mean
from jaxkd.training import files, trees
from jaxkd.training.trees import Leaf

PyTree = Any
FORMAT = 1
_MANIFEST = "manifest.json"
_STATE = "state"
OLD = ".{}.old"
# Errors of the machine, not of the checkpoint: reported, nothing moved aside.
_MACHINE = {
  errno.EACCES,
  errno.EPERM,
  errno.EMFILE,
  errno.ENFILE,
  errno.ENOMEM,
}


class Damaged(Exception):
  """A checkpoint does not hold what was written; says which file or leaf."""


class _Noise(logging.Filter):
  """Drops what orbax says of errors that reach us as exceptions anyway."""

  def filter(self, record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and not (
      record.name == "asyncio" and "OCDBT" in str(record.msg)
    )


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
  """Yields an orbax checkpointer of this process alone, silenced.

  After the first error of several, the leaves still being written report to
  an event loop that orbax has closed. These reports may come late, so what
  drops them is removed after a success only.
  """
  import orbax.checkpoint as ocp

  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()}
  )
  noise, former = _Noise(), sys.unraisablehook

  def hook(report: Any) -> None:
    if "Event loop is closed" not in str(report.exc_value):
      former(report)

  loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
  for logger in loggers:
    logger.addFilter(noise)
  sys.unraisablehook = hook
  handler = ocp.PyTreeCheckpointHandler(
    use_ocdbt=True, use_zarr3=False, multiprocessing_options=alone
  )
  with ocp.Checkpointer(handler, multiprocessing_options=alone) as orbax:
    yield orbax
  sys.unraisablehook = former
  for logger in loggers:
    logger.removeFilter(noise)


def discard(folder: Path) -> None:
  """Removes a folder of ours, or a link in its place, if it is there."""
  if folder.is_symlink():
    folder.unlink()
  elif folder.exists():
    shutil.rmtree(folder)


def write(
  path: Path, leaves: Mapping[str, Leaf], body: Mapping[str, Any]
) -> None:
  """Builds a checkpoint beside `path`, makes it durable, renames it.

  Args:
    path: the folder; one that is there is replaced.
    leaves: the tree, by name, as `trees.to_host` returns it.
    body: what the manifest is to hold beside it; plain JSON.

  Raises:
    StorageError: it could not be written; what was there is intact.
  """
  scratch = path.with_name(files.TEMPORARY.format(path.name))
  former = path.with_name(OLD.format(path.name))
  arrays = {name: leaf.value for name, leaf in leaves.items()}
  arrays = {name: value for name, value in arrays.items() if value.size}
  try:
    discard(scratch)
    discard(former)
    scratch.mkdir(parents=True)
    if arrays:
      with _orbax() as orbax:
        orbax.save(scratch / _STATE, arrays)
    rows = {name: leaf.row for name, leaf in leaves.items()}
    body = {"format": FORMAT, **body, "leaves": rows}
    digest = hashlib.sha256(trees.canonical(body)).hexdigest()
    files.write_json(scratch / _MANIFEST, {"body": body, "sha256": digest})
    for folder, _, names in os.walk(scratch):
      for name in names:
        files.sync(Path(folder, name))
      files.sync(Path(folder))
    _check_structure(scratch)
    if path.exists():
      os.rename(path, former)
    os.rename(scratch, path)
    files.sync(path.parent)
    discard(former)
  except Exception as error:
    with contextlib.suppress(OSError):
      discard(scratch)
    needed = sum(value.nbytes for value in arrays.values())
    raise StorageError(
      f"could not write the checkpoint {path} ({needed:,} bytes needed):"
      f" {error}"
    ) from error


def _check_structure(path: Path) -> None:
  """Reads back the manifest and the stored shapes and dtypes."""
  rows = manifest(path)["leaves"]
  store = _store(path)
  for name, row in rows.items():
    if trees.size(row):
      _open(store, name, row)


def _store(path: Path) -> Callable[[str], Any]:
  """Returns what opens the stored arrays by name, as orbax lays them out.

  Orbax reads all leaves at once in an event loop of its own; where several
  are damaged, the later ones report to a closed loop and fill stderr with
  tracebacks. One by one, the first damaged leaf is an exception.
  """
  import tensorstore as ts

  context = ts.Context()  # nothing cached from an earlier read
  base = {"driver": "file", "path": f"{path / _STATE}/"}

  def open_array(name: str) -> Any:
    place = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    spec = {"driver": "zarr", "kvstore": place}
    return ts.open(spec, context=context, open=True).result()

  return open_array


def _open(store: Callable[[str], Any], name: str, row: Mapping) -> Any:
  """Opens an array and holds its dtype and shape against the manifest."""
  array = store(name)
  found = [str(array.dtype.numpy_dtype), list(array.shape)]
  if found != [row["dtype"], row["shape"]]:
    raise Damaged(f"leaf {name} is {found}, expected {_in_words(row)}")
  return array


def manifest(path: Path) -> dict[str, Any]:
  """Reads and verifies a manifest, the only file read before the arrays."""
  file = path / _MANIFEST
  entries = [path]
  for folder, folders, names in os.walk(path):
    entries += [Path(folder, name) for name in folders + names]
  for entry in entries:
    if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
      raise RefusedInput(
        f"{entry} is a link or a special file; a checkpoint has only plain"
        " files and folders"
      )
  try:
    content = json.loads(file.read_bytes())
    body = content["body"]
    digest = hashlib.sha256(trees.canonical(body)).hexdigest()
    intact = digest == content["sha256"]
  except OSError as error:
    _raise_machine(error, file)
    raise Damaged(f"{file}: {error.strerror}") from error
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise Damaged(f"{file} is unreadable: {error}") from error
  if not intact:
    raise Damaged(f"{file} differs from its own sha256")
  if body["format"] != FORMAT:
    raise RefusedInput(
      f"{path} has checkpoint format {body['format']}, this version of jaxkd"
      f" reads format {FORMAT}; use the version that wrote it"
    )
  return body


def _raise_machine(error: OSError, path: Path) -> None:
  """Raises StorageError for an error that is not the checkpoint's fault."""
  if error.errno in _MACHINE:
    raise StorageError(f"cannot read {path}: {error.strerror}") from error


def reader(path: Path, rows: Mapping[str, Any]) -> Callable[[str], Leaf]:
  """Reads leaves one at a time, each verified against the manifest.

  Args:
    path: the folder.
    rows: the manifest's leaves.

  Returns:
    What reads a leaf by its name; raises Damaged or StorageError.
  """
  store = _store(path)

  def read_leaf(name: str) -> Leaf:
    row = rows[name]
    try:
      if trees.size(row):
        value = np.asarray(_open(store, name, row).read().result())
      else:
        value = np.empty(row["shape"], jnp.dtype(row["dtype"]))
    except (Damaged, MemoryError):
      raise
    except OSError as error:
      _raise_machine(error, path)
      raise Damaged(f"leaf {name} is unreadable: {error}") from error
    except Exception as error:  # damage shows as any of many types
      reason = str(error).splitlines()[0] if str(error) else repr(error)
      raise Damaged(f"leaf {name} is unreadable: {reason}") from error
    leaf = Leaf(value, row.get("key"))
    if leaf.row != row:
      raise Damaged(f"leaf {name} differs from its sha256")
    return leaf

  return read_leaf


def _in_words(row: Mapping[str, Any]) -> str:
  words = f"{row['dtype']}{row['shape']}"
  return f"a {row['key']!r} key of {words}" if "key" in row else words


def _compare(path: Path, rows: Mapping[str, Any], like: PyTree) -> None:
  """Refuses a checkpoint whose leaves are not those of `like`."""
  wanted = trees.named_leaves(like)
  expected = {name: trees.spec(leaf) for name, leaf in wanted.items()}
  missing = [name for name in expected if name not in rows]
  extra = [name for name in rows if name not in expected]
  lines = [f"missing: {n}{did_you_mean(n, extra)}" for n in missing]
  lines += [f"not expected: {n}{did_you_mean(n, missing)}" for n in extra]
  for name in expected.keys() & rows.keys():
    stored = {k: v for k, v in rows[name].items() if k != "sha256"}
    if stored != expected[name]:
      lines.append(
        f"{name}: stored {_in_words(stored)}, expected"
        f" {_in_words(expected[name])}"
      )
  if lines:
    shown = "\n  ".join(sorted(lines)[:8])
    more = f"\n  and {len(lines) - 8} more" if len(lines) > 8 else ""
    raise RefusedInput(f"{path} holds another tree:\n  {shown}{more}")


def read(path: Path, like: PyTree | None) -> tuple[PyTree, dict[str, Any]]:
  """Reads a tree and what was stored beside it.

  Args:
    path: the folder.
    like: tree of arrays or `jax.ShapeDtypeStruct`, whose structure, dtypes
      and shapes must be those stored, and on whose shardings the values are
      put. None: nested dicts by name, of NumPy arrays and typed keys.

  Returns:
    The tree, every leaf of it verified, and the manifest's body.

  Raises:
    Damaged: not all that was written is there.
    RefusedInput: it is intact, but not a tree like `like`.
    StorageError: the machine refused to read.
  """
  body = manifest(path)
  if like is not None:
    _compare(path, body["leaves"], like)
  read_leaf = reader(path, body["leaves"])
  leaves = {name: read_leaf(name) for name in body["leaves"]}
  if like is None:
    return trees.nest(leaves), body
  wanted = trees.named_leaves(like)
  placed = [trees.place(name, leaves[name], x) for name, x in wanted.items()]
  return jax.tree.unflatten(jax.tree.structure(like), placed), body
