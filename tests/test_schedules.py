"""Schedules: the numbers they give, and the ones they refuse."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.schedules import Decayed, Interpolated, at, rise_and_fall


@pytest.mark.parametrize(
  ("epoch", "value"), [(0, 0.0), (10, 0.5), (20, 1.0), (300, 1.0)]
)
def test_a_warm_up_rises_and_stays(epoch, value):
  warm_up = Interpolated(epochs=(0, 20), values=(0.0, 1.0))
  np.testing.assert_allclose(at(warm_up, jnp.int32(epoch)), value)


@pytest.mark.parametrize(
  ("epoch", "value"), [(0, 0.5), (29, 0.5), (30, 0.25), (90, 0.0625)]
)
def test_a_decay_halves_every_thirty_epochs(epoch, value):
  np.testing.assert_allclose(at(Decayed(value=0.5), jnp.int32(epoch)), value)


def test_a_number_is_itself():
  assert at(0.9, jnp.int32(3)) == 0.9


@pytest.mark.parametrize(
  ("epochs", "values"),
  [((), ()), ((0, 1), (1.0,)), ((1, 0), (1.0, 2.0)), ((1, 1), (1.0, 2.0))],
)
def test_points_that_are_no_function_are_refused(epochs, values):
  with pytest.raises(ConfigError, match="Interpolated: .*expected ascending"):
    Interpolated(epochs=epochs, values=values)


@pytest.mark.parametrize("wrong", [{"factor": 0.0}, {"every": 0}])
def test_a_decay_that_never_moves_or_dies_is_refused(wrong):
  with pytest.raises(ConfigError, match="Decayed: .*expected a factor"):
    Decayed(value=1.0, **wrong)


@pytest.mark.parametrize(
  ("update", "rate"), [(0, 0.0), (1, 0.15), (2, 0.3), (11, 0.15), (20, 0.0)]
)
def test_a_rate_rises_and_falls_along_lines(update, rate):
  schedule = rise_and_fall(0.3, 20, 0.1)
  np.testing.assert_allclose(schedule(update), rate, atol=1e-7)


def test_a_rate_rises_in_one_update_at_least():
  schedule = rise_and_fall(0.3, 4, 0.0)
  np.testing.assert_allclose([schedule(0), schedule(1)], [0.0, 0.3], rtol=1e-6)
