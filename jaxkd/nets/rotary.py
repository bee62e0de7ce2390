"""Rotary positions, and how they are stretched to longer sequences.

A pair of entries turns by its rate at every position. A scaling is a frozen
dataclass that slows the rates down, so that positions beyond those of the
training look like some within.

Notation: D is the size of a head, theta_i = base^(-2 i / D) the rate of its
pair i, N the length of the training's sequences, 2 pi / theta_i the length of
a turn.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
  """Positions are divided by a factor.

  Reference: Chen et al., https://arxiv.org/abs/2306.15595, Eq. 3.

  Attributes:
    factor: at least 1.
  """

  factor: float

  def __post_init__(self):
    """Checks the numbers."""
    _check(self, self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicScaling:
  """The base grows with the row's length n, once that is above N.

    base (factor n / N - factor + 1)^(D / (D - 2))

  All of a row's positions turn at the rates of its present length. With a
  cache, keys are turned anew as a row grows above N; what blocks above the
  first have kept of them was computed at the rates of its time.

  Reference: Peng et al., https://arxiv.org/abs/2309.00071, Sec. 3.3.

  Attributes:
    factor: at least 1.
    trained_length: N.
  """

  factor: float
  trained_length: int

  def __post_init__(self):
    """Checks the numbers."""
    _check(self, self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaScaling:
  """Slow pairs are divided by a factor, fast ones kept, with a ramp between.

  With the turns t = N theta / (2 pi) of a pair over the training's length and
  g = (t - slow) / (fast - slow), clipped to [0, 1]:

    theta <- (1 - g) theta / factor + g theta

  Reference: Grattafiori et al. (Llama 3.1), https://arxiv.org/abs/2407.21783.

  Attributes:
    factor: at least 1.
    trained_length: N.
    slow: turns up to which a pair is divided by the factor.
    fast: turns from which on it is kept.
  """

  factor: float
  trained_length: int
  slow: float = 1.0
  fast: float = 4.0

  def __post_init__(self):
    """Checks the numbers."""
    _check(self, self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
  """As `LlamaScaling`, with a ramp over the pairs' numbers, and larger scores.

  With i(t) = D log(N / (2 pi t)) / (2 log base), the pair that makes t turns:

    g = 1 - (i - i(fast)) / (i(slow) - i(fast)), clipped to [0, 1]

  Queries and keys are multiplied by `amplitude` each.

  Reference: Peng et al. (YaRN), https://arxiv.org/abs/2309.00071, Sec. 3.2-3.4.

  Attributes:
    factor: at least 1.
    trained_length: N.
    slow: turns up to which a pair is divided by the factor.
    fast: turns from which on it is kept.
    amplitude: of the turned entries; 0.1 log(factor) + 1 if not given.
    whole: whether i(fast) is rounded down and i(slow) up.
  """

  factor: float
  trained_length: int
  slow: float = 1.0
  fast: float = 32.0
  amplitude: float | None = None
  whole: bool = True

  def __post_init__(self):
    """Checks the numbers."""
    _check(self, self.factor)


Scaling = LinearScaling | DynamicScaling | LlamaScaling | YarnScaling


def rotary(
  x: Array,
  positions: Array | None = None,
  *,
  base: float = 1e4,
  scaling: Scaling | None = None,
  lengths: Array | None = None,
) -> Array:
  """Turns pairs of entries by angles that grow with the position.

    (a_i, b_i) -> (a_i cos - b_i sin, b_i cos + a_i sin) of l theta_i

  a and b are the two halves of an entry, l its position. Inner products of
  what is turned depend on positions by their difference alone.

  Args:
    x: queries or keys, [B, L, heads, D], D even.
    positions: l, integers [B, L] or [1, L]; 0, 1, ... if not given.
    base: 2 pi times this is about the longest turn.
    scaling: changes the rates.
    lengths: n of the rows, [B] or [1]; those of the positions if not given.

  Returns:
    [B, L, heads, D].

  Reference: Su et al., https://arxiv.org/abs/2104.09864, Eq. 34.
  """
  if positions is None:
    positions = jnp.arange(x.shape[1])[None]
  if lengths is None:
    lengths = jnp.max(positions, -1) + 1
  theta = rates(x.shape[-1], base, scaling, lengths)  # [1 or B, D/2]
  angles = positions[..., None] * theta[:, None]  # [B, L, D/2]
  size = amplitude(scaling)
  cos, sin = (size * f(angles)[:, :, None] for f in (jnp.cos, jnp.sin))
  a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, -1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x.dtype)


def rates(
  size: int, base: float, scaling: Scaling | None, lengths: Array
) -> Array:
  """How far the pairs turn from one position to the next, in radians.

  Args:
    size: D.
    base: of theta.
    scaling: changes the rates.
    lengths: n of the rows, [B] or [1].

  Returns:
    [1, D/2], or [B, D/2] of a `DynamicScaling`; float32.
  """
  pairs = np.arange(0, size, 2) / size
  if isinstance(scaling, DynamicScaling):
    longest = jnp.maximum(lengths, scaling.trained_length)
    growth = scaling.factor * longest / scaling.trained_length
    growth = (growth - scaling.factor + 1) ** (size / (size - 2))
    logs = math.log(base) + jnp.log(growth)  # [B]
    return jnp.exp(-logs[:, None] * jnp.float32(pairs)[None])
  theta = base**-pairs
  if scaling is not None:
    kept = _kept(theta, base, scaling)
    theta = (1 - kept) * theta / scaling.factor + kept * theta
  return jnp.asarray(theta, jnp.float32)[None]


def amplitude(scaling: Scaling | None) -> float:
  """What turned entries are multiplied by."""
  if not isinstance(scaling, YarnScaling):
    return 1.0
  if scaling.amplitude is None:
    return 0.1 * math.log(scaling.factor) + 1
  return scaling.amplitude


def _kept(theta: np.ndarray, base: float, scaling: Scaling) -> np.ndarray:
  """Which share of its rate a pair keeps, [D/2] in [0, 1]."""
  if isinstance(scaling, LinearScaling):
    return np.zeros_like(theta)
  trained = scaling.trained_length / (2 * math.pi)
  if isinstance(scaling, LlamaScaling):
    turns = trained * theta
    share = (turns - scaling.slow) / (scaling.fast - scaling.slow)
    return np.clip(share, 0, 1)
  size = 2 * len(theta)
  first, last = (
    size * math.log(trained / turns) / (2 * math.log(base))
    for turns in (scaling.fast, scaling.slow)
  )
  if scaling.whole:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, size - 1)
  ramp = (np.arange(len(theta)) - first) / max(last - first, 1e-3)
  return 1 - np.clip(ramp, 0, 1)


def _check(scaling: Scaling, factor: float) -> None:
  if not factor >= 1:
    raise ConfigError(
      f"{type(scaling).__name__}.factor={factor}: expected at least 1"
    )
