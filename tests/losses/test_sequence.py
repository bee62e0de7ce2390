"""Positions, reductions and token-level losses: limits, options, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses import Position
from jaxkd.losses.softmax import Reduction
from tests.losses.compiled import losses

PAD, PROMPT, IMAGE, RATIONALE, ANSWER = Position


def _logits(shape, seed=0):
  random = np.random.default_rng(seed)
  return tuple(jnp.asarray(random.normal(size=shape), "float32") for _ in "st")


# Positions.

ROLES = jnp.array(
  [
    [PROMPT, IMAGE, IMAGE, RATIONALE, ANSWER, PAD],
    [PAD, PAD, ANSWER, ANSWER, PROMPT, ANSWER],
  ]
)


def test_a_position_is_found_by_its_roles():
  np.testing.assert_array_equal(
    losses.is_position(ROLES, IMAGE, RATIONALE),
    [[0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]],
  )


def test_without_a_role_all_but_padding_count():
  np.testing.assert_array_equal(
    losses.is_position(ROLES), [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
  )


def test_the_position_before_an_answer_predicts_it_unless_it_is_padding():
  np.testing.assert_array_equal(
    losses.predicts(ROLES, ANSWER), [[0, 0, 0, 1, 0], [0, 0, 1, 0, 1]]
  )


def test_a_one_token_answer_is_read_from_the_position_before_it():
  logits, _ = _logits((2, 6, 4))
  ids = jnp.arange(12).reshape(2, 6) % 4
  before, after = losses.next_token(logits, ids)
  where = losses.predicts(ROLES, ANSWER)
  values = losses.sequence_log_probs(before, after, where=where)
  expected = jax.nn.log_softmax(logits[0, 3])[ids[0, 4]]
  np.testing.assert_allclose(values[0], expected, rtol=1e-6)


def test_completions_behind_unequal_prompts_are_predicted_by_the_same_slice():
  logits, _ = _logits((2, 7, 4))
  ids = jnp.zeros((2, 7), int)
  before, _ = losses.next_token(logits, ids)
  np.testing.assert_array_equal(
    losses.completion_logits(logits, 3), before[:, -3:]
  )


@pytest.mark.parametrize("length", [0, 7, 8])
def test_a_completion_needs_a_position_before_it(length):
  with pytest.raises(ValueError, match=r"^completion_logits: length=.*1 to 6"):
    losses.completion_logits(jnp.zeros((2, 7, 4)), length)


# Reductions.


def test_token_and_sequence_means_differ_where_lengths_do():
  values = jnp.array([[1.0, 1.0, 1.0, 1.0], [5.0, jnp.nan, 7.0, 9.0]])
  where = jnp.array([[1, 1, 1, 1], [1, 0, 0, 0]])
  np.testing.assert_allclose(
    losses.sequence_mean(values, where=where), [1.0, 5.0]
  )
  np.testing.assert_allclose(
    losses.sequence_sum(values, where=where), [4.0, 5.0]
  )


def test_a_sequence_without_tokens_has_mean_0_and_no_gradient():
  def mean(values):
    return losses.sequence_mean(values, where=jnp.zeros((1, 3))).sum()

  value, gradient = jax.value_and_grad(mean)(jnp.full((1, 3), jnp.nan))
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_the_mean_log_probability_is_the_sum_over_the_tokens_that_count():
  logits, _ = _logits((2, 4, 5))
  ids = jnp.full((2, 4), -100).at[:, 1:3].set(2)
  where = ids != -100
  total = losses.sequence_log_probs(logits, ids, where=where)
  mean = losses.sequence_log_probs(logits, ids, where=where, mean=True)
  np.testing.assert_allclose(total, 2 * mean, rtol=1e-6)
  assert np.isfinite(total).all()


def test_ids_of_another_shape_or_type_are_named():
  logits = jnp.zeros((2, 4, 5))
  with pytest.raises(ValueError, match=r"^next_token: labels \(2, 3\)"):
    losses.next_token(logits, jnp.zeros((2, 3), int))
  with pytest.raises(ValueError, match="^token_log_probs: .*integers"):
    losses.token_log_probs(logits, jnp.zeros((2, 4)))
  with pytest.raises(ValueError, match="^sequence_mean: values .*one shape"):
    losses.sequence_mean(jnp.zeros((2, 4)), where=jnp.zeros((2, 1)))


# TAID.


def test_taid_is_kl_at_the_end_and_gives_no_gradient_at_the_start():
  student, teacher = _logits((3, 5))

  def total(student, share):
    return losses.taid(student, teacher, teacher_share=share).sum()

  np.testing.assert_array_equal(jax.grad(total)(student, 0.0), 0)
  np.testing.assert_allclose(
    total(student, 1.0), losses.kl(student, teacher).sum(), rtol=1e-6
  )


def test_the_gradient_of_taid_is_student_minus_target():
  student, teacher = _logits((3, 5))
  target = losses.intermediate_logits(student, teacher, teacher_share=0.4)
  gradient = jax.grad(
    lambda s: losses.taid(s, teacher, teacher_share=0.4).sum()
  )(student)
  expected = jax.nn.softmax(student) - jax.nn.softmax(target)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_entropy_left_in_changes_the_value_alone():
  student, teacher = _logits((3, 5))

  def total(student, subtract):
    return losses.taid(
      student, teacher, teacher_share=0.4, subtract_entropy=subtract
    ).sum()

  values, gradients = zip(
    *(jax.value_and_grad(total)(student, flag) for flag in (True, False)),
    strict=True,
  )
  assert values[1] > values[0]
  chex.assert_trees_all_close(*gradients, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("subtract", [True, False])
def test_taid_is_finite_with_padding_of_the_vocabulary(share, subtract):
  student, teacher = (z.at[:, -2:].set(-jnp.inf) for z in _logits((3, 6)))

  def total(student, share):
    return losses.taid(
      student, teacher, teacher_share=share, subtract_entropy=subtract
    ).sum()

  value, gradient = jax.value_and_grad(total)(student, jnp.float32(share))
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_a_share_out_of_range_is_named():
  student, teacher = _logits((3, 5))
  with pytest.raises(ValueError, match="teacher_share=1.5; expected 0 to 1"):
    losses.taid(student, teacher, teacher_share=1.5)


# Top classes.


def test_all_classes_in_the_head_are_reverse_kl():
  student, teacher = _logits((4, 6))
  for k in (6, 60):
    np.testing.assert_allclose(
      losses.TopKLD(k)(student, teacher),
      losses.reverse_kl(student, teacher),
      rtol=1e-5,
    )
    np.testing.assert_allclose(
      losses.renormalized_topkld(student, teacher, k=k),
      losses.reverse_kl(student, teacher),
      rtol=1e-5,
    )


def test_one_direction_in_both_parts_is_that_divergence():
  student, teacher = _logits((4, 6))
  both = losses.TopKLD(2, head="forward", tail="forward")
  np.testing.assert_allclose(
    both(student, teacher), losses.kl(student, teacher), rtol=1e-5
  )


def test_the_head_is_the_teachers_and_not_the_students():
  teacher = jnp.array([[3.0, 2.0, 0.0, -1.0]])
  student = teacher[:, ::-1]
  head_only = losses.TopKLD(2, tail_weight=0.0)(student, teacher)
  p, q = (jax.nn.softmax(z)[0] for z in (teacher, student))
  terms = (q * jnp.log(q / p) - q + p)[:2]
  np.testing.assert_allclose(head_only, [terms.sum()], rtol=1e-5)


def test_the_literal_split_is_not_least_at_the_teacher():
  _, teacher = _logits((4, 6))
  literal = losses.TopKLD(2, linear_terms=False)
  gradient = jax.jit(jax.grad(lambda s: literal(s, teacher).sum()))(teacher)
  assert np.abs(gradient).max() > 0.05


def test_streams_find_the_same_head():
  log_p = jax.nn.log_softmax(10 * _logits((4, 64))[0])
  divergence = losses.TopKLD(5)
  halves = Reduction(
    sum=lambda x: (
      x[..., :32].sum(-1, keepdims=True) + x[..., 32:].sum(-1, keepdims=True)
    ),
    max=lambda x: x.max(-1, keepdims=True),
  )
  cost = divergence.context(log_p, halves)
  np.testing.assert_array_equal(((-log_p) <= cost).sum(-1), 5)


def test_a_top_k_teacher_is_refused():
  student, teacher = _logits((4, 6))
  given = losses.TopK.of(teacher, 3)
  with pytest.raises(ValueError, match="TopKLD: needs access 'white'"):
    losses.TopKLD(2)(student, given)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 2, "head": "both"}])
def test_settings_out_of_range_are_named(options):
  with pytest.raises(ValueError, match="^TopKLD: "):
    losses.TopKLD(**options)


# Tokens.


def test_the_sampled_gradient_is_that_of_reverse_kl_in_expectation():
  student, teacher = _logits((1, 5))
  q = jax.nn.softmax(student / 2.0)[0]

  def expected(student):
    values = losses.sampled_reverse_kl(
      jnp.repeat(student, 5, 0),
      jnp.repeat(teacher, 5, 0),
      jnp.arange(5),
      temperature=2.0,
    )
    return jnp.sum(q * values)

  exact = jax.grad(
    lambda s: losses.reverse_kl(s, teacher, temperature=2.0).sum()
  )
  np.testing.assert_allclose(
    jax.grad(expected)(student), exact(student), atol=1e-5
  )


def test_swing_is_kl_for_public_tokens():
  student, teacher = _logits((4, 5))
  np.testing.assert_allclose(
    losses.swing(student, teacher, jnp.zeros(4), lowest=2.0),
    losses.kl(student, teacher, temperature=2.0),
    rtol=1e-6,
  )


def test_a_private_token_pulls_less():
  student, teacher = _logits((2, 5))
  student, teacher = (jnp.repeat(z[:1], 2, 0) for z in (student, teacher))
  gradient = jax.grad(
    lambda s: losses.swing(s, teacher, jnp.array([0.0, 1.0])).sum()
  )(student)
  public, private = np.abs(gradient).max(-1)
  assert private < public / 8


def test_temperatures_in_the_wrong_order_are_named():
  with pytest.raises(ValueError, match="highest=1.0; expected the highest"):
    losses.token_temperature(jnp.zeros(3), lowest=2.0, highest=1.0)


# Relations of tokens.


def test_relations_do_not_see_rotation_scale_or_width():
  student, teacher = _logits((2, 4, 6))
  rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
  expected = losses.gram_cosine(student, teacher)
  turned = 3.0 * student @ jnp.asarray(rotation, jnp.float32)
  wider = jnp.pad(turned, ((0, 0), (0, 0), (0, 2)))
  np.testing.assert_allclose(
    losses.gram_cosine(wider, teacher), expected, rtol=1e-4
  )


def test_relations_see_the_order_of_tokens():
  student, teacher = _logits((2, 4, 6))
  moved = losses.gram_cosine(student[:, ::-1], teacher)
  assert np.abs(moved - losses.gram_cosine(student, teacher)).max() > 1e-2


def test_one_example_has_the_joint_cosine():
  student, teacher = _logits((1, 4, 6))
  np.testing.assert_allclose(
    losses.gram_cosine(student, teacher, joint=True),
    losses.gram_cosine(student, teacher)[0],
    rtol=1e-6,
  )


def test_a_masked_token_is_not_in_the_relation():
  student, teacher = _logits((1, 4, 6))
  where = jnp.array([[1, 0, 1, 1]])
  kept = np.array([0, 2, 3])
  np.testing.assert_allclose(
    losses.gram_cosine(student.at[:, 1].set(jnp.nan), teacher, where=where),
    losses.gram_cosine(student[:, kept], teacher[:, kept]),
    rtol=1e-5,
  )


# Where official code gives NaN.


@pytest.mark.parametrize(
  "divergence",
  [
    losses.ReverseKL(),
    losses.JSD(0.1),
    losses.JSD(0.9, mixture="student"),
    losses.SkewKL(0.1),
    losses.SkewReverseKL(0.1),
    losses.TopKLD(3),
  ],
  ids=lambda divergence: divergence.name,
)
def test_padding_of_the_vocabulary_leaves_gradients_finite(divergence):
  student, teacher = (z.at[..., -2:].set(-jnp.inf) for z in _logits((2, 3, 9)))
  gradient = jax.jit(jax.grad(lambda s: divergence(s, teacher).sum()))(student)
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[..., -2:], 0)
  assert np.abs(gradient).max() > 0
