"""Runs the command line and kills itself at a named moment.

usage: python -m tests.faults.child MOMENT ARGUMENTS..., with MOMENT one of
`none`, `PHASE:STEP`, `save:N` (inside the N-th write of a checkpoint),
`records:N` (between batches of cached targets), `index:N` (before the N-th
write of their index) and `evaluation`.
"""

import os
import signal
import sys

from jaxkd import cli, runs
from jaxkd.training import files, phase, treefile
from jaxkd.training.target_files import records


def die():
  os.kill(os.getpid(), signal.SIGKILL)


def at_step(name, step):
  make_step = phase.PhaseRun._step

  def patched(self, now):
    make_step(self, now)
    if self.phase.name == name and now == step:
      die()

  phase.PhaseRun._step = patched


def inside_save(count):
  """Dies when the files of the N-th checkpoint exist under another name."""
  check = treefile._check_structure
  calls = []

  def patched(folder):
    calls.append(folder)
    if len(calls) == count:
      die()
    check(folder)

  treefile._check_structure = patched


def at_call(owner, name, count):
  """Dies in place of the N-th call."""
  original, calls = getattr(owner, name), []

  def patched(*arguments):
    calls.append(arguments)
    if len(calls) == count:
      die()
    return original(*arguments)

  setattr(owner, name, patched)


def main():
  moment, arguments = sys.argv[1], sys.argv[2:]
  if moment == "evaluation":
    runs.measure = lambda *_: die()
  elif moment.startswith("save:"):
    inside_save(int(moment.removeprefix("save:")))
  elif moment.startswith("records:"):
    at_call(records.Layout, "encode", int(moment.removeprefix("records:")))
  elif moment.startswith("index:"):
    at_call(files, "write_json", int(moment.removeprefix("index:")))
  elif moment != "none":
    name, step = moment.split(":")
    at_step(name, int(step))
  sys.exit(cli.main(arguments))


if __name__ == "__main__":
  main()
