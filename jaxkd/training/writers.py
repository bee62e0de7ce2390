"""Where the numbers of a run go: metrics.jsonl, TensorBoard and trackers.

`metrics.jsonl` is the record: a checkpoint keeps its byte offset, and a resumed
run cuts the file there, so that a killed run leaves neither torn nor doubled
lines. It holds no clock values: the same run writes the same bytes. TensorBoard
and the trackers are views of it, and a view that fails never stops a run.
"""

import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Protocol, Self

from jaxkd import extras
from jaxkd.errors import ConfigError, StorageError, did_you_mean

METRICS_FILE = "metrics.jsonl"
TRACKERS = ("wandb", "trackio", "mlflow")

_log = logging.getLogger(__name__)


class Tracker(Protocol):
  """A place that metrics are copied to."""

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Receives the values of one step, named `<split>/<metric>`."""

  def flush(self) -> None:
    """Pushes out what is buffered."""

  def close(self) -> None:
    """Ends the copy."""


class Writers:
  """Writes the metrics of one run; use on process 0 only."""

  def __init__(
    self,
    directory: str | os.PathLike,
    trackers: Sequence[str | Tracker] = (),
    purge_step: int | None = None,
  ):
    """Starts a new record in `directory`; what it held is overwritten.

    Args:
      directory: the folder of the run (made if absent).
      trackers: names ("wandb", "trackio", "mlflow") or `Tracker` objects.
      purge_step: TensorBoard hides events of earlier writers from this step
        on; by default all of them.

    Raises:
      ConfigError: a tracker is unknown, not installed or does not start.
      StorageError: the folder or the file cannot be written.
    """
    self._open(directory, 0, trackers, purge_step)

  @classmethod
  def resume(
    cls,
    directory: str | os.PathLike,
    offset: int,
    trackers: Sequence[str | Tracker] = (),
    purge_step: int | None = None,
  ) -> Self:
    """Continues the record of `directory` from a byte offset.

    Args:
      directory: the folder of the run.
      offset: what `offset()` returned at the checkpoint; bytes after it are
        cut, a torn last line with them.
      trackers: as for a new record.
      purge_step: as for a new record; by default the step after the last one
        that is kept.

    Returns:
      Writers that append at the offset.

    Raises:
      ConfigError: a tracker is unknown, not installed or does not start.
      StorageError: the file is shorter than the offset, or the offset does
        not end a line, or the file cannot be written.
    """
    self = cls.__new__(cls)
    self._open(directory, offset, trackers, purge_step)
    return self

  def _open(
    self,
    directory: str | os.PathLike,
    offset: int,
    trackers: Sequence[str | Tracker],
    purge_step: int | None,
  ) -> None:
    folder = pathlib.Path(directory)
    _check_trackers(trackers)
    self._path = folder / METRICS_FILE
    try:
      folder.mkdir(parents=True, exist_ok=True)
      last_step = _truncate(self._path, offset)
      self._file: BinaryIO = self._path.open("ab")
    except OSError as error:
      raise _storage_error(self._path, error) from error
    if purge_step is None:
      purge_step = last_step + 1
    self._trackers: list[Tracker] = []
    try:
      self._trackers.append(_TensorBoard(folder, purge_step))
      for tracker in trackers:
        self._trackers.append(_start(tracker, folder))
    except Exception:
      self.close()
      raise

  def write(
    self,
    phase: str,
    step: int,
    epoch: int,
    split: str,
    metrics: Mapping[str, float],
  ) -> None:
    """Writes one line and copies it to TensorBoard and the trackers.

    Args:
      phase: the name of the phase.
      step: steps done over all phases.
      epoch: epochs done in this phase.
      split: "train" or "validation".
      metrics: name -> value; sorted by name in the file.

    Raises:
      StorageError: the line cannot be written.
    """
    values = {name: float(metrics[name]) for name in sorted(metrics)}
    line = {
      "phase": phase,
      "step": int(step),
      "epoch": int(epoch),
      "split": split,
      "metrics": {name: _json_number(v) for name, v in values.items()},
    }
    text = json.dumps(line, allow_nan=False) + "\n"
    try:
      self._file.write(text.encode())
    except OSError as error:
      raise _storage_error(self._path, error) from error
    tagged = {f"{split}/{name}": v for name, v in values.items()}
    self._each("log", int(step), tagged)

  def flush(self) -> None:
    """Pushes everything written so far to the operating system.

    Raises:
      StorageError: metrics.jsonl cannot be written.
    """
    try:
      self._file.flush()
    except OSError as error:
      raise _storage_error(self._path, error) from error
    self._each("flush")

  def offset(self) -> int:
    """Returns the size of metrics.jsonl in bytes once it is on disk.

    A checkpoint keeps this number; `resume` takes it.

    Raises:
      StorageError: metrics.jsonl cannot be written.
    """
    self.flush()
    try:
      os.fsync(self._file.fileno())
      return self._file.tell()
    except OSError as error:
      raise _storage_error(self._path, error) from error

  def close(self) -> None:
    """Writes what is left and ends the trackers; twice is harmless.

    Raises:
      StorageError: metrics.jsonl cannot be written.
    """
    self._each("close")
    self._trackers = []
    if self._file.closed:
      return
    try:
      self._file.flush()
      os.fsync(self._file.fileno())
    except OSError as error:
      raise _storage_error(self._path, error) from error
    finally:
      self._file.close()

  def _each(self, action: str, *args: object) -> None:
    """Calls every tracker; one that raises is named once and dropped."""
    for tracker in tuple(self._trackers):
      try:
        getattr(tracker, action)(*args)
      except Exception as error:  # a view must not stop the run
        self._trackers.remove(tracker)
        name = getattr(tracker, "name", type(tracker).__name__)
        _log.warning(
          "the tracker %s failed and gets no more metrics of this run, which"
          " go on in %s: %s: %s",
          name,
          METRICS_FILE,
          type(error).__name__,
          error,
        )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def lines_end(directory: str | os.PathLike, step: int) -> int:
  """Returns where the lines of the first steps of a record end.

  Args:
    directory: the folder of the run.
    step: steps over all phases that count.

  Returns:
    The byte offset in metrics.jsonl after the last whole line of a step up to
    `step`; 0 if there is none.

  Raises:
    StorageError: the file cannot be read.
  """
  path = pathlib.Path(directory) / METRICS_FILE
  end = 0
  try:
    if not path.exists():
      return 0
    with path.open("rb") as file:
      for line in file:
        if not line.endswith(b"\n") or json.loads(line)["step"] > step:
          break
        end += len(line)
  except OSError as error:
    raise _storage_error(path, error) from error
  except (ValueError, KeyError, TypeError):
    pass  # a torn line ends what counts
  return end


class _TensorBoard:
  name = "tensorboard"

  def __init__(self, folder: pathlib.Path, purge_step: int):
    import tensorboardX

    self._writer = tensorboardX.SummaryWriter(
      str(folder), purge_step=purge_step
    )

  def log(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


class _RunTracker:
  """wandb and trackio: a run object with `log` and `finish`."""

  def __init__(self, name: str, run: object):
    self.name, self._run = name, run

  def log(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def flush(self) -> None:
    pass  # both send from a thread of their own

  def close(self) -> None:
    self._run.finish()


class _MlflowTracker:
  """A run in the SQLite file mlflow.db of the folder."""

  name = "mlflow"

  def __init__(self, mlflow: object, folder: pathlib.Path, run_name: str):
    uri = f"sqlite:///{folder.absolute()}/mlflow.db"
    self._client = mlflow.MlflowClient(tracking_uri=uri)
    run = self._client.create_run("0", run_name=run_name)
    self._run_id = run.info.run_id

  def log(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._client.log_metric(self._run_id, name, value, step=step)

  def flush(self) -> None:
    pass  # every metric is a transaction

  def close(self) -> None:
    self._client.set_terminated(self._run_id)


def _check_trackers(trackers: Sequence[str | Tracker]) -> None:
  """Refuses unknown and absent trackers before anything is written."""
  for tracker in trackers:
    if not isinstance(tracker, str):
      continue
    if tracker not in TRACKERS:
      raise ConfigError(
        f"unknown tracker {tracker!r}{did_you_mean(tracker, TRACKERS)}"
        f" (there are {', '.join(TRACKERS)})"
      )
    extras.need(tracker, extra=tracker, what=f"the tracker {tracker!r}")


def _start(tracker: str | Tracker, folder: pathlib.Path) -> Tracker:
  if not isinstance(tracker, str):
    return tracker
  package = extras.need(tracker, extra=tracker)
  name = "/".join(folder.absolute().parts[-4:])
  try:
    if tracker == "mlflow":
      return _MlflowTracker(package, folder, name)
    if tracker == "wandb":  # seeds may write at once: a run object for each
      run = package.init(
        project="jaxkd", name=name, dir=str(folder), reinit="create_new"
      )
    else:  # embed would serve the dashboard from a notebook
      run = package.init(
        project="jaxkd", name=name, resume="allow", embed=False
      )
  except Exception as error:
    raise ConfigError(
      f"the tracker {tracker!r} does not start: {error}"
    ) from error
  return _RunTracker(tracker, run)


def _truncate(path: pathlib.Path, offset: int) -> int:
  """Cuts the file at `offset` and returns the last step kept, or -1."""
  size = path.stat().st_size if path.exists() else 0
  if not 0 <= offset <= size:
    raise StorageError(
      f"{path} has {size} bytes, expected at least the {offset} that the"
      " checkpoint counted; was it edited?"
    )
  with path.open("ab") as file:
    file.truncate(offset)
    os.fsync(file.fileno())
  if offset == 0:
    return -1
  last = path.read_bytes().splitlines(keepends=True)[-1]
  try:
    if last.endswith(b"\n"):
      return int(json.loads(last)["step"])
  except (ValueError, KeyError, TypeError):
    pass
  raise StorageError(
    f"byte {offset} of {path} does not end a line of metrics, which the"
    " checkpoint counted; was the file edited?"
  )


def _json_number(value: float) -> float | str:
  return value if math.isfinite(value) else str(value)


def _storage_error(path: pathlib.Path, error: OSError) -> StorageError:
  return StorageError(f"cannot write {path}: {error.strerror or error}")
