"""Runs on several processes: started with others, killed, asked to stop."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.training.target_files.test_folder import GIN

pytestmark = pytest.mark.slow  # each starts several interpreters

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = "experiments/mst_distill/no_kd.gin"
DEVICES = 4
SECONDS = 300
OPTIONS = (
  "--set=Experiment.mesh=@Mesh()",
  "--set=Mesh.data=2",
  "--set=Mesh.fsdp=2",
  "--set=Experiment.settings=@Settings()",
  "--set=Settings.checkpoint_every_steps=2",
  "--set=Settings.log_every_steps=1",
  "--set=Settings.max_steps=10",
)


def free_port():
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def start(workdir, count, moments=(), experiment=EXPERIMENT):
  """Starts all processes of a run; some die at a moment, by process."""
  flags = f"--xla_force_host_platform_device_count={DEVICES // count}"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
  command = [
    *("run", str(experiment), *OPTIONS, "--workdir", str(workdir)),
  ]
  port, moments = free_port(), dict(moments)
  several = ("--coordinator", f"127.0.0.1:{port}", "--processes", str(count))
  return [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "tests.faults.child"),
        *(moments.get(rank, "none"), *command),
        *((*several, "--process", str(rank)) if count > 1 else ()),
      ],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(count)
  ]


def finish(processes):
  """Exit codes and what was said, of all processes."""
  said = [process.communicate(timeout=SECONDS)[1] for process in processes]
  return [process.returncode for process in processes], said


def run(workdir, count, **options):
  codes, said = finish(start(workdir, count, **options))
  assert codes == [0] * count, said


def lines(workdir):
  path = workdir / "runs/main/seed_0/metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


def same(workdir, reference):
  """Asserts equal lines up to the order of sums, and an equal evaluation."""
  found, expected = lines(workdir), lines(reference)
  assert len(found) == len(expected) == 11
  for one, other in zip(found, expected, strict=True):
    assert {**one, "metrics": None} == {**other, "metrics": None}
    assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-5)
  measured, wanted = (
    json.loads((folder / "summary.json").read_text())["metrics"]
    for folder in (workdir, reference)
  )
  assert list(measured) == list(wanted)
  for name, values in wanted.items():
    assert measured[name] == pytest.approx(values, rel=1e-4), name


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("reference") / "run"
  run(workdir, 1)
  return workdir


def test_killed_runs_resume_with_other_numbers_of_processes(
  reference, tmp_path
):
  workdir = tmp_path / "run"
  for count, lost, step in ((2, 1, 3), (4, 0, 6)):
    processes = start(workdir, count, {lost: f"supervise:{step}"})
    assert processes[lost].wait(SECONDS) == -signal.SIGKILL
    began = time.monotonic()
    codes, said = finish(processes)
    assert time.monotonic() - began < 30
    for rank in set(range(count)) - {lost}:
      assert codes[rank] == 7, said[rank]
      expected = f"process {lost} of {count} is gone: it was killed"
      assert f"jaxkd: {expected}" in said[rank]
      assert f"Process {rank} ends as well; the same command" in said[rank]
      assert "Traceback" not in said[rank]
  assert [line["step"] for line in lines(workdir)][-1] >= 6
  run(workdir, 2)
  same(workdir, reference)


def test_a_run_of_several_processes_resumes_as_one(reference, tmp_path):
  workdir = tmp_path / "run"
  codes, said = finish(start(workdir, 2, {0: "save:2"}))
  assert codes == [-signal.SIGKILL, 7], said
  run(workdir, 1)
  same(workdir, reference)


def test_all_stop_when_one_is_asked(reference, tmp_path):
  workdir = tmp_path / "run"
  processes = start(workdir, 2)
  record = workdir / "runs/main/seed_0/metrics.jsonl"
  until = time.monotonic() + SECONDS
  while not record.exists() or not record.read_bytes():
    assert time.monotonic() < until
    time.sleep(0.01)
  processes[1].send_signal(signal.SIGTERM)
  codes, said = finish(processes)
  assert codes == [75, 75], said
  (stopped,) = {text.split("stopped after ")[1] for text in said}
  assert "as asked; its state is saved" in stopped
  run(workdir, 2)
  same(workdir, reference)


def test_an_error_of_one_process_is_told_by_the_others(tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  (workdir / "mine.txt").write_text("no workdir")
  codes, said = finish(start(workdir, 2))
  assert codes == [3, 3]
  for rank, text in enumerate(said):
    assert f"jaxkd (process {rank}): " in text
    assert "is not a jaxkd workdir" in text


def test_every_process_reads_its_part_of_cached_targets(tmp_path):
  experiment, folder = tmp_path / "kd.gin", tmp_path / "targets"
  experiment.write_text(GIN)
  subprocess.run(
    [
      *(sys.executable, "-m", "jaxkd", "cache-targets", str(experiment)),
      *("--to", str(folder)),
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    check=True,
    timeout=SECONDS,
  )
  experiment.write_text(f"{GIN}Settings.targets = '{folder}'\n")
  run(tmp_path / "one", 1, experiment=experiment)
  run(tmp_path / "two", 2, experiment=experiment)
  same(tmp_path / "two", tmp_path / "one")
