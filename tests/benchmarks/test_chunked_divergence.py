"""The chunked benchmark compares equal results and reports its ratios."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from benchmarks import chunked_divergence as benchmark
from benchmarks.chunked_divergence import CPU, GPU, QUICK

TINY = {
  "tokens": 32,
  "vocabulary": 96,
  "student_width": 8,
  "teacher_width": 16,
  "token_chunk": 8,
  "vocab_chunk": 32,
  "other_tokens": 16,
  "repetitions": 1,
}
KEYS = {
  "memory_ratio", "time_ratio", "memory_ratios", "time_ratios", "median_s",
  "fastest_s", "temporary_mib", "machine", "cores", "versions", "commit",
  "repetitions", "tokens", "vocabulary", "dtype", "backend",
}  # fmt: skip


@pytest.mark.parametrize("budget", [CPU, GPU], ids=["cpu", "gpu"])
def test_all_variants_compute_the_same(budget):
  budget = dataclasses.replace(budget, **TINY)
  given = benchmark.arrays(budget, budget.tokens)
  assert {x.dtype.name for x in given} == {budget.dtype}
  variants = benchmark.Measurement(budget).main
  expected = jax.jit(variants.pop("dense"))(*given)
  close = 1e-5 if budget.dtype == "float32" else 0.05
  for name, variant in variants.items():
    found = benchmark.difference(expected, jax.jit(variant)(*given))
    assert found < close, name


def test_the_peer_computes_the_same():
  torch_chunked = pytest.importorskip("benchmarks.torch_chunked")
  budget = dataclasses.replace(CPU, **TINY)
  given = benchmark.arrays(budget, budget.tokens)
  value, gradients = benchmark.Measurement(budget).main["dense"](*given)
  found = torch_chunked.step(given, token_chunk=8)()
  for a, b in zip((value, *gradients), found, strict=True):
    np.testing.assert_allclose(a, b.detach().cpu(), rtol=1e-4, atol=1e-6)


def test_quick_tiles_are_as_small_a_part_as_those_of_the_full_run():
  quick = dataclasses.replace(CPU, **QUICK)
  for budget in (CPU, quick):
    assert budget.token_chunk * 16 == budget.tokens
    assert budget.vocab_chunk * 8 == budget.vocabulary


@pytest.mark.slow
def test_the_last_line_is_one_json_object_of_all_figures(
  capsys, monkeypatch, tmp_path
):
  monkeypatch.setattr(benchmark, "QUICK", TINY)
  benchmark.main(["--quick", "--output", str(tmp_path / "record.json")])
  record = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert record == json.loads((tmp_path / "record.json").read_text())
  assert set(record) >= KEYS
  assert record["memory_ratio"] == record["memory_ratios"]["chunked_over_dense"]
  assert 0 < record["memory_ratio"] < 1
  assert math.isfinite(record["time_ratio"])
  assert all(seconds > 0 for seconds in record["median_s"].values())


def test_a_tile_takes_at_most_an_eighth_of_the_memory_of_the_dense_form():
  run = benchmark.Measurement(dataclasses.replace(CPU, **QUICK))
  others = ("chunked", "dense", "dense_shortest")
  run.main = {name: run.main[name] for name in others}
  run.others = {}
  run.plan_memory()
  assert run.memory["chunked"] * 8 <= run.memory["dense"]
  assert run.memory["chunked"] * 8 <= run.memory["dense_shortest"]
