"""The chunked form equals the dense one, in tiles of any size, and is small.

Dense is the same divergence of `hidden @ head`, in float32: rtol 2e-5, atol
5e-6 for sums of 21 tokens.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

from tests.losses.compiled import losses

TOKENS, CLASSES, WIDTH, TEACHER_WIDTH = (3, 7), 50, 8, 6
CLOSE = {"rtol": 2e-5, "atol": 5e-6}
DIVERGENCES = {
  divergence.name: divergence
  for divergence in (
    losses.KL(),
    losses.ReverseKL(),
    losses.SymmetricKL(0.3),
    losses.JSD(0.2),
    losses.SkewKL(),
    losses.SkewReverseKL(),
    losses.AdaptiveKL(),
    losses.TotalVariation(),
    losses.AlphaDivergence(0.4),
    losses.RenyiDivergence(0.7),
  )
}
PIECES = pytest.mark.parametrize("vocab_chunk", [None, 16])
RANDOM = np.random.default_rng(0)


def _normal(*shape):
  return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


HIDDEN = _normal(*TOKENS, WIDTH)
HEAD = _normal(WIDTH, CLASSES)
TEACHER = _normal(*TOKENS, TEACHER_WIDTH), _normal(TEACHER_WIDTH, CLASSES)
WHERE = jnp.asarray(RANDOM.random(TOKENS) < 0.6)


def _dense(
  divergence,
  hidden,
  head,
  *teacher,
  student_bias=None,
  teacher_bias=None,
  **how,
):
  """The sum over positions of the dense form."""
  logits = [hidden @ head, stop_gradient(jnp.matmul(*teacher))]
  for n, bias in enumerate((student_bias, teacher_bias)):
    if bias is not None:
      logits[n] += jnp.broadcast_to(bias, logits[n].shape)
  return jnp.sum(divergence(*logits, **how))


def _with_gradients(loss, *arrays, **how):
  run = jax.jit(jax.value_and_grad(functools.partial(loss, **how), (0, 1)))
  return run(*arrays)


def _assert_same(result, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or CLOSE)),
    result,
    expected,
  )


def _assert_equals_dense(divergence, chunks, **how):
  both = []
  for form in (losses.linear_divergence, _dense):
    given = chunks if form is losses.linear_divergence else {}
    loss = functools.partial(form, divergence, **how, **given)
    both.append(_with_gradients(loss, HIDDEN, HEAD, *TEACHER))
  _assert_same(*both)


@PIECES
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(d, marks=() if d in ("KL", "JSD") else pytest.mark.slow)
    for d in DIVERGENCES
  ],
)
def test_value_and_gradients_equal_those_of_the_dense_form(name, vocab_chunk):
  if name == "AdaptiveKL" and vocab_chunk:
    pytest.skip("needs whole rows")
  _assert_equals_dense(
    DIVERGENCES[name],
    {"token_chunk": 4, "vocab_chunk": vocab_chunk},
    temperature=2.0,
    soft_cap=(3.0, None),
  )


@pytest.mark.parametrize(
  ("token_chunk", "vocab_chunk"),
  [
    (1, None),
    (21, None),
    (1000, None),
    (1, 7),
    (4, 1),
    (21, 25),
    (99, 50),
    (4, 999),
  ],
)
def test_tiles_may_have_any_size(token_chunk, vocab_chunk):
  chunks = {"token_chunk": token_chunk, "vocab_chunk": vocab_chunk}
  _assert_equals_dense(losses.JSD(0.3), chunks)


@PIECES
def test_a_temperature_per_token_belongs_to_its_token(vocab_chunk):
  temperature = 1 + jnp.asarray(RANDOM.random(TOKENS), jnp.float32)
  _assert_equals_dense(
    losses.kl,
    {"token_chunk": 4, "vocab_chunk": vocab_chunk},
    temperature=temperature,
  )


def test_logits_may_be_standardized():
  _assert_equals_dense(
    losses.kl, {"token_chunk": 4}, standardize=True, temperature=2.0
  )


@PIECES
def test_biases_are_added_and_an_infinite_one_removes_a_class(vocab_chunk):
  biases = {
    f"{who}_bias": _normal(CLASSES).at[3].set(-jnp.inf)
    for who in ("student", "teacher")
  }
  chunks = {"token_chunk": 4, "vocab_chunk": vocab_chunk}
  _assert_equals_dense(losses.JSD(0.3), chunks, **biases)

  def loss(form, bias, **how):
    how |= {"teacher_bias": biases["teacher_bias"], "student_bias": bias}
    return form(losses.JSD(0.3), HIDDEN, HEAD, *TEACHER, **how)

  bias = biases["student_bias"]
  _assert_same(
    jax.grad(lambda b: loss(losses.linear_divergence, b, **chunks))(bias),
    jax.grad(lambda b: loss(_dense, b))(bias),
  )


@PIECES
def test_tokens_left_out_may_hold_anything(vocab_chunk):
  bad = [jnp.where(WHERE[..., None], x, jnp.nan) for x in (HIDDEN, TEACHER[0])]
  bad[1] = jnp.where(jnp.isnan(bad[1]), jnp.inf, bad[1])
  temperature = jnp.where(WHERE, 2.0, jnp.nan)
  weights = jnp.where(WHERE, 0.5, jnp.nan)
  value, (to_hidden, to_head) = _with_gradients(
    lambda hidden, head: losses.linear_divergence(
      losses.kl, hidden, head, bad[1], TEACHER[1], temperature=temperature,
      where=WHERE, weights=weights, token_chunk=4, vocab_chunk=vocab_chunk,
    ),
    bad[0],
    HEAD,
  )  # fmt: skip
  expected, (kept, head) = _with_gradients(
    functools.partial(_dense, losses.kl, temperature=2.0),
    *(HIDDEN[WHERE], HEAD, TEACHER[0][WHERE], TEACHER[1]),
  )
  _assert_same(
    (value, to_hidden[WHERE], to_head), (expected / 2, kept / 2, head / 2)
  )
  np.testing.assert_array_equal(to_hidden[~WHERE], 0)


@PIECES
def test_nothing_is_left_when_all_tokens_are_left_out(vocab_chunk):
  loss = functools.partial(
    losses.linear_divergence,
    losses.kl,
    where=jnp.zeros(TOKENS),
    vocab_chunk=vocab_chunk,
  )
  result = _with_gradients(loss, HIDDEN * jnp.nan, HEAD, *TEACHER)
  jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), result)


@PIECES
def test_padding_of_unequal_vocabularies_has_no_probability(vocab_chunk):
  teacher_head = jnp.concatenate([TEACHER[1], 9 * _normal(TEACHER_WIDTH, 5)], 1)
  value, (to_hidden, to_head) = _with_gradients(
    functools.partial(
      losses.linear_divergence,
      losses.kl,
      vocab_size=45,
      token_chunk=4,
      vocab_chunk=vocab_chunk,
    ),
    *(HIDDEN, HEAD, TEACHER[0], teacher_head),
  )
  expected, (hidden, head) = _with_gradients(
    functools.partial(_dense, losses.kl),
    *(HIDDEN, HEAD[:, :45], TEACHER[0], TEACHER[1][:, :45]),
  )
  _assert_same((value, to_hidden, to_head[:, :45]), (expected, hidden, head))
  np.testing.assert_array_equal(to_head[:, 45:], 0)


@PIECES
def test_bfloat16_is_multiplied_as_such_and_summed_in_float32(vocab_chunk):
  half = [x.astype(jnp.bfloat16) for x in (HIDDEN, HEAD, *TEACHER)]
  value, gradients = _with_gradients(
    functools.partial(
      losses.linear_divergence,
      losses.kl,
      token_chunk=4,
      vocab_chunk=vocab_chunk,
    ),
    *half,
  )
  expected, exact = _with_gradients(
    functools.partial(_dense, losses.kl),
    *(x.astype(jnp.float32) for x in half),
  )
  assert value.dtype == jnp.float32
  _assert_same(value, expected)
  for gradient, wanted in zip(gradients, exact, strict=True):
    assert gradient.dtype == jnp.bfloat16
    scale = float(jnp.abs(wanted).max())
    gradient = gradient.astype(jnp.float32)
    np.testing.assert_allclose(gradient / scale, wanted / scale, atol=6e-3)


@PIECES
def test_teacher_temperature_and_weights_are_constants(vocab_chunk):
  def loss(teacher, temperature, weights):
    return losses.linear_divergence(
      losses.kl, HIDDEN, HEAD, *teacher, temperature=temperature,
      weights=weights, vocab_chunk=vocab_chunk,
    )  # fmt: skip

  given = (TEACHER, jnp.float32(2.0), jnp.ones(TOKENS))
  gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*given)
  jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), gradients)


def test_the_sum_over_parts_of_a_batch_is_that_of_the_batch():
  def total(part):
    teacher = TEACHER[0][part], TEACHER[1]
    return losses.linear_divergence(losses.kl, HIDDEN[part], HEAD, *teacher)

  parts = total(slice(0, 1)) + total(slice(1, 3))
  np.testing.assert_allclose(parts, total(slice(None)), rtol=1e-6)


def test_gradients_under_vmap_are_those_of_a_loop():
  def gradients(hidden, head):
    loss = functools.partial(losses.linear_divergence, losses.kl, token_chunk=4)
    return _with_gradients(loss, hidden, head, *TEACHER)

  batch = jnp.stack([HIDDEN, HIDDEN + 1])
  heads = jnp.stack([HEAD, 2 * HEAD])
  for axes, rows in (((0, None), [HEAD] * 2), ((0, 0), heads)):
    given = HEAD if axes[1] is None else heads
    values = jax.vmap(gradients, axes)(batch, given)
    for n in range(2):
      one = jax.tree.map(lambda x, n=n: x[n], values)
      _assert_same(one, gradients(batch[n], rows[n]))


ERRORS = {
  r"student hidden states \(3, 7, 8\), student head \(50, 8\)": {
    "student_head": HEAD.T
  },
  r"teacher hidden states \(3, 7, 6\), teacher head \(8, 50\)": {
    "teacher_head": HEAD
  },
  r"student hidden states \(3, 7, 8\), teacher hidden states \(2, 7, 6\); ex": {
    "teacher_hidden": TEACHER[0][:2]
  },
  "50 student classes and 49 teacher classes; expected as many": {
    "teacher_head": TEACHER[1][:, :49]
  },
  "vocab_size=51; expected 1 to 50": {"vocab_size": 51},
  "token_chunk=0; expected a value above 0": {"token_chunk": 0},
  "vocab_chunk=0; expected a value above 0": {"vocab_chunk": 0},
  "temperature=0.0; expected a value above 0": {"temperature": 0.0},
  r"temperature \(7,\); expected": {"temperature": jnp.ones(7)},
  r"where \(3,\); expected \(3, 7\)": {"where": jnp.ones(3)},
  r"weights \(21,\); expected \(3, 7\)": {"weights": jnp.ones(21)},
  r"student bias \(8,\); expected \(50,\)": {"student_bias": jnp.ones(8)},
  "divergence=None; expected a Divergence": {"divergence": None},
  "vocab_chunk=16 with AdaptiveKL, standardize=False; expected": {
    "divergence": losses.AdaptiveKL(),
    "vocab_chunk": 16,
  },
  "vocab_chunk=16 with KL, standardize=True; expected": {
    "standardize": True,
    "vocab_chunk": 16,
  },
}


@pytest.mark.parametrize("message", ERRORS)
def test_what_does_not_fit_is_refused(message):
  arguments = {
    "divergence": losses.kl,
    "student_hidden": HIDDEN,
    "student_head": HEAD,
    "teacher_hidden": TEACHER[0],
    "teacher_head": TEACHER[1],
  } | ERRORS[message]
  with pytest.raises(ValueError, match=f"linear_divergence: {message}"):
    losses.linear_divergence(**arguments)
