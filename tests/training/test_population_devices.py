"""Seeds that are split over devices end as on one device."""

import json

import numpy as np
import pytest

from tests import devices

pytestmark = pytest.mark.slow


def trained(count, folder):
  """What a process with eight devices printed that used some of them."""
  script = "tests.training.population_devices"
  return json.loads(devices.printed(script, count, folder))


def test_the_seeds_of_a_population_are_split_over_the_devices(tmp_path):
  one, four = (trained(n, tmp_path / str(n)) for n in (1, 4))
  assert one["devices"] == four["devices"] == 8
  assert (one["way"], four["way"]) == ("vmap", "sharded")
  assert one["params"].keys() == four["params"].keys()
  for name, leaves in one["params"].items():
    for ours, theirs in zip(four["params"][name], leaves, strict=True):
      np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_seeds_that_do_not_divide_run_one_by_one(tmp_path):
  assert trained(8, tmp_path)["way"] == "loop"
