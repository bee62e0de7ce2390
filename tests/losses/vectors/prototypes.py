"""The few-shot teacher of PCoreSet: CLAP, a whole run of it."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

SOURCE = "erjui/PCoreSet@075a76a clap_others.py:train_clap_teacher"


def _loss(params, start, weights, features, labels, scale):
  logits = losses.prototype_logits(features, params, scale=scale)
  constraint = losses.prototype_constraint(params, start, weights=weights)
  return losses.cross_entropy(logits, labels).mean() + constraint


def _run(a, start, support, features):
  """Prototypes [C, D] and the mean loss after steps [S, B, D] of SGD."""
  steps = len(features)
  warm = 0.1 * steps  # need not be a whole number

  def rate(i):
    return jnp.where(i < warm, i / warm, (steps - i) / (steps - warm))

  lr = float(a["param_lr"])
  optimizer = optax.sgd(lambda i: lr * rate(i), float(a["param_momentum"]))
  weights = losses.class_confidence(
    support, jnp.asarray(a["in_support_labels"]), start
  )

  def step(carried, given):
    params, state = carried
    value, gradient = jax.value_and_grad(_loss)(
      params, start, weights, *given, float(a["param_logit_scale_exp"])
    )
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(params, updates), state), value

  labels = jnp.asarray(a["in_step_labels"])
  carried = start, optimizer.init(start)
  (params, _), values = jax.lax.scan(step, carried, (features, labels))
  return params, values.mean()


def checks() -> Iterator[Check]:
  """Class weights, prototypes after the run, mean loss of the run."""
  golden = "pcoreset__clap_teacher"
  for case, a in golden_tools.cases(golden).items():
    inputs = {
      "start": a["in_text_prototypes_unnormalised"].T,
      "support": a["in_support_features"],
    }
    run = {**inputs, "features": a["in_step_features"]}
    make = functools.partial(Check, source=SOURCE, rtol=1e-4, atol=1e-5)
    labels = jnp.asarray(a["in_support_labels"])
    yield make(
      loss="class_confidence",
      name=f"{golden}/{case}/class_constraint",
      call=lambda start, support, _y=labels: losses.class_confidence(
        support, _y, start
      ),
      inputs=inputs,
      value=a["aux_class_constraint"],
    )
    yield make(
      loss="prototype_logits",
      name=f"{golden}/{case}/prototypes",
      call=lambda _a=a, **x: _run(_a, **x)[0].T,
      inputs=run,
      value=a["out_prototypes"],
    )
    yield make(
      loss="prototype_constraint",
      name=f"{golden}/{case}/mean_loss",
      call=lambda _a=a, **x: _run(_a, **x)[1],
      inputs=run,
      value=a["out_mean_loss"],
    )
