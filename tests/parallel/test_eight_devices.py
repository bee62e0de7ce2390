"""Training on eight devices equals training on one."""

import functools
import json

import numpy as np
import pytest

from tests import devices

pytestmark = pytest.mark.slow

MANY = pytest.mark.parametrize("mesh", ["data", "fsdp", "both"])


@functools.cache
def _seen():
  """Returns what a process with eight devices printed."""
  return json.loads(devices.printed("tests.parallel.eight_devices"))


def test_the_process_has_eight_devices():
  assert _seen()["devices"] == 8


@MANY
def test_all_losses_of_twenty_steps_of_every_stage_agree(mesh):
  one, many = _seen()["one"]["lines"], _seen()[mesh]["lines"]
  steps = [line for line in one if line["split"] == "train"]
  phases = [line["phase"] for line in steps]
  assert {phase: phases.count(phase) for phase in phases} == {
    "collaborate": 20,
    "specialise": 20,
    "distil": 20,
  }
  assert len(one) == len(many) == 60 + 12  # with a validation every epoch
  for expected, line in zip(one, many, strict=True):
    assert list(expected["metrics"]) == list(line["metrics"])
    for name, value in expected["metrics"].items():
      np.testing.assert_allclose(
        line["metrics"][name], value, rtol=1e-5, atol=1e-6, err_msg=name
      )
    assert {**line, "metrics": None} == {**expected, "metrics": None}


@pytest.mark.parametrize(
  ("mesh", "parts"), [("one", 1), ("data", 1), ("fsdp", 8), ("both", 2)]
)
def test_parameters_are_parted_by_fsdp_alone(mesh, parts):
  shares = _seen()[mesh]["shares"]
  assert shares["fc1"] == shares["fc2"] == 1 / parts
  assert np.prod(_seen()[mesh]["placed"]) == 12 * 16 / parts


def test_missing_devices_are_named():
  message = "mesh data=4, fsdp=4, tensor=1 needs 16 devices, there are 8"
  assert _seen()["message"] == message
