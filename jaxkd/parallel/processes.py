"""Several processes that run one experiment, each with its own devices.

Every process runs the same program and computes the same values; arrays lie
over the devices of all. What depends on files, clocks or signals is decided by
process 0, or agreed upon, so that no two processes can go different ways. A
process that is lost ends the others with a message and the exit code of
`LostProcess`: no collective operation can be finished without it.

With one process nothing is started and every function answers at once.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from jaxkd.errors import ConfigError, JaxkdError, LostProcess
from jaxkd.parallel import channel
from jaxkd.parallel.members import Follower, Leader, Member

T = TypeVar("T")
JOIN_SECONDS = 300  # until all processes must have come
_THREADS = 16  # at least, of XLA on CPUs
_KEY = "jaxkd/leader"

_member: Member | None = None
_met = False


def start(
  coordinator: str | None = None,
  count: int | None = None,
  rank: int | None = None,
) -> None:
  """Joins the other processes; before anything else is done with JAX.

  Args:
    coordinator: `host:port` of process 0, where it will listen; any free port.
      Without arguments JAX finds out all three from SLURM, MPI, GKE or a Cloud
      TPU.
    count: how many processes there are.
    rank: which one this is, from 0.

  Raises:
    ConfigError: the arguments do not fit, or nothing was found out.
  """
  _check(coordinator, count, rank)
  name = "this process" if rank is None else f"process {rank} of {count}"
  alone = (
    f"jaxkd: {name} has not met all others"
    f"{f' at {coordinator}' if coordinator else ''}: were all started, with "
    "one address and count, and can it be reached?"
  )
  _survive_aborts(alone)
  import jax

  # On CPUs a collective operation holds a thread until all have come to it: in
  # a pool as small as the machine a program of several devices stood still.
  os.environ.setdefault("NPROC", str(max(_THREADS, os.cpu_count() or 1)))
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  try:
    jax.distributed.initialize(
      coordinator, count, rank, initialization_timeout=JOIN_SECONDS
    )
  except (ValueError, RuntimeError) as error:
    raise ConfigError(_hint(coordinator, error)) from error
  # JAX listens to SIGTERM from here on; ours are agreed upon in `stopping`.
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
  try:
    _meet()
  except OSError as error:
    _give_up(f"{alone} ({error})")


def _check(coordinator, count, rank) -> None:
  given = (coordinator, count, rank)
  if given == (None, None, None):
    return
  if None in given:
    raise ConfigError(
      f"coordinator={coordinator}, processes={count}, process={rank}: "
      "expected all three"
    )
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit():
    raise ConfigError(f"coordinator={coordinator!r}: expected host:port")
  if count < 1 or not 0 <= rank < count:
    raise ConfigError(
      f"process={rank} of processes={count}: expected 0 to {count - 1}"
      if count > 0
      else f"processes={count}: expected at least 1"
    )


def _hint(coordinator: str | None, error: Exception) -> str:
  if coordinator is None:
    return (
      "no SLURM, MPI, GKE or Cloud TPU was found that says which process this "
      f"is ({error}); say it with --coordinator HOST:PORT --processes N "
      "--process I"
    )
  return f"the processes cannot meet at {coordinator}: {error}"


def _meet() -> None:
  """Connects the processes, each with process 0."""
  global _member, _met
  # JAX shows neither its store nor the coordinator's address otherwise.
  from jax._src import distributed

  state = distributed.global_state
  count, rank = state.num_processes, state.process_id
  if count == 1:
    _met = True
    return
  host = state.coordinator_address.rpartition(":")[0].strip("[]")
  if rank == 0:
    server, token = channel.listen(host), secrets.token_hex(16)
    address = {"port": server.getsockname()[1], "token": token}
    state.client.key_value_set(_KEY, json.dumps(address))
    lines = channel.accept(server, count, token, JOIN_SECONDS)
    _member = Leader(rank, count, lines)
  else:
    text = state.client.blocking_key_value_get(_KEY, JOIN_SECONDS * 1000)
    address = json.loads(text)
    line = channel.connect(
      host, address["port"], rank, address["token"], JOIN_SECONDS
    )
    _member = Follower(rank, count, {0: line})
  atexit.register(_unannounced)
  _member.start()
  _met = True


def count() -> int:
  """How many processes there are."""
  return 1 if _member is None else _member.count


def rank() -> int:
  """Which process this is, from 0."""
  return 0 if _member is None else _member.rank


def is_main() -> bool:
  """Whether this is process 0, which alone writes files."""
  return rank() == 0


def decide(function: Callable[[], T]) -> T:
  """Calls a function on process 0 alone; all processes get what it returns.

  Args:
    function: returns what JSON can hold; on the other processes, too, the
      answer is what JSON gives back.

  Raises:
    JaxkdError: what the function raised, on every process.
  """
  if _member is None:
    return function()
  answer: dict[str, Any]
  if _member.rank == 0:
    try:
      answer = {"value": function()}
    except JaxkdError as error:
      _member.tell({"error": type(error).__name__, "text": str(error)})
      raise
    return _member.tell(answer)
  answer = _member.ask()
  if "error" in answer:
    kinds = {kind.__name__: kind for kind in JaxkdError.__subclasses__()}
    raise kinds.get(answer["error"], JaxkdError)(answer["text"])
  return answer["value"]


def barrier() -> None:
  """Waits until all processes are here."""
  if _member is not None:
    _member.barrier()


def stopping(requested: bool) -> bool:
  """Whether all processes stop now; to be called after every step.

  Args:
    requested: whether this one was asked to stop. The others then learn of
      it, and all stop after the same step, the next that none has finished.
      Until then a call costs no communication.
  """
  return requested if _member is None else _member.stopping(requested)


def leave(code: int, text: str = "") -> None:
  """Ends this process's part; returns if it ends well, as all others do.

  Args:
    code: the exit code; if not 0, the process ends here.
    text: why, for the others, which end with the exit code of `LostProcess`
      unless they, too, come here soon.
  """
  global _member
  if _member is None:
    return
  if code:
    _flush()
  _member.leave(code, text)
  if code:
    os._exit(code)
  _member = None


def doubt() -> None:
  """Waits a moment after an error for news of a process that caused it.

  If there are any, the process ends; else this returns.
  """
  if _member is not None:
    _member.doubt()


def _unannounced() -> None:
  """Keeps an interpreter that ends early from waiting for all others."""
  leave(1, "it ended before its work was done")


def _give_up(text: str) -> None:
  """Ends the process at once: JAX's own end would wait for all others."""
  os.write(2, f"{text}\n".encode())
  os._exit(LostProcess.exit_code)


def _flush() -> None:
  for stream in (sys.stdout, sys.stderr):
    stream.flush()


_HANDLER: Any = None  # must outlive its registration in C


def _survive_aborts(alone: str) -> None:
  """Replaces the abort of JAX's client, when it has lost process 0.

  Args:
    alone: the message if the processes have not met yet.
  """
  global _HANDLER
  libc = ctypes.CDLL(None)
  kind = ctypes.CFUNCTYPE(None, ctypes.c_int)

  def aborted(number: int) -> None:
    if not _met:
      _give_up(alone)
    doubt()  # ends the process if one is lost
    libc.signal(number, None)  # the default: this abort has another cause

  _HANDLER = kind(aborted)
  libc.signal(int(signal.SIGABRT), _HANDLER)
