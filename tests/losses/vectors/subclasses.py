"""LELP: directions, targets and losses of subclasses."""

from collections.abc import Iterator

import jax.numpy as jnp

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

FILE = "lelp__targets.derived"


def _directions(arrays) -> dict:
  """Output -> public name, call; the signs of directions are arbitrary."""
  count = int(arrays["param_num_subclasses"])
  classes = len(arrays["in_head_weight"])

  def found(embeddings, labels, head_weight):
    return losses.subclass_directions(
      embeddings,
      labels,
      classes=classes,
      subclasses=count,
      kernel=head_weight.T,
    )

  def projector(*given):
    v = found(*given).directions
    return jnp.einsum("cds,ces->cde", v, v)

  name = "subclass_directions"
  return {
    "null_projector": (
      "null_projector",
      lambda h, y, w: losses.null_projector(w.T),
    ),
    "class_means": (name, lambda *given: found(*given).means),
    "pca_projector": (name, projector),
    "pca_variances": (name, lambda *given: found(*given).variances),
  }


def _targets(arrays) -> dict:
  """Output -> public name, call; from the directions that are stored."""
  stored = losses.SubclassDirections(
    means=jnp.asarray(arrays["out_class_means"]),
    directions=jnp.asarray(arrays["out_pca_directions"]),
    variances=jnp.asarray(arrays["out_pca_variances"]),
  )
  t_, beta = (float(arrays[f"param_{n}"]) for n in ("temperature", "beta"))

  def logits(given):
    w, b = given["head_weight"], given["head_bias"]
    h = given["batch_embeddings"]
    return h @ w.T + jnp.broadcast_to(b, (len(h), len(b)))

  def rotated(given):
    return stored.rotated(given["rotation"])

  def projections(given):
    return losses.subclass_projections(
      given["batch_embeddings"], rotated(given), kernel=given["head_weight"].T
    )

  def targets(given):
    return losses.subclass_log_probs(
      logits(given),
      given["batch_embeddings"],
      rotated(given),
      temperature=t_,
      subclass_temperature=beta,
      kernel=given["head_weight"].T,
    )

  return {
    "rotated_directions": (
      "SubclassDirections",
      lambda given: rotated(given).directions,
    ),
    "projections": ("subclass_projections", projections),
    "teacher_logits": ("subclass_log_probs", logits),
    "subclass_targets": (
      "subclass_log_probs",
      lambda given: jnp.exp(targets(given)),
    ),
  } | _losses(t_, int(arrays["param_num_subclasses"]), targets)


def _losses(temperature, count, targets) -> dict:
  """Output -> public name, call of the student's logits as well."""

  def soft(given):
    student = given["student_logits"] / temperature
    return losses.soft_cross_entropy(student, jnp.exp(targets(given))).mean()

  def kl(given):
    teacher = temperature * targets(given)
    return losses.kl(
      given["student_logits"], teacher, temperature=temperature
    ).mean()

  def of_classes(given):
    return losses.class_log_probs(given["student_logits"], count)

  return {
    "soft_cross_entropy": ("soft_cross_entropy", soft),
    "kl_times_t2": ("kl", kl),
    "label_cross_entropy": (
      "class_log_probs",
      lambda given: losses.cross_entropy(
        of_classes(given), given["batch_labels"]
      ).mean(),
    ),
    "student_class_probs": (
      "class_log_probs",
      lambda given: jnp.exp(of_classes(given)),
    ),
  }


def checks() -> Iterator[Check]:
  """Every output of all cases but the directions before the rotation.

  Those are compared by their projectors.
  """
  for case, arrays in golden_tools.cases(FILE).items():
    inputs = golden_tools.section(arrays, "in_")
    once = {name: inputs[name] for name in ("embeddings", "labels")}
    once["head_weight"] = inputs["head_weight"]
    rest = {
      n: x for n, x in inputs.items() if n not in ("embeddings", "labels")
    }
    tables = _directions(arrays), _targets(arrays)
    covered = {"pca_directions"}.union(*tables)
    assert covered == golden_tools.section(arrays, "out_").keys()
    options = {"source": "formula", "rtol": 1e-4, "atol": 1e-5}
    for output, (loss, call) in tables[0].items():
      yield Check(
        loss=loss,
        name=f"{FILE}/{case}/{output}",
        call=lambda embeddings, labels, head_weight, call=call: call(
          embeddings, labels, head_weight
        ),
        inputs=once,
        value=arrays[f"out_{output}"],
        **options,
      )
    for output, (loss, call) in tables[1].items():
      gradient = arrays.get(f"grad_student_logits__{output}")
      yield Check(
        loss=loss,
        name=f"{FILE}/{case}/{output}",
        call=lambda call=call, **given: call(given),
        inputs=rest,
        value=arrays[f"out_{output}"],
        gradients={} if gradient is None else {"student_logits": gradient},
        gradient_atol=1e-5,
        **options,
      )
