"""Draws depend on seed, purpose and round, and on nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.data import randomness
from jaxkd.errors import ConfigError


@given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_an_order_holds_every_number_once(count, seed, round_index):
  order = randomness.permutation(
    count, seed=seed, purpose="a", round_index=round_index
  )
  assert sorted(order) == list(range(count))


def test_purposes_and_rounds_are_independent_orders():
  orders = [
    randomness.permutation(50, seed=1, purpose=p, round_index=r)
    for p in ("a", "b")
    for r in (0, 1)
  ]
  assert len(np.unique(orders, axis=0)) == 4


def test_draws_are_equally_likely_and_of_their_round_alone():
  first, again, other = (
    randomness.draws(6000, among=6, seed=1, purpose="a", round_index=r)
    for r in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.mean(first == other) < 0.25
  counts = np.bincount(first)
  assert len(counts) == 6
  assert np.all(abs(counts - 1000) < 5 * np.sqrt(6000 * 5 / 36))


def test_an_order_cannot_be_written_to():
  with pytest.raises(ValueError, match="read-only"):
    randomness.permutation(5, seed=0, purpose="a")[0] = 1


def test_generators_of_two_purposes_differ_and_of_one_agree():
  a, again, b = (
    randomness.generator(seed=0, purpose=p).random(3) for p in "aab"
  )
  np.testing.assert_array_equal(a, again)
  assert not np.any(a == b)


def test_a_negative_seed_is_refused():
  with pytest.raises(ConfigError, match="seed = -1: expected an integer"):
    randomness.generator(seed=-1, purpose="a")
