"""Placed roles on eight devices: the losses of one, and no needless traffic."""

import functools
import json

import numpy as np
import pytest

from tests import devices
from tests.parallel import tiny

pytestmark = pytest.mark.slow

KINDS = pytest.mark.parametrize("kind", ["mlp", "vit", "decoder"])
# Scalars of losses and metrics are reduced too: sums and weights.
SCALARS = 64


@functools.cache
def _seen():
  """Returns what a process with eight devices printed."""
  seen = {}
  for line in devices.printed("tests.parallel.eight_placed").splitlines():
    seen |= json.loads(line)
  return seen


def _same(name, expected):
  losses, one = _seen()[name]["losses"], _seen()[expected]["losses"]
  assert len(one) >= 20
  assert np.ptp(one) > 0.01  # what is equal is not a constant
  np.testing.assert_allclose(losses, one, rtol=1e-5)


@KINDS
@pytest.mark.parametrize(
  "mesh", ["data", "fsdp", "tensor teacher", "tensor both"]
)
def test_losses_of_twenty_steps_agree_with_one_device(kind, mesh):
  _same(f"{kind}, {mesh}", f"{kind}, one")


def test_accumulated_gradients_of_eight_devices_are_those_of_one_batch():
  _same("accumulated", "mlp, one")


def test_a_run_with_a_split_teacher_on_the_host_is_that_of_one_device():
  _same("run, host", "run, one")
  shares = _seen()["run, host"]["shares"]
  assert shares == dict.fromkeys(("params", "mu", "nu", "best"), 1 / 4)


@pytest.mark.parametrize("kind", ["mlp", "vit"])
def test_copies_exchange_the_gradients_of_what_is_trained_and_no_more(kind):
  seen = _seen()[f"{kind}, data"]
  assert seen["gathered"] == []
  surplus = seen["reduced_bytes"] - seen["trained_bytes"]
  assert 0 <= surplus <= SCALARS


def test_a_teacher_split_over_tensor_is_never_put_together():
  seen = _seen()["apart, tensor"]["gathered"]
  assert [name for name in seen if name.startswith("frozen")] == []


def test_a_head_that_follows_a_split_one_is_put_together_once():
  """Its gradient, not what the optimizer makes of it."""
  kernel = 4 * tiny.SYMBOLS * 16
  assert _seen()["apart, tensor"]["gathered_bytes"] == kernel


def test_a_teacher_split_over_fsdp_is_put_together_where_it_is_used():
  seen = _seen()["apart, fsdp"]["gathered"]
  teacher = [name for name in seen if name.startswith("frozen")]
  assert len(teacher) > 5
  assert not [name for name in seen if name.startswith("state")]


def test_the_example_runs():
  metrics = _seen()["example"]
  assert {"student/accuracy", "teacher/accuracy"} <= set(metrics)
