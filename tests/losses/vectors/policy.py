"""Policy gradients of MiniLLM and of its copy in TRL."""

from collections.abc import Iterator

import jax.numpy as jnp

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

MINILLM = "microsoft/LMOps@4f2a9deb minillm/minillm"
TRL = "huggingface/trl@f2cd5771 minillm_trainer.py:MiniLLMTrainer"


def checks() -> Iterator[Check]:
  """All outputs of the file."""
  for case, arrays in golden_tools.cases("llm_baselines__minillm").items():
    name = f"llm_baselines__minillm/{case}"
    yield from _sampled(name, arrays)
    yield from _advantages(name, arrays)
    yield from _of_trl(name, arrays)
    yield _clipped(name, arrays)
    yield from _single_steps(name, arrays)


def _check(arrays, name, output, key=None, **options):
  return Check(
    name=f"{name}/{output}", value=arrays[key or f"out_{output}"], **options
  )


def _log_probs(arrays):
  return {
    side: arrays[f"out_{side}_logprobs"] for side in ("student", "teacher")
  }


def _sampled(name, arrays):
  """Quantities of single tokens."""
  ids, where = arrays["in_response_ids"], arrays["in_mask"]
  for side in ("student", "teacher"):
    yield _check(
      arrays,
      name,
      f"{side}_logprobs",
      loss="token_log_probs",
      source=f"{MINILLM}/utils.py:get_log_probs",
      call=lambda logits: losses.token_log_probs(
        logits, jnp.asarray(ids), where=jnp.asarray(where)
      ),
      inputs={"logits": arrays[f"in_{side}_logits"]},
    )
  yield _check(
    arrays,
    name,
    "reward_scaled0p5",
    "aux_reward_scaled0p5",
    loss="teacher_reward",
    source="formula",
    call=lambda **given: losses.teacher_reward(
      **given, scale=0.5, clip=100.0, where=where
    ),
    inputs=_log_probs(arrays),
  )
  yield _check(
    arrays,
    name,
    "importance_weight_alpha0p2",
    "aux_importance_weight_alpha0p2",
    loss="mixed_importance",
    source="formula",
    call=lambda **given: losses.mixed_importance(**given, teacher_share=0.2),
    inputs=_log_probs(arrays),
  )
  yield _check(
    arrays,
    name,
    "rev_kl_k3",
    loss="reverse_kl_estimate",
    source=f"{MINILLM}/utils.py:get_rev_kl",
    call=lambda **given: losses.reverse_kl_estimate(**given, where=where),
    inputs=_log_probs(arrays),
  )


def _advantages(name, arrays):
  where, discount = arrays["in_mask"], float(arrays["param_gamma"])

  def raw(rewards):
    return losses.reward_to_go(rewards, discount=discount, where=where)

  for output, loss, call in (
    ("advantages_raw", "reward_to_go", raw),
    # Theirs whitens over the padding as well.
    ("advantages_whitened", "whiten", lambda r: losses.whiten(raw(r))),
  ):
    yield _check(
      arrays,
      name,
      output,
      loss=loss,
      source=f"{MINILLM}/losses.py:_get_advantages_and_returns",
      call=lambda rewards, call=call: call(rewards),
      inputs={"rewards": arrays["aux_reward_scaled0p5"]},
    )


def _of_trl(name, arrays):
  """Theirs counts a padded position as 1e-4 of a token in the divisor, and
  without normalisation discounts from the start of the sequence."""
  where = arrays["in_mask"]
  tokens = where[:, ::-1].cumsum(1)[:, ::-1]
  padding = 1e-4 * (1 - where[:, ::-1]).cumsum(1)[:, ::-1]
  positions = jnp.arange(where.shape[1], dtype=jnp.float32)[None]

  def normalized(discount, student, teacher):
    rewards = losses.teacher_reward(student, teacher, where=where)
    means = losses.reward_to_go(
      rewards, discount=discount, normalize="weights", where=where
    )
    # At discount 0 every power beyond the first is 0, and so is the divisor.
    return means * tokens / (tokens + padding) if discount else means

  def plain(student, teacher):
    rewards = losses.teacher_reward(student, teacher, where=where)
    sums = losses.reward_to_go(
      rewards, discount=0.9, normalize=None, where=where
    )
    return 0.9**positions * sums

  for output, call in (
    ("gamma0_lennorm", lambda **given: normalized(0.0, **given)),
    ("gamma1_lennorm", lambda **given: normalized(1.0, **given)),
    ("gamma0p9_nonorm", plain),
  ):
    yield _check(
      arrays,
      name,
      f"trl_advantage_{output}",
      loss="reward_to_go",
      source=f"{TRL}._compute_advantage",
      call=call,
      inputs=_log_probs(arrays),
    )


def _clipped(name, arrays):
  where, output = arrays["in_mask"], "pg_loss_cliprange0p2"

  def call(student):
    log_probs = losses.token_log_probs(
      student, jnp.asarray(arrays["in_response_ids"]), where=jnp.asarray(where)
    )
    values = losses.clipped_policy(
      log_probs,
      arrays["in_old_logprobs"],
      arrays["out_advantages_whitened"],
      weights=arrays["aux_importance_weight_alpha0p2"],
      where=where,
    )
    return values.sum() / where.sum()

  return _check(
    arrays,
    name,
    output,
    loss="clipped_policy",
    source=f"{MINILLM}/losses.py:_pg_loss",
    call=call,
    inputs={"student": arrays["in_student_logits"]},
    gradients={"student": arrays[f"grad_student_logits__{output}"]},
    gradient_atol=1e-6,
  )


def _single_steps(name, arrays):
  where = arrays["in_mask"]
  for output, source in (
    ("single_step_reg", f"{MINILLM}/utils.py"),
    ("trl_single_step", f"{TRL}._single_step_decomposition_loss"),
  ):
    yield _check(
      arrays,
      name,
      output,
      loss="reverse_kl",
      source=source,
      call=lambda student, teacher: (
        losses.reverse_kl(student, teacher, where=where).sum() / where.sum()
      ),
      inputs={
        "student": arrays["in_student_logits"],
        "teacher": arrays["in_teacher_logits"],
      },
      gradients={"student": arrays[f"grad_student_logits__{output}"]},
      gradient_atol=1e-6,
    )
