"""Samples of a diffusion model by deterministic steps from noise to data.

Notation is that of `jaxkd.losses.diffusion`. Everything compiles to one loop,
whatever the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd.losses.diffusion import NoiseSchedule, ddim_step
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array
Denoiser = Callable[[Array, Array], Array]


def ddim_sample(
  denoise: Denoiser, x: Array, times: Array, schedule: NoiseSchedule
) -> Array:
  """Follows the trajectory of examples by DDIM, of first order.

  One evaluation of the denoiser a step.

  Args:
    denoise: x_t [B, ...], t [B] -> the predicted x [B, ...].
    x: the examples at the first time; at t = 1, noise. [B, ...].
    times: falling, [N + 1] for N steps. The last may be 0, which leaves no
      noise; the first must be above it.
    schedule: t -> `NoiseLevel`.

  Returns:
    The examples at the last time, [B, ...], float32 at least.

  Raises:
    ValueError: if there are not at least two times.

  Reference: Song et al. (DDIM), https://arxiv.org/abs/2010.02502, Eq. 12.
  """

  def step(x, clean, t, s):
    return ddim_step(x, clean, schedule(t), schedule(s))

  return _follow("ddim_sample", denoise, x, times, step)


def heun_sample(
  denoise: Denoiser, x: Array, times: Array, schedule: NoiseSchedule
) -> Array:
  """Follows the trajectory of examples by Heun's method, of second order.

  Two evaluations of the denoiser a step, the second where a DDIM step leads;
  the step is then made with their mean. It is `heun_signal_step` of the
  signal.

  Args:
    denoise: x_t [B, ...], t [B] -> the predicted x [B, ...].
    x: the examples at the first time; at t = 1, noise. [B, ...].
    times: falling, [N + 1] for N steps, the last above or at 0.
    schedule: t -> `NoiseLevel`.

  Returns:
    The examples at the last time, [B, ...], float32 at least.

  Raises:
    ValueError: if there are not at least two times.

  Reference: Gu et al. (BOOT), https://arxiv.org/abs/2306.05544.
  """

  def step(x, clean, t, s):
    now, then = schedule(t), schedule(s)
    first = ddim_step(x, clean, now, then)
    second = _predicted(denoise, first, s)
    return ddim_step(x, (clean + second) / 2, now, then)

  return _follow("heun_sample", denoise, x, times, step)


def _follow(
  function: str,
  denoise: Denoiser,
  x: Array,
  times: Array,
  step: Callable[[Array, Array, Array, Array], Array],
) -> Array:
  """Steps of x_t, the prediction, t and s, from every time to the next."""
  x = at_least_float32(x)
  times = jnp.asarray(times).astype(x.dtype)
  if times.ndim != 1 or len(times) < 2:
    raise ValueError(
      f"{function}: times {times.shape}; expected [N + 1] of at least 1 step"
    )

  def one(x, interval):
    t, s = interval
    return step(x, _predicted(denoise, x, t), t, s), None

  intervals = times[:-1], times[1:]
  return jax.lax.scan(one, x, intervals)[0]


def _predicted(denoise: Denoiser, x: Array, t: Array) -> Array:
  return at_least_float32(denoise(x, jnp.broadcast_to(t, x.shape[:1])))
