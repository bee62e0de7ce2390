"""A kill at any instant leaves only true steps, none older than promised."""

import logging
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from jaxkd.training.checkpoint import Checkpoints, tree_digest
from tests.training.checkpoint_tools import (
  LIKE,
  ROOT,
  counter,
  restored_truly,
  run,
  save_all,
  state,
)

SAVER = """
import os, signal, sys
from tests.training.checkpoint_tools import counter, state
from jaxkd.training.checkpoint import Checkpoints

folder, boundary = sys.argv[1], int(sys.argv[2])
calls = 0
def dying(function):
  def call(*args, **kwargs):
    global calls
    calls += 1
    if calls == boundary:
      os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)
  return call

stream = counter()
with Checkpoints(folder) as checkpoints:
  for step in range(1, 2000):
    next(stream)
    if step == 4:  # three steps are there: saves and deletions from here on
      checkpoints.wait()
      for name in ("fsync", "rename", "replace", "rmdir", "unlink", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))
    meta = {"offset": step * 7}
    checkpoints.save(step, state(step), stream=stream, meta=meta)
    print(step - 1, flush=True)
"""


def check_after_kill(folder, acknowledged, caplog):
  """The newest step is whole, true and no older than what was promised."""
  stream = counter()
  with caplog.at_level(logging.WARNING):
    found = Checkpoints(folder).restore(LIKE, stream=stream)
  assert not caplog.records
  assert found.step >= acknowledged
  assert tree_digest(found.state) == tree_digest(state(found.step))
  assert found.meta == {"offset": found.step * 7}
  assert next(stream).tolist() == next(counter(found.step)).tolist()
  assert all(name.isdecimal() for name in os.listdir(folder))


def kill_at_random(folder, seed, caplog):
  child = subprocess.Popen(
    [sys.executable, "-c", SAVER, str(folder), "0"],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  while int(child.stdout.readline()) < 1:
    pass
  time.sleep(random.Random(seed).uniform(0, 0.4))
  child.send_signal(signal.SIGKILL)
  acknowledged = [int(line) for line in child.communicate()[0].splitlines()]
  assert child.returncode == -signal.SIGKILL
  check_after_kill(folder, max(acknowledged, default=1), caplog)


@pytest.mark.parametrize("seed", range(4))
def test_killed_inside_a_save_restores_a_true_step(tmp_path, caplog, seed):
  kill_at_random(tmp_path, seed, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 24))
def test_killed_at_more_moments_restores_truly(tmp_path, caplog, seed):
  kill_at_random(tmp_path, seed, caplog)


@pytest.mark.slow
def test_killed_at_each_boundary_of_a_save_and_a_deletion(tmp_path, caplog):
  # Making the folder and the manifest; last syncs, commit, deletion.
  for boundary in [*range(1, 7), *range(22, 28), 31, 36, 42]:
    folder = tmp_path / str(boundary)
    child = run(SAVER, folder, boundary, check=False)
    assert child.returncode == -signal.SIGKILL
    check_after_kill(folder, int(child.stdout.split()[-1]), caplog)


def test_leftovers_of_kills_are_removed_and_other_files_are_not(tmp_path):
  save_all(tmp_path, [1])
  for name in (".2.saving", ".0.old", "notes", ".mine.saving"):
    (tmp_path / name).mkdir()
  assert restored_truly(tmp_path) == 1
  assert sorted(os.listdir(tmp_path)) == [".mine.saving", "1", "notes"]
