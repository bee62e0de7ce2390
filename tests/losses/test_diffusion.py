"""Diffusion: identities of schedules and steps, samples of a known model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

SCHEDULES = [losses.CosineNoise(), losses.LinearNoise()]
EVERY = pytest.mark.parametrize("schedule", SCHEDULES, ids=["cosine", "linear"])
TIMES = jnp.linspace(0.01, 0.99, 50)
MEAN = jnp.array([0.5, -1.0, 2.0])
DEVIATION = jnp.array([0.2, 1.0, 2.0])


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


@EVERY
def test_signal_and_noise_have_variance_1_together(schedule):
  alpha, sigma = schedule(TIMES)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-5)


@EVERY
def test_the_ratio_of_noise_and_signal_rises_with_the_time(schedule):
  level = schedule(TIMES)
  assert (jnp.diff(level.log_ratio) > 0).all()
  expected = np.log(np.float64(level.sigma) / np.float64(level.alpha))
  np.testing.assert_allclose(level.log_ratio, expected, rtol=1e-4, atol=1e-5)


def test_rates_of_the_linear_schedule_decide_what_is_left():
  level = losses.LinearNoise(first_rate=2.0, last_rate=4.0)(1.0)
  np.testing.assert_allclose(level.alpha, np.exp(-1.5), rtol=1e-6)


@EVERY
def test_a_schedule_of_half_precision_times_is_in_float32(schedule):
  assert schedule(jnp.ones(2, jnp.bfloat16)).sigma.dtype == jnp.float32


@EVERY
def test_the_share_of_a_step_lies_between_0_and_1(schedule):
  now, then = np.meshgrid(TIMES, TIMES)
  later = then < now
  share = losses.step_share(schedule(now[later]), schedule(then[later]))
  assert ((share > 0) & (share < 1)).all()


@EVERY
def test_the_share_of_a_small_step_is_the_slope_of_the_log_ratio(schedule):
  t, delta = jnp.linspace(0.1, 0.9, 9), 5e-4
  share = losses.step_share(schedule(t), schedule(t - delta))
  slope = jax.vmap(jax.grad(lambda t: schedule(t).log_ratio))(t)
  np.testing.assert_allclose(share / delta, slope, rtol=1e-2)


@EVERY
def test_a_step_of_any_signal_is_a_ddim_step_in_its_noise(schedule):
  t = jnp.array([0.05, 0.3, 0.6, 0.98])
  now, then = schedule(t), schedule(t - 0.04)
  signal, noise, clean = (_normal(i, 4, 2, 3) for i in range(3))
  later = losses.signal_step(signal, clean, now, then)
  x = losses.diffuse(signal, noise, now)
  np.testing.assert_allclose(
    losses.diffuse(later, noise, then),
    losses.ddim_step(x, clean, now, then),
    rtol=1e-4,
    atol=1e-5,
  )


@EVERY
def test_a_step_of_second_order_is_that_of_the_mean_prediction(schedule):
  t = jnp.array([0.3, 0.6])
  now, then = schedule(t), schedule(t - 0.2)
  signal, noise, clean = (_normal(i, 2, 3) for i in range(3))
  denoise = lambda x: x**2
  first = losses.signal_step(signal, clean, now, then)
  second = denoise(losses.diffuse(first, noise, then))
  later = losses.heun_signal_step(
    signal, clean, denoise, noise=noise, now=now, then=then
  )
  expected = losses.signal_step(signal, (clean + second) / 2, now, then)
  np.testing.assert_allclose(later, expected, rtol=1e-6)


@EVERY
def test_predictions_of_noise_and_velocity_give_back_the_example(schedule):
  level = schedule(jnp.array([0.1, 0.5, 0.9]))
  clean, noise = _normal(0, 3, 4), _normal(1, 3, 4)
  x = losses.diffuse(clean, noise, level)
  velocity = losses.diffuse(noise, -clean, level)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  close(losses.clean_from_noise(x, noise, level), clean)
  close(losses.clean_from_velocity(x, velocity, level), clean)


def test_guidance_of_weight_1_is_the_condition_and_of_0_is_none():
  conditional, unconditional = _normal(0, 2, 3), _normal(1, 2, 3)
  guided = losses.guide(conditional, unconditional, scale=jnp.array([1.0, 0.0]))
  np.testing.assert_allclose(guided[0], conditional[0], rtol=1e-5)
  np.testing.assert_allclose(guided[1], unconditional[1], rtol=1e-5)


def test_the_target_of_boot_is_a_constant_of_the_gradient():
  def loss(student, earlier, share):
    target = earlier + share * (1 - earlier)
    return losses.boot(student, target, share=share, interval=0.04).sum()

  args = _normal(0, 3, 4), _normal(1, 3, 4), jnp.float32(0.3)
  ours, earlier, share = jax.grad(loss, (0, 1, 2))(*args)
  assert jnp.abs(ours).max() > 0
  np.testing.assert_array_equal(earlier, 0)
  np.testing.assert_array_equal(share, 0)


def test_boot_is_finite_where_the_step_was_cut_off_to_nothing():
  student, target = _normal(0, 2, 4), _normal(1, 2, 4)
  values = losses.boot(
    student, target, share=jnp.array([0.0, 0.5]), interval=0.04
  )
  square = jnp.mean((student - target) ** 2, axis=-1)
  np.testing.assert_allclose(
    values, square / jnp.array([1e-6, 0.25]), rtol=1e-5
  )


def test_the_three_weightings_differ_by_known_factors():
  student, target = _normal(0, 2, 4), _normal(1, 2, 4)
  signal, delta, none = (
    losses.boot(student, target, share=0.2, interval=0.04, weighting=weighting)
    for weighting in ("signal", "delta", "none")
  )
  np.testing.assert_allclose(none, losses.denoising(student, target))
  np.testing.assert_allclose(signal, none / 0.04, rtol=1e-6)
  np.testing.assert_allclose(delta, none / 0.0016, rtol=1e-6)


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"weighting": "kappa"}, "weighting='kappa'; expected one of signal, "),
    ({"interval": 0.0}, "interval=0.0; expected a value above 0"),
    ({"least_share": 0}, "least_share=0; expected a value above 0"),
    ({"share": jnp.ones(2)}, r"share \(2,\) for arrays \(3,\); expected a num"),
    ({"target": jnp.ones((3, 5))}, r"target \(3, 5\); expected one shape"),
  ],
)
def test_wrong_arguments_of_boot_are_refused(changed, message):
  right = {"target": jnp.ones((3, 4)), "share": 0.2, "interval": 0.04}
  with pytest.raises(ValueError, match=f"boot: .*{message}"):
    losses.boot(jnp.ones((3, 4)), **right | changed)


def test_levels_that_do_not_fit_the_examples_are_refused():
  level = losses.CosineNoise()(jnp.ones(2) / 2)
  x = jnp.ones((3, 4))
  with pytest.raises(ValueError, match=r"diffuse: level \(2,\) for arrays"):
    losses.diffuse(x, x, level)
  with pytest.raises(ValueError, match=r"signal_step: levels \(2,\)"):
    losses.signal_step(x, x, level, level)
  with pytest.raises(ValueError, match="ddim_step: .*expected one shape"):
    losses.ddim_step(x, x[:2], level, level)


# Samples of a Gaussian model: its best denoiser and its trajectories are known.


def _spread(level):
  """Deviation of x_t, [..., 3]."""
  alpha, sigma = (jnp.expand_dims(part, -1) for part in level)
  return jnp.sqrt((alpha * DEVIATION[None]) ** 2 + sigma**2)


def _denoise(schedule, x, t):
  alpha = schedule(t).alpha[:, None]
  gain = alpha * DEVIATION[None] ** 2 / _spread(schedule(t)) ** 2
  return MEAN[None] + gain * (x - alpha * MEAN[None])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _error(sample, schedule, steps):
  """Largest distance from where the differential equation leads."""
  times = jnp.linspace(0.95, 0.05, steps + 1)
  first, last = schedule(times[:1]), schedule(times[-1:])
  x = first.alpha[:, None] * MEAN[None] + _spread(first) * _normal(0, 16, 3)
  ends = sample(functools.partial(_denoise, schedule), x, times, schedule)
  scaled = (x - first.alpha[:, None] * MEAN[None]) / _spread(first)
  expected = last.alpha[:, None] * MEAN[None] + _spread(last) * scaled
  return jnp.abs(ends - expected).max()


@EVERY
def test_many_ddim_steps_follow_the_differential_equation(schedule):
  assert _error(losses.ddim_sample, schedule, 8000) < 1e-3


@EVERY
@pytest.mark.parametrize(
  ("sample", "fall"),
  [(losses.ddim_sample, 2.0), (losses.heun_sample, 4.0)],
  ids=["first order", "second order"],
)
def test_the_error_falls_with_the_steps_by_the_order(schedule, sample, fall):
  coarse, fine = (_error(sample, schedule, steps) for steps in (40, 80))
  assert 0.8 * fall < coarse / fine < 1.3 * fall


@EVERY
def test_second_order_is_closer_at_equal_evaluations(schedule):
  heun = _error(losses.heun_sample, schedule, 20)
  assert heun < _error(losses.ddim_sample, schedule, 40) / 2


def test_a_single_step_to_time_0_is_the_denoised_example():
  schedule, x = losses.CosineNoise(), _normal(0, 4, 3)
  denoise = functools.partial(_denoise, schedule)
  ends = losses.ddim_sample(denoise, x, jnp.array([1.0, 0.0]), schedule)
  np.testing.assert_allclose(ends, denoise(x, jnp.ones(4)), rtol=1e-5)


def test_samples_of_half_precision_noise_are_in_float32():
  schedule, x = losses.CosineNoise(), _normal(0, 4, 2, 3).astype(jnp.bfloat16)
  ends = losses.heun_sample(
    lambda x, t: x.astype(jnp.bfloat16), x, jnp.array([0.9, 0.5]), schedule
  )
  assert (ends.shape, ends.dtype) == ((4, 2, 3), jnp.float32)


@pytest.mark.parametrize("sample", [losses.ddim_sample, losses.heun_sample])
def test_a_single_time_is_refused(sample):
  with pytest.raises(ValueError, match=r"times \(1,\); expected \[N \+ 1\]"):
    sample(lambda x, t: x, jnp.ones((2, 3)), jnp.ones(1), losses.CosineNoise())
