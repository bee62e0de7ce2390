"""The benchmark of cached targets: equal steps, and the record's figures."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cached_targets as benchmark
from benchmarks.harness import Samples

TINY = {
  "examples": 4,
  "length": 8,
  "batch_size": 2,
  "vocabulary": 160,
  "teacher_width": 32,
  "teacher_depth": 1,
  "student_width": 32,
  "student_depth": 1,
  "repetitions": 1,
  "vocabularies": (200,),
  "tokens": 64,
  "temperatures": (1.0,),
}


def test_a_speed_up_is_compared_with_that_of_free_reading():
  seconds = {
    "live": [4.0], "teacher": [3.0], "student_all": [1.0],
    "cached_all": [1.25], "student_topk": [1.0], "cached_topk": [1.0],
  }  # fmt: skip
  found = benchmark.speeds(Samples(seconds, dict.fromkeys(seconds, 1)))
  assert found["all"] == {
    "speedup": 3.2,
    "without_reading": 4.0,
    "share": 0.8,
    "reading_over_student": 1.25,
  }
  assert found["topk"]["share"] == 1.0


@pytest.mark.parametrize("size", benchmark.Budget().vocabularies)
def test_the_synthetic_teacher_is_peaked_and_its_ranks_are_a_permutation(size):
  logits = np.asarray(benchmark.Peaked(size).logits(jnp.int32(3)))
  top = np.sort(logits)[::-1]
  p = np.exp(top - top.max())
  p /= p.sum()
  assert p[0] > 10 * p[20]
  assert 0.5 < p[:128].sum() < 1
  assert size % benchmark.PRIME


@pytest.mark.slow
def test_the_last_line_is_one_json_object_of_all_figures(
  capsys, monkeypatch, tmp_path
):
  monkeypatch.setattr(benchmark, "QUICK", TINY)
  benchmark.main(["--quick", "--output", str(tmp_path / "record.json")])
  record = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert record == json.loads((tmp_path / "record.json").read_text())
  assert set(record["speed"]) == {"all", "topk"}
  assert set(record["epoch_s"]) == {
    "live", "teacher", "cached_all", "student_all", "cached_topk",
    "student_topk",
  }  # fmt: skip
  budget = dataclasses.replace(benchmark.Budget(), **TINY)
  assert record["tokens"] == budget.tokens
  ((name, at),) = record["vocabulary_sizes"].items()
  assert name == "200"
  assert 0 < at["bytes_per_token"] <= 300
  assert 0 <= at["kl"][0]["rounding_mean"] <= at["kl"][0]["mean"]
