"""Random draws that depend on (seed, purpose, round) alone.

Orders are built from the raw Philox stream, which NumPy promises to keep, so
that a run resumes in the same order under another NumPy.
"""

import functools
import zlib

import numpy as np

from jaxkd.data import checks


def _bits(seed: int, purpose: str, round_index: int) -> np.random.Philox:
  checks.require_integer("seed", seed, 0, 2**64 - 1)
  return np.random.Philox(
    key=np.array([seed, round_index], np.uint64),
    counter=np.array([0, 0, 0, zlib.crc32(purpose.encode())], np.uint64),
  )


@functools.lru_cache(maxsize=64)  # as many seeds side by side
def permutation(
  count: int, *, seed: int, purpose: str, round_index: int = 0
) -> np.ndarray:
  """Returns a read-only permutation [count] of 0..count-1.

  Args:
    count: Number of things to order.
    seed: Seed of the experiment, 0..2**64-1.
    purpose: What the order is for; two purposes are independent.
    round_index: Which of the orders for this purpose, e.g. the epoch.
  """
  bits = _bits(seed, purpose, round_index)
  order = np.argsort(bits.random_raw(count), kind="stable")
  order.setflags(write=False)
  return order


def draws(
  count: int, *, among: int, seed: int, purpose: str, round_index: int = 0
) -> np.ndarray:
  """Returns `count` independent draws from 0..among-1, equally likely.

  Args:
    count: Number of draws.
    among: Number of things to draw from.
    seed: Seed of the experiment, 0..2**64-1.
    purpose: What the draws are for; two purposes are independent.
    round_index: Which of the draws for this purpose, e.g. the step.
  """
  raw = _bits(seed, purpose, round_index).random_raw(count)
  return (raw % np.uint64(among)).astype(np.int64)


def generator(*, seed: int, purpose: str) -> np.random.Generator:
  """Returns a generator for draws of one purpose, e.g. `"image noise"`."""
  return np.random.Generator(_bits(seed, purpose, 0))
