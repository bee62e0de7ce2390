"""Bad input ends in one clear message and a documented exit code."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxkd import catalog, cli
from jaxkd.data import av_digits
from jaxkd.training import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = str(ROOT / "experiments/mst_distill/av_digits_smoke.gin")
SHORT = (
  "--set=Experiment.settings=@Settings()",
  "--set=Settings.max_steps=3",
  "--set=Settings.checkpoint_every_steps=1",
)


def run(capsys, *arguments):
  code = cli.main(list(arguments))
  message = capsys.readouterr().err
  assert "Traceback" not in message
  return code, message


def listing(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != ".lock"
  }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("cli") / "run"
  code = cli.main(["run", SMOKE, *SHORT, "--workdir", str(workdir)])
  assert code == 0
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize(
  ("binding", "expected"),
  [
    ("MSTDistill.temperatur = 2.0", ("command line:1", "temperature?")),
    ("MSTDistil.temperature = 2.0", ("command line:1", "MSTDistill?")),
    ("MSTDistill.temperature = 'hot'", ("expected float", "'hot'")),
    ("MSTDistill.k = 5", ("k=5", "expected 1 to 4", "teacher_1")),
    ("MSTDistill.lb = 'klx'", ("lb", "'klx'", "kl")),
    ("MSTDistill.teacher_layers = ('fc1', 'fc9')", ("'fc9'", "fc1, fc2")),
    (
      "student/Network.inputs = ('imagee',)",
      ("role 'student'", "'imagee'", "did you mean 'image'?", "audio"),
    ),
    ("AVDigits.train_size = 5000", ("train_size", "5000")),
    (
      "student/MLP.features = (64, 36, 18, 8)",
      ("MSTDistill cannot run", "10 student classes", "8 teacher classes"),
    ),
    (
      "Supervised.student = @control/Network()",
      ("control/Network", "module"),
    ),
    ("SEEDS = (-1,)", ("seeds", "-1")),
  ],
)
def test_a_wrong_setting_is_named(capsys, tmp_path, binding, expected):
  target = tmp_path / "new"
  code, message = run(
    capsys, "run", SMOKE, "--set", binding, "--workdir", str(target)
  )
  assert code == 2
  for part in expected:
    assert part in message
  assert not target.exists()


def test_a_student_with_too_few_classes_is_named(capsys, tmp_path):
  target = tmp_path / "new"
  code, message = run(
    capsys,
    *("run", SMOKE.replace("av_digits_smoke", "no_kd")),
    *("--set", "student/MLP.features = (64, 8)", "--workdir", str(target)),
  )
  assert code == 2
  assert (
    "Supervised: student gives 8 logits, but av_digits has 10 classes"
    in message
  )
  assert "av_digits has 10 classes" in message
  assert not target.exists()


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("import os\n", "import"),
    ("include '/etc/passwd'\n", "/etc/passwd"),
    ("include '../../outside.gin'\n", "outside.gin"),
    ("include 'mst_distill/av_digit.gin'\n", "av_digit.gin"),
  ],
)
def test_a_gin_file_imports_nothing_and_stays_inside(
  capsys, tmp_path, text, expected
):
  folder = tmp_path / "experiments" / "mine"
  shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
  folder.mkdir()
  (tmp_path / "outside.gin").write_text("")
  (folder / "bad.gin").write_text(text)
  code, message = run(capsys, "run", str(folder / "bad.gin"))
  assert code == 2
  assert "bad.gin:1" in message
  assert expected in message


def test_a_missing_gin_file_names_the_nearest(capsys):
  code, message = run(capsys, "run", SMOKE.replace("smoke", "smok"))
  assert code == 2
  assert "av_digits_smoke.gin" in message


def test_the_losses_are_listed_by_family(capsys):
  assert cli.main(["list", "--losses"]) == 0
  shown = capsys.readouterr().out
  for entry in catalog.entries():
    assert entry.text() in shown
  heads = [line for line in shown.splitlines() if line[:1].strip()]
  assert heads == sorted(set(heads))
  assert "relative_entropy: Kullback-Leibler divergence" in shown


def test_the_losses_are_listed_as_json(capsys):
  assert cli.main(["list", "--losses", "--json"]) == 0
  listed = {
    entry["name"]: entry for entry in json.loads(capsys.readouterr().out)
  }
  assert listed.keys() == {entry.name for entry in catalog.entries()}
  kl = listed["KL"]
  assert kl["access"] == "topk"
  assert kl["link"] == "https://arxiv.org/abs/1503.02531"
  assert "Gray-OREO/MST-Distill@093b2fe" in kl["checked_against"]


def test_an_unknown_method_is_named(capsys):
  code, message = run(capsys, "describe", "MSTDistil")
  assert code == 2
  assert "MSTDistill" in message


def test_a_finished_run_is_complete(finished):
  summary = json.loads((finished / "summary.json").read_text())
  assert summary["method"] == "MSTDistill"
  assert summary["task"] == "av_digits"
  assert summary["seeds"] == [0]
  assert len(summary["metrics"]["student/accuracy"]) == 1
  assert set(summary["params"]) >= {"teacher", "student", "aux", "gate"}
  assert {"wall_seconds", "versions", "commit"} <= set(summary)
  shares = [
    values[0]
    for name, values in summary["metrics"].items()
    if name.startswith("route/")
  ]
  assert len(shares) == 4
  np.testing.assert_allclose(sum(shares), 1, rtol=1e-6)


def test_evaluate_measures_the_same_again(capsys, finished):
  before = listing(finished)
  assert cli.main(["evaluate", str(finished)]) == 0
  shown = capsys.readouterr().out
  summary = json.loads((finished / "summary.json").read_text())
  accuracy = summary["metrics"]["student/accuracy"][0]
  assert f"{100 * accuracy:.1f}" in shown
  assert listing(finished) == before


def test_report_writes_one_page(finished, capsys):
  assert cli.main(["report", str(finished)]) == 0
  page = finished / "report" / "report.html"
  assert str(page) in capsys.readouterr().out
  assert "MSTDistill" in page.read_text()


def test_a_student_is_exported_and_gives_the_same_again(capsys, workdir):
  given = ["--format", "stablehlo", "--license", "MIT"]
  assert cli.main(["export", str(workdir), *given]) == 0
  folder = workdir / "export" / "stablehlo" / "student_seed_0"
  assert str(folder) in capsys.readouterr().out
  card = (folder / "README.md").read_text()
  assert (workdir / "command.txt").read_text().strip() in card
  assert 'license: "mit"' in card
  assert cli.main(["serve-check", str(folder), "--repetitions", "1"]) == 0
  assert json.loads(capsys.readouterr().out)["agrees"] is True


def test_exporting_an_unknown_role_names_the_nearest(capsys, workdir):
  code, message = run(
    capsys, "export", str(workdir), "--format", "orbax", "--role", "studnt"
  )
  assert code == 2
  assert "MSTDistill has no such role, did you mean 'student'?" in message
  assert not (workdir / "export").exists()


def test_resuming_with_a_changed_config_names_the_change(capsys, workdir):
  before = listing(workdir)
  code, message = run(
    capsys,
    *("run", SMOKE, *SHORT, "--set=MSTDistill.temperature=3.0"),
    *("--workdir", str(workdir)),
  )
  assert code == 2
  assert "temperature: 4.0 -> 3.0" in message
  assert listing(workdir) == before


@pytest.mark.slow  # two runs of a process
def test_more_seeds_may_be_added_to_a_workdir(capsys, workdir):
  before = (workdir / "runs/main/seed_0/metrics.jsonl").read_bytes()
  code, _ = run(
    capsys,
    *("run", SMOKE, *SHORT, "--seeds", "0,1", "--workdir", str(workdir)),
  )
  assert code == 0
  summary = json.loads((workdir / "summary.json").read_text())
  assert len(summary["metrics"]["student/accuracy"]) == 2
  assert (workdir / "runs/main/seed_0/metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_not_ours_is_left_alone(capsys, tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  before = listing(tmp_path)
  export = ("export", "--format", "orbax")
  for verb in (("run", SMOKE, "--workdir"), ("evaluate",), ("report",), export):
    code, message = run(capsys, *verb, str(tmp_path))
    assert code == 3
    assert "not a jaxkd workdir" in message
  assert listing(tmp_path) == before


def test_nan_in_the_data_names_entry_and_example(capsys, tmp_path, monkeypatch):
  splits = av_digits.AVDigits.splits

  def poisoned(self, seed):
    data = splits(self, seed)
    data.train.arrays["image"][17] = np.nan
    return data

  monkeypatch.setattr(av_digits.AVDigits, "splits", poisoned)
  code, message = run(capsys, "run", SMOKE, "--workdir", str(tmp_path / "run"))
  assert code == 4
  assert "'image' of training example 17" in message
  assert "phase 'collaborate', step" in message


def damage(folder):
  for path in folder.rglob("*"):
    if path.is_file() and path.parent.name == "d":
      content = bytearray(path.read_bytes())
      content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
      path.write_bytes(bytes(content))


def interrupted(tmp_path, steps):
  """A workdir whose first phase was stopped after so many steps."""
  code = (
    "import sys; from jaxkd import cli, experiment; import functools;"
    "from jaxkd.training.phase import Stop;"
    f"experiment.run = functools.partial(experiment.run, stop=Stop({steps}));"
    "sys.exit(cli.main(sys.argv[1:]))"
  )
  options = ["--set=Settings.checkpoint_every_steps=4", SHORT[0]]
  target = tmp_path / "run"
  done = subprocess.run(
    [sys.executable, "-c", code, "run", SMOKE, *options]
    + ["--workdir", str(target)],
    env={**os.environ, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 75, done.stderr
  assert "the same command resumes" in done.stderr
  return target, options


@pytest.mark.slow  # three runs of a process
def test_a_damaged_checkpoint_gives_way_to_the_older_one(
  capsys, caplog, tmp_path
):
  target, options = interrupted(tmp_path, 6)
  saved = target / "runs/main/seed_0/checkpoints/0_collaborate"
  damage(saved / "6")
  code, _ = run(capsys, "run", SMOKE, *options, "--workdir", str(target))
  assert code == 0
  assert "step 4" in caplog.text
  assert "6.bad" in caplog.text


@pytest.mark.slow
def test_a_run_without_a_sound_checkpoint_never_starts_fresh(capsys, tmp_path):
  target, options = interrupted(tmp_path, 6)
  saved = target / "runs/main/seed_0/checkpoints/0_collaborate"
  for step in ("4", "6"):
    damage(saved / step)
  before = listing(target)
  code, message = run(capsys, "run", SMOKE, *options, "--workdir", str(target))
  assert code == 5
  assert "0_collaborate" in message
  assert listing(target) == before


@pytest.mark.slow
def test_a_foreign_checkpoint_is_refused(capsys, tmp_path):
  target, options = interrupted(tmp_path, 6)
  saved = target / "runs/main/seed_0/checkpoints/0_collaborate"
  shutil.rmtree(saved)
  saved.mkdir()
  with checkpoint.Checkpoints(saved) as checkpoints:
    checkpoints.save(6, {"weights": np.ones(3)}, meta={"sums": {}})
  code, message = run(capsys, "run", SMOKE, *options, "--workdir", str(target))
  assert code == 3
  assert "0_collaborate" in message
  assert "missing: best/params/aux" in message


def test_a_locked_workdir_names_its_holder(capsys, workdir):
  from jaxkd.training.workdir import LOCK

  holder = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "import fcntl,json,os,sys,time;"
      "f=open(sys.argv[1],'r+');fcntl.flock(f,fcntl.LOCK_EX);"
      "f.truncate(0);json.dump({'pid':os.getpid(),'host':'h','start':'now'},f);"
      "f.flush();print('held',flush=True);time.sleep(60)",
      str(workdir / LOCK),
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert holder.stdout.readline() == "held\n"
    code, message = run(capsys, "run", SMOKE, *SHORT, "--workdir", str(workdir))
  finally:
    holder.kill()
    holder.communicate()
  assert code == 6
  assert f"process {holder.pid}" in message


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    (("--processes", "2"), "--coordinator and --process not given"),
    (("--distributed", "--process", "0"), "leave out --process"),
  ],
)
def test_half_an_answer_about_processes_is_refused(capsys, options, expected):
  code, message = run(capsys, "run", SMOKE, *options)
  assert code == 2
  assert expected in message


def test_debug_shows_the_traceback(capsys):
  code = cli.main(["describe", "MSTDistil", "--debug"])
  assert code == 2
  assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_smoke_rehearses_a_preemption(tmp_path, capsys, caplog):
  target = tmp_path / "smoke"
  code = cli.main(["run", SMOKE, "--smoke", "--workdir", str(target)])
  assert code == 0
  assert "as rehearsed" in caplog.text
  lines = (target / "runs/main/seed_0/metrics.jsonl").read_text().splitlines()
  phases = {json.loads(line)["phase"] for line in lines}
  assert phases == {"collaborate", "specialise", "distil"}
