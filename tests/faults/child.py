"""Runs the command line and kills itself at a named moment.

usage: python -m tests.faults.child MOMENT ARGUMENTS..., with MOMENT one of
`none`, `PHASE:STEP`, `save:N` (inside the N-th write of a checkpoint) and
`evaluation`.
"""

import os
import signal
import sys

from jaxkd import cli, experiment
from jaxkd.training import phase, treefile


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


def main():
  moment, arguments = sys.argv[1], sys.argv[2:]
  if moment == "evaluation":
    experiment.measure = lambda *_: die()
  elif moment.startswith("save:"):
    inside_save(int(moment.removeprefix("save:")))
  elif moment != "none":
    name, step = moment.split(":")
    at_step(name, int(step))
  sys.exit(cli.main(arguments))


if __name__ == "__main__":
  main()
