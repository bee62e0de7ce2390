"""Sinkhorn distances and balanced assignment."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.losses import transport
from tests import golden_tools
from tests.losses.vectors import Check

SINKD = "2018cx/SinKD@1ffac901 loss.py"
RAW = {"eps0p1_n20": (0.1, 20), "eps0p5_n5": (0.5, 5), "eps0p05_n1": (0.05, 1)}


def checks() -> Iterator[Check]:
  """All files of the family."""
  for case, arrays in golden_tools.cases("sinkd__losses").items():
    name = f"sinkd__losses/{case}"
    if "seq3d_in_student_logits" in arrays:
      yield _released_sequences(name, golden_tools.section(arrays, "seq3d_"))
      continue
    yield from _distances(name, arrays)
    yield from _plans(name, arrays)
    yield from _cross_entropies(name, arrays)
  for case, arrays in golden_tools.cases("prorec__sinkhorn_assign").items():
    yield from _assignments(f"prorec__sinkhorn_assign/{case}", arrays)


def _inputs(arrays):
  return {
    "student": arrays["in_student_logits"],
    "teacher": arrays["in_teacher_logits"],
  }


def _gradients(arrays, output, *sides):
  return {side: arrays[f"grad_{side}_logits__{output}"] for side in sides}


def _without_factor(student, teacher, temperature=2.0, **options):
  """Theirs has no T^2."""
  values = losses.batch_transport(
    student, teacher, temperature=temperature, **options
  )
  return values / temperature**2


def _distances(name, arrays):
  tolerances = {"rtol": 1e-4, "gradient_rtol": 1e-4, "gradient_atol": 1e-5}
  yield Check(
    loss="batch_transport",
    source=f"{SINKD}:Sinkhorn",
    name=f"{name}/sinkhorn_weighted",
    call=lambda student, teacher: 0.001 * _without_factor(student, teacher),
    inputs=_inputs(arrays),
    value=arrays["out_sinkhorn_weighted"],
    gradients=_gradients(arrays, "sinkhorn_weighted", "student", "teacher"),
    **tolerances,
  )
  for key, (eps, iterations) in RAW.items():
    output = f"sinkhorn_raw_{key}"
    yield Check(
      loss="batch_transport",
      source=f"{SINKD}:Sinkhorn",
      name=f"{name}/{output}",
      call=lambda student, teacher, e=eps, n=iterations: _without_factor(
        student, teacher, eps=e, iterations=n
      ),
      inputs=_inputs(arrays),
      value=arrays[f"out_{output}"],
      gradients=_gradients(arrays, output, "student"),
      **tolerances,
    )


def _plans(name, arrays):
  """Theirs has mass 1 in every row and column, ours 1 in all."""
  yield Check(
    loss="sinkhorn",
    source=f"{SINKD}:Sinkhorn.sinkhorn_normalized",
    name=f"{name}/plan",
    call=lambda cost: len(cost) * losses.sinkhorn(cost),
    inputs={"cost": arrays["aux_cost"]},
    value=arrays["aux_plan"],
    rtol=1e-4,
  )
  yield Check(
    loss="batch_transport",
    source=f"{SINKD}:Sinkhorn",
    name=f"{name}/cost",
    call=_distance_of_probabilities,
    inputs=_inputs(arrays),
    value=arrays["aux_cost"],
  )


def _distance_of_probabilities(student, teacher):
  """Each pair as a batch of its own: its plan is 1, its value the cost."""
  pair = jax.vmap(_without_factor, in_axes=(None, 0))
  return jax.vmap(pair, in_axes=(0, None))(student[:, None], teacher[:, None])


def _cross_entropies(name, arrays):
  for temperature in (1, 4):
    output = f"kd_T{temperature}"
    yield Check(
      loss="kl",
      source=f"{SINKD}:DistillKL",
      name=f"{name}/{output}",
      call=lambda student, teacher, t=temperature: _soft_cross_entropy(
        student, teacher, t
      ),
      inputs=_inputs(arrays),
      value=arrays[f"out_{output}"],
      gradients=_gradients(arrays, output, "student"),
      gradient_atol=1e-5,
    )
  for epoch in range(3):
    output = f"kd_anneal_T4_epoch{epoch}of3"
    yield Check(
      loss="kl",
      source=f"{SINKD}:DistillKL_anneal",
      name=f"{name}/{output}",
      call=lambda student, teacher, t=4 - 3 * epoch / 2: _soft_cross_entropy(
        student, teacher, t
      ),
      inputs=_inputs(arrays),
      value=arrays[f"out_{output}"],
    )
  yield Check(
    loss="fitnet",
    source=f"{SINKD}:DistillKL",
    name=f"{name}/kd_regression_T2",
    call=lambda student, teacher: losses.fitnet(
      student[:, :1] / 2, teacher[:, :1] / 2
    ).mean(),
    inputs=_inputs(arrays),
    value=arrays["out_kd_regression_T2"],
  )


def _soft_cross_entropy(student, teacher, temperature):
  """Theirs: with the teacher's entropy, without T^2."""
  log_p = jax.nn.log_softmax(teacher / temperature)
  entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
  kl = losses.kl(student, teacher, temperature=temperature) / temperature**2
  return jnp.mean(kl + entropy)


def _released_sequences(name, arrays):
  """The released path for sequences, which is not what the paper says.

  Its softmax is over the positions, and of the costs [B, L, L] it normalises
  the second axis and then the batch: a plan between the student's positions
  and the examples of the batch, once for each of the teacher's positions.
  """

  def call(student, teacher):
    q, p = (jax.nn.softmax(x / 2, axis=1) for x in (student, teacher))
    cost = jnp.abs(q[:, :, None] - p[:, None]).sum(-1)
    cost = jnp.moveaxis(cost, -1, 0)  # [L, B, L]
    # Rows had mass 1 before columns got it: the total is that of the columns.
    plan = cost.shape[-1] * losses.sinkhorn(cost)
    return 0.0008 * jnp.sum(plan * cost)

  return Check(
    loss="sinkhorn",
    source="2018cx/SinKD@1ffac901 T0/lossd.py:Sinkhorn",
    name=f"{name}/seq3d_asreleased",
    call=call,
    inputs=_inputs(arrays),
    value=arrays["out_sinkhorn_asreleased"],
    gradients=_gradients(arrays, "sinkhorn_asreleased", "student"),
    rtol=1e-4,
    gradient_atol=1e-5,
  )


def _assignments(name, arrays):
  source = "RUCAIBox/LC-Rec@e6f1b3b index/models"
  inputs = {"latent": arrays["in_latent"], "codebook": arrays["in_codebook"]}
  options = {
    "eps": float(arrays["param_epsilon"]),
    "iterations": int(arrays["param_iterations"]),
  }

  def distances(latent, codebook):
    return jnp.sum((latent[:, None] - codebook[None]) ** 2, axis=-1)

  def scaled(latent, codebook):
    return transport.centred(distances(latent, codebook))

  yield Check(
    loss="balanced_assignment",
    source=f"{source}/vq.py:center_distance_for_constraint",
    name=f"{name}/centered_distance",
    call=scaled,
    inputs=inputs,
    value=arrays["out_centered_distance"],
    atol=1e-5,
  )
  yield Check(
    loss="sinkhorn",
    source=f"{source}/layers.py:sinkhorn_algorithm",
    name=f"{name}/plan",
    call=lambda latent, codebook: (
      len(latent) * losses.sinkhorn(scaled(latent, codebook), **options)
    ),
    inputs=inputs,
    value=arrays["out_plan"],
    atol=1e-5,
  )
  yield Check(
    loss="balanced_assignment",
    source=f"{source}/layers.py:sinkhorn_algorithm",
    name=f"{name}/codes",
    call=lambda latent, codebook: losses.balanced_assignment(
      distances(latent, codebook), **options
    ),
    inputs=inputs,
    value=arrays["out_codes"],
    rtol=0,
    atol=0,
  )
  yield Check(
    loss="balanced_assignment",
    source=f"{source}/vq.py",
    name=f"{name}/nearest_codes",
    call=lambda latent, codebook: jnp.argmin(distances(latent, codebook), -1),
    inputs=inputs,
    value=arrays["out_nearest_codes"],
    rtol=0,
    atol=0,
  )
