"""A run that is killed and started again ends with the same bits."""

import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = "experiments/mst_distill/av_digits_smoke.gin"
OPTIONS = (
  "--set=Settings.checkpoint_every_steps=6",
  "--set=Settings.log_every_steps=4",
  "--set=Experiment.settings=@Settings()",
  "--set=EPOCHS_S3=3",
)


def run(workdir, moment):
  command = [sys.executable, "-m", "tests.faults.child", moment, "run"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  return subprocess.run(
    [*command, EXPERIMENT, *OPTIONS, "--workdir", str(workdir)],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


def leaf_digests(workdir):
  """Digests of all arrays of all finished phases, by file and leaf."""
  found = {}
  for path in sorted(workdir.glob("runs/*/*/stages/*/manifest.json")):
    leaves = json.loads(path.read_text())["body"]["leaves"]
    found[str(path.relative_to(workdir))] = leaves
  return found


def records(workdir):
  """Lines of metrics, the last one of each phase, split and step."""
  found = {}
  for path in sorted(workdir.glob("runs/*/*/metrics.jsonl")):
    for line in path.read_text().splitlines():
      row = json.loads(line)
      key = (path.parent.name, row["phase"], row["split"], row["step"])
      found[path.parts[-3], *key] = line
  return found


def summary(workdir):
  content = json.loads((workdir / "summary.json").read_text())
  del content["wall_seconds"]
  return content


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("reference") / "run"
  done = run(workdir, "none")
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.mark.slow
def test_five_kills_leave_no_trace(reference, tmp_path):
  draw = random.Random(20261120)
  moments = [
    f"collaborate:{draw.randrange(1, 19)}",
    "save:2",
    f"specialise:{draw.randrange(1, 19)}",
    f"distil:{draw.randrange(7, 29)}",
    "evaluation",
  ]
  workdir = tmp_path / "run"
  for moment in moments:
    killed = run(workdir, moment)
    assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    assert not (workdir / "summary.json").exists()
  finished = run(workdir, "none")
  assert finished.returncode == 0, finished.stderr
  assert leaf_digests(workdir) == leaf_digests(reference)
  assert len(leaf_digests(workdir)) == 4
  assert records(workdir) == records(reference)
  assert summary(workdir) == summary(reference)


@pytest.mark.slow
def test_a_finished_run_started_again_changes_no_file(reference):
  def digests():
    return {
      path: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in reference.rglob("*")
      if path.is_file() and path.name not in (".lock", "command.txt")
    }

  before = digests()
  again = run(reference, "none")
  assert again.returncode == 0, again.stderr
  assert digests() == before
