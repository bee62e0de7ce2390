"""Diffusion models: noise levels, deterministic steps, and what trains them.

Notation: x_t = alpha_t x + sigma_t e is an example x in noise e at the time t
in (0, 1), where t = 1 is noise; s < t is a later point of the way from noise to
data; f is a denoiser, which predicts x from x_t; lambda_t = log(sigma_t /
alpha_t). A `NoiseLevel` is (alpha, sigma) at a time: the functions take the
levels `now`, at t, and `then`, at s, and need not know the schedule. Levels are
[] or have the leading axes of the examples, such as [B].

The signal y_t = (x_t - sigma_t e) / alpha_t is what is left of x_t without the
noise that its trajectory started from. It follows an equation of its own,
dy/dt = -lambda'_t (f(x_t, t) - y_t), which the steps here solve exactly for a
denoiser that is constant over the step.

References: Song et al. (DDIM), https://arxiv.org/abs/2010.02502; Gu et al.
(BOOT), https://arxiv.org/abs/2306.05544.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks, rows
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


class NoiseLevel(NamedTuple):
  """How much of the example and of the noise there is at a time."""

  alpha: Array
  sigma: Array

  @property
  def log_ratio(self) -> Array:
    """The logarithm lambda of sigma / alpha, half the log of noise to signal.

    It rises with the time.
    """
    return jnp.log(self.sigma) - jnp.log(self.alpha)


NoiseSchedule = Callable[[Array], NoiseLevel]


@dataclasses.dataclass(frozen=True)
class CosineNoise:
  """A quarter of a circle: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

  Reference: Nichol and Dhariwal, https://arxiv.org/abs/2102.09672, without
    their offset.
  """

  def __call__(self, t: float | Array) -> NoiseLevel:
    """The level at times t, of their shape."""
    angle = jnp.pi / 2 * at_least_float32(jnp.asarray(t))
    return NoiseLevel(jnp.cos(angle), jnp.sin(angle))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearNoise:
  """Noise that is added at a rate which grows linearly (VP).

  alpha^2 = exp(-integral of the rate from 0 to t), sigma^2 = 1 - alpha^2.

  Attributes:
    first_rate: at t = 0.
    last_rate: at t = 1.

  Reference: Song et al., https://arxiv.org/abs/2011.13456, App. B.
  """

  first_rate: float = 0.1
  last_rate: float = 20.0

  def __call__(self, t: float | Array) -> NoiseLevel:
    """The level at times t, of their shape."""
    t = at_least_float32(jnp.asarray(t))
    growth = self.last_rate - self.first_rate
    added = t * (self.first_rate + growth / 2 * t)
    return NoiseLevel(jnp.exp(-added / 2), jnp.sqrt(-jnp.expm1(-added)))


def diffuse(clean: Array, noise: Array, level: NoiseLevel) -> Array:
  """Puts noise on examples: alpha x + sigma e.

  Args:
    clean: x, or the signal y, [B, ...].
    noise: e, [B, ...].
    level: [] or the leading axes of x.

  Returns:
    x_t, [B, ...], float32 at least.

  Raises:
    ValueError: if shapes do not fit.
  """
  alpha, sigma = _fitted("diffuse", level, clean=clean, noise=noise)
  return alpha * at_least_float32(clean) + sigma * at_least_float32(noise)


def clean_from_noise(x: Array, noise: Array, level: NoiseLevel) -> Array:
  """The example behind predicted noise: (x_t - sigma e) / alpha.

  With the noise that a trajectory started from it is the signal y_t.

  Args:
    x: x_t, [B, ...].
    noise: e as predicted, [B, ...].
    level: [] or the leading axes of x.

  Returns:
    [B, ...], float32 at least.

  Raises:
    ValueError: if shapes do not fit.
  """
  alpha, sigma = _fitted("clean_from_noise", level, x=x, noise=noise)
  return (at_least_float32(x) - sigma * at_least_float32(noise)) / alpha


def clean_from_velocity(x: Array, velocity: Array, level: NoiseLevel) -> Array:
  """The example behind a predicted velocity: alpha x_t - sigma v.

  The velocity is v = alpha e - sigma x; alpha^2 + sigma^2 has to be 1.

  Args:
    x: x_t, [B, ...].
    velocity: v as predicted, [B, ...].
    level: [] or the leading axes of x.

  Returns:
    [B, ...], float32 at least.

  Raises:
    ValueError: if shapes do not fit.

  Reference: Salimans and Ho, https://arxiv.org/abs/2202.00512, App. D.
  """
  alpha, sigma = _fitted("clean_from_velocity", level, x=x, velocity=velocity)
  return alpha * at_least_float32(x) - sigma * at_least_float32(velocity)


def guide(
  conditional: Array, unconditional: Array, *, scale: float | Array
) -> Array:
  """Classifier-free guidance: u + w (c - u).

  Args:
    conditional: c, what is predicted under a condition, [B, ...].
    unconditional: u, what is predicted under none, [B, ...].
    scale: w, 1 for the condition alone; a number, or [B].

  Returns:
    [B, ...], float32 at least.

  Raises:
    ValueError: if shapes do not fit.

  Reference: Ho and Salimans, https://arxiv.org/abs/2207.12598, Eq. 6, with
    their weight plus 1.
  """
  checks.same("guide", conditional=conditional, unconditional=unconditional)
  scale = _along("guide", "scale", jnp.asarray(scale), conditional)
  unconditional = at_least_float32(unconditional)
  return unconditional + scale * (conditional - unconditional)


def ddim_step(
  x: Array, clean: Array, now: NoiseLevel, then: NoiseLevel
) -> Array:
  """One deterministic step: alpha_s f + (sigma_s / sigma_t) (x_t - alpha_t f).

  Args:
    x: x_t, [B, ...].
    clean: f(x_t, t), the prediction of x, [B, ...].
    now: the level at t; its sigma is above 0.
    then: the level at s.

  Returns:
    x_s, [B, ...], float32 at least.

  Raises:
    ValueError: if shapes do not fit.

  Reference: Song et al. (DDIM), https://arxiv.org/abs/2010.02502, Eq. 12.
  """
  alpha_t, sigma_t = _fitted("ddim_step", now, x=x, clean=clean)
  alpha_s, sigma_s = _fitted("ddim_step", then, x=x, clean=clean)
  clean = at_least_float32(clean)
  rest = at_least_float32(x) - alpha_t * clean
  return alpha_s * clean + sigma_s / sigma_t * rest


def step_share(now: NoiseLevel, then: NoiseLevel) -> Array:
  """How far a step moves the signal towards the denoiser's prediction.

    kappa = 1 - exp(lambda_s - lambda_t)
          = 1 - alpha_t sigma_s / (sigma_t alpha_s)

  Between 0 and 1 for s < t; divided by t - s it tends to lambda'_t.

  Args:
    now: the level at t.
    then: the level at s.

  Returns:
    kappa, of the levels' shape.
  """
  (alpha_t, sigma_t), (alpha_s, sigma_s) = now, then
  return 1 - alpha_t * sigma_s / (sigma_t * alpha_s)


def signal_step(
  signal: Array, clean: Array, now: NoiseLevel, then: NoiseLevel
) -> Array:
  """One deterministic step of the signal: y_t + kappa (f - y_t).

  Put back into its noise, alpha_s y_s + sigma_s e, it is `ddim_step` of x_t.

  Args:
    signal: y_t, [B, ...].
    clean: f(x_t, t), the prediction of x, [B, ...].
    now: the level at t.
    then: the level at s.

  Returns:
    y_s, [B, ...], float32 at least.

  Raises:
    ValueError: if shapes do not fit.

  Reference: Gu et al. (BOOT), https://arxiv.org/abs/2306.05544.
  """
  checks.same("signal_step", signal=signal, clean=clean)
  share = _along("signal_step", "levels", step_share(now, then), signal)
  signal = at_least_float32(signal)
  return signal + share * (at_least_float32(clean) - signal)


def heun_signal_step(
  signal: Array,
  clean: Array,
  denoise: Callable[[Array], Array],
  *,
  noise: Array,
  now: NoiseLevel,
  then: NoiseLevel,
) -> Array:
  """A step of second order, with the denoiser's mean over both ends.

    y_t + kappa ((f + f') / 2 - y_t),  f' = f(alpha_s y' + sigma_s e, s)

  where y' is the signal after `signal_step`.

  Args:
    signal: y_t, [B, ...].
    clean: f(x_t, t), [B, ...].
    denoise: x_s -> f(x_s, s), at the time of `then`.
    noise: e, [B, ...].
    now: the level at t.
    then: the level at s.

  Returns:
    y_s, [B, ...], float32 at least.

  Raises:
    ValueError: if shapes do not fit.

  Reference: Gu et al. (BOOT), https://arxiv.org/abs/2306.05544.
  """
  first = signal_step(signal, clean, now, then)
  second = denoise(diffuse(first, noise, then))
  return signal_step(signal, _middle(clean, second), now, then)


def denoising(
  student: Array, target: Array, *, where: Array | None = None
) -> Array:
  """Mean square of what a denoiser's prediction lacks.

    mean_i (f_i - x_i)^2

  With data as the target it trains a teacher. With the prediction that the
  teacher makes from pure noise, f(e, t_max), and g(e, t_max) as the student, it
  is the boundary condition of BOOT.

  Args:
    student: the prediction f, [B, ...].
    target: x, [B, ...].
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if the shapes differ.

  Needs: predictions; access white; per example.
  Checked: formula.
  Reference: Salimans and Ho, https://arxiv.org/abs/2202.00512; Gu et al.
    (BOOT), https://arxiv.org/abs/2306.05544.
  """
  return _mean_square("denoising", student, target, where)


def boot(
  student: Array,
  target: Array,
  *,
  share: float | Array,
  interval: float | Array,
  weighting: Literal["signal", "delta", "none"] = "signal",
  least_share: float = 1e-3,
  where: Array | None = None,
) -> Array:
  """Consistency of a student with one step of its teacher (BOOT).

    w mean_i (g(e, s) - SG[y_s])_i^2,  y_s = g(e, t) + kappa (f - g(e, t))

  The student g maps noise e straight to the signal at a time. y_s is
  `signal_step`, or `heun_signal_step`, of its own output at t, with the teacher
  f read at alpha_t g(e, t) + sigma_t e; it is a constant of the gradient. w is
  1 / kappa^2, which weighs all times alike, or 1 / (t - s)^2, or 1.

  Args:
    student: g(e, s), [B, ...].
    target: y_s, [B, ...].
    share: kappa, a number or [B]; see `step_share`.
    interval: t - s, above 0, a number or [B].
    weighting: which w.
    least_share: what kappa is raised to in w; it is 0 where s was cut off at t.
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if shapes do not fit or an option is out of range.

  Needs: predictions; access white; per example.
  Checked: formula.
  Reference: Gu et al. (BOOT), https://arxiv.org/abs/2306.05544.
  """
  checks.one_of("boot", "weighting", weighting, ("signal", "delta", "none"))
  checks.positive("boot", "interval", interval)
  checks.positive("boot", "least_share", least_share)
  values = _mean_square("boot", student, stop_gradient(target), where)
  name, unit = {
    "signal": ("share", jnp.maximum(jnp.asarray(share), least_share)),
    "delta": ("interval", jnp.asarray(interval)),
    "none": ("none", jnp.ones(())),
  }[weighting]
  unit = stop_gradient(at_least_float32(_along("boot", name, unit, values)))
  values = values / unit**2
  return values if where is None else jnp.where(where.astype(bool), values, 0)


def _mean_square(
  loss: str, student: Array, target: Array, where: Array | None
) -> Array:
  """Mean of the squared difference over all axes but the first, [B]."""
  checks.same(loss, student=student, target=target)
  keep = rows.counted(loss, where, len(student))
  gap = rows.flat(student, keep) - rows.flat(target, keep)
  return jnp.mean(gap**2, axis=-1)


def _middle(a: Array, b: Array) -> Array:
  return (at_least_float32(a) + at_least_float32(b)) / 2


def _fitted(function: str, level: NoiseLevel, **arrays: Array) -> NoiseLevel:
  """The level with as many axes as the arrays, which have one shape."""
  checks.same(function, **arrays)
  like = next(iter(arrays.values()))
  return NoiseLevel(*(_along(function, "level", part, like) for part in level))


def _along(function: str, name: str, values: Array, like: Array) -> Array:
  """Values of the leading axes with as many axes as an array."""
  if values.shape != like.shape[: values.ndim]:
    raise ValueError(
      f"{function}: {name} {values.shape} for arrays {like.shape}; expected a "
      "number or the leading axes of the arrays"
    )
  return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
