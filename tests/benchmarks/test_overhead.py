"""The overhead benchmark: it runs, and compares equal steps."""

import json

import numpy as np
import pytest

from benchmarks import harness, overhead
from benchmarks.pairs import PAIRS, small


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.slow
def test_both_steps_compute_the_same_losses(name):
  pair = small(PAIRS[name])
  ours, theirs = (
    [overhead.mean(step.call()) for _ in range(3)]
    for step in (overhead.library_step(pair), overhead.hand_written_step(pair))
  )
  np.testing.assert_allclose(ours, theirs, rtol=2e-5)
  assert ours[0] != ours[2]


@pytest.mark.slow
def test_the_quick_run_prints_its_record(capsys):
  overhead.main(["--quick", "--networks", "mlp"])
  record = json.loads(capsys.readouterr().out.splitlines()[-1])
  found = record["networks"]["mlp"]
  assert found["overhead_ratio"] > 0
  assert found["loop_ratio"] > 0
  low, high = found["over_by_hand_interval"]
  assert low <= found["overhead_ratio"] <= high
  assert found["planned_bytes"]["jaxkd"]["temporary"] > 0


def test_an_interval_covers_the_median():
  seconds = {"a": [2.0, 2.2, 2.4, 2.6, 10.0], "b": [2.0] * 5}
  samples = harness.Samples(seconds, {"a": 1, "b": 1})
  low, high = samples.interval("a", "b")
  assert 1.0 <= low <= 1.2 <= high <= 5.0
