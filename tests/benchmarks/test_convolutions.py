"""The benchmark of convolutions: equal results, and what it says is to win."""

import json

import jax
import numpy as np
import pytest

from benchmarks import convolutions, kernels
from benchmarks.kernels import SPECS


def over(ratio, low):
  return {"ratio": ratio, "interval": [low, ratio + 0.1]}


def test_what_is_to_win_is_clearly_faster_than_what_is_in_use():
  found = convolutions.sorted_out(
    {
      "a": {
        "in_use_over": {
          "faster": over(1.5, 1.2),
          "noisy": over(1.5, 0.9),
          "hardly": over(1.05, 1.04),
        }
      },
      "b": {"in_use_over": {"fastest": over(2.0, 1.9), "slow": over(0.5, 0.4)}},
    }
  )
  assert found["ours_to_win"] == [
    {"kernel": "b", "way": "fastest", **over(2.0, 1.9)},
    {"kernel": "a", "way": "faster", **over(1.5, 1.2)},
  ]
  assert [row["way"] for row in found["not_ours"]] == [
    "noisy",
    "hardly",
    "slow",
  ]


def test_a_difference_is_relative_to_the_largest_value():
  expected = [np.array([0.0, 4.0]), np.array([1.0])]
  found = [np.array([1.0, 4.0]), np.array([1.0])]
  assert convolutions.difference(found, expected) == 0.25


@pytest.mark.parametrize("name", SPECS)
def test_windows_fit_the_image(name):
  for spec in (SPECS[name], kernels.small(SPECS[name])):
    places = spec.size + 2 * spec.padding - spec.kernel
    assert places >= 0
    if spec.kind in ("patch", "pool") and not spec.padding:
      assert places % spec.strides == 0
    if spec.kind in ("depthwise", "pool", "chain"):
      assert spec.inputs == spec.outputs


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_all_ways_compute_the_same(name):
  case = kernels.case(kernels.small(SPECS[name]))
  assert set(case.in_use) <= set(case.ways)
  first, *others = (
    jax.tree.leaves(convolutions.compiled(case, way)()) for way in case.ways
  )
  assert len(first) == 1 + len(case.wanted)
  assert all(np.abs(array).max() > 0 for array in first)
  for other in others:
    assert convolutions.difference(other, first) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_the_peer_computes_the_same(name):
  pytest.importorskip("torch")
  from benchmarks import torch_convolutions

  spec = kernels.small(SPECS[name])
  case = kernels.case(spec)
  expected = jax.tree.leaves(convolutions.compiled(case, case.xla)())
  for peer in torch_convolutions.peers(spec, case).values():
    assert convolutions.difference(peer.arrays(), expected) < 1e-5


@pytest.mark.slow
def test_the_quick_run_prints_its_record(capsys):
  names = ["conv1x1_64_256", "max_pool_2"]
  convolutions.main(["--quick", "--kernels", *names])
  record = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert list(record["kernels"]) == names
  pointwise, pool = record["kernels"].values()
  assert pointwise["in_use"] == "xla"
  assert set(pointwise["in_use_over"]) == set(pointwise["xla_over"]) == {"dot"}
  assert pool["in_use"] == "reshape_max"
  rows = record["ours_to_win"] + record["not_ours"]
  assert sorted((row["kernel"], row["way"]) for row in rows) == [
    ("conv1x1_64_256", "dot"),
    ("max_pool_2", "reduce_window"),
    ("max_pool_2", "shifted_max"),
  ]
