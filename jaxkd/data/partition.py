"""Cutting examples into three parts and pairing what shares a class."""

import numpy as np

from jaxkd.data import checks, randomness


def check_fractions(owner: str, validation: float, test: float) -> None:
  """Raises `ConfigError` unless each part gets a share of the examples."""
  names = (("validation_fraction", validation), ("test_fraction", test))
  for name, value in names:
    checks.require_number(f"{owner}.{name}", value, 0, 1)
    checks.require(value > 0, f"{owner}.{name}", value, "a number above 0")
  checks.require(
    validation + test < 1,
    f"{owner}.validation_fraction + test_fraction",
    validation + test,
    "a number below 1",
  )


def three_way(
  count: int, *, validation: float, test: float, seed: int, purpose: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts one permutation of 0..count-1 into train, validation and test.

  Args:
    count: Number of things to split.
    validation: Share of the validation part.
    test: Share of the test part.
    seed: Seed of the experiment.
    purpose: What is split, e.g. `"images"`.

  Raises:
    ConfigError: A part would be empty.
  """
  order = randomness.permutation(count, seed=seed, purpose=f"split {purpose}")
  cuts = [
    int(count * share + 1e-6) for share in (1 - validation - test, 1 - test)
  ]
  train, middle, last = np.split(order, cuts)
  checks.require(
    min(len(train), len(middle), len(last)) > 0,
    "validation_fraction, test_fraction",
    (validation, test),
    f"no part of the {count} {purpose} to be empty",
  )
  return train, middle, last


def cut(indices: np.ndarray, size: int | None, field: str) -> np.ndarray:
  """Returns the first `size` indices, all of them for None.

  Raises:
    ConfigError: `size` is not in 1..len(indices).
  """
  if size is None:
    return indices
  checks.require_integer(field, size, 1, len(indices))
  return indices[:size]


def partners(
  label: np.ndarray,
  pool: np.ndarray,
  pool_label: np.ndarray,
  draws: np.ndarray,
) -> np.ndarray:
  """Picks for every example a member of the pool of the same class.

  Args:
    label: int [N], the examples' classes.
    pool: int [M], what to pick from, with repetition.
    pool_label: int [M], the classes of the pool; has every class of `label`.
    draws: float [N], uniform in [0, 1).

  Returns:
    int [N], values of `pool`.
  """
  chosen = np.empty(len(label), np.int32)
  for digit in np.unique(label):
    rows = np.flatnonzero(label == digit)
    same = pool[pool_label == digit]
    chosen[rows] = same[(draws[rows] * len(same)).astype(int)]
  return chosen


def few(labels: np.ndarray, shots: int, field: str) -> np.ndarray:
  """Returns booleans [N]: the first examples of every class.

  Args:
    labels: integers [N].
    shots: Examples of a class.
    field: What `shots` is called.

  Raises:
    ConfigError: A class has fewer.
  """
  chosen = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    rows = np.flatnonzero(labels == label)
    checks.require(
      shots < len(rows), field, shots, f"below {len(rows)}, of class {label}"
    )
    chosen[rows[:shots]] = True
  return chosen
