"""What a process of several knows of the others, and tells them.

Process 0 leads: it is connected with every other one, which follow. A thread
of each process listens, answers, and ends the process when one is lost.
"""

from __future__ import annotations

import abc
import json
import os
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from jaxkd.errors import LostProcess
from jaxkd.parallel.channel import Line, Lines, Message

PING_SECONDS = 5.0
SILENT_SECONDS = 60.0  # JAX waits for 100 before it aborts the process
GRACE_SECONDS = 10.0  # for a process to come to the error of another by itself
DOUBT_SECONDS = 3.0  # in which the end of a connection is certainly seen


class Member(abc.ABC):
  """A process among several; `Leader` and `Follower` are the two kinds.

  Attributes:
    rank: which process this is.
    count: how many there are.
  """

  def __init__(self, rank: int, count: int, lines: Mapping[int, Line]):
    self.rank, self.count = rank, count
    self._lines = Lines(lines)
    self._changed = threading.Condition(threading.RLock())
    self._ended: dict[int, int] = {}  # exit codes that were announced
    self._leaving = False
    self._over = False
    self._reason: str | None = None  # why this process is about to end
    self._ends_at = float("inf")
    self._thread = threading.Thread(
      target=self._listen, name="jaxkd-processes", daemon=True
    )
    # Steps that this process has finished, and the agreement on the last.
    self._steps = 0
    self._asked = self._holding = False
    self._last: int | None = None

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def _listen(self) -> None:
    pinged = 0.0
    while not self._over:
      now = time.monotonic()
      if now - pinged > PING_SECONDS:
        pinged = now
        self._lines.send({"ping": True})
      for sender, message in self._lines.receive(seconds=0.5):
        with self._changed:
          if message is None:
            self._gone(sender)
          else:
            self._take(sender, message)
          self._changed.notify_all()
      for silent in self._lines.silent(SILENT_SECONDS):
        self._lost(silent, f"was not heard of for {SILENT_SECONDS:.0f} s")
      if time.monotonic() > self._ends_at and not self._leaving:
        self._end()

  def _gone(self, sender: int) -> None:
    """A connection has ended."""
    if not (self._over or self._leaving or sender in self._ended):
      self._lost(sender, "is gone: it was killed, or its machine failed")

  def _lost(self, rank: int, how: str) -> None:
    self._reason = f"process {rank} of {self.count} {how}"
    self._end()

  @abc.abstractmethod
  def _take(self, sender: int, message: Message) -> None:
    """Acts on a message."""

  def _announced(self, rank: int, code: int, text: str) -> None:
    """Another process ends; this one may be about to, for the same reason."""
    self._ended[rank] = code
    if code and self._reason is None:
      self._reason = (
        f"process {rank} of {self.count} ended with exit code {code}: {text}"
      )
      self._ends_at = time.monotonic() + GRACE_SECONDS

  def _end(self) -> None:
    """Ends this process because of `_reason`; runs in the thread."""
    text = (
      f"jaxkd: {self._reason}. Process {self.rank} ends as well; the same "
      "command, with this or another number of processes, resumes\n"
    )
    os.write(2, text.encode())
    os._exit(LostProcess.exit_code)

  def doubt(self) -> None:
    """Waits for the thread to end the process; returns if it has no reason."""
    until = time.monotonic() + DOUBT_SECONDS
    while self._reason is not None or time.monotonic() < until:
      time.sleep(0.05)

  def stopping(self, requested: bool) -> bool:
    """Counts a step; whether it is the last, as `processes.stopping` says."""
    with self._changed:
      self._steps += 1
      if requested and not self._asked:
        self._asked = True
        self._ask_to_stop()
      if self._holding:
        self._changed.wait_for(lambda: self._last is not None)
      return self._last is not None and self._steps >= self._last

  @abc.abstractmethod
  def _ask_to_stop(self) -> None:
    """Begins the agreement on the last step."""

  def _hold(self) -> int:
    """Makes no further step before the last one is known."""
    self._holding = True
    return self._steps


class Leader(Member):
  """Process 0."""

  def __init__(self, rank: int, count: int, lines: Mapping[int, Line]):
    super().__init__(rank, count, lines)
    self._arrived = dict.fromkeys(lines, 0)
    self._barriers = 0
    self._finished: dict[int, int] = {}  # steps, by process, of those on hold

  def tell(self, answer: Message) -> Any:
    """Gives all others an answer; returns its value as they see it."""
    self._lines.send({"answer": answer})
    return json.loads(json.dumps(answer)).get("value")

  def barrier(self) -> None:
    """Waits for all others, then lets them go on."""
    with self._changed:
      self._barriers += 1
      self._changed.wait_for(
        lambda: min(self._arrived.values()) >= self._barriers
      )
    self.tell({"value": None})

  def leave(self, code: int, text: str) -> None:
    """Waits for all others, if not for long after an error; they go first."""
    with self._changed:
      self._leaving = bool(code)
      if code:
        self._lines.send({"ended": [self.rank, code, text]})
      self._changed.wait_for(
        self._all_ended if code else self._all_ended_well,
        timeout=GRACE_SECONDS + PING_SECONDS if code else None,
      )
      self._lines.send({"bye": True})
      if code:
        self._changed.wait_for(lambda: not self._lines.open, PING_SECONDS)
      self._over = True

  def _all_ended(self) -> bool:
    return not set(self._lines.open) - set(self._ended)

  def _all_ended_well(self) -> bool:
    return [*self._ended.values()] == [0] * (self.count - 1)

  def _take(self, sender: int, message: Message) -> None:
    match message:
      case {"arrived": number}:
        self._arrived[sender] = number
      case {"stop": _}:
        self._ask_to_stop()
      case {"steps": steps}:
        self._finished[sender] = steps
        self._agree()
      case {"ended": [rank, code, text]}:
        self._announced(rank, code, text)
        self._lines.send(message, but=sender)

  def _ask_to_stop(self) -> None:
    if not self._holding:
      self._lines.send({"hold": True})
      self._finished[self.rank] = self._hold()

  def _agree(self) -> None:
    if len(self._finished) == self.count:
      self._last = max(self._finished.values()) + 1
      self._lines.send({"last": self._last})

  def _end(self) -> None:
    """Tells the others, and lets them go first: their clients need JAX's."""
    self._lines.send({"lost": self._reason})
    until = time.monotonic() + PING_SECONDS
    while self._lines.open and time.monotonic() < until:
      list(self._lines.receive(seconds=0.1))
    super()._end()


class Follower(Member):
  """A process other than 0."""

  def __init__(self, rank: int, count: int, lines: Mapping[int, Line]):
    super().__init__(rank, count, lines)
    self._answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
    self._barriers = 0
    self._dismissed = False

  def ask(self) -> Message:
    """Waits for the leader's next answer."""
    return self._answers.get()

  def barrier(self) -> None:
    """Tells the leader and waits until it has heard of all."""
    self._barriers += 1
    self._lines.send({"arrived": self._barriers})
    self.ask()

  def leave(self, code: int, text: str) -> None:
    """Tells the leader and waits for its leave, not for long after an error."""
    with self._changed:
      self._leaving = bool(code)
      self._lines.send({"ended": [self.rank, code, text]})
      self._changed.wait_for(
        lambda: self._dismissed or not self._lines.open,
        timeout=GRACE_SECONDS + PING_SECONDS if code else None,
      )
      self._over = True

  def _take(self, sender: int, message: Message) -> None:
    match message:
      case {"answer": answer}:
        self._answers.put(answer)
      case {"hold": _}:
        self._lines.send({"steps": self._hold()})
      case {"last": last}:
        self._last = last
      case {"ended": [rank, code, text]}:
        self._announced(rank, code, text)
      case {"lost": reason}:
        self._reason = reason
        self._end()
      case {"bye": _}:
        self._dismissed = self._over = True

  def _ask_to_stop(self) -> None:
    self._lines.send({"stop": True})
