"""The figures of a study's predictors: combinations and rounds."""

import json

import numpy as np
import pytest

from jaxkd import report
from jaxkd.errors import RefusedInput
from jaxkd.evaluation import statistics
from jaxkd.report import style
from tests.report import fabricate

SUBSETS = {
  "student/accuracy": [0.1, 0.1],
  "teacher/accuracy": [0.1, 0.1],
  "aux/accuracy": [0.1, 0.1],
  "left+right/accuracy": [0.8, 0.9],
  "left/accuracy": [0.5, 0.6],
  "right/accuracy": [0.25, 0.3],
  "right/ece": [0.1, 0.1],
}
ROUNDS = {
  "student/accuracy": [0.7, 0.8, 0.81],
  "round_1/accuracy": [0.5, 0.6, 0.7],
  "round_0/accuracy": [0.3, 0.4, 0.2],
  "round_0/ece": [0.1, 0.1, 0.1],
}


@pytest.fixture
def figures(monkeypatch):
  """Figures by the stem of their file; they are not painted."""
  found = {}

  def save(figure, path):
    path.write_bytes(b"\x89PNG")
    found[path.stem] = figure
    return path

  monkeypatch.setattr(style, "save", save)
  return found


def write(folder, *metrics, **changes):
  """Gives a study experiments "e0", "e1", ... with these metrics."""
  path = folder / "study.json"
  named = [{"name": f"e{i}", "metrics": m} for i, m in enumerate(metrics)]
  content = json.loads(path.read_text()) | {"experiments": named} | changes
  fabricate.write_json(path, content)
  return folder


def axes_of(figures, name):
  (axes,) = figures[name].axes
  return axes


def cells(figures):
  """Returns the texts of the heat-map, a list a row."""
  axes = axes_of(figures, "subsets")
  texts = {text.get_position(): text.get_text() for text in axes.texts}
  columns, rows = (max(x[i] for x in texts) + 1 for i in (0, 1))
  return [[texts[j, i] for j in range(columns)] for i in range(rows)]


def labels(axis):
  return [tick.get_text() for tick in axis.get_ticklabels()]


def without(metrics, *names):
  return {k: v for k, v in metrics.items() if k.split("/")[0] not in names}


@pytest.mark.parametrize(
  "metric", ["student/accuracy", "student/mean_accuracy"]
)
def test_combinations_are_columns_by_their_number_of_modalities(
  study_dir, figures, metric
):
  other = SUBSETS | {"left/accuracy": [0.7, 0.71]}
  paths = report.study_report(write(study_dir, SUBSETS, other, metric=metric))
  assert paths["subsets"] == study_dir / "subsets.png"
  axes = axes_of(figures, "subsets")
  assert labels(axes.xaxis) == ["left", "right", "left\n+ right"]
  assert labels(axes.yaxis) == ["e0", "e1"]
  assert cells(figures) == [["55.0", "27.5", "85.0"], ["70.5", "27.5", "85.0"]]
  assert "accuracy in percent" in axes.get_xlabel()


def test_the_text_of_a_cell_stands_out(study_dir, figures):
  report.study_report(write(study_dir, SUBSETS))
  colours = [text.get_color() for text in axes_of(figures, "subsets").texts]
  assert colours[1:] == ["#222222", "white"]  # the lowest and the highest


def test_other_metrics_are_no_percentages(study_dir, figures):
  metrics = {
    f"{n}/loss": [v, v] for n, v in {"a": 1.5, "b": 2, "a+b": 0}.items()
  }
  report.study_report(write(study_dir, metrics, metric="student/loss"))
  assert cells(figures) == [["1.5", "2", "0"]]
  assert "percent" not in axes_of(figures, "subsets").get_xlabel()


@pytest.mark.parametrize(
  "metrics",
  [
    {},
    without(SUBSETS, "left+right"),
    without(SUBSETS, "left"),
    {key: [None] for key in SUBSETS},
    {key: [] for key in SUBSETS},
    {key.replace("accuracy", "ece"): v for key, v in SUBSETS.items()},
  ],
  ids=["nothing", "no +", "two", "null", "no seeds", "another metric"],
)
def test_no_combinations_no_heat_map(study_dir, figures, metrics):
  assert report.study_report(write(study_dir, metrics)).keys() == {
    "table",
    "figure",
  }


def test_what_an_experiment_lacks_is_an_empty_cell(study_dir, figures):
  gaps = {"right/accuracy": [0.5, None], "left/accuracy": [0.5]}
  report.study_report(write(study_dir, SUBSETS, {}, gaps))
  assert cells(figures)[1:] == [["-", "-", "-"], ["50.0", "-", "-"]]


def test_a_line_has_the_rounds_in_order_and_ends_with_the_student(
  study_dir, figures
):
  shorter = without(ROUNDS, "round_1")
  paths = report.study_report(write(study_dir, ROUNDS, shorter))
  assert paths["rounds"] == study_dir / "rounds.png"
  axes = axes_of(figures, "rounds")
  first, second = (line.get_xydata() for line in axes.lines)
  np.testing.assert_allclose(first, [[0, 0.3], [1, 0.6], [2, 0.77]])
  np.testing.assert_allclose(second, [[0, 0.3], [1, 0.77]])
  names = [text.get_text() for text in axes.get_legend().get_texts()]
  assert names == ["e0", "e1"]
  assert axes.get_xlabel() == "round of queries"


def test_the_band_is_the_interval_over_seeds(study_dir, figures):
  report.study_report(write(study_dir, ROUNDS))
  (band,) = axes_of(figures, "rounds").collections
  corners = band.get_paths()[0].vertices
  for i, role in enumerate(("round_0", "round_1", "student")):
    _, *ends = statistics.mean_interval(ROUNDS[f"{role}/accuracy"])
    at_round = corners[corners[:, 0] == i, 1]
    np.testing.assert_allclose([at_round.min(), at_round.max()], ends)


@pytest.mark.parametrize(
  "metrics",
  [(), (without(ROUNDS, "round_0"),), (ROUNDS, without(ROUNDS, "round_0"))],
)
def test_no_line_where_an_experiment_lacks_round_0(study_dir, figures, metrics):
  assert "rounds" not in report.study_report(write(study_dir, *metrics))


def test_one_seed_or_none_has_no_band(study_dir, figures):
  one = {key: values[:1] for key, values in ROUNDS.items()}
  none = {key: [None] for key in ROUNDS} | {"student/accuracy": []}
  report.study_report(write(study_dir, one, none))
  first, second = axes_of(figures, "rounds").lines
  np.testing.assert_allclose(first.get_ydata(), [0.3, 0.5, 0.7])
  assert np.isnan(second.get_ydata()).all()


def test_rounds_without_a_student_or_in_between_keep_their_places(
  study_dir, figures
):
  metrics = {f"round_{i}/accuracy": [0.1 * i] for i in (0, 2, 10)}
  metrics["round_x/accuracy"] = [1.0]
  report.study_report(write(study_dir, metrics))
  (line,) = axes_of(figures, "rounds").lines
  np.testing.assert_allclose(line.get_xydata(), [[0, 0], [2, 0.2], [10, 1.0]])


def test_files_are_written_and_removed_once_stale(study_dir):
  paths = report.study_report(write(study_dir, SUBSETS | ROUNDS))
  for name in ("subsets", "rounds"):
    assert paths[name].read_bytes().startswith(b"\x89PNG")
  report.study_report(write(study_dir, without(ROUNDS, "round_1")))
  assert not paths["subsets"].exists()
  assert paths["rounds"].exists()
  report.study_report(write(study_dir, SUBSETS))
  assert paths["subsets"].exists()
  assert not paths["rounds"].exists()


@pytest.mark.parametrize("gone", ["experiments", "metric"])
def test_a_study_without_them_has_neither(study_dir, figures, gone):
  write(study_dir, SUBSETS | ROUNDS, **{gone: None})
  assert len(report.study_report(study_dir)) == 2


@pytest.mark.parametrize(
  "experiments",
  [
    "abc",
    3,
    [1],
    [{"metrics": {}}],
    [{"name": "a", "metrics": [1]}],
    [{"name": "a", "metrics": {"round_0/accuracy": "x"}}],
    [{"name": "a", "metrics": {"round_0/accuracy": ["x"]}}],
  ],
)
def test_experiments_of_another_shape_are_refused(
  study_dir, figures, experiments
):
  with pytest.raises(RefusedInput, match="experiments|number"):
    report.study_report(write(study_dir, experiments=experiments))


def test_names_are_text(study_dir):
  odd = {f"{n}/accuracy": [0.1] for n in ("$x$", "_a", "+", "$x$+_a")}
  odd |= {"round_0/accuracy": [0.1]}
  named = [{"name": n, "metrics": odd} for n in ("_hidden", "$\\frac$\n", "")]
  assert len(report.study_report(write(study_dir, experiments=named))) == 4
