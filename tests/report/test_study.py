"""The table and figure of a study."""

import json

import pytest

from jaxkd import report
from jaxkd.errors import RefusedInput
from tests.report import fabricate


def edit(folder, **changes):
  """Changes entries of study.json."""
  path = folder / "study.json"
  fabricate.write_json(path, json.loads(path.read_text()) | changes)


def lines(folder):
  """Returns the lines of study.md."""
  return report.study_report(folder)["table"].read_text().splitlines()


def test_the_table_has_a_row_an_experiment_and_the_first_is_the_baseline(
  study_dir,
):
  cells = [
    [x.strip() for x in line.split("|")[1:-1]] for line in lines(study_dir)
  ]
  assert cells[2][:4] == [
    "experiment",
    "mean [95% CI]",
    "seeds",
    "difference to the first [95% CI]",
  ]
  assert cells[4][0] == "student alone"
  assert cells[4][3:] == ["-", "-"]
  assert [row[0] for row in cells[5:8]] == ["KD", "DKD", "random teacher"]
  assert cells[5][3].startswith("+")
  assert cells[7][3].startswith("-")


def test_clear_of_zero_follows_the_interval(study_dir):
  row = {"name": "b", "mean": 1, "low": 0, "high": 2, "values": [1, 1]}
  row |= {"difference": 0.1, "difference_low": -0.1, "difference_high": 0.3}
  edit(study_dir, rows=[row, row, row | {"difference_low": 0.05}])
  table = lines(study_dir)
  assert table[5].rstrip(" |").endswith("no")
  assert table[6].rstrip(" |").endswith("yes")


def test_times_of_a_step_are_a_column_where_they_were_measured(study_dir):
  assert "ms per step" not in lines(study_dir)[2]
  edit(study_dir, step_ms={"KD": 1.25})
  table = lines(study_dir)
  assert "ms per step" in table[2]
  assert [line.split("|")[-2].strip() for line in table[4:6]] == ["-", "1.25"]


def test_one_seed_has_no_interval_and_nothing_is_clear(study_dir):
  row = {"name": "b", "mean": 1, "low": "nan", "high": "nan", "values": [1]}
  edit(study_dir, rows=[row, row | {"difference": 0.1}])
  table = lines(study_dir)
  assert "+0.1 " in table[5]
  assert table[5].rstrip(" |").endswith("no")


def test_the_figure_is_a_png(study_dir):
  path = report.study_report(study_dir)["figure"]
  assert path == study_dir / "study.png"
  assert path.read_bytes().startswith(b"\x89PNG")


def test_names_cannot_break_the_table(tmp_path):
  names = ("a|b", "<script>x</script>", "![i](http://e.example/p)\n# h", "$x$")
  text = "\n".join(lines(fabricate.study(tmp_path, names=names)))
  assert "<script>" not in text
  assert "](http" not in text.replace("\\](", "")
  assert "\n# h" not in text
  assert "a\\|b" in text


def test_a_folder_that_is_no_workdir_is_refused(tmp_path):
  with pytest.raises(RefusedInput, match="not a jaxkd workdir"):
    report.study_report(tmp_path)


@pytest.mark.parametrize("rows", [None, [], [1], [{"name": "a"}]])
def test_a_study_without_proper_rows_is_refused(study_dir, rows):
  edit(study_dir, rows=rows)
  with pytest.raises(RefusedInput, match=r"study\.json"):
    report.study_report(study_dir)
