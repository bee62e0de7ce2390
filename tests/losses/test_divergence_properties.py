"""Every divergence in every form equals float64 NumPy, value and gradient.

The forms are dense, top-k (all classes, a bucket for the rest, renormalised),
sharded over two devices, and linear by rows and by pieces of the vocabulary.
One compiled program computes the whole family for a form; the oracle gets the
very same rounded logits.
"""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.losses import oracle
from tests.losses.compiled import losses

ROWS, CLASSES = 4, 9
FAMILY = {
  losses.KL(): oracle.kl,
  losses.ReverseKL(): oracle.reverse_kl,
  losses.SymmetricKL(0.3): functools.partial(oracle.symmetric_kl, w=0.3),
  losses.JSD(): oracle.jsd,
  losses.JSD(0.1): functools.partial(oracle.jsd, beta=0.1),
  losses.JSD(0.1, "student"): functools.partial(
    oracle.jsd, beta=0.1, share=0.9
  ),
  losses.SkewKL(): oracle.skew_kl,
  losses.SkewReverseKL(): oracle.skew_reverse_kl,
  losses.AdaptiveKL(): oracle.adaptive_kl,
  losses.TotalVariation(): oracle.total_variation,
  losses.AlphaDivergence(): oracle.alpha_divergence,
  losses.AlphaDivergence(2.0): functools.partial(
    oracle.alpha_divergence, a=2.0
  ),
  losses.RenyiDivergence(): oracle.renyi,
  losses.RenyiDivergence(1.5): functools.partial(oracle.renyi, a=1.5),
}
# Those compiled again for other options, types and shapes.
FEW = (
  losses.KL(),
  losses.JSD(0.1),
  losses.AdaptiveKL(),
  losses.RenyiDivergence(),
)
# Caps of both, two padding classes, logits standardized where a form can.
OPTIONS = {"soft_cap": (6.0, 5.0), "vocab_size": CLASSES - 2}
TOPK = {"top_all": CLASSES, "top_3": 3, "top_3_renormalized": 3}
FORMS = ("dense", *TOPK, "sharded", "linear", "linear_pieces")
EVERY_FORM = pytest.mark.parametrize("form", FORMS)
ONE_OF_EACH = pytest.mark.parametrize(
  "form", ["dense", "top_3", "sharded", "linear"]
)


def _call(form, divergence, student, teacher, **options):
  """Values [N], or their sum where the form gives that."""
  if form == "dense":
    return divergence(student, teacher, **options)
  if form in TOPK:
    tail = "renormalize" if "renorm" in form else "bucket"
    return losses.topk_divergence(
      divergence, student, teacher, tail=tail, **options
    )
  if form == "sharded":
    mesh = jax.make_mesh((2,), ("tensor",), devices=jax.devices()[:2])
    return losses.sharded_divergence(
      divergence, student, teacher, mesh=mesh, **options
    )
  head = jnp.eye(student.shape[-1], dtype=student.dtype)
  pieces = form == "linear_pieces" and not isinstance(
    divergence, losses.AdaptiveKL
  )
  return losses.linear_divergence(
    divergence,
    student,
    head,
    teacher,
    head,
    token_chunk=3,
    vocab_chunk=4 if pieces else None,
    **options,
  )


def _options(form, full):
  if not full:
    return {}
  if form in TOPK:
    return {**OPTIONS, "soft_cap": OPTIONS["soft_cap"][0]}
  return {**OPTIONS, "standardize": form != "linear_pieces"}


@functools.cache
def _compiled(form, family, full):
  """A compiled function to the values and gradients of some divergences."""

  @jax.jit
  def run(student, teacher, where, temperature):
    def one(divergence):
      def total(student):
        values = _call(
          form,
          divergence,
          student,
          teacher,
          where=where,
          temperature=temperature,
          **_options(form, full),
        )
        return jnp.sum(values), values

      gradient, values = jax.grad(total, has_aux=True)(student)
      return values, gradient

    return [one(divergence) for divergence in family]

  return run


def _run(form, student, teacher, where=None, temperature=1.0, full=False):
  """The teacher as the form has it, and (values, gradient) by divergence."""
  if form in TOPK:
    logits = jnp.asarray(teacher, jnp.float32)
    if full:
      cap, size = OPTIONS["soft_cap"][1], OPTIONS["vocab_size"]
      logits = losses.soft_cap(logits, cap)[:, :size]
    k = min(TOPK[form], logits.shape[-1])
    teacher = losses.TopK.of(logits, k)
  where = np.ones(len(student), bool) if where is None else where
  few = full or student.dtype != np.float32 or student.shape != (ROWS, CLASSES)
  family = FEW if few else tuple(FAMILY)
  run = _compiled(form, family, full)
  found = run(student, teacher, where, jnp.float32(temperature))
  found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
  return teacher, dict(zip(family, found, strict=True))


def _expected(form, formula, student, teacher, temperature, full):
  if not full:
    options = oracle.Options(temperature=temperature)
  else:
    options = oracle.Options(
      temperature=temperature,
      caps=OPTIONS["soft_cap"],
      vocab_size=OPTIONS["vocab_size"],
      standardize=_options(form, full).get("standardize", False),
    )
  if form not in TOPK:
    return oracle.dense(formula, student, teacher, options)
  return oracle.topk(
    formula,
    student,
    np.asarray(teacher.ids),
    np.asarray(teacher.log_probs),
    options,
    bucket="renorm" not in form,
  )


def _logits(seed, scale, apart=1.0, dtype=jnp.float32):
  random = np.random.default_rng(seed)
  teacher = scale * random.normal(size=(ROWS, CLASSES))
  noise = scale * random.normal(size=(ROWS, CLASSES))
  student = noise if apart == 1 else teacher + apart * noise
  return tuple(np.array(jnp.asarray(x, dtype)) for x in (student, teacher))


CASES = {
  "seed": st.integers(0, 2**20),
  "scale": st.sampled_from([0.3, 1.0, 4.0]),
  "apart": st.sampled_from([1.0, 0.05]),
  "temperature": st.sampled_from([0.7, 1.0, 2.0, 4.0]),
}


def _given(examples, **cases):
  def wrap(test):
    return hypothesis.settings(max_examples=examples, database=None)(
      hypothesis.given(**(cases or CASES))(test)
    )

  return wrap


def _equals_the_oracle(form, student, teacher, temperature, full):
  where = np.arange(ROWS) != 1
  bad = [np.where(where[:, None], x, np.nan) for x in (student, teacher)]
  bad = [x.astype(student.dtype) for x in bad]
  given, found = _run(form, *bad, where, temperature, full)
  half = student.dtype == jnp.bfloat16
  for divergence, (values, gradient) in found.items():
    formula = FAMILY[divergence]
    args = (*(x.astype(np.float64) for x in (student, teacher)),)
    if form in TOPK:
      args = (args[0], given)
    with np.errstate(invalid="ignore"):
      value, slope = _expected(form, formula, *args, temperature, full)
    value, slope = value * where, np.where(where[:, None], slope, 0.0)
    if form.startswith("linear"):
      value = value.sum()
    np.testing.assert_allclose(
      values, value, rtol=2e-3, atol=2e-6 * temperature**2, err_msg=divergence
    )
    np.testing.assert_allclose(
      gradient,
      slope,
      rtol=1e-2 if half else 1e-3,
      atol=max(2e-6, (1e-3 if half else 1e-5) * np.abs(slope).max()),
      err_msg=divergence,
    )
    np.testing.assert_array_equal(gradient[1], 0)


@EVERY_FORM
@_given(8)
def test_value_and_gradient_equal_the_oracle(
  form, seed, scale, apart, temperature
):
  logits = _logits(seed, scale, apart)
  _equals_the_oracle(form, *logits, temperature, full=False)


@pytest.mark.slow  # compiles the family once more
@ONE_OF_EACH
@_given(5)
def test_so_they_do_with_caps_padding_and_standardized_logits(
  form, seed, scale, apart, temperature
):
  logits = _logits(seed, scale, apart)
  _equals_the_oracle(form, *logits, temperature, full=True)


@ONE_OF_EACH
@_given(5)
def test_so_they_do_for_bfloat16_logits(form, seed, scale, apart, temperature):
  logits = _logits(seed, scale, apart, jnp.bfloat16)
  _equals_the_oracle(form, *logits, temperature, full=False)


@EVERY_FORM
@_given(4, seed=CASES["seed"], temperature=CASES["temperature"])
def test_a_student_that_is_the_teacher_costs_nothing(form, seed, temperature):
  logits, _ = _logits(seed, 2.0)
  _, found = _run(form, logits, logits, temperature=temperature)
  for divergence, (values, gradient) in found.items():
    np.testing.assert_allclose(values, 0, atol=1e-5, err_msg=divergence)
    if divergence == losses.TotalVariation():
      continue  # any sign is a subgradient where probabilities round apart
    np.testing.assert_allclose(gradient, 0, atol=1e-5, err_msg=divergence)


@EVERY_FORM
@_given(4, seed=CASES["seed"], shift=st.sampled_from([-50.0, 3.0, 200.0]))
def test_constants_added_to_the_logits_change_nothing(form, seed, shift):
  student, teacher = _logits(seed, 1.0)
  _, found = _run(form, student + np.float32(shift), teacher - np.float32(7))
  _, plain = _run(form, student, teacher)
  for divergence in found:
    for x, y in zip(found[divergence], plain[divergence], strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4, err_msg=divergence)


def _finite(form, student, teacher, **options):
  _, found = _run(form, student, teacher, **options)
  for divergence, (values, gradient) in found.items():
    assert np.isfinite(values).all(), divergence
    assert np.isfinite(gradient).all(), divergence
  return found


@EVERY_FORM
def test_huge_logits_give_finite_values_and_gradients(form):
  student, teacher = (1e4 * np.sign(x) for x in _logits(3, 1.0))
  _finite(form, student, teacher)
  _finite(form, student, student)


@pytest.mark.parametrize("form", [f for f in FORMS if "linear" not in f])
def test_absent_classes_and_rows_give_finite_values_and_gradients(form):
  student, teacher = _logits(4, 1.0)
  for logits in (student, teacher):
    logits[:2, 5:] = -np.inf
    logits[2] = -np.inf
  for values, gradient in _finite(form, student, teacher).values():
    np.testing.assert_array_equal(values[2], 0)
    np.testing.assert_array_equal(gradient[2], 0)
    np.testing.assert_array_equal(gradient[:2, 5:], 0)


@pytest.mark.slow  # compiles the family once more
@ONE_OF_EACH
def test_one_example_of_one_class_costs_nothing(form):
  logits = np.full((1, 1), 3.0, np.float32)
  for values, gradient in _finite(form, logits, logits - 9).values():
    np.testing.assert_array_equal(values, np.zeros_like(values))
    np.testing.assert_array_equal(gradient, [[0.0]])


# Small divergences of a large vocabulary, from bfloat16 logits.

VOCABULARY = 32_768


@functools.cache
def _close_pair(target):
  """bfloat16 logits [1, V] whose exact KL is near the target, and that KL."""
  random = np.random.default_rng(0)
  logits, noise = random.normal(size=(2, 1, VOCABULARY))
  low, high = 0.0, 1.0
  for _ in range(30):
    apart = (low + high) / 2
    student, teacher = (
      np.array(jnp.asarray(x, jnp.bfloat16))
      for x in (logits + apart * noise, logits)
    )
    exact, _ = oracle.dense(oracle.kl, student, teacher, oracle.Options())
    low, high = (apart, high) if exact[0] < target else (low, apart)
  assert abs(exact[0] / target - 1) < 0.1
  return student, teacher


@pytest.mark.parametrize("target", [5e-3, 5e-5])
@EVERY_FORM
def test_small_divergences_of_bfloat16_logits_keep_their_digits(form, target):
  student, teacher = _close_pair(target)
  if form in TOPK:
    k = VOCABULARY if form == "top_all" else 1000
    top = losses.TopK.of(teacher, k)
    value = _call(form, losses.kl, student, top)
    exact, _ = _expected(form, oracle.kl, student, top, 1.0, full=False)
  elif "linear" in form:  # rows of a head, picked by one hidden unit
    one = jnp.ones((1, 1), jnp.bfloat16)
    value = losses.linear_divergence(
      losses.kl,
      one,
      student,
      one,
      teacher,
      vocab_chunk=5000 if "pieces" in form else None,
    )
  else:
    value = _call(form, losses.kl, student, teacher)
  if form not in TOPK:
    exact, _ = oracle.dense(oracle.kl, student, teacher, oracle.Options())
  np.testing.assert_allclose(np.ravel(value), exact, rtol=0.02)
