"""The run directory: whose it is, who may write to it, where things lie.

A workdir belongs to one config: `jaxkd.json` is its identity card, written
first and compared by every later opening. One process writes to it: the
writer holds an exclusive `flock` on `.lock`, which the kernel releases when
the process ends, however it ends. Readers use `Workdir.read` and take no lock.
Of several processes that run one experiment, process 0 is the writer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxkd import identity as identities
from jaxkd.errors import ConfigError, RefusedInput, WorkdirLocked
from jaxkd.parallel import processes
from jaxkd.training import files
from jaxkd.training.environment import numerics, versions

FORMAT = 1
IDENTITY = "jaxkd.json"
LOCK = ".lock"
SHARED = ".shared-{}"  # is there for as long as processes look for it
_logger = logging.getLogger("jaxkd")
_held: set[int] = set()  # descriptors of the locks that this process holds


def _forget_locks() -> None:
  """Closes inherited locks, so that a fork cannot outlive its parent's."""
  for descriptor in _held:
    with contextlib.suppress(OSError):
      os.close(descriptor)
  _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


def _refuse_foreign(root: Path) -> None:
  """Refuses a folder that is neither absent, empty nor a workdir."""
  with files.storage("open", root):
    if not root.exists():
      return
    if not root.is_dir():
      raise RefusedInput(f"{root} is a file, expected a folder as workdir")
    found = set(os.listdir(root))
  # An opening that was killed may have left the lock and a temporary.
  own = {LOCK, *map(files.TEMPORARY.format, (IDENTITY, "probe"))}
  if IDENTITY in found or found <= own:
    return
  shown = ", ".join(sorted(found - own)[:5])
  more = f" and {len(found - own) - 5} more" if len(found - own) > 5 else ""
  raise RefusedInput(
    f"{root} is not a jaxkd workdir: it has no {IDENTITY} but holds {shown}"
    f"{more}; name an empty or a new folder. Nothing was written"
  )


def _identity(root: Path) -> dict[str, Any]:
  """Reads `jaxkd.json`, refusing what this version cannot understand."""
  path = root / IDENTITY
  if not path.is_file():
    raise RefusedInput(f"{root} is not a jaxkd workdir: it has no {IDENTITY}")
  with files.storage("read", path):
    content = path.read_bytes()
  try:
    stored = json.loads(content)
    version, _, _ = stored["format"], stored["kind"], stored["digest"]
  except (ValueError, KeyError, TypeError) as error:
    raise RefusedInput(f"{path} is damaged: {error!r}") from error
  if version != FORMAT:
    raise RefusedInput(
      f"{path} has format {version!r}, this version of jaxkd reads format"
      f" {FORMAT}; use the version that wrote it: {stored.get('versions')}"
    )
  return stored


def _refuse_other(
  root: Path, stored: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
  """Refuses to go on in the workdir of another config or other numerics."""
  if (stored["kind"], stored["digest"]) != (new["kind"], new["digest"]):
    lines = identities.difference(stored.get("describe"), new["describe"])
    if stored["kind"] != new["kind"]:
      lines = [f"kind: {stored['kind']} -> {new['kind']}", *lines]
    changes = "\n  ".join(lines) or "(same settings, another digest)"
    raise ConfigError(
      f"{root} belongs to another config; stored -> given:\n  {changes}\n"
      "undo the change to resume, or use another --workdir"
    )
  old = stored.get("numerics", {})
  changed = [
    f"{name}: {old.get(name)!r} -> {value!r}"
    for name, value in new["numerics"].items()
    if old.get(name) != value
  ]
  if changed:
    raise ConfigError(
      f"{root} was made under other numeric settings; stored -> given:\n  "
      + "\n  ".join(changed)
      + "\nset them back to resume, or use another --workdir"
    )
  if stored.get("versions") != new["versions"]:
    _logger.warning(
      "%s was made by %s, going on with %s: numbers may differ",
      root,
      stored.get("versions"),
      new["versions"],
    )


def _acquire(root: Path) -> int:
  """Locks the workdir for this process and says so in the lock file."""
  path = root / LOCK
  flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
  with files.storage("lock", path):
    lock = os.open(path, flags, 0o644)
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = os.pread(lock, 4096, 0).decode("utf-8", "replace")
      os.close(lock)
      raise WorkdirLocked(
        f"{root} is being written to by {_holder(holder)}; wait for it, stop"
        " it, or use another --workdir"
      ) from None
    except OSError:
      os.close(lock)
      raise
    _held.add(lock)
    now = datetime.datetime.now(datetime.UTC)
    content = {
      "pid": os.getpid(),
      "host": socket.gethostname(),
      "start": now.isoformat(timespec="seconds"),
    }
    try:
      os.ftruncate(lock, 0)
      os.pwrite(lock, json.dumps(content).encode("utf-8"), 0)
    except OSError:
      _release(lock)
      raise
  return lock


def _holder(content: str) -> str:
  """Says who holds a lock, from what the lock file holds."""
  try:
    holder = json.loads(content)
    return (
      f"process {holder['pid']} on {holder['host']}, started {holder['start']}"
    )
  except (ValueError, KeyError, TypeError):
    return "another process, which has just started"


def _release(lock: int) -> None:
  """Closes a lock's descriptor, which unlocks it."""
  _held.discard(lock)
  with contextlib.suppress(OSError):
    os.close(lock)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Lets one process alone write to a folder that is no workdir.

  Args:
    folder: an existing folder; it gets a file `.lock`.

  Raises:
    WorkdirLocked: another process is writing to it.
    StorageError: it cannot be written to.
  """
  lock = _acquire(folder)
  try:
    yield
  finally:
    _release(lock)


@dataclasses.dataclass(frozen=True)
class Run:
  """Paths of one run: one seed of the experiment's method or of a control.

  Attributes:
    root: its folder, `WORKDIR/runs/<label>/seed_<n>`.
  """

  root: Path

  @property
  def metrics(self) -> Path:
    """One JSON object a line."""
    return self.root / "metrics.jsonl"

  @property
  def timing(self) -> Path:
    """Seconds and rates, the only file of a run that holds clock values."""
    return self.root / "timing.json"

  @property
  def proofs(self) -> Path:
    """What is known of every phase's step, see `training.proofs`."""
    return self.root / "proofs.json"

  @property
  def evaluation(self) -> Path:
    """Results on the test split."""
    return self.root / "evaluation.json"

  @property
  def checkpoints(self) -> Path:
    """Folder of `training.checkpoint.Checkpoints`."""
    return self.root / "checkpoints"

  @property
  def stages(self) -> Path:
    """Folder of finished phases, one `save_tree` each."""
    return self.root / "stages"


class Workdir:
  """A run directory, opened for writing (`open`) or reading (`read`).

  Attributes:
    root: absolute path.
    identity: the content of `jaxkd.json`.
  """

  def __init__(
    self, root: Path, identity: Mapping[str, Any], lock: int | None = None
  ):
    self.root = root
    self.identity = identity
    self._lock = lock

  @classmethod
  def open(
    cls, path: str | os.PathLike, *, kind: str, digest: str, describe: Any
  ) -> Workdir:
    """Creates a workdir or opens one of the same config, and locks it.

    Args:
      path: a folder that is absent, empty or a workdir.
      kind: "experiment" or "study".
      digest: digest of the built config.
      describe: nested dicts and lists that say what the config is; a later
        opening with another digest is answered with the difference.

    Returns:
      The workdir, locked until `close` or the end of the process. Of several
      processes, those that do not write have it for reading.

    Raises:
      RefusedInput: the folder holds something else, or a newer format.
      ConfigError: it belongs to another config, or the numeric settings of
        JAX have changed, or the processes' configs differ.
      WorkdirLocked: another process is writing to it.
      StorageError: it cannot be written to, or the processes do not share it.
    """
    if processes.count() == 1:
      return cls._open(path, kind, digest, describe)
    opened: list[Workdir] = []

    def first() -> list[str]:
      opened.append(cls._open(path, kind, digest, describe))
      shared = opened[0].root / SHARED.format(secrets.token_hex(8))
      files.write_json(shared, {})
      return [digest, str(shared)]

    stored, shared = processes.decide(first)
    if stored != digest:
      raise ConfigError(
        f"process {processes.rank()} was given another config than process 0"
      )
    files.wait_for(Path(shared))
    processes.barrier()
    if not opened:
      return cls.read(Path(shared).parent)
    with files.storage("delete", Path(shared)):
      Path(shared).unlink()
    return opened[0]

  @classmethod
  def _open(
    cls, path: str | os.PathLike, kind: str, digest: str, describe: Any
  ) -> Workdir:
    """Opens it for this process alone."""
    root = Path(os.path.abspath(path))
    _refuse_foreign(root)
    with files.storage("create", root):
      root.mkdir(parents=True, exist_ok=True)
    lock = _acquire(root)
    try:
      probe = root / files.TEMPORARY.format("probe")
      with files.storage("write to", root):
        probe.write_bytes(b"")
        probe.unlink()
      identity = {
        "format": FORMAT,
        "kind": kind,
        "digest": digest,
        "describe": json.loads(json.dumps(describe)),
        "versions": versions(),
        "numerics": numerics(),
      }
      if (root / IDENTITY).exists():
        stored = _identity(root)
        _refuse_other(root, stored, identity)
        identity = stored
      else:
        files.write_json(root / IDENTITY, identity)
    except BaseException:
      _release(lock)
      raise
    return cls(root, identity, lock)

  @classmethod
  def read(cls, path: str | os.PathLike) -> Workdir:
    """Opens a workdir for reading, locked or not.

    Args:
      path: a workdir.

    Returns:
      The workdir; nothing was written.

    Raises:
      RefusedInput: the folder is not a workdir, or of a newer format.
    """
    root = Path(os.path.abspath(path))
    return cls(root, _identity(root))

  def run(self, label: str, seed: int) -> Run:
    """Returns the paths of one run.

    Args:
      label: "main" or a control's label: letters, digits, `_`, `-`, `.`.
      seed: the run's seed.

    Raises:
      ConfigError: the label is no plain folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", label):
      raise ConfigError(
        f"run label {label!r} must consist of letters, digits, '_', '-' and"
        " '.', and not begin with '.'"
      )
    return Run(self.root / "runs" / label / f"seed_{int(seed)}")

  @property
  def config(self) -> Path:
    """The operative config."""
    return self.root / "config.gin"

  @property
  def command(self) -> Path:
    """The command line."""
    return self.root / "command.txt"

  @property
  def environment(self) -> Path:
    """What `environment()` returned."""
    return self.root / "environment.json"

  @property
  def summary(self) -> Path:
    """Written last: its presence says that the work is done."""
    return self.root / "summary.json"

  def close(self) -> None:
    """Releases the lock; the workdir must not be written to afterwards."""
    if self._lock is not None:
      _release(self._lock)
      self._lock = None

  def __enter__(self) -> Workdir:
    return self

  def __exit__(self, *exception: Any) -> None:
    self.close()
