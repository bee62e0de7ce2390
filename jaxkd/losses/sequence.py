"""Sequences: what a position is, which token it predicts, and reductions.

A packed batch of sequences carries `roles`, integers [B, L] that say what the
token at every position is; every mask is derived from them. The logits at
position t predict token t + 1, so a loss of the answer is written

  logits, ids = losses.next_token(batch_logits, batch_ids)   # [B, L - 1, V]
  where = losses.predicts(roles, Position.ANSWER)            # [B, L - 1]
  values = losses.kl(logits, teacher_logits, where=where)    # [B, L - 1]

The mean over all tokens of the batch is `jaxkd.method.Loss.mean(values,
where=where)`, a sum and a weight; the mean over sequences of the means over
their tokens is `Loss.mean(losses.sequence_mean(values, where=where))`. They
differ where sequences have unequal numbers of tokens.
"""

import enum

import jax
import jax.numpy as jnp

from jaxkd.losses import checks
from jaxkd.losses.logits import cross_entropy
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


class Position(enum.IntEnum):
  """What the token at a position is."""

  PAD = 0
  PROMPT = 1
  IMAGE = 2
  RATIONALE = 3
  ANSWER = 4


def is_position(roles: Array, *which: Position) -> Array:
  """Positions that have one of the roles.

  Args:
    roles: `Position`s, integers [..., L].
    *which: the roles asked for; all but `PAD` if none is given.

  Returns:
    [..., L], bool.
  """
  which = which or tuple(p for p in Position if p != Position.PAD)
  return jnp.isin(roles, jnp.asarray(which, roles.dtype))


def predicts(roles: Array, *which: Position) -> Array:
  """Positions whose next token has one of the roles.

  A position that is itself padding predicts nothing, so that the first token
  of a left-padded sequence is not asked for.

  Args:
    roles: `Position`s, integers [..., L].
    *which: the roles asked for; all but `PAD` if none is given.

  Returns:
    [..., L - 1], bool; aligned with `next_token`.
  """
  return is_position(roles[..., 1:], *which) & is_position(roles[..., :-1])


def next_token(logits: Array, ids: Array) -> tuple[Array, Array]:
  """The logits that predict a token, beside that token.

  Args:
    logits: [..., L, V].
    ids: integers [..., L].

  Returns:
    [..., L - 1, V] and [..., L - 1].

  Raises:
    ValueError: if the shapes do not fit or the ids are not integers.
  """
  checks.labels("next_token", ids, logits.shape[:-1])
  return logits[..., :-1, :], ids[..., 1:]


def completion_logits(logits: Array, length: int) -> Array:
  """The logits that predict the last tokens.

  Two contexts of unequal length that end in the same tokens, such as a prompt
  with and without its solution, become comparable: pad prompts on the left.

  Args:
    logits: [..., L, V].
    length: number of last tokens, 1 to L - 1.

  Returns:
    [..., length, V]: those at the positions -length - 1 to -2.

  Raises:
    ValueError: if the length is out of range.
  """
  if not 1 <= length < logits.shape[-2]:
    raise ValueError(
      f"completion_logits: length={length}, logits {logits.shape}; expected 1 "
      f"to {logits.shape[-2] - 1}, so that a position comes before the first"
    )
  return logits[..., -length - 1 : -1, :]


def token_log_probs(
  logits: Array, ids: Array, *, where: Array | None = None
) -> Array:
  """Log-probabilities of given tokens.

    log softmax(logits)[id]

  The logits at a position are those of the token at that position: align them
  by `next_token` first if the model predicts the next one.

  Args:
    logits: [..., V].
    ids: integers in 0..V-1, [...]; values where `where` is not true are not
      read and may be any, such as -100.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats, at most 0.

  Raises:
    ValueError: if the shapes do not fit or the ids are not integers.

  Needs: logits, tokens; access white; per example.
  Checked: Jingchensun/llava-kd@3fe6cc5; microsoft/LMOps@4f2a9deb;
    shufangxun/LLaVA-MoD@481ca57.
  Reference: the chain rule of sequence models, such as
    https://arxiv.org/abs/1409.3215, Eq. 1.
  """
  checks.labels("token_log_probs", ids, logits.shape[:-1])
  return -cross_entropy(logits, ids, where=where)


def sequence_log_probs(
  logits: Array,
  ids: Array,
  *,
  where: Array | None = None,
  mean: bool = False,
) -> Array:
  """Log-probabilities of given sequences.

    sum_t log softmax(logits_t)[id_t]

  Args:
    logits: [..., L, V], at the positions of the tokens (see `next_token`).
    ids: integers in 0..V-1, [..., L]; not read where `where` is not true.
    where: [..., L], the tokens that count.
    mean: whether the sum is divided by the number of tokens that count.

  Returns:
    [...], nats; 0 where no token counts.

  Raises:
    ValueError: if the shapes do not fit or the ids are not integers.

  Needs: logits, tokens; access white; per example.
  Checked: shufangxun/LLaVA-MoD@481ca57.
  Reference: the chain rule of sequence models, such as
    https://arxiv.org/abs/1409.3215, Eq. 1.
  """
  values = token_log_probs(logits, ids, where=where)
  return sequence_mean(values, where=where) if mean else values.sum(-1)


def sequence_sum(values: Array, *, where: Array | None = None) -> Array:
  """Sum over the tokens of every sequence.

    sum_{t in where} v_t

  Args:
    values: v, one per token, [..., L].
    where: [..., L]; entries that are not true are left out, and NaN in them
      reaches neither the sum nor its gradient.

  Returns:
    [...], float32 at least.

  Raises:
    ValueError: if the shapes differ.

  Needs: one value per token; access text; per example.
  Checked: property tests only.
  Reference: the sum over tokens, such as https://arxiv.org/abs/2306.13649,
    Eq. 2, before its division by the length.
  """
  values = at_least_float32(values)
  if where is not None:
    checks.same("sequence_sum", values=values, where=where)
    values = jnp.where(where.astype(bool), values, 0.0)
  return jnp.sum(values, axis=-1)


def sequence_mean(values: Array, *, where: Array | None = None) -> Array:
  """Mean over the tokens of every sequence.

    sum_{t in where} v_t / |where|

  Args:
    values: v, one per token, [..., L].
    where: [..., L]; entries that are not true are left out, and NaN in them
      reaches neither the mean nor its gradient.

  Returns:
    [...], float32 at least; 0 where no token counts.

  Raises:
    ValueError: if the shapes differ.

  Needs: one value per token; access text; per example.
  Checked: property tests only.
  Reference: Agarwal et al. (GKD), https://arxiv.org/abs/2306.13649, Eq. 2.
  """
  if where is None:
    return jnp.mean(at_least_float32(values), axis=-1)
  checks.same("sequence_mean", values=values, where=where)
  total = sequence_sum(values, where=where)
  count = jnp.sum(where.astype(bool), axis=-1)
  return total / jnp.maximum(count, 1).astype(total.dtype)
