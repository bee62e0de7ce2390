"""Claims: verdicts follow from intervals, the page from the numbers."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location(
  "claims", ROOT / "experiments" / "claims.py"
)
claims = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(claims)


@pytest.mark.parametrize(
  ("low", "high", "better", "verdict"),
  [
    (0.1, 0.2, "higher", "held"),
    (-0.1, 0.2, "higher", "not seen"),
    (-0.2, -0.1, "higher", "contradicted"),
    (-0.2, -0.1, "lower", "held"),
    (-0.2, 0.1, "lower", "not seen"),
    (0.1, 0.2, "lower", "contradicted"),
  ],
)
def test_the_verdict_is_where_the_interval_lies(low, high, better, verdict):
  assert claims.verdict(low, high, better) == verdict


def test_the_effect_is_the_paired_difference_of_the_named_experiments():
  study = {
    "metric": "student/accuracy",
    "experiments": [
      {"name": "a", "metrics": {"student/accuracy": [0.5, 0.6, 0.7]}},
      {"name": "b", "metrics": {"student/accuracy": [0.4, 0.5, 0.6]}},
    ],
  }
  claim = {
    "paper": "P",
    "url": "u",
    "claim": "c",
    "ours": "a",
    "other": "b",
    "better": "higher",
  }
  cells = claims.row(claim, study, "experiments/p").split("|")
  assert cells[4].strip().startswith("+0.1 [")
  assert cells[5].strip() == "3"
  assert cells[6].strip() == "held"


def test_the_page_is_the_measured_one():
  assert claims.PAGE.read_text() == claims.page()
