"""Policy gradients with a teacher as the reward.

Notation: y_t is a token that was sampled, q_t and p_t are the student's and
the teacher's probabilities of it, given what came before. A position whose
`where` is not true is no token of the answer: it has reward, advantage and
loss 0 and passes no gradient, whatever is in it. Rewards and advantages are
weights of a gradient: put `stop_gradient` around them, unless they come from
another step.

MiniLLM is made of these, per token and averaged over all tokens:

  r = teacher_reward(log_q, log_p, scale=0.5, where=where)
  A = whiten(reward_to_go(r, discount=0.95, where=where))
  w = mixed_importance(log_q, log_p)
  clipped_policy(log_q_now, log_q, A, weights=w, where=where)
  reverse_kl(student, teacher, where=where)  # the single-step term
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxkd.losses import checks
from jaxkd.losses.divergence import mixture
from jaxkd.losses.logits import kept
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def _of_tokens(
  loss: str, where: Array | None, **values: Array
) -> tuple[Array, ...]:
  """Values of tokens, checked; 0 where there is none."""
  mask = {} if where is None else {"where": where}
  checks.same(loss, **values, **mask)
  return tuple(kept(at_least_float32(x), where) for x in values.values())


def teacher_reward(
  student: Array,
  teacher: Array,
  *,
  scale: float = 1.0,
  clip: float | None = None,
  where: Array | None = None,
) -> Array:
  """What a sampled token earns: how much more the teacher likes it.

    r_t = (log p_t - log q_t) / scale, clipped to [-clip, clip]

  Its expectation under the student is -KL(q || p) / scale. MiniLLM has scale
  0.5 and clip 100.

  Args:
    student: log q_t, [..., L].
    teacher: log p_t, [..., L].
    scale: above 0.
    clip: above 0, or None.
    where: [..., L].

  Returns:
    [..., L], nats / scale.

  Raises:
    ValueError: if shapes differ or a number is out of range.

  Needs: log-probabilities of tokens; access topk; per example.
  Checked: formula.
  Reference: Gu et al. (MiniLLM), https://arxiv.org/abs/2306.08543.
  """
  checks.positive("teacher_reward", "scale", scale)
  log_q, log_p = _of_tokens(
    "teacher_reward", where, student=student, teacher=teacher
  )
  reward = (log_p - log_q) / scale
  if clip is None:
    return reward
  checks.positive("teacher_reward", "clip", clip)
  return jnp.clip(reward, -clip, clip)


def reward_to_go(
  rewards: Array,
  *,
  discount: float = 1.0,
  normalize: Literal["tokens", "weights"] | None = "tokens",
  where: Array | None = None,
) -> Array:
  """What a token is answerable for: the discounted rewards from it on.

    A_t = sum_{k >= t} discount^(k - t) r_k / n_t

  n_t keeps early tokens of long answers from weighing most. It is the number
  of tokens from t on (MiniLLM), or with "weights" the sum of the discounts,
  which makes A_t a mean (TRL), or 1. TRL without normalisation discounts from
  the start of the sequence, discount^k: that is discount^t A_t.

  Args:
    rewards: r, [..., L].
    discount: 0 to 1; 0 for the token's own reward.
    normalize: what n_t is.
    where: [..., L].

  Returns:
    [..., L], the unit of the rewards.

  Raises:
    ValueError: if shapes differ or an option is out of range.

  Needs: rewards; access text; per example.
  Checked: huggingface/trl@f2cd5771; microsoft/LMOps@4f2a9deb.
  Reference: Gu et al. (MiniLLM), https://arxiv.org/abs/2306.08543.
  """
  checks.between("reward_to_go", "discount", discount, 0, 1)
  valid = ("tokens", "weights", "None")
  checks.one_of("reward_to_go", "normalize", str(normalize), valid)
  (rewards,) = _of_tokens("reward_to_go", where, rewards=rewards)
  ones = kept(jnp.ones_like(rewards), where)
  total = _from_here_on(rewards, discount)
  if normalize is not None:
    share = discount if normalize == "weights" else 1.0
    count = _from_here_on(ones, share)
    total = total / jnp.where(count > 0, count, 1.0)
  return kept(total, where)


def _from_here_on(values: Array, discount: float) -> Array:
  """Discounted sums of a position and those behind it, [..., L]."""

  def step(total, value):
    total = value + discount * total
    return total, total

  last_first = jnp.moveaxis(values, -1, 0)
  _, totals = jax.lax.scan(
    step, jnp.zeros_like(last_first[0]), last_first, reverse=True
  )
  return jnp.moveaxis(totals, 0, -1)


def whiten(
  values: Array, *, eps: float = 1e-8, where: Array | None = None
) -> Array:
  """Values with mean 0 and standard deviation 1 over the whole batch.

    (x - mean) / sqrt(var + eps), var with the divisor n - 1

  MiniLLM whitens advantages over all positions, the padding (0) among them:
  give no `where` to have the same.

  Args:
    values: [...], two that count at least, or all become 0.
    eps: added to the variance.
    where: [...], entries that are not true are not counted and give 0.

  Returns:
    [...], no unit.

  Raises:
    ValueError: if shapes differ.

  Needs: values of tokens; access text; batch level.
  Checked: microsoft/LMOps@4f2a9deb.
  Reference: Gu et al. (MiniLLM), https://arxiv.org/abs/2306.08543; an
    implementation detail of proximal policy optimisation.
  """
  (x,) = _of_tokens("whiten", where, values=values)
  counted = kept(jnp.ones_like(x), where)
  count = counted.sum()
  centred = counted * (x - x.sum() / jnp.maximum(count, 1))
  variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
  return centred * jax.lax.rsqrt(variance + eps)


def mixed_importance(
  student: Array,
  teacher: Array,
  *,
  teacher_share: float = 0.2,
  where: Array | None = None,
) -> Array:
  """Importance weights of tokens that student and teacher sampled together.

    w_t = q_t / ((1 - a) q_t + a p_t)

  Tokens from the mixture are safe from the student's degenerate answers. The
  paper's product over the prefix is taken token by token. At most 1 / (1 - a).

  Args:
    student: log q_t, [..., L].
    teacher: log p_t, [..., L].
    teacher_share: a, 0 to 1, the teacher's share of the sampler.
    where: [..., L].

  Returns:
    [..., L], no unit.

  Raises:
    ValueError: if shapes differ or the share is out of range.

  Needs: log-probabilities of tokens; access topk; per example.
  Checked: formula.
  Reference: Gu et al. (MiniLLM), https://arxiv.org/abs/2306.08543.
  """
  checks.between("mixed_importance", "teacher_share", teacher_share, 0, 1)
  log_q, log_p = _of_tokens(
    "mixed_importance", where, student=student, teacher=teacher
  )
  sampler = mixture(log_p, log_q, teacher_share)
  return kept(jnp.exp(log_q - sampler), where)


def clipped_policy(
  log_probs: Array,
  old_log_probs: Array,
  advantages: Array,
  *,
  weights: Array | None = None,
  clip: float = 0.2,
  where: Array | None = None,
) -> Array:
  """Proximal policy optimisation: a policy gradient with a clipped ratio.

    max(-A_t rho_t, -A_t clip(rho_t, 1 - c, 1 + c)),
    rho_t = w_t q_t / q_t^old

  No gradient where a step has moved the ratio beyond c in the direction of the
  advantage. A token is one value; average over the tokens of the batch.

  Args:
    log_probs: log q_t, [..., L].
    old_log_probs: log q_t^old of the student that sampled, [..., L].
    advantages: A_t, constants, [..., L].
    weights: w_t of `mixed_importance`, constants, [..., L].
    clip: c, above 0.
    where: [..., L].

  Returns:
    [..., L], the unit of the advantages.

  Raises:
    ValueError: if shapes differ or the clip is not above 0.

  Needs: log-probabilities of tokens, advantages; access text; per example.
  Checked: microsoft/LMOps@4f2a9deb.
  Reference: Schulman et al. (PPO), https://arxiv.org/abs/1707.06347, Eq. 7.
  """
  checks.positive("clipped_policy", "clip", clip)
  new, old, advantages = _of_tokens(
    "clipped_policy",
    where,
    log_probs=log_probs,
    old_log_probs=old_log_probs,
    advantages=advantages,
  )
  ratio = jnp.exp(new - old)
  if weights is not None:
    (weights,) = _of_tokens("clipped_policy", where, weights=weights)
    checks.same("clipped_policy", log_probs=log_probs, weights=weights)
    ratio = ratio * weights
  near = jnp.clip(ratio, 1 - clip, 1 + clip)
  return kept(jnp.maximum(-advantages * ratio, -advantages * near), where)


def reverse_kl_estimate(
  student: Array, teacher: Array, *, where: Array | None = None
) -> Array:
  """Reverse KL estimated from the sampled token, without bias and above 0.

    exp(d_t) - 1 - d_t, d_t = log p_t - log q_t

  In expectation over y_t ~ q_t this is KL(q_t || p_t); the plain estimate
  -d_t has a higher variance and may be negative. It is a number to watch: its
  gradient is that of KL only if the sampling is differentiated as well.

  Args:
    student: log q_t, [..., L].
    teacher: log p_t, [..., L].
    where: [..., L].

  Returns:
    [..., L], nats.

  Raises:
    ValueError: if shapes differ.

  Needs: log-probabilities of tokens; access topk; per example.
  Checked: microsoft/LMOps@4f2a9deb.
  Reference: Schulman (2020), http://joschu.net/blog/kl-approx.html, k3.
  """
  log_q, log_p = _of_tokens(
    "reverse_kl_estimate", where, student=student, teacher=teacher
  )
  return jnp.expm1(log_p - log_q) - (log_p - log_q)
