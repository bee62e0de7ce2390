"""The report of a workdir: which files it writes and what it refuses."""

import json
import sys

import pytest

from jaxkd import extras, report
from jaxkd.errors import RefusedInput
from jaxkd.report import load, page
from tests.report import fabricate


def test_build_writes_every_figure_and_the_page(workdir):
  paths = report.build(workdir)
  figures = {"curves", "routing", "masks", "confusion"}
  assert set(paths) == figures | {"calibration", "agreement", "page"}
  for name in figures:
    assert paths[name] == workdir / "report" / f"{name}.png"
    assert paths[name].read_bytes().startswith(b"\x89PNG")


def test_build_twice_writes_the_same_bytes(workdir):
  first = {k: p.read_bytes() for k, p in report.build(workdir).items()}
  assert {k: p.read_bytes() for k, p in report.build(workdir).items()} == first


@pytest.mark.usefixtures("unpainted")
def test_page_holds_the_summary_with_mean_and_interval(workdir):
  values = load.read(workdir).summary["metrics"]["student/accuracy"]
  text = report.build(workdir)["page"].read_text()
  row = page.summary_rows(load.read(workdir))[0]
  assert row["metric"] == "student/accuracy"
  assert row["mean [95% interval]"] in text
  assert all(f"{value:.4g}" in text for value in values)
  assert "KD.temperature = 4.0" in text


def test_controls_are_compared_seed_by_seed(workdir):
  rows = page.control_rows(load.read(workdir))
  assert [row["control"] for row in rows] == ["no_kd", "random_teacher"]
  assert {row["metric"] for row in rows} == {"student/accuracy"}


@pytest.mark.usefixtures("unpainted")
def test_figures_without_metrics_are_skipped_and_the_page_says_why(workdir):
  report.build(workdir)
  for path in workdir.glob("runs/*/*/metrics.jsonl"):
    text = path.read_text().replace("route/", "x/").replace("mask_", "x_")
    path.write_text(text)
  paths = report.build(workdir)
  assert not {"routing", "masks"} & set(paths)
  assert not (workdir / "report" / "routing.png").exists()
  assert paths["page"].read_text().count("Not drawn: no run has logged") == 2


@pytest.mark.usefixtures("unpainted")
def test_a_run_still_training_has_a_report(workdir):
  (workdir / "summary.json").unlink()
  for path in workdir.glob("runs/*/*/evaluation.json"):
    path.unlink()
  metrics = workdir / "runs" / "main" / "seed_0" / "metrics.jsonl"
  metrics.write_text(metrics.read_text() + '{"phase": "dis')  # being written
  paths = report.build(workdir)
  assert "summary.json is not written yet" in paths["page"].read_text()
  assert "confusion" not in paths


@pytest.mark.usefixtures("unpainted")
def test_runs_without_a_metric_have_a_page(workdir):
  for path in workdir.glob("runs/*/*/*.json*"):
    path.unlink()
  assert set(report.build(workdir)) == {"page"}


def test_names_are_drawn_as_they_are(tmp_path):
  names = ("$\\frac{1}{0}$", "_hidden", "\x00\x1b[31m", "\u65e5\u672c", "")
  folder = fabricate.experiment(tmp_path, seeds=1, teachers=names, phase="$")
  assert "routing" in report.build(folder)


def test_nan_and_inf_in_the_metrics_are_drawn_around(workdir):
  path = workdir / "runs" / "main" / "seed_0" / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for line, value in zip(lines, ["nan", "inf", "-inf"], strict=False):
    line["metrics"]["task"] = value
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert "curves" in report.build(workdir)


@pytest.mark.usefixtures("unpainted")
def test_one_seed_has_no_interval(tmp_path):
  folder = fabricate.experiment(tmp_path, seeds=1)
  report.build(folder)
  row = page.summary_rows(load.read(folder))[0]
  assert "[" not in row["mean [95% interval]"]


@pytest.mark.usefixtures("unpainted")
def test_many_terms_and_teachers_are_drawn_or_named(tmp_path):
  teachers = [f"teacher_{i}" for i in range(12)]
  folder = fabricate.experiment(tmp_path, seeds=1, teachers=teachers)
  for path in folder.glob("runs/*/*/metrics.jsonl"):
    path.write_text(path.read_text().replace('"task":', '"a":1,"b":2,"task":'))
    for name in "cdefghijk":
      path.write_text(path.read_text().replace('"a":', f'"{name}":3,"a":'))
  text = report.build(folder)["page"].read_text()
  assert "Not drawn: task, kd, load_balance" in text


def test_a_folder_that_is_no_workdir_is_refused(tmp_path):
  with pytest.raises(RefusedInput, match="not a jaxkd workdir"):
    report.build(tmp_path)


def test_a_workdir_of_another_format_is_refused(workdir):
  fabricate.write_json(workdir / "jaxkd.json", {"format": 2})
  with pytest.raises(RefusedInput, match="has format 2, expected 1"):
    report.build(workdir)


def test_a_workdir_without_runs_is_refused(tmp_path):
  fabricate.write_json(tmp_path / "jaxkd.json", {"format": 1})
  with pytest.raises(RefusedInput, match="holds no runs"):
    report.build(tmp_path)


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize(
  ("file", "text", "match"),
  [
    ("summary.json", "[1", "is not JSON"),
    ("summary.json", "[1]", "holds no JSON object"),
    ("summary.json", '{"metrics": {"a": 1}}', "not a list of numbers"),
    ("runs/main/seed_0/metrics.jsonl", "{}\n", "metrics.jsonl:1 is not"),
    (
      "runs/main/seed_0/evaluation.json",
      '{"student": {"confusion": [[1, 2]]}}',
      "not a square list",
    ),
    (
      "runs/main/seed_0/evaluation.json",
      '{"student": {"ece": "high"}}',
      "'high' is not a number",
    ),
  ],
)
def test_a_damaged_file_is_refused_by_name(workdir, file, text, match):
  (workdir / file).write_text(text)
  with pytest.raises(RefusedInput, match=match):
    report.build(workdir)


def test_without_matplotlib_the_message_has_the_command(workdir, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(extras.MissingExtra, match=r"pip install .jaxkd\[report"):
    report.build(workdir)


@pytest.mark.usefixtures("unpainted")
def test_without_jinja2_the_message_has_the_command(workdir, monkeypatch):
  monkeypatch.setitem(sys.modules, "jinja2", None)
  with pytest.raises(extras.MissingExtra, match="the report page needs jinja2"):
    report.build(workdir)
