"""Caching that is killed and started again ends with the same bytes."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.training.target_files.test_folder import GIN

ROOT = pathlib.Path(__file__).parents[2]


def run(folder, moment):
  """Caches 150 examples in batches of 25 and files of about 40."""
  path = folder.parent / "kd.gin"
  path.write_text(GIN)
  command = [sys.executable, "-m", "tests.faults.child", moment]
  options = [
    "--to", str(folder), "--k", "3", "--shard-mib", "0.0012",
    "--set=Experiment.settings=@Settings()",
    "--set=Settings.target_batch_size=25", "--set=AVDigits.train_size=150",
  ]  # fmt: skip
  return subprocess.run(
    [*command, "cache-targets", str(path), *options],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=300,
  )


def content(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != ".lock"
  }


@pytest.mark.slow
def test_four_kills_leave_no_trace(tmp_path):
  whole = run(tmp_path / "whole", "none")
  assert whole.returncode == 0, whole.stderr
  reference = content(tmp_path / "whole")
  names = [name.split("/")[-1] for name in reference]
  assert len(names) >= 5
  folder = tmp_path / "killed"
  # Before the plan; in the first file; with a file that the index does not
  # name yet; in the last one.
  for moment in ("index:1", "records:2", "index:3", "records:3"):
    killed = run(folder, moment)
    assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    assert content(folder) != reference
  finished = run(folder, "none")
  assert finished.returncode == 0, finished.stderr
  assert finished.stdout.replace("killed", "whole") == whole.stdout
  assert content(folder) == reference
