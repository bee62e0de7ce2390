"""Losses of preferences between answers.

Notation: y_w is the chosen answer of a pair and y_l the rejected one; pi is
the student's policy and ref the reference's, which does not learn: the student
before training, or the teacher. r = log pi(y) - log ref(y) is the log-ratio of
an answer, beta r its implicit reward. Log-probabilities are those of whole
answers, `sequence_log_probs`.

Arguments of the losses of pairs:
  chosen: log pi(y_w), [B].
  rejected: log pi(y_l), [B].
  reference_chosen: log ref(y_w), [B].
  reference_rejected: log ref(y_l), [B].
  beta: how strongly the policy is held to the reference, above 0.
  where: [B], pairs that are not true give 0 and pass no gradient.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.logits import kept
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def implicit_reward(
  policy: Array,
  reference: Array,
  *,
  beta: float = 0.1,
  where: Array | None = None,
) -> Array:
  """What a policy that was trained with beta rewards: beta r.

    beta [log pi(y) - log ref(y)]

  The reward of the chosen answer less that of the rejected one is the margin;
  above 0 the pair is ranked as it should be.

  Args:
    policy: log pi(y), [...].
    reference: log ref(y), [...].
    beta: above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times beta.

  Raises:
    ValueError: if shapes differ or beta is not above 0.

  Needs: log-probabilities of answers; access white; per example.
  Checked: shufangxun/LLaVA-MoD@481ca57.
  Reference: Rafailov et al. (DPO), https://arxiv.org/abs/2305.18290, Eq. 5.
  """
  checks.positive("implicit_reward", "beta", beta)
  ratio = _log_ratio("implicit_reward", policy, reference, where)
  return beta * ratio


def _log_ratio(
  loss: str, policy: Array, reference: Array, where: Array | None
) -> Array:
  """Log-ratio of an answer, 0 where `where` is not true."""
  checks.same(loss, policy=policy, reference=reference)
  if where is not None:
    checks.same(loss, policy=policy, where=where)
  policy, reference = (
    kept(at_least_float32(log_probs), where)
    for log_probs in (policy, reference)
  )
  return policy - reference


def _log_ratios(
  loss: str,
  pairs: tuple[Array, Array, Array, Array],
  beta: float,
  where: Array | None,
) -> tuple[Array, Array]:
  """Log-ratios of the chosen and the rejected answers, checked."""
  chosen, rejected, reference_chosen, reference_rejected = pairs
  checks.positive(loss, "beta", beta)
  checks.same(loss, chosen=chosen, rejected=rejected)
  return (
    _log_ratio(loss, chosen, reference_chosen, where),
    _log_ratio(loss, rejected, reference_rejected, where),
  )


def dpo(
  chosen: Array,
  rejected: Array,
  reference_chosen: Array,
  reference_rejected: Array,
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.0,
  where: Array | None = None,
) -> Array:
  """Direct preference optimisation.

    -(1 - s) log sigmoid(beta (r_w - r_l)) - s log sigmoid(-beta (r_w - r_l))

  With the teacher as the reference the student has to rank pairs better than
  the teacher does (LLaVA-MoD). log 2 where student and reference agree.

  Args:
    chosen: this and the next three: see the module.
    rejected: [B].
    reference_chosen: [B].
    reference_rejected: [B].
    beta: see the module.
    label_smoothing: s, the share of pairs that are thought to be swapped, 0 to
      1/2 (conservative DPO).
    where: [B].

  Returns:
    [B], nats.

  Raises:
    ValueError: if shapes differ or a number is out of range.

  Needs: log-probabilities of answers; access white; per example.
  Checked: shufangxun/LLaVA-MoD@481ca57.
  Reference: Rafailov et al. (DPO), https://arxiv.org/abs/2305.18290, Eq. 7.
  """
  checks.between("dpo", "label_smoothing", label_smoothing, 0, 0.5)
  pairs = (chosen, rejected, reference_chosen, reference_rejected)
  won, lost = _log_ratios("dpo", pairs, beta, where)
  h = beta * (won - lost)
  values = -(1 - label_smoothing) * jax.nn.log_sigmoid(h)
  values -= label_smoothing * jax.nn.log_sigmoid(-h)
  return kept(values, where)


def ipo(
  chosen: Array,
  rejected: Array,
  reference_chosen: Array,
  reference_rejected: Array,
  *,
  beta: float = 0.1,
  where: Array | None = None,
) -> Array:
  """Identity preference optimisation: a margin to reach, not to exceed.

    (r_w - r_l - 1 / (2 beta))^2

  Args:
    chosen: this and the next three: see the module.
    rejected: [B].
    reference_chosen: [B].
    reference_rejected: [B].
    beta: see the module; tau in the paper.
    where: [B].

  Returns:
    [B], nats squared.

  Raises:
    ValueError: if shapes differ or beta is not above 0.

  Needs: log-probabilities of answers; access white; per example.
  Checked: shufangxun/LLaVA-MoD@481ca57.
  Reference: Azar et al. (IPO), https://arxiv.org/abs/2310.12036, Eq. 17.
  """
  pairs = (chosen, rejected, reference_chosen, reference_rejected)
  won, lost = _log_ratios("ipo", pairs, beta, where)
  return kept((won - lost - 1 / (2 * beta)) ** 2, where)


def hinge_preference(
  chosen: Array,
  rejected: Array,
  reference_chosen: Array,
  reference_rejected: Array,
  *,
  beta: float = 0.1,
  where: Array | None = None,
) -> Array:
  """Hinge on the margin of the implicit rewards (SLiC).

    max(0, 1 - beta (r_w - r_l))

  Args:
    chosen: this and the next three: see the module.
    rejected: [B].
    reference_chosen: [B].
    reference_rejected: [B].
    beta: see the module.
    where: [B].

  Returns:
    [B], no unit.

  Raises:
    ValueError: if shapes differ or beta is not above 0.

  Needs: log-probabilities of answers; access white; per example.
  Checked: shufangxun/LLaVA-MoD@481ca57.
  Reference: Zhao et al. (SLiC-HF), https://arxiv.org/abs/2305.10425;
    on the ratios as in https://arxiv.org/abs/2309.06657.
  """
  pairs = (chosen, rejected, reference_chosen, reference_rejected)
  won, lost = _log_ratios("hinge_preference", pairs, beta, where)
  return kept(jax.nn.relu(1 - beta * (won - lost)), where)


def kto_pair(
  chosen: Array,
  rejected: Array,
  reference_chosen: Array,
  reference_rejected: Array,
  *,
  beta: float = 0.1,
  constant_baseline: bool = False,
  where: Array | None = None,
) -> Array:
  """Kahneman-Tversky optimisation of pairs: each answer against a baseline.

    [1 - sigmoid(beta (r_w - K_l)), 1 - sigmoid(beta (K_w - r_l))],
    K_w = max(0, mean of r_w), K_l = max(0, mean of r_l)

  An answer is compared with how far the policy has moved on the others, which
  the means over the batch estimate: a pair's value depends on the batch.

  Args:
    chosen: this and the next three: see the module.
    rejected: [B].
    reference_chosen: [B].
    reference_rejected: [B].
    beta: see the module.
    constant_baseline: whether no gradient passes through K. The paper's
      baseline is a constant; the released code of LLaVA-MoD differentiates it.
    where: [B]; pairs that are not true are left out of the means too.

  Returns:
    [B, 2], of the chosen and the rejected answer, no unit.

  Raises:
    ValueError: if shapes differ or beta is not above 0.

  Needs: log-probabilities of answers; access white; batch level.
  Checked: shufangxun/LLaVA-MoD@481ca57.
  Reference: Ethayarajh et al. (KTO), https://arxiv.org/abs/2402.01306.
  """
  pairs = (chosen, rejected, reference_chosen, reference_rejected)
  won, lost = _log_ratios("kto_pair", pairs, beta, where)
  count = (
    len(won) if where is None else jnp.maximum(where.astype(bool).sum(), 1)
  )
  moved_won, moved_lost = (
    jnp.maximum(0.0, ratio.sum() / count) for ratio in (won, lost)
  )
  if constant_baseline:
    moved_won, moved_lost = stop_gradient((moved_won, moved_lost))
  margins = jnp.stack([won - moved_lost, moved_won - lost], axis=-1)
  values = jax.nn.sigmoid(-beta * margins)
  return values if where is None else kept(values, where[:, None])


def rrhf(
  log_probs: Array,
  lengths: Array,
  rewards: Array,
  *,
  length_penalty: float = 1.0,
  rank_weight: float = 1.0,
  where: Array | None = None,
) -> Array:
  """Ranks the candidates of a prompt and imitates the best (RRHF).

    rank_weight sum_{R_i < R_j} max(0, s_i - s_j) - log pi(y_b) / n_b,
    s_i = log pi(y_i) / n_i^length_penalty, b = argmax R

  n is the number of tokens. The released code divides by the padded length
  instead, of all candidates alike: give that as `lengths` to have the same.

  Args:
    log_probs: log pi(y_i) of K candidates, sums over tokens, [..., K].
    lengths: n_i, at least 1, [..., K].
    rewards: R_i, [..., K]; of equal ones none is ranked above the other.
    length_penalty: 0 for the plain sum.
    rank_weight: of the first term.
    where: [..., K], candidates that are not true are left out.

  Returns:
    [...], nats; 0 for a prompt without candidates.

  Raises:
    ValueError: if shapes differ.

  Needs: log-probabilities of answers, rewards; access text; per example.
  Checked: GanjinZero/RRHF@e1a2b61.
  Reference: Yuan et al. (RRHF), https://arxiv.org/abs/2304.05302.
  """
  checks.same("rrhf", log_probs=log_probs, lengths=lengths, rewards=rewards)
  real = jnp.ones(rewards.shape, bool) if where is None else where.astype(bool)
  checks.same("rrhf", log_probs=log_probs, where=real)
  lengths = jnp.where(real, lengths, 1).astype(jnp.float32)
  log_probs = jnp.where(real, at_least_float32(log_probs), 0.0)
  rewards = jnp.where(real, rewards, -jnp.inf)
  score = log_probs / lengths**length_penalty
  worse = rewards[..., :, None] < rewards[..., None, :]
  worse &= real[..., :, None] & real[..., None, :]
  ahead = jax.nn.relu(score[..., :, None] - score[..., None, :])
  rank = jnp.sum(jnp.where(worse, ahead, 0.0), axis=(-2, -1))
  best = jnp.argmax(rewards, axis=-1, keepdims=True)
  imitation = jnp.take_along_axis(log_probs / lengths, best, axis=-1)[..., 0]
  return rank_weight * rank - imitation
