"""DCKD and ADPA, with the full vocabulary and with a cache of k tokens."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

RELEASED = (
  "kaist-siit-lab/StarLab_Preference-Distillation-via-Value-based-"
  "Reinforcement-Learning@92fd4966"
)


def checks() -> Iterator[Check]:
  """All files of the family."""
  for case, arrays in golden_tools.cases("adpa__dense.derived").items():
    yield from _dense(f"adpa__dense.derived/{case}", arrays)
  for case, arrays in golden_tools.cases("adpa__sparse").items():
    yield from _cached(f"adpa__sparse/{case}", arrays)
    yield from _margins(f"adpa__sparse/{case}", arrays)
    yield from _sparse(f"adpa__sparse/{case}", arrays)


def _check(arrays, name, output, call, *, loss, source, key=None, sides=()):
  gradient = arrays.get(f"grad_student_logits__{output}")
  inputs = {
    "student": arrays["in_student_logits"],
    "aligned": arrays["in_dpo_teacher_logits"],
    "reference": arrays["in_ref_teacher_logits"],
  }
  return Check(
    loss=loss,
    source=source,
    name=f"{name}/{output}",
    call=call,
    inputs={side: inputs[side] for side in sides or inputs},
    value=arrays[key or f"out_{output}"],
    gradients={} if gradient is None else {"student": gradient},
    rtol=1e-5,
    gradient_atol=1e-6,
  )


def _one_sequence(student, aligned, where):
  """KL on one answer, the mean over all tokens of the batch: the batch as one
  sequence, and the other answer without weight."""
  student, aligned, where = jax.tree.map(
    lambda x: x.reshape(-1, *x.shape[2:]), (student, aligned, where)
  )
  return losses.dckd(
    student,
    student,
    aligned,
    aligned,
    rejected_weight=0.0,
    where_chosen=where,
    where_rejected=where,
  )


def _where(arrays):
  return jnp.asarray(arrays["in_labels_shifted"] != -100)


def _dense(name, arrays):
  where = _where(arrays)

  def expected(student, aligned, reference):
    advantage = losses.log_ratio_advantage(aligned, reference)
    return losses.advantage_guided(student, advantage, where=where)

  formula = {"source": "formula"}
  yield _check(
    arrays,
    name,
    "advantage",
    losses.log_ratio_advantage,
    loss="log_ratio_advantage",
    key="aux_advantage",
    sides=("aligned", "reference"),
    **formula,
  )
  yield _check(
    arrays,
    name,
    "adpa_token_mean",
    lambda **logits: expected(**logits).sum() / where.sum(),
    loss="advantage_guided",
    **formula,
  )
  yield _check(
    arrays,
    name,
    "adpa_sequence_sum_batch_mean",
    lambda **logits: losses.sequence_sum(expected(**logits)).mean(),
    loss="advantage_guided",
    **formula,
  )
  yield _check(
    arrays,
    name,
    "fkl_token_mean",
    lambda student, aligned: _one_sequence(student, aligned, where),
    loss="dckd",
    sides=("student", "aligned"),
    **formula,
  )


def _cached(name, arrays):
  """What is stored of the aligned teacher; outside of the answer -1 and 0."""
  where, k = _where(arrays), int(arrays["param_top_k"])

  def stored(aligned):
    told = losses.TopK.of(aligned, k)
    inside = where[..., None]
    probabilities = jnp.where(inside, jnp.exp(told.log_probs), 0.0)
    rest = jnp.where(where, 1 - probabilities.sum(-1), 0.0)
    return jnp.where(inside, told.ids, -1), probabilities, rest

  def with_tail(student, ids):
    """Theirs is clipped, and all of it outside of the answer."""
    q = jnp.exp(losses.log_probabilities(student))
    q = jnp.take_along_axis(q, ids, axis=-1)
    slots = jnp.concatenate([q, 1 - q.sum(-1, keepdims=True)], axis=-1)
    return jnp.clip(jnp.where(where[..., None], slots, 0.0), 1e-8, 1 - 1e-8)

  aligned = ("aligned",)
  for output, call, key, sides in (
    ("topk_indices", lambda aligned: stored(aligned)[0], "aux_dpo_", aligned),
    ("topk_probs", lambda aligned: stored(aligned)[1], "aux_dpo_", aligned),
    ("tail_prob", lambda aligned: stored(aligned)[2], "aux_dpo_", aligned),
    (
      "student_probs_with_tail",
      lambda student, aligned: with_tail(
        student, losses.TopK.of(aligned, k).ids
      ),
      "out_",
      ("student", "aligned"),
    ),
    (
      "teacher_probs_with_tail",
      lambda aligned: with_tail(aligned, losses.TopK.of(aligned, k).ids),
      "out_",
      aligned,
    ),
  ):
    yield _check(
      arrays,
      name,
      output,
      call,
      loss="TopK",
      source=f"{RELEASED} compress_logits.py",
      key=f"{key}{output}",
      sides=sides,
    )


def _margins(name, arrays):
  """Theirs are sorted, the largest first; outside of the answer -1 and 0."""
  inside, k = _where(arrays)[..., None], int(arrays["param_top_k"])

  def margins(aligned, reference):
    told = losses.TopK.of(aligned, k)
    values = losses.log_ratio_advantage(told, losses.TopK.of(reference, k))
    order = jnp.argsort(-values, axis=-1, stable=True)
    ids, values = (
      jnp.take_along_axis(x, order, axis=-1) for x in (told.ids, values)
    )
    return jnp.where(inside, ids, -1), jnp.where(inside, values, 0.0)

  for output, call in (
    ("margin_indices_sorted", lambda **logits: margins(**logits)[0]),
    ("margin_values_sorted", lambda **logits: margins(**logits)[1]),
  ):
    yield _check(
      arrays,
      name,
      output,
      call,
      loss="log_ratio_advantage",
      source=f"{RELEASED} merge_logits_adpa_dataset.py",
      sides=("aligned", "reference"),
    )


def _sparse(name, arrays):
  where, k = _where(arrays), int(arrays["param_top_k"])

  def expected(student, aligned, reference, least, most):
    told = losses.TopK.of(aligned, k)
    advantage = losses.log_ratio_advantage(told, losses.TopK.of(reference, k))
    values = losses.advantage_guided(
      student,
      jnp.clip(advantage, least, most),
      ids=told.ids,
      tail_advantage=max(least, 0.0),
      where=where,
    )
    return values.sum() / where.sum()

  for output, least, most in (
    ("adpa_signed", -jnp.inf, jnp.inf),
    # The released loader of probabilities clips advantages as well.
    ("adpa_asreleased_clamped", 1e-8, 1 - 1e-8),
  ):
    yield _check(
      arrays,
      name,
      output,
      lambda least=least, most=most, **logits: expected(
        **logits, least=least, most=most
      ),
      loss="advantage_guided",
      source=f"{RELEASED} run_distill_dpo.py:get_reverse_ce",
    )
  yield _check(
    arrays,
    name,
    "dckd_kl_one_side",
    lambda student, aligned: _one_sequence(
      student, losses.TopK.of(aligned, k), where
    ),
    loss="dckd",
    source=f"{RELEASED} run_distill_dpo.py:get_kl_loss",
    sides=("student", "aligned"),
  )
