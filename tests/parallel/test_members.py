"""Processes that meet, decide, stop and leave together, here as threads."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxkd.errors import ConfigError, StorageError
from jaxkd.parallel import channel, processes
from jaxkd.parallel.members import Follower, Leader

COUNT = 3


def met(*, strangers=()):
  """A leader and its followers, connected; strangers come first."""
  server = channel.listen("127.0.0.1")
  port = server.getsockname()[1]
  with ThreadPoolExecutor() as pool:
    accepted = pool.submit(channel.accept, server, COUNT, "secret", 20.0)
    for text in strangers:
      with (
        socket.create_connection(("127.0.0.1", port)) as stranger,
        contextlib.suppress(OSError),
      ):
        stranger.sendall(text)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(100):
          pass
    lines = list(
      pool.map(
        lambda n: channel.connect("127.0.0.1", port, n, "secret", 20.0),
        range(1, COUNT),
      )
    )
  return [
    Leader(0, COUNT, accepted.result()),
    *(Follower(n, COUNT, {0: line}) for n, line in enumerate(lines, 1)),
  ]


@pytest.fixture
def members():
  found = met()
  for member in found:
    member.start()
  yield found
  together(found, lambda member: member.leave(0, ""))
  for member in found:
    member._thread.join()
    member._lines.close()


def together(members, function):
  """What a function returns for every member, each in a thread."""
  with ThreadPoolExecutor(len(members)) as pool:
    return list(pool.map(function, members))


def test_strangers_are_turned_away():
  others = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b'{"process": 1, "token": "guessed"}\n',
    b'{"process": 7, "token": "secret"}\n',
    b'{"token": "secret"}\n',
    b"[]\n",
    b"x" * 5000,
  )
  found = met(strangers=others)
  assert [member.rank for member in found] == [0, 1, 2]
  for member in found:
    member._lines.close()


def test_who_does_not_come_is_not_waited_for_in_vain():
  with pytest.raises(TimeoutError):
    channel.accept(channel.listen("127.0.0.1"), 2, "secret", 0.1)


def test_all_get_what_process_0_decides(members, monkeypatch):
  calls = []

  def function():
    calls.append(None)
    return {"step": 3, "loss": 0.1 + 0.2, "names": ("a", "b")}

  found = []
  for member in members:
    monkeypatch.setattr(processes, "_member", member)
    found.append(processes.decide(function))
  assert found == [{"step": 3, "loss": 0.1 + 0.2, "names": ["a", "b"]}] * COUNT
  assert len(calls) == 1


@pytest.mark.parametrize("kind", [ConfigError, StorageError])
def test_all_raise_what_process_0_raises(members, monkeypatch, kind):
  def function():
    raise kind("the disk is full")

  for member in members:
    monkeypatch.setattr(processes, "_member", member)
    with pytest.raises(kind, match="the disk is full"):
      processes.decide(function)


def test_nobody_passes_a_barrier_alone(members):
  passed = []

  def late(member):
    time.sleep(0.2 * member.rank)
    arrived = time.monotonic()
    member.barrier()
    passed.append(time.monotonic())
    return arrived

  last = max(together(members, late))
  assert min(passed) >= last


@pytest.mark.parametrize("asked", range(COUNT))
def test_all_stop_after_the_same_step(members, asked):
  def train(member):
    for step in range(1, 1000):
      time.sleep(0.001 * (member.rank + 1))
      request = member.rank == asked and step >= 20
      if member.stopping(request):
        return step
    return None

  steps = together(members, train)
  assert steps[asked] is not None
  assert steps[asked] > 20
  assert steps == steps[:1] * COUNT


def test_none_stops_unasked(members):
  found = together(members, lambda m: [m.stopping(False) for _ in range(50)])
  assert not any(map(any, found))


def test_one_that_is_done_waits_for_the_others(members):
  left = []
  waiting = threading.Thread(
    target=lambda: left.append(members[1].leave(0, ""))
  )
  waiting.start()
  time.sleep(0.3)
  assert not left
  together([members[0], members[2]], lambda member: member.leave(0, ""))
  waiting.join(timeout=10)
  assert left


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("host:1", 2, None), "process=None: expected all three"),
    (("host", 2, 0), "coordinator='host': expected host:port"),
    (("host:one", 2, 0), "expected host:port"),
    (("host:1", 0, 0), "processes=0: expected at least 1"),
    (("host:1", 2, 2), "process=2 of processes=2: expected 0 to 1"),
    (("host:1", 2, -1), "process=-1 of processes=2: expected 0 to 1"),
  ],
)
def test_wrong_arguments_are_refused(arguments, message):
  with pytest.raises(ConfigError, match=message):
    processes.start(*arguments)


def test_one_process_decides_and_stops_by_itself():
  assert (processes.rank(), processes.count()) == (0, 1)
  assert processes.is_main()
  assert processes.decide(lambda: ("kept", "as it is")) == ("kept", "as it is")
  assert not processes.stopping(False)
  assert processes.stopping(True)
  processes.barrier()
  processes.leave(0)
