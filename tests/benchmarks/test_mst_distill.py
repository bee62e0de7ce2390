"""Benchmarks time in turns, report what they claim, and peers are equal."""

import itertools
import json
import math
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import harness, mst_distill
from jaxkd.method import Step
from jaxkd.roles import Nets
from tests import golden_tools as tools
from tests.nets import name_maps

ROOT = pathlib.Path(__file__).parents[2]
KEYS = {
  "stage1_s", "stage2_s", "stage3_live_s", "stage3_cached_s", "cache_s",
  "input_s", "stage3_live_epochs_s", "stage3_cached_epochs_s",
  "cached_speedup", "computed", "paired_ratios", "machine", "cores",
  "versions", "commit", "repetitions", "batch_size", "hidden_dim_factor",
  "parameters", "memory", "compile_s", "steps_per_epoch", "epochs", "fastest_s",
}  # fmt: skip
TORCH_KEYS = {
  "torch_stage1_s", "torch_stage2_s", "torch_stage3_s",
  "torch_stage3_student_s",
}  # fmt: skip


class FakeClock:
  """A clock that only moves when a variant works."""

  def __init__(self):
    self.now = 0.0
    self.order = []

  def __call__(self):
    return self.now

  def variant(self, name, *seconds):
    durations = itertools.cycle(seconds)

    def call():
      self.order.append(name)
      self.now += next(durations)

    return call


def test_variants_are_measured_in_turns_in_alternating_order():
  clock = FakeClock()
  variants = {name: clock.variant(name, 1.0) for name in "ab"}
  harness.interleave(variants, repetitions=3, warm_up=0, clock=clock)
  calibration = ["a", "b"]
  assert clock.order == calibration + ["a", "b", "b", "a", "a", "b"]


def test_warm_up_is_not_in_the_samples():
  clock = FakeClock()
  slow_start = iter([100.0, 50.0])
  steady = clock.variant("a", 2.0)

  def call():
    clock.now += next(slow_start, 0.0)
    steady()

  samples = harness.interleave(
    {"a": call}, repetitions=4, warm_up=2, clock=clock
  )
  assert samples.seconds == {"a": [2.0] * 4}


def test_fast_variants_are_repeated_until_a_sample_is_long_enough():
  clock = FakeClock()
  variants = {"a": clock.variant("a", 0.25), "b": clock.variant("b", 3.0)}
  samples = harness.interleave(
    variants, repetitions=1, warm_up=0, sample_seconds=1.0, clock=clock
  )
  assert samples.calls == {"a": 4, "b": 1}
  assert samples.seconds == {"a": [0.25], "b": [3.0]}


def test_ratio_pairs_the_rounds_so_that_drift_cancels():
  samples = harness.Samples(
    {"a": [2.0, 20.0, 200.0], "b": [1.0, 10.0, 100.0]}, {"a": 1, "b": 1}
  )
  assert samples.median("a") == 20.0
  assert samples.fastest("a") == 2.0
  assert samples.ratio("a", "b") == 2.0


def test_nothing_to_measure_is_refused():
  with pytest.raises(ValueError, match="repetitions=0 of 1 variants"):
    harness.interleave({"a": lambda: None}, repetitions=0)


def test_memory_high_water_sees_an_array_that_is_gone():
  code = """
import json
import numpy as np
from benchmarks import harness
with harness.memory_high_water() as memory:
  np.ones(2**27, np.uint8).sum()
print(json.dumps(memory.record()))
"""
  # A process of its own: a full one gives pages back meanwhile.
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, check=True, text=True
  )
  memory = json.loads(run.stdout.splitlines()[-1])
  assert set(memory) == {"before_mib", "peak_mib", "reset"}
  if memory["reset"]:
    assert memory["peak_mib"] - memory["before_mib"] > 100


def test_record_names_the_processor_and_not_the_host():
  record = harness.record(torch="1.2")
  assert record["versions"]["torch"] == "1.2"
  assert record["versions"]["jax"] == jax.__version__
  assert record["cores"] >= 1
  assert harness.platform.node() not in record["machine"]


def test_whole_stage_counts_caching_once_and_input_always():
  seconds = {
    "stage3_live": 1.0, "stage3_cached": 0.01, "input": 0.01, "cache": 8.0,
  }  # fmt: skip
  whole = mst_distill.whole_stage(seconds, steps_per_epoch=10)
  assert whole["stage3_live_epochs_s"] == pytest.approx(1000 * 1.01)
  assert whole["stage3_cached_epochs_s"] == pytest.approx(1000 * 0.02 + 8)
  assert whole["cached_speedup"] == pytest.approx(1010 / 28, abs=0.01)


@pytest.mark.slow
def test_quick_ends_with_one_json_object_of_all_figures():
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.mst_distill", "--quick"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=900,
    check=True,
  )
  record = json.loads(done.stdout.splitlines()[-1])
  timed = KEYS | (TORCH_KEYS if mst_distill.torch_mst else set())
  assert timed <= set(record)
  seconds = {k for k in timed if k.endswith("_s")} - {"compile_s", "fastest_s"}
  assert all(record[k] > 0 for k in seconds)
  assert set(record["fastest_s"]) <= {k.removesuffix("_s") for k in seconds}
  assert all(math.isfinite(m["peak_mib"]) for m in record["memory"].values())
  assert set(record["computed"]) <= set(record)


RENAMED = (
  ("trunk.", ""),
  ("image_branch.", "ImageNet."),
  *((f"convs.{n}.", f"AudioNet.conv{n + 1}.") for n in range(5)),
  ("attention.", "mha."),
  ("reduce.", "spatial_reduce.downsample."),
  ("mask.", ""),
)
RULES = {
  "student": name_maps.LENET5,
  "aux": name_maps.THREE_LAYER_CNN,
  "teacher": name_maps.CNN_I,
  "teacher_1": name_maps.mask_net_1d(3),
  "teacher_2": name_maps.mask_net_1d(3),
  "aux_1": name_maps.mask_net_2d(3),
  "aux_2": name_maps.mask_net_2d(3),
  "gate": name_maps.GATE_NET,
}


def _variables(peer):
  """The peer's weights by role, as parameters and collections."""
  params, collections = {}, {}
  for role, net in peer.roles.items():
    weights = {}
    for name, value in net.state_dict().items():
      for old, new in RENAMED:
        name = name.replace(old, new)
      if not name.endswith("num_batches_tracked"):
        weights[name] = np.array(value)
    tree = tools.convert(weights, RULES[role])
    if RULES[role] not in (RULES["student"], RULES["aux"], RULES["teacher"]):
      tree = {kind: {"net": part} for kind, part in tree.items()}
    params[role] = tree.pop("params")
    collections[role] = tree
  return params, collections


def _our_loss(method, stage, params, collections, batch):
  """The loss that the peer's `stage` method returns."""
  step = Step(index=0, epoch=0)

  def nets(*training):
    return Nets(method.roles, params, collections, training=training)

  if stage == 1:
    losses = [method.collaborate(nets(*params), batch)]
  elif stage == 2:
    losses = [
      method.specialise(name, nets(name), batch) for name in method.specialists
    ]
  else:
    targets = method.specialist_logits(nets(), batch)
    batch = {**batch, "specialists": targets}
    losses = [method.distil(nets("student", "gate"), batch, step)]
  return sum(loss.total / loss.weight for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_peer_computes_the_same_loss_from_the_same_weights(stage):
  torch_mst = pytest.importorskip("benchmarks.torch_mst")
  torch_mst.torch.manual_seed(0)
  peer = torch_mst.TorchMST(hidden_dim_factor=21)
  method = mst_distill.av_mnist_method(21)
  train = mst_distill.random_splits(4).train
  batch = next(mst_distill.pipeline.batches(train, 4))
  params, collections = _variables(peer)
  ours = _our_loss(method, stage, params, collections, batch)
  peer.begin(stage)
  theirs = getattr(peer, f"stage{stage}")(torch_mst.channels_first(batch))
  np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
