"""Mutual learning, codistillation, born-again networks, ensembles."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

FILE = "logit_feature_baselines__mutual_ensemble.derived"


def _mutual(networks, labels, factor):
  """Cross entropy plus the sum (or mean) over the others, per network."""
  everyone = jnp.broadcast_to(labels, networks.shape[:-1])
  values = losses.cross_entropy(networks, everyone)
  return jnp.mean(values + factor * losses.mutual_kl(networks), axis=-1)


def _codistillation(networks):
  """Soft cross entropy to the mean of the others, per network."""
  values = []
  for k, own in enumerate(networks):
    others = jnp.delete(networks, k, axis=0, assume_unique_indices=True)
    target = jax.nn.softmax(losses.probability_mean(stop_gradient(others)))
    values.append(losses.soft_cross_entropy(own, target).mean())
  return jnp.stack(values)


def _networks(arrays) -> dict:
  """Output -> loss, call of networks and labels, gradient's name."""
  others = len(arrays["in_network_logits"]) - 1

  def one_to_zero(networks, labels):
    return losses.kl(networks[0], networks[1]).mean()

  return {
    "dml_per_network_sum": (
      "mutual_kl",
      lambda networks, labels: _mutual(networks, labels, others),
      "dml_sum",
    ),
    "dml_per_network_mean": (
      "mutual_kl",
      lambda networks, labels: _mutual(networks, labels, 1),
      "dml_mean",
    ),
    # The reference has 1e-8 inside of its logarithm.
    "dml_eps_kl_1_to_0": ("kl", one_to_zero, None),
    "codistill_per_network": (
      "soft_cross_entropy",
      lambda networks, labels: _codistillation(networks),
      "codistill",
    ),
  }


def _students(temperature: float) -> dict:
  """Output -> loss, call of student, teachers and weights."""
  t_ = temperature

  def probability_mean(teachers, weights):
    return losses.probability_mean(teachers, weights=weights, temperature=t_)

  def kd(student, teacher):
    return losses.kl(student, teacher, temperature=t_).mean()

  def mean_of_losses(student, teachers, weights):
    each = jax.vmap(kd, in_axes=(None, 0))(student, teachers)
    return jnp.sum(weights * each) / jnp.sum(weights)

  return {
    "born_again_soft_ce": (
      "soft_cross_entropy",
      lambda s, ts, w: losses.soft_cross_entropy(
        s, jax.nn.softmax(ts[0])
      ).mean(),
    ),
    "ensemble_prob_mean": (
      "probability_mean",
      lambda s, ts, w: jax.nn.softmax(probability_mean(ts, w) / t_),
    ),
    "ensemble_logit_mean": (
      "logit_mean",
      lambda s, ts, w: losses.logit_mean(ts, weights=w),
    ),
    "ensemble_geometric_mean": (
      "logit_mean",
      lambda s, ts, w: jax.nn.softmax(losses.logit_mean(ts, weights=w) / t_),
    ),
    "kd_ensemble_prob_mean": (
      "probability_mean",
      lambda s, ts, w: kd(s, probability_mean(ts, w)),
    ),
    "kd_ensemble_logit_mean": (
      "logit_mean",
      lambda s, ts, w: kd(s, losses.logit_mean(ts, weights=w)),
    ),
    "kd_ensemble_mean_of_losses": ("kl", mean_of_losses),
  }


def checks() -> Iterator[Check]:
  """Every output of all cases."""
  for case, arrays in golden_tools.cases(FILE).items():
    networks = arrays["in_network_logits"]
    found = set()
    for output, (loss, call, gradient) in _networks(arrays).items():
      found.add(output)
      gradients = {}
      if gradient:
        gradients["networks"] = arrays[f"grad_network_logits__{gradient}"]
      yield Check(
        loss=loss,
        source="formula",
        name=f"{FILE}/{case}/{output}",
        call=call,
        inputs={"networks": networks, "labels": arrays["in_labels"]},
        value=arrays[f"out_{output}"],
        gradients=gradients,
        gradient_rtol=1e-5,
      )
    students = _students(float(arrays["param_temperature"]))
    for output, (loss, call) in students.items():
      found.add(output)
      gradient = arrays.get(f"grad_student_logits__{output}")
      yield Check(
        loss=loss,
        source="formula",
        name=f"{FILE}/{case}/{output}",
        call=lambda student, teachers, weights, call=call: call(
          student, teachers, weights
        ),
        inputs={
          "student": arrays["in_student_logits"],
          "teachers": networks,
          "weights": np.asarray(arrays["in_teacher_weights"]),
        },
        value=arrays[f"out_{output}"],
        gradients={} if gradient is None else {"student": gradient},
        gradient_rtol=1e-5,
      )
    assert found == golden_tools.section(arrays, "out_").keys()
