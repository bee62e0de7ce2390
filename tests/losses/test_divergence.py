"""What the dense divergences are to each other, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses

FAMILY = (
  losses.KL(),
  losses.ReverseKL(),
  losses.SymmetricKL(),
  losses.JSD(0.1),
  losses.SkewKL(),
  losses.SkewReverseKL(),
  losses.AdaptiveKL(),
  losses.TotalVariation(),
  losses.AlphaDivergence(),
  losses.RenyiDivergence(),
)
EVERY = pytest.mark.parametrize("divergence", FAMILY, ids=lambda d: d.name)


def _logits(*shape, scale=2.0):
  keys = jax.random.split(jax.random.key(sum(shape)))
  return tuple(scale * jax.random.normal(key, shape) for key in keys)


def _equal(first, second, rtol=2e-5):
  np.testing.assert_allclose(first, second, rtol=rtol, atol=1e-6)


# The arguments of all.


def test_the_class_axis_can_be_any():
  student, teacher = _logits(2, 7, 3)
  last = losses.kl(student, teacher, temperature=2.0)
  swapped = (x.swapaxes(1, 2) for x in (student, teacher))
  _equal(losses.kl(*swapped, temperature=2.0, axis=1), last)


def test_a_caller_that_stops_the_teacher_gets_the_detached_form():
  student, teacher = _logits(3, 5)

  def mean(student, teacher):
    teacher = jax.lax.stop_gradient(teacher)
    return losses.kl(student, teacher, temperature=3.0).mean()

  to_student, to_teacher = jax.jit(jax.grad(mean, (0, 1)))(student, teacher)
  q, p = (jax.nn.softmax(x / 3.0) for x in (student, teacher))
  _equal(to_student, 3.0 * (q - p) / 3, rtol=1e-4)  # T (q - p) over B
  np.testing.assert_array_equal(to_teacher, np.zeros_like(teacher))


@EVERY
def test_every_position_can_have_its_temperature(divergence):
  student, teacher = _logits(3, 5)
  temperatures = jnp.array([1.0, 2.0, 7.0])
  together = divergence(student, teacher, temperature=temperatures)
  for n, temperature in enumerate((1.0, 2.0, 7.0)):
    alone = divergence(student[n], teacher[n], temperature=temperature)
    _equal(together[n], alone)


@EVERY
def test_padding_classes_of_unequal_number_do_not_count(divergence):
  student, teacher = _logits(3, 5)
  wide = jnp.pad(student, ((0, 0), (0, 2)), constant_values=9.0)
  wider = jnp.pad(teacher, ((0, 0), (0, 4)), constant_values=jnp.nan)
  padded = divergence(wide, wider, vocab_size=5)
  np.testing.assert_array_equal(padded, divergence(student, teacher))


def test_caps_are_of_both_networks_or_of_one():
  student, teacher = _logits(3, 5, scale=20.0)
  capped = losses.kl(student, teacher, soft_cap=(None, 8.0))
  _equal(capped, losses.kl(student, 8 * jnp.tanh(teacher / 8)))
  both = losses.kl(student, teacher, soft_cap=8.0)
  _equal(both, losses.kl(student, teacher, soft_cap=(8.0, 8.0)))


def test_standardized_logits_ignore_shift_and_scale_of_either_side():
  student, teacher = _logits(3, 5)
  scaled = losses.kl(3 * student + 1, 0.5 * teacher - 2, standardize=True)
  _equal(scaled, losses.kl(student, teacher, standardize=True), rtol=1e-4)


# Identities and limits.


def test_at_high_temperature_kl_is_the_squared_error_of_centred_logits():
  student, teacher = _logits(4, 6)
  values = losses.kl(student, teacher, temperature=1e3)
  gap = student - teacher
  gap -= gap.mean(-1, keepdims=True)
  expected = (gap**2).sum(-1) / (2 * gap.shape[-1])
  np.testing.assert_allclose(values, expected, rtol=5e-3)


def test_a_class_that_the_teacher_excludes_adds_nothing_to_kl():
  student = jnp.array([[1.0, 2.0, 3.0]])
  teacher = jnp.array([[0.5, -0.5, -jnp.inf]])
  p = jax.nn.softmax(teacher[:, :2])
  log_q = jax.nn.log_softmax(student)[:, :2]
  expected = jnp.sum(p * (jnp.log(p) - log_q), -1)
  _equal(losses.kl(student, teacher), expected)


def test_kl_is_infinite_where_the_student_excludes_what_the_teacher_has():
  student = jnp.array([0.0, -jnp.inf])
  assert losses.kl(student, jnp.zeros(2)) == jnp.inf
  assert losses.reverse_kl(jnp.zeros(2), student) == jnp.inf
  assert np.isfinite(losses.JSD()(student, jnp.zeros(2)))


def test_each_direction_is_the_other_with_the_networks_exchanged():
  student, teacher = _logits(4, 6)
  _equal(losses.reverse_kl(student, teacher), losses.kl(teacher, student))
  skew = losses.SkewReverseKL()(student, teacher)
  _equal(skew, losses.SkewKL()(teacher, student))
  jsd = losses.JSD(0.2)(student, teacher)
  _equal(jsd, losses.JSD(0.8)(teacher, student))


def test_the_ends_of_the_weights_are_the_two_directions():
  pair = _logits(4, 6)
  forward, reverse = losses.kl(*pair), losses.reverse_kl(*pair)
  _equal(losses.SymmetricKL(0.0)(*pair), forward)
  _equal(losses.SymmetricKL(1.0)(*pair), reverse)
  _equal(losses.SkewKL(0.0)(*pair), forward)
  _equal(losses.SkewReverseKL(0.0)(*pair), reverse)
  _equal(losses.AdaptiveKL(1.0)(*pair), forward)


@pytest.mark.parametrize(
  "close", [losses.AlphaDivergence, losses.RenyiDivergence]
)
def test_powers_tend_to_kl(close):
  pair = _logits(4, 6)
  _equal(close(0.999)(*pair), losses.kl(*pair), rtol=2e-2)
  if close is losses.AlphaDivergence:
    _equal(close(0.001)(*pair), losses.reverse_kl(*pair), rtol=2e-2)


def test_alpha_divergences_at_a_half_and_at_two_are_hellinger_and_pearson():
  pair = _logits(4, 6)
  q, p = (jax.nn.softmax(x) for x in pair)
  hellinger = 4 * (0.5 * (jnp.sqrt(p) - jnp.sqrt(q)) ** 2).sum(-1)
  _equal(losses.AlphaDivergence(0.5)(*pair), hellinger)
  pearson = 0.5 * ((p - q) ** 2 / q).sum(-1)
  _equal(losses.AlphaDivergence(2.0)(*pair), pearson, rtol=1e-4)


def test_jsd_over_its_weight_tends_to_kl_and_conventions_agree_at_a_half():
  pair = _logits(4, 6, scale=1.0)
  _equal(losses.JSD(1e-3)(*pair) / 1e-3, losses.kl(*pair), rtol=2e-2)
  other = losses.JSD(1e-3, "student")(*pair)
  _equal(other, losses.reverse_kl(*pair), rtol=2e-2)
  half = losses.JSD(0.5, "student")(*pair)
  _equal(half, losses.JSD(0.5)(*pair))


def test_jsd_and_total_variation_are_bounded_on_disjoint_support():
  student, teacher = jnp.array([50.0, -50.0]), jnp.array([-50.0, 50.0])
  _equal(losses.JSD()(student, teacher), np.log(2))
  _equal(losses.TotalVariation()(student, teacher), 1.0)


# What is refused.


def _refused(message, divergence=losses.kl, shapes=((2, 3), (2, 3)), **options):
  with pytest.raises(ValueError, match=message):
    divergence(*(jnp.ones(shape) for shape in shapes), **options)


def test_logits_of_two_shapes_are_refused():
  message = "KL: 3 student classes and 4 teacher classes on axis -1; expected"
  _refused(message, shapes=((2, 3), (2, 4)))
  message = r"student logits \(2, 3\) and teacher logits \(5, 3\); expected one"
  _refused(message, shapes=((2, 3), (5, 3)))
  message = r"student logits \(2, 2\), teacher logits \(3,\), class axis 1; exp"
  _refused(message, shapes=((2, 3), (3,)), axis=1, vocab_size=2)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
  message = f"KL: temperature={temperature}; expected a value above 0"
  _refused(message, temperature=temperature)


def test_temperatures_of_another_shape_are_refused():
  message = r"temperature \(3,\); expected a number or one per position, \(2,\)"
  _refused(message, temperature=jnp.ones(3))


def test_a_mask_of_another_shape_is_refused():
  message = (
    r"KL: where \(3,\); expected \(2,\), the shape of the logits without"
  )
  _refused(message, where=jnp.ones(3))


def test_a_vocabulary_that_is_larger_than_the_classes_is_refused():
  message = "KL: vocab_size=4; expected 1 to 3, the student's classes"
  _refused(message, vocab_size=4)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: losses.JSD(0.0), "JSD: beta=0.0; expected a value between 0 and"),
    (lambda: losses.JSD(0.5, "both"), "mixture='both'; expected one of teach"),
    (lambda: losses.SkewKL(1.5), "SkewKL: alpha=1.5; expected 0 to 1"),
    (lambda: losses.SkewReverseKL(-1), "SkewReverseKL: alpha=-1; expected 0"),
    (lambda: losses.SymmetricKL(2), "SymmetricKL: reverse_weight=2; expected"),
    (lambda: losses.AdaptiveKL(2), "AdaptiveKL: head_mass=2; expected 0 to 1"),
    (lambda: losses.AlphaDivergence(1.0), "alpha=1.0; expected another value"),
    (lambda: losses.RenyiDivergence(0), "alpha=0; expected another value"),
    (lambda: losses.RenyiDivergence(-2), "alpha=-2; expected a value above 0"),
  ],
)
def test_a_parameter_out_of_range_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
