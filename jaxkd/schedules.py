"""Numbers that change in training: weights, temperatures, learning rates."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd.errors import ConfigError

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolated:
  """Straight lines between points, and constant outside of them.

  A warm-up over 20 epochs is `epochs=(0, 20), values=(0.0, 1.0)`.

  Attributes:
    epochs: where the points lie, ascending.
    values: the numbers there.
  """

  epochs: tuple[float, ...]
  values: tuple[float, ...]

  def __post_init__(self):
    """Checks the points."""
    ascending = all(
      a < b for a, b in zip(self.epochs, self.epochs[1:], strict=False)
    )
    if not self.epochs or len(self.epochs) != len(self.values) or not ascending:
      raise ConfigError(
        f"Interpolated: epochs={self.epochs}, values={self.values}; expected "
        "ascending epochs and as many values"
      )

  @property
  def positive(self) -> bool:
    """Whether all its values are above 0."""
    return min(self.values) > 0

  def __call__(self, epoch: Array) -> Array:
    """The number in an epoch, counted from 0."""
    points = (jnp.asarray(x, jnp.float32) for x in (self.epochs, self.values))
    return jnp.interp(epoch.astype(jnp.float32), *points)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decayed:
  """A value that is multiplied by a factor every so many epochs.

  Attributes:
    value: in the first epochs.
    factor: 0 to 1.
    every: epochs.
  """

  value: float
  factor: float = 0.5
  every: int = 30

  def __post_init__(self):
    """Checks the numbers."""
    if not 0 < self.factor <= 1 or self.every < 1:
      raise ConfigError(
        f"Decayed: factor={self.factor}, every={self.every}; expected a factor "
        "above 0 and at most 1, and at least 1 epoch"
      )

  @property
  def positive(self) -> bool:
    """Whether all its values are above 0."""
    return self.value > 0

  def __call__(self, epoch: Array) -> Array:
    """The number in an epoch, counted from 0."""
    return self.value * self.factor ** (epoch // self.every)


Scheduled = float | Interpolated | Decayed


def at(value: Any, epoch: Array) -> Any:
  """The value of a schedule in an epoch; anything else as it is."""
  return value(epoch) if isinstance(value, Interpolated | Decayed) else value


def rise_and_fall(
  highest: float, updates: int, warm_up: float
) -> optax.Schedule:
  """A learning rate that rises along a line from 0, and falls along one to 0.

  Args:
    highest: the rate at the end of the rise.
    updates: number of updates in all.
    warm_up: share of them in which it rises; one update at least.

  Returns:
    The rate by update.
  """
  rising = max(1, round(warm_up * updates))
  up = optax.linear_schedule(0.0, highest, rising)
  down = optax.linear_schedule(highest, 0.0, updates - rising)
  return optax.join_schedules((up, down), (rising,))
