"""One writer at a time, and no lock outlives its holder."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxkd.errors import WorkdirLocked
from jaxkd.training.workdir import Workdir

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
CARD = {"kind": "experiment", "digest": "a1", "describe": {}}

HOLDER = """
import os, sys, time
from jaxkd.training.workdir import Workdir
with Workdir.open(sys.argv[1], kind="experiment", digest="a1", describe={}):
  print("held", flush=True)
  sys.stdin.read()
"""


def start(folder, program=HOLDER):
  return subprocess.Popen(
    [sys.executable, "-c", program, str(folder)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_second_writer_is_told_who_holds_it_and_readers_are_not(tmp_path):
  holder = start(tmp_path)
  assert holder.stdout.readline() == "held\n"
  try:
    with pytest.raises(WorkdirLocked, match=f"process {holder.pid} on .*sta"):
      Workdir.open(tmp_path, **CARD)
    assert Workdir.read(tmp_path).identity["digest"] == "a1"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    Workdir.open(tmp_path, **CARD).close()
  finally:
    holder.kill()
    holder.communicate()


def test_of_two_that_start_at_once_exactly_one_runs(tmp_path):
  children = [start(tmp_path / "new") for _ in range(2)]
  while all(child.poll() is None for child in children):
    time.sleep(0.05)  # until the loser leaves; the winner waits for its input
  ends = [child.communicate() for child in children]
  assert sorted(out for out, _ in ends) == ["", "held\n"]
  loser = next(err for out, err in ends if not out)
  assert "WorkdirLocked" in loser
  assert sorted(child.returncode for child in children) == [0, 1]


def test_the_lock_is_free_after_close_and_held_within_a_process(tmp_path):
  first = Workdir.open(tmp_path, **CARD)
  with pytest.raises(WorkdirLocked, match=f"process {os.getpid()} on"):
    Workdir.open(tmp_path, **CARD)
  first.close()
  first.close()
  Workdir.open(tmp_path, **CARD).close()


FORK = """
def fork():
  back, here = os.pipe()
  if not os.fork():
    print(os.getpid(), flush=True)
    os.write(here, b".")
    time.sleep(60)
    os._exit(0)
  os.read(back, 1)  # the child is back from the fork
  os.kill(os.getpid(), 9)
"""


def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
  program = FORK + HOLDER.replace("sys.stdin.read()", "fork()")
  parent = start(tmp_path, program)
  assert parent.stdout.readline() == "held\n"
  child = int(parent.stdout.readline())
  assert parent.wait() == -signal.SIGKILL
  try:
    os.kill(child, 0)  # it lives
    Workdir.open(tmp_path, **CARD).close()
  finally:
    os.kill(child, signal.SIGKILL)
    parent.communicate()
