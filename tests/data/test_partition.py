"""Splits are disjoint and complete, pairs share their class."""

import numpy as np
import pytest

from jaxkd.data import partition
from jaxkd.errors import ConfigError


def three_way(count: int = 1797, seed: int = 0, **shares):
  shares = {"validation": 0.2, "test": 0.2, **shares}
  return partition.three_way(count, seed=seed, purpose="images", **shares)


def test_parts_are_disjoint_and_complete():
  together = np.concatenate(three_way())
  assert sorted(together) == list(range(1797))


def test_parts_have_60_20_20_percent():
  assert [len(part) for part in three_way()] == [1078, 359, 360]
  assert [len(part) for part in three_way(70_000)] == [42_000, 14_000, 14_000]


def test_another_seed_is_another_split():
  assert not np.array_equal(three_way(seed=0)[2], three_way(seed=1)[2])


def test_an_empty_part_is_refused():
  with pytest.raises(ConfigError, match="no part of the 2 images"):
    three_way(2)


@pytest.mark.parametrize("size", [0, 6])
def test_a_cut_outside_the_part_is_refused_by_name(size):
  message = f"size = {size}: expected an integer of at least 1 and at most 5"
  with pytest.raises(ConfigError, match=message):
    partition.cut(np.arange(5), size, "size")


def test_partners_share_the_class_and_come_from_the_pool():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 3, 200)
  pool, pool_label = np.arange(100, 130), np.arange(30) % 3
  chosen = partition.partners(label, pool, pool_label, rng.random(200))
  np.testing.assert_array_equal(pool_label[chosen - 100], label)
  assert set(chosen) == set(pool)
