"""Divergences from a teacher of which k classes are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import compiled, losses

# Divergences that merging classes cannot raise.
MERGING = (
  losses.KL(),
  losses.ReverseKL(),
  losses.SymmetricKL(),
  losses.JSD(0.1),
  losses.SkewKL(),
  losses.SkewReverseKL(),
  losses.TotalVariation(),
  losses.AlphaDivergence(),
  losses.AlphaDivergence(2.0),
  losses.RenyiDivergence(),
  losses.RenyiDivergence(2.0),
)
# The others of the family are slow: each is compiled for five sizes.
EVERY = pytest.mark.parametrize(
  "divergence",
  [
    pytest.param(d, marks=pytest.mark.slow if i > 3 else ())
    for i, d in enumerate(MERGING)
  ],
  ids=str,
)
TAILS = pytest.mark.parametrize("tail", ["bucket", "renormalize"])


def _logits(*shape, scale=2.0):
  keys = jax.random.split(jax.random.key(sum(shape)))
  return tuple(scale * jax.random.normal(key, shape) for key in keys)


@EVERY
def test_the_bucket_bounds_the_dense_value_from_below(divergence):
  student, teacher = _logits(20, 12)
  divergence = compiled(divergence)
  dense, last = divergence(student, teacher), 0.0
  for k in (1, 2, 5, 11):
    value = divergence(student, losses.TopK.of(teacher, k))
    # What 11 classes leave of 1 is known to its rounding only.
    assert (value <= dense * (1 + 1e-4) + 1e-6).all()
    assert (value >= last * (1 - 1e-4) - 1e-6).all()  # a finer partition
    last = value


@EVERY
def test_proportional_tails_make_it_equal_to_the_dense_value(divergence):
  student, teacher = _logits(6, 9)
  teacher = jnp.sort(teacher, axis=-1, descending=True)
  student = student.at[:, 3:].set(teacher[:, 3:] - 1.5)
  divergence = compiled(divergence)
  value = divergence(student, losses.TopK.of(teacher, 3))
  dense = divergence(student, teacher)
  np.testing.assert_allclose(value, dense, rtol=1e-4, atol=1e-6)


@TAILS
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_all_classes_make_it_equal_at_any_temperature(tail, temperature):
  student, teacher = _logits(6, 9)
  options = {"temperature": temperature, "soft_cap": (3.0, None)}
  dense = losses.kl(student, teacher, **options)
  value = losses.topk_divergence(
    losses.kl,
    student,
    losses.TopK.of(teacher, 9),
    temperature=temperature,
    soft_cap=3.0,
    tail=tail,
  )
  np.testing.assert_allclose(value, dense, rtol=1e-4, atol=1e-6)


def test_the_bucket_is_tempered_as_one_class():
  student, teacher = _logits(6, 9)
  top = losses.TopK.of(teacher, 2)
  value = losses.kl(student, top, temperature=3.0)

  def slots(logits):
    probabilities = jax.nn.softmax(logits)
    head = jnp.take_along_axis(probabilities, top.ids, axis=-1)
    rest = 1 - head.sum(-1, keepdims=True)
    return jnp.log(jnp.concatenate([head, rest], axis=-1))

  expected = losses.kl(slots(student), slots(teacher), temperature=3.0)
  np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_renormalised_it_is_the_dense_form_of_the_known_classes_alone():
  student, teacher = _logits(6, 9)
  top = losses.TopK.of(teacher, 4)
  value = losses.topk_divergence(
    losses.kl, student, top, temperature=3.0, tail="renormalize"
  )
  ours, theirs = (
    jnp.take_along_axis(x, top.ids, axis=-1) for x in (student, teacher)
  )
  expected = losses.kl(ours, theirs, temperature=3.0)
  np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_renormalised_one_class_says_nothing_and_the_bucket_does():
  student, teacher = _logits(6, 9)
  top = losses.TopK.of(teacher, 1)

  def total(student, tail):
    return losses.topk_divergence(losses.kl, student, top, tail=tail).sum()

  for call in (total, jax.jit(jax.grad(total), static_argnums=1)):
    np.testing.assert_array_equal(call(student, "renormalize"), 0)
    assert np.abs(call(student, "bucket")).max() > 0.1


@TAILS
def test_an_entry_that_was_not_returned_does_not_count(tail):
  student, teacher = _logits(6, 9)
  top = losses.TopK.of(teacher, 3)
  fewer = losses.TopK.of(teacher, 2)
  for wrong in (0, -1, 99):  # whatever stands in for the class
    missing = losses.TopK(
      ids=top.ids.at[:, 2].set(wrong),
      log_probs=top.log_probs.at[:, 2].set(-jnp.inf),
    )
    values, expected = (
      losses.topk_divergence(losses.kl, student, t, tail=tail)
      for t in (missing, fewer)
    )
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@TAILS
def test_a_position_of_which_nothing_was_returned_costs_nothing(tail):
  student, teacher = _logits(2, 5)
  top = losses.TopK.of(teacher, 3)
  nothing = losses.TopK(top.ids, jnp.full_like(top.log_probs, -jnp.inf))

  def total(student):
    return losses.topk_divergence(losses.kl, student, nothing, tail=tail).sum()

  value, gradient = jax.jit(jax.value_and_grad(total))(student)
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_a_small_bucket_of_the_student_keeps_its_digits():
  logits = jnp.array([[30.0, 0.0, 1.0, 2.0]])  # 1 - sum would leave nothing
  top = losses.TopK(jnp.array([[0]]), jnp.log(jnp.array([[0.5]])))
  value, gradient = jax.jit(
    jax.value_and_grad(lambda s: losses.kl(s, top).sum())
  )(logits)
  rest = np.exp([0.0, 1.0, 2.0]).sum() / (np.exp(30.0) + 1 + np.e + np.e**2)
  expected = np.log(0.5) - 0.5 * np.log(rest) - 0.5 * np.log1p(-rest)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  shares = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
  np.testing.assert_allclose(gradient[0, 1:], -0.5 * shares, rtol=1e-5)


@pytest.mark.parametrize(
  "certain", [0.0, pytest.param(1e-4, marks=pytest.mark.slow)]
)
def test_a_teacher_whose_sum_reaches_one_stays_finite(certain):
  student, _ = _logits(3, 5)
  top = losses.TopK(
    jnp.zeros((3, 1), jnp.int32), jnp.full((3, 1), certain, jnp.float32)
  )
  for divergence in MERGING:
    call = compiled(divergence)
    value, gradient = jax.value_and_grad(lambda s, f=call: f(s, top).sum())(
      student
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_what_the_teacher_left_out_is_found_to_its_last_digits():
  certain = jnp.log1p(-jnp.array([[3e-6]], jnp.float32))
  top = losses.TopK(jnp.zeros((1, 1), jnp.int32), certain)
  logits = jnp.zeros((1, 2))
  p = 3e-6
  expected = np.log(2) + p * np.log(p) + (1 - p) * np.log1p(-p)
  np.testing.assert_allclose(losses.kl(logits, top), expected, rtol=1e-6)


# What is refused.


def test_what_a_top_k_teacher_cannot_give_is_refused():
  student, teacher = _logits(2, 5)
  top = losses.TopK.of(teacher, 2)
  with pytest.raises(ValueError, match="KL: axis=0, standardize=False with a"):
    losses.kl(student, top, axis=0)
  with pytest.raises(ValueError, match="standardized logits need access 'whi"):
    losses.kl(student, top, standardize=True)
  with pytest.raises(ValueError, match="TopK.of: k=6; expected 1 to 5, the cl"):
    losses.TopK.of(teacher, 6)


def test_classes_that_do_not_fit_the_student_are_refused():
  student, teacher = _logits(2, 5)
  top = losses.TopK.of(teacher, 4)
  message = r"KL: student logits \(3, 5\), teacher ids \(2, 4\), teacher log_pr"
  with pytest.raises(ValueError, match=message):
    losses.kl(jnp.ones((3, 5)), top)
  with pytest.raises(ValueError, match="4 classes of the teacher; expected at"):
    losses.kl(student, top, vocab_size=3)
  with pytest.raises(ValueError, match="teacher ids are float32; expected int"):
    losses.kl(student, losses.TopK(top.log_probs, top.log_probs))
  with pytest.raises(ValueError, match="tail='drop'; expected one of bucket"):
    losses.topk_divergence(losses.kl, student, top, tail="drop")
