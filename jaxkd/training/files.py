"""Files that survive kills and power cuts, and errors that name them.

A file is replaced by write-to-temporary, fsync, rename and fsync of the
folder, so that a kill or a power cut leaves the old or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxkd.errors import StorageError
from jaxkd.parallel import processes

TEMPORARY = ".{}.saving"  # what an interrupted write leaves: free to delete
SEEN_SECONDS = 60.0  # the longest that a shared file system may lag behind


@contextlib.contextmanager
def storage(action: str, path: Path) -> Iterator[None]:
  """Turns an OSError of the block into a StorageError that names `path`."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or str(error)
    raise StorageError(f"cannot {action} {path}: {reason}") from error


def sync(path: Path) -> int:
  """Forces a file or folder to the disk.

  Args:
    path: an existing file or folder.

  Returns:
    Its size in bytes.

  Raises:
    StorageError: the disk refused.
  """
  with storage("sync", path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
      return os.fstat(descriptor).st_size
    finally:
      os.close(descriptor)


def wait_for(path: Path) -> None:
  """Waits until a file or folder that another process has made is seen here.

  Args:
    path: the file or folder.

  Raises:
    StorageError: it is not seen in time: the folder is not shared.
  """
  until = time.monotonic() + SEEN_SECONDS
  while not path.exists():
    if time.monotonic() > until:
      raise StorageError(
        f"{path}, written by process 0, is not seen by process "
        f"{processes.rank()} on {socket.gethostname()} within "
        f"{SEEN_SECONDS:.0f} s: several processes need a workdir that all of "
        "them share"
      )
    time.sleep(0.05)


def write_json(path: Path, value: Any) -> None:
  """Replaces a JSON file atomically and durably.

  Args:
    path: the file; its folder is made if absent.
    value: anything that JSON can hold.

  Raises:
    StorageError: the disk refused; the former file is intact.
  """
  path = Path(path)
  text = json.dumps(value, indent=2) + "\n"
  temporary = path.with_name(TEMPORARY.format(path.name))
  with storage("write", path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      temporary.write_text(text, encoding="utf-8")
      sync(temporary)
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        temporary.unlink()
      raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
  """Writes a text file.

  Args:
    path: the file.
    text: its new content.

  Raises:
    StorageError: the disk refused.
  """
  with storage("write", path):
    Path(path).write_text(text, "utf-8")


def read_json(path: Path, default: Any = None) -> Any:
  """Reads a JSON file.

  Args:
    path: the file.
    default: returned if the file is absent; None raises instead.

  Raises:
    StorageError: the file is absent, unreadable or no JSON.
  """
  path = Path(path)
  if default is not None and not path.exists():
    return default
  with storage("read", path):
    content = path.read_bytes()
  try:
    return json.loads(content)
  except ValueError as error:
    raise StorageError(f"{path} is damaged: {error}") from error


def same_results(old: dict[str, Any], new: dict[str, Any]) -> bool:
  """Whether two summaries agree in all but when and by what they were made."""
  circumstances = ("wall_seconds", "step_ms", "versions", "commit", "machine")
  return {k: v for k, v in old.items() if k not in circumstances} == {
    k: v for k, v in new.items() if k not in circumstances
  }


def read_lines(path: Path, *, start: int) -> list[Any]:
  """Reads the JSON lines of a file from a byte offset on.

  Args:
    path: the file.
    start: where a line begins.

  Raises:
    StorageError: the disk refused, or a line is no JSON.
  """
  path = Path(path)
  with storage("read", path), open(path, "rb") as file:
    file.seek(start)
    lines = file.read().splitlines()
  try:
    return [json.loads(line) for line in lines]
  except ValueError as error:
    raise StorageError(f"{path} is damaged: {error}") from error


def copy_folder(source: Path, target: Path) -> None:
  """Copies a folder; the target appears whole, by a rename, or not at all.

  Args:
    source: an existing folder.
    target: must not exist.

  Raises:
    StorageError: the disk refused.
  """
  building = target.with_name(TEMPORARY.format(target.name))
  with storage("copy to", target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(source, building)
    for path in building.rglob("*"):
      sync(path)
    os.rename(building, target)
  sync(target.parent)
