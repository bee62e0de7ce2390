"""The benchmark of populations: what it compares, and the record."""

import json

import pytest

from benchmarks import population

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def record(tmp_path_factory):
  path = tmp_path_factory.mktemp("population") / "record.json"
  population.main(["--quick", "--output", str(path)])
  return json.loads(path.read_text())


def test_the_record_says_where_and_how_much(record):
  keys = {"machine", "cores", "versions", "commit", "repetitions", "seeds"}
  assert keys <= set(record)
  assert record["benchmark"] == "population"


def test_the_numbers_of_every_seed_are_those_of_a_run_alone(record):
  differences = record["end_to_end"]["largest_difference"]
  assert {"student/accuracy", "teacher/accuracy"} <= set(differences)
  assert max(differences.values()) < 1e-5


def test_ratios_are_of_the_seconds_beside_them(record):
  whole = record["end_to_end"]
  assert whole["separate_s"] == pytest.approx(sum(whole["separate_each_s"]))
  ratio = whole["population_s"] / whole["separate_s"]
  assert record["end_to_end_ratio"] == pytest.approx(ratio)
  assert record["per_step_ratio"] == record["members"]["2"]["per_step_ratio"]
  assert all(row["rolled_ms"] > 0 for row in record["members"].values())
