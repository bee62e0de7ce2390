"""The rules choose what the released sampler chose, and can be resumed."""

import dataclasses
import json

import numpy as np
import pytest

from jaxkd.data.on_policy import (
  AdaptiveSampling,
  MixedSampling,
  State,
  Stream,
)
from jaxkd.errors import ConfigError
from tests import golden_tools

CASES = golden_tools.cases("llm_baselines__adaptive_sgo")


def _rule(arrays):
  """The rule and the start of a case of SakanaAI/TAID@a0628922 sampler.py."""
  threshold = float(arrays["param_init_threshold"])
  buffer = {
    "batch_size": int(arrays["param_batch_size"]),
    "capacity": int(arrays["param_capacity"]),
  }
  if str(arrays["param_sampling_type"]) == "mixed":
    return MixedSampling(**buffer)
  return AdaptiveSampling(
    steps=int(arrays["param_total_iters"]),
    tolerance=float(arrays["param_loss_eps"]),
    initial_threshold=threshold,
    fresh=str(arrays["param_replay_ratio"]),
    **buffer,
  )


def _run(arrays, resumed_at=None):
  """Choices, thresholds and buffer sizes of all steps."""
  rule, found = _rule(arrays), []
  state = rule.start()
  for step, uniform in enumerate(arrays["in_uniforms"].tolist()):
    block, first = divmod(step, int(arrays["param_steps_per_val"]))
    if step == resumed_at:
      state = State(**json.loads(json.dumps(dataclasses.asdict(state))))
    if first == 0:
      state = rule.validated(state, float(arrays["in_val_losses"][block]))
    threshold, stored = state.threshold, state.stored
    stream, state = rule.choose(state, uniform)
    found.append((int(stream), threshold, stored))
  return tuple(np.array(column) for column in zip(*found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_choices_thresholds_and_buffer_equal_the_released_sampler(case):
  arrays = CASES[case]
  choices, thresholds, stored = _run(arrays)
  np.testing.assert_array_equal(
    choices, arrays["out_choice_0data_1fresh_2replay"]
  )
  np.testing.assert_array_equal(stored, arrays["out_buffer_size_before_step"])
  if str(arrays["param_sampling_type"]) == "adaptive":  # the coin has none
    expected = arrays["out_threshold_per_step"]
    np.testing.assert_allclose(thresholds, expected, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_makes_the_same_choices(case):
  whole, resumed = _run(CASES[case]), _run(CASES[case], resumed_at=20)
  for ours, expected in zip(resumed, whole, strict=True):
    np.testing.assert_array_equal(ours, expected)


def test_without_a_threshold_every_step_reads_the_data():
  rule = AdaptiveSampling(steps=10, batch_size=2)
  assert rule.choose(rule.start(), 0.0)[0] == Stream.DATA


def test_the_threshold_ends_at_one():
  rule = AdaptiveSampling(steps=10, batch_size=2, initial_threshold=0.95)
  state = rule.start()
  for loss in (1.0, 2.0, 3.0):
    state = rule.validated(state, loss)
  assert state.threshold == 1.0


def test_a_loss_that_falls_is_not_what_the_next_is_compared_with():
  rule = AdaptiveSampling(steps=10, batch_size=2)
  state = rule.start()
  for loss in (2.0, 1.0, 1.9):
    state = rule.validated(state, loss)
  assert state == State(compared_loss=2.0)


def test_no_replay_before_the_buffer_is_full():
  rule = AdaptiveSampling(
    steps=2, batch_size=3, capacity=4, initial_threshold=1.0, fresh="increasing"
  )
  state = State(threshold=1.0)
  streams = []
  for _ in range(3):
    stream, state = rule.choose(state, 0.99)
    streams.append(stream)
    state = dataclasses.replace(state, step=0)
  assert streams == [Stream.FRESH, Stream.FRESH, Stream.REPLAY]
  assert state.stored == 4


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"steps": 0}, "steps = 0: expected"),
    ({"batch_size": 0}, "batch_size = 0: expected"),
    ({"capacity": 0}, "capacity = 0: expected"),
    ({"tolerance": -1.0}, "tolerance = -1.0: expected"),
    ({"initial_threshold": 2.0}, "initial_threshold = 2.0: expected 0 to 1"),
    ({"fresh": "never"}, "fresh = 'never': expected decreasing or"),
  ],
)
def test_an_option_out_of_range_is_refused_by_name(options, message):
  with pytest.raises(ConfigError, match=message):
    AdaptiveSampling(**{"steps": 10, "batch_size": 2, **options})


def test_a_share_above_one_is_refused():
  with pytest.raises(ConfigError, match="share = 1.5: expected 0 to 1"):
    MixedSampling(batch_size=2, share=1.5)
