"""Losses of pairs and of ranked candidates."""

from collections.abc import Iterator

import jax.numpy as jnp

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

TRAINER = "shufangxun/LLaVA-MoD@481ca57 dpo_trainer.py:DPOTrainer"
RRHF = "GanjinZero/RRHF@e1a2b61 train.py:RRHFTrainer"
GRADIENTS = {"gradient_rtol": 1e-4, "gradient_atol": 1e-6}
PAIR_LOSSES = {
  "sigmoid": "dpo",
  "hinge": "hinge_preference",
  "ipo": "ipo",
  "kto_pair": "kto_pair",
}
ANSWERS = [
  (who, which) for who in ("policy", "ref") for which in ("chosen", "rejected")
]


def checks() -> Iterator[Check]:
  """All files of the family."""
  for case, arrays in golden_tools.cases("llava_mod__preference").items():
    name = f"llava_mod__preference/{case}"
    yield from _log_probs(name, arrays)
    yield from _rewards(name, arrays)
    yield from _pairs(name, arrays)
  for case, arrays in golden_tools.cases("survey_llm_kd__rrhf").items():
    yield from _rrhf(f"survey_llm_kd__rrhf/{case}", arrays)


def _answer_log_probs(logits, labels):
  """Their labels are those of the tokens: position t predicts t + 1."""
  logits, labels = losses.next_token(logits, jnp.asarray(labels))
  return losses.sequence_log_probs(logits, labels, where=labels != -100)


def _log_probs(name, arrays):
  for who, which in ANSWERS:
    labels = arrays[f"in_{which}_labels"]
    yield Check(
      loss="sequence_log_probs",
      source=f"{TRAINER}.get_logp",
      name=f"{name}/{who}_{which}_logps",
      call=lambda logits, labels=labels: _answer_log_probs(logits, labels),
      inputs={"logits": arrays[f"in_{who}_{which}_logits"]},
      value=arrays[f"out_{who}_{which}_logps"],
    )


def _rewards(name, arrays):
  beta = float(arrays["param_beta"])
  log_probs = {
    f"{who}_{which}": arrays[f"out_{who}_{which}_logps"]
    for who, which in ANSWERS
  }

  def rewards(policy_chosen, policy_rejected, ref_chosen, ref_rejected):
    return (
      losses.implicit_reward(policy_chosen, ref_chosen, beta=beta),
      losses.implicit_reward(policy_rejected, ref_rejected, beta=beta),
    )

  outputs = {
    "chosen_rewards": lambda **given: rewards(**given)[0],
    "rejected_rewards": lambda **given: rewards(**given)[1],
    "reward_accuracy": lambda **given: jnp.mean(
      rewards(**given)[0] > rewards(**given)[1]
    ),
    "reward_margin": lambda **given: jnp.mean(
      rewards(**given)[0] - rewards(**given)[1]
    ),
  }
  for output, call in outputs.items():
    yield Check(
      loss="implicit_reward",
      source=f"{TRAINER}.dpo_loss",
      name=f"{name}/{output}",
      call=call,
      inputs=log_probs,
      value=arrays[f"out_{output}"],
    )


def _pairs(name, arrays):
  """The loss of every pair, and the mean of that and of the routers' losses."""
  loss = PAIR_LOSSES[str(arrays["param_loss_type"])]
  options = {"beta": float(arrays["param_beta"])}
  if loss == "dpo":
    options["label_smoothing"] = float(arrays["param_label_smoothing"])

  def per_item(**logits):
    values = getattr(losses, loss)(
      *(
        _answer_log_probs(
          logits[f"{who}_{which}"], arrays[f"in_{which}_labels"]
        )
        for who, which in ANSWERS
      ),
      **options,
    )
    # Theirs of KTO: all chosen answers, then all rejected ones.
    return values.T.reshape(-1) if loss == "kto_pair" else values

  routers = arrays["in_moe_loss_chosen"] + arrays["in_moe_loss_rejected"]
  for output, call, gradients in (
    ("per_item_losses", per_item, {}),
    (
      "total_loss",
      lambda **logits: jnp.mean(per_item(**logits)) + routers,
      {
        f"policy_{which}": arrays[f"grad_policy_{which}_logits"]
        for which in ("chosen", "rejected")
      },
    ),
  ):
    yield Check(
      loss=loss,
      source=f"{TRAINER}.compute_loss",
      name=f"{name}/{output}",
      call=call,
      inputs={
        f"{who}_{which}": arrays[f"in_{who}_{which}_logits"]
        for who, which in ANSWERS
      },
      value=arrays[f"out_{output}"],
      gradients=gradients,
      **GRADIENTS,
    )


def _rrhf(name, arrays):
  labels, rewards = arrays["in_labels"], arrays["in_reward_scores"]
  weight = float(arrays["param_rrhf_weight"])
  penalty = float(arrays["param_length_penalty"])
  padded = jnp.full(rewards.shape, float(labels.shape[1]))

  def log_probs(logits):
    return losses.sequence_log_probs(
      logits, jnp.asarray(labels), where=labels != -100
    )

  def total(logits, rank_weight):
    return losses.rrhf(
      log_probs(logits),
      padded,  # theirs divides by the padded length
      jnp.asarray(rewards),
      length_penalty=penalty,
      rank_weight=rank_weight,
    )

  for output, call, gradients in (
    (
      "sequence_scores",
      lambda logits: log_probs(logits) / padded**penalty,
      {},
    ),
    ("rank_loss", lambda logits: total(logits, 1.0) - total(logits, 0.0), {}),
    (
      "total_loss",
      lambda logits: total(logits, weight),
      {"logits": arrays["grad_logits"]},
    ),
  ):
    yield Check(
      loss="rrhf",
      source=RRHF,
      name=f"{name}/{output}",
      call=call,
      inputs={"logits": arrays["in_logits"]},
      value=arrays[f"out_{output}"],
      gradients=gradients,
      **GRADIENTS,
    )
