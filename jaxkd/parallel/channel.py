"""Connections between process 0 and each other one: JSON, one line a message.

They carry what processes decide, never arrays. The kernel closes the
connections of a process that is killed, so that its peers know at once; a
machine that has vanished is known by its silence.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

Message = dict[str, Any]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HELLO_SECONDS = 10.0
_SEND_SECONDS = 30.0


class Line:
  """One end of a connection.

  Attributes:
    heard: when something was last received, in seconds of `time.monotonic`.
    open: whether the other end is there.
  """

  def __init__(self, connection: socket.socket):
    connection.settimeout(_SEND_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self.socket = connection
    self.heard = time.monotonic()
    self.open = True
    self._received = b""
    self._sending = threading.Lock()

  def send(self, message: Mapping[str, Any]) -> None:
    """Sends a message in one piece; that the other end is gone is read."""
    with self._sending, contextlib.suppress(OSError):
      self.socket.sendall(json.dumps(message).encode() + b"\n")

  def receive(self) -> list[Message]:
    """Returns the messages that have come; `open` is then up to date."""
    try:
      data = self.socket.recv(2**16)
    except OSError:
      data = b""
    self.open = bool(data)
    self.heard = time.monotonic()
    *lines, self._received = (self._received + data).split(b"\n")
    return [json.loads(line) for line in lines]

  def receive_one(self, seconds: float) -> Message:
    """Waits for one message and leaves what comes after it.

    Raises:
      OSError: it did not come in time, or the other end is gone.
      ValueError: it is none.
    """
    self.socket.settimeout(seconds)
    line = b""
    while not line.endswith(b"\n"):
      byte = self.socket.recv(1)
      if not byte or len(line) > 1000:
        raise ConnectionError("the connection was closed")
      line += byte
    self.socket.settimeout(_SEND_SECONDS)
    return json.loads(line)


def listen(host: str) -> socket.socket:
  """Opens a port of the system's choice for the processes to come.

  Args:
    host: this machine as the others call it; from a name of the machine for
      itself no other machine can connect.
  """
  if host in _LOOPBACK:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family)
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
    )
  return socket.create_server(("", 0))


def accept(
  server: socket.socket, count: int, token: str, seconds: float
) -> dict[int, Line]:
  """Waits for the connections of processes 1 .. count-1.

  Args:
    server: from `listen`; closed when this returns.
    count: processes, this one included.
    token: what a process of this run knows; others are turned away.
    seconds: how long to wait.

  Returns:
    Connections by process; each has been told that all are there.

  Raises:
    TimeoutError: not all came in time.
  """
  found: dict[int, Line] = {}
  until = time.monotonic() + seconds
  with server:
    while len(found) < count - 1:
      server.settimeout(max(until - time.monotonic(), 0.001))
      line = Line(server.accept()[0])
      rank = _introduced(line, token)
      if rank is None or not 0 < rank < count or rank in found:
        line.socket.close()
      else:
        found[rank] = line
  for line in found.values():
    line.send({"welcome": True})
  return found


def _introduced(line: Line, token: str) -> int | None:
  """Which process a new connection is from; None if it is a stranger's."""
  try:
    message = line.receive_one(_HELLO_SECONDS)
    known = hmac.compare_digest(str(message["token"]), token)
    return int(message["process"]) if known else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def connect(
  host: str, port: int, process: int, token: str, seconds: float
) -> Line:
  """Connects to process 0 and waits until it has met all others.

  Args:
    host: its machine.
    port: what it listens on.
    process: which process this is.
    token: what it told the processes of this run.
    seconds: how long to try.

  Raises:
    OSError: it cannot be reached, or has not met them in time.
  """
  line = Line(socket.create_connection((host, port), timeout=seconds))
  line.send({"process": process, "token": token})
  line.receive_one(seconds)
  return line


class Lines:
  """The connections of one process, by the process at the other end."""

  def __init__(self, lines: Mapping[int, Line]):
    self._lines = dict(lines)
    self._selector = selectors.DefaultSelector()
    for rank, line in self._lines.items():
      self._selector.register(line.socket, selectors.EVENT_READ, (rank, line))

  @property
  def open(self) -> list[int]:
    """The processes that are there."""
    return [rank for rank, line in self._lines.items() if line.open]

  def send(self, message: Mapping[str, Any], but: int | None = None) -> None:
    """Sends a message to all processes, or all but one."""
    for rank, line in self._lines.items():
      if rank != but and line.open:
        line.send(message)

  def receive(self, seconds: float) -> Iterator[tuple[int, Message | None]]:
    """Waits for messages; None is the end of a connection."""
    for key, _ in self._selector.select(seconds):
      rank, line = key.data
      for message in line.receive():
        yield rank, message
      if not line.open:
        self._selector.unregister(line.socket)
        line.socket.close()
        yield rank, None

  def close(self) -> None:
    """Ends all connections."""
    for line in self._lines.values():
      line.socket.close()
    self._selector.close()

  def silent(self, seconds: float) -> list[int]:
    """The open connections on which nothing came for so long."""
    now = time.monotonic()
    return [r for r in self.open if now - self._lines[r].heard > seconds]
