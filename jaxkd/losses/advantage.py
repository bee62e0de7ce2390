"""Distillation from a teacher that was aligned to preferences (DCKD, ADPA).

Notation: pi_a is the aligned teacher, pi_r the same teacher before it was
aligned, q the student; A(c) = log pi_a(c) - log pi_r(c) is the advantage of
token c at a position: how much the alignment raised it.
"""

import jax
import jax.numpy as jnp

from jaxkd.losses import checks
from jaxkd.losses.divergence import exp
from jaxkd.losses.logits import kept
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.sequence import sequence_mean
from jaxkd.losses.softmax import at_least_float32, log_probabilities
from jaxkd.losses.topk import TopK

Array = jax.Array


def dckd(
  chosen: Array,
  rejected: Array,
  teacher_chosen: Array | TopK,
  teacher_rejected: Array | TopK,
  *,
  chosen_weight: float = 1.0,
  rejected_weight: float = 1.0,
  temperature: float = 1.0,
  where_chosen: Array | None = None,
  where_rejected: Array | None = None,
) -> Array:
  """Dual-constrained distillation: KL on the chosen and the rejected answer.

    w_w mean_t T^2 KL(pi_a || q)(y_w, t) + w_l mean_t T^2 KL(pi_a || q)(y_l, t)

  The aligned teacher says of good and of bad answers what it would have said
  instead. It goes beside a cross entropy on the chosen answer. Every mean is
  over the tokens of an answer; the released code has the mean over all tokens
  of the batch: a batch as one sequence has the same.

  Args:
    chosen: student's logits on y_w, [..., L, V].
    rejected: on y_l, [..., L', V].
    teacher_chosen: logits of pi_a, or `TopK` of them.
    teacher_rejected: on y_l.
    chosen_weight: w_w.
    rejected_weight: w_l.
    temperature: T, above 0.
    where_chosen: [..., L], the tokens of the answer.
    where_rejected: [..., L'].

  Returns:
    [...], nats times T^2.

  Raises:
    ValueError: if shapes differ or T is not above 0.

  Needs: logits of pairs; access topk; per example.
  Checked:
    kaist-siit-lab/StarLab_Preference-Distillation-via-Value-based-Reinforcement-Learning@92fd4966;
    formula.
  Reference: Gao et al. (ADPA), https://arxiv.org/abs/2502.17927; the weights
    are a reading of the code.
  """
  sides = (
    (chosen_weight, chosen, teacher_chosen, where_chosen),
    (rejected_weight, rejected, teacher_rejected, where_rejected),
  )
  won, lost = (
    weight
    * sequence_mean(
      kl(student, teacher, temperature=temperature, where=where), where=where
    )
    for weight, student, teacher, where in sides
  )
  checks.same("dckd", chosen=won, rejected=lost)
  return won + lost


def log_ratio_advantage(
  aligned: Array | TopK, reference: Array | TopK
) -> Array:
  """How much the alignment of a teacher raised every token.

    A(c) = log pi_a(c) - log pi_r(c)

  Of two `TopK` it has the entries of the aligned one, in the order of its ids.
  The reference's probability of a token that it did not return is unknown:
  the aligned teacher's least returned one stands in, as in the released code.

  Args:
    aligned: logits of pi_a, [..., V], or `TopK` of them.
    reference: logits of pi_r, of the same kind.

  Returns:
    [..., V] or [..., k], nats; 0 for a class that both give 0.

  Raises:
    ValueError: if shapes or kinds differ.

  Needs: logits of two teachers; access topk; per example.
  Checked:
    kaist-siit-lab/StarLab_Preference-Distillation-via-Value-based-Reinforcement-Learning@92fd4966;
    formula.
  Reference: Gao et al. (ADPA), https://arxiv.org/abs/2502.17927; an optimal
    policy's advantage, https://arxiv.org/abs/2404.12358.
  """
  if isinstance(aligned, TopK) != isinstance(reference, TopK):
    raise ValueError(
      f"log_ratio_advantage: aligned {type(aligned).__name__}, reference "
      f"{type(reference).__name__}; expected logits of both or TopK of both"
    )
  if isinstance(aligned, TopK):
    return _of_topk(aligned, reference)
  checks.logits("log_ratio_advantage", aligned, reference)
  log_a, log_r = log_probabilities(aligned), log_probabilities(reference)
  nowhere = jnp.isneginf(log_a) & jnp.isneginf(log_r)
  log_a, log_r = (jnp.where(nowhere, 0.0, x) for x in (log_a, log_r))
  return log_a - log_r


def _of_topk(aligned: TopK, reference: TopK) -> Array:
  """The advantage of the aligned teacher's ids; 0 at those not returned."""
  if aligned.ids.shape[:-1] != reference.ids.shape[:-1]:
    raise ValueError(
      f"log_ratio_advantage: aligned ids {aligned.ids.shape}, reference ids "
      f"{reference.ids.shape}; expected one shape but for the last axis"
    )
  log_a, log_r = (at_least_float32(x.log_probs) for x in (aligned, reference))
  returned = log_a > -jnp.inf
  least = jnp.min(log_a, axis=-1, keepdims=True, where=returned, initial=0.0)
  same = aligned.ids[..., :, None] == reference.ids[..., None, :]
  same &= (log_r > -jnp.inf)[..., None, :]
  found = jnp.sum(jnp.where(same, log_r[..., None, :], 0.0), axis=-1)
  log_r = jnp.where(same.any(-1), found, least)
  return jnp.where(returned, jnp.where(returned, log_a, 0.0) - log_r, 0.0)


def advantage_guided(
  student: Array,
  advantage: Array,
  *,
  ids: Array | None = None,
  tail_advantage: float = 0.0,
  where: Array | None = None,
) -> Array:
  """Minus the student's expected advantage (ADPA).

    -sum_c q_c A(c)

  Every token of the vocabulary gets a gradient, -q_c (A(c) - sum_d q_d A(d)),
  not only the one that was sampled. Linear in q: the least value is at a point
  mass on the best token, so keep a cross entropy or a KL beside it.

  With `ids` the advantage is known at k tokens and all others have
  `tail_advantage`. The released code also clips advantages to [1e-8, 1], which
  takes all negative ones away: `jnp.clip` them, and the tail, to have the same.

  Args:
    student: logits, [..., V].
    advantage: A, constants, [..., V], or [..., k] with ids.
    ids: of the tokens, distinct integers, [..., k].
    tail_advantage: of the tokens that are not in `ids`.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats.

  Raises:
    ValueError: if shapes do not fit.

  Needs: logits, advantages; access topk; per example.
  Checked:
    kaist-siit-lab/StarLab_Preference-Distillation-via-Value-based-Reinforcement-Learning@92fd4966;
    formula.
  Reference: Gao et al. (ADPA), https://arxiv.org/abs/2502.17927.
  """
  classes = student.shape[-1] if ids is None else ids.shape[-1]
  if advantage.shape != (*student.shape[:-1], classes):
    raise ValueError(
      f"advantage_guided: student logits {student.shape}, advantage "
      f"{advantage.shape}; expected {(*student.shape[:-1], classes)}"
    )
  student = checks.masked("advantage_guided", student, where)
  advantage = checks.masked("advantage_guided", advantage, where)
  q = exp(log_probabilities(student))
  if ids is not None:
    checks.same("advantage_guided", advantage=advantage, ids=ids)
    ids = ids if where is None else kept(ids, where[..., None])
    q = jnp.take_along_axis(q, ids, axis=-1)
    advantage = advantage - tail_advantage
  there = q > 0
  terms = jnp.where(there, q * jnp.where(there, advantage, 0.0), 0.0)
  tail = 0.0 if ids is None else tail_advantage
  return kept(-jnp.sum(terms, axis=-1) - tail, where)
