"""Losses that are sums of ours, and students with a second head.

DHKD, DHO, MaKD, MIX-KD and the logit losses of ProC-KD.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check
from tests.losses.vectors.logits import table_checks

DHKD = "penghui-yang/DHKD@7976c69"
DHO = "erjui/DHO@846de75 train_student"
MAKD = "taegyeong-lee/MaKD@89461d1 MaKD.py:MaKD.forward_train"
MIX = "hchoi71/MIX-KD@6e8c149 MIXSTD.py:MIXSTDLoss"
PROC = "Daniel00008/ProC-KD@56c6adc main.py"
WEIGHTS = (
  "body_weight",
  "body_bias",
  "fc_weight",
  "fc_bias",
  "fc2_weight",
  "fc2_bias",
)


def _binary(scalars):
  def mean(loss):
    return lambda s, t, y: loss(s, t, temperature=scalars["temperature"]).mean()

  return {
    "binarykl": (
      "binary_kl",
      f"{DHKD} BinaryKL.py:BinaryKL",
      mean(losses.binary_kl),
    ),
    "binarykl_norm": (
      "normalized_binary_kl",
      f"{DHKD} BinaryKLNorm.py:BinaryKLNorm",
      mean(losses.normalized_binary_kl),
    ),
    "kd": ("kl", f"{DHKD} KD.py:DistillKL", mean(losses.kl)),
  }


def _two_heads(weights, arrays, scalars) -> dict[str, jax.Array]:
  """All outputs of a step with aligned gradients, by their names."""

  def terms(weights):
    hidden = arrays["x"] @ weights["body_weight"].T
    hidden = jnp.tanh(hidden + weights["body_bias"][None])
    main = hidden @ weights["fc_weight"].T + weights["fc_bias"][None]
    aux = hidden @ weights["fc2_weight"].T + weights["fc2_bias"][None]
    ce = losses.cross_entropy(main, arrays["labels"]).mean()
    kd = losses.normalized_binary_kl(
      aux, arrays["teacher_logits"], temperature=scalars["temperature"]
    ).mean()
    return ce, scalars["alpha"] * kd, main, aux

  def flat(tree):
    return jnp.concatenate([tree[name].reshape(-1) for name in WEIGHTS])

  ce, kd, main, aux = terms(weights)
  of_ce = jax.grad(lambda w: terms(w)[0])(weights)
  of_kd = jax.grad(lambda w: terms(w)[1])(weights)
  a, b = flat(of_ce), flat(of_kd)
  aligned = losses.align_gradients(of_kd, of_ce)
  merged = jax.tree.map(jnp.add, of_ce, aligned)
  rate, decay = scalars["lr"], scalars["weight_decay"]
  outputs = {
    "loss_ce": ce,
    "loss_kd_weighted": kd,
    "main_logits": main,
    "aux_logits": aux,
    "grad_flat_ce": a,
    "grad_flat_kd": b,
    "cosine": a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b),
  }
  for name, gradient in merged.items():
    outputs[f"merged_grad_{name}"] = gradient
    step = gradient + decay * weights[name]
    outputs[f"after_sgd_{name}"] = weights[name] - rate * step
  return outputs


def _aligned() -> Iterator[Check]:
  file = "dhkd__grad_align"
  for case, arrays in golden_tools.cases(file).items():
    scalars = golden_tools.section(arrays, "param_")
    scalars = {name: float(x) for name, x in scalars.items()}
    for output, value in golden_tools.section(arrays, "out_").items():

      def call(x, labels, teacher_logits, output=output, s=scalars, **weights):
        given = {"x": x, "labels": labels, "teacher_logits": teacher_logits}
        return _two_heads(weights, given, s)[output]

      yield Check(
        loss="align_gradients",
        source=f"{DHKD} optimizer.py:OptimGradAlign.ga_backward",
        name=f"{file}/{case}/{output}",
        call=call,
        inputs=golden_tools.section(arrays, "in_")
        | golden_tools.section(arrays, "weight_"),
        value=value,
      )


def _dho() -> Iterator[Check]:
  file = "dho__losses"
  heads = ("labeled_ce_logits", "labeled_kd_logits", "unlabeled_kd_logits")
  for case, arrays in golden_tools.cases(file).items():
    t_, ce_weight, kd_weight = (
      float(arrays[f"param_{name}"])
      for name in ("temperature", "ce_weight", "kd_weight")
    )

    def parts(given, t_=t_, ce_weight=ce_weight, kd_weight=kd_weight):
      ce = losses.cross_entropy(given["labeled_ce_logits"], given["labels"])
      both = [
        losses.kl(
          given[f"{name}_kd_logits"],
          given[f"teacher_{name}_logits"],
          temperature=t_,
        ).mean()
        for name in ("labeled", "unlabeled")
      ]
      return {
        "loss": ce_weight * ce.mean() + kd_weight * sum(both),
        "ce": ce.mean(),
        "kd_labeled": both[0],
        "kd_unlabeled": both[1],
      }

    for output, value in golden_tools.section(arrays, "out_").items():
      gradients = {}
      if output == "loss":
        gradients = {name: arrays[f"grad_{name}"] for name in heads}
      yield Check(
        loss="cross_entropy" if output == "ce" else "kl",
        source=DHO,
        name=f"{file}/{case}/{output}",
        call=lambda output=output, parts=parts, **given: parts(given)[output],
        inputs=golden_tools.section(arrays, "in_"),
        value=value,
        gradients=gradients,
      )
    # The head of the labels gets nothing from unlabelled examples: no term has
    # it, as the reference's gradient says.
    assert not arrays["aux_grad_unlabeled_ce_logits"].any()


def _makd() -> Iterator[Check]:
  file = "makd__losses"
  for case, arrays in golden_tools.cases(file).items():
    classes = int(arrays["param_num_classes"])
    alpha, ce_weight = (
      float(arrays[f"param_{name}"]) for name in ("alpha", "ce_weight")
    )

    def parts(student, labels, aspects, c=classes, a=alpha, w=ce_weight):
      ce = w * losses.cross_entropy(student[:, :c], labels).mean()
      aspect = losses.binary_cross_entropy(student[:, c:], aspects)
      terms = {"loss_ce": ce, "loss_aspect": a * aspect.mean()}
      sizes = {"eval_outputs_width": jnp.array(student.shape[1])}
      slices = {"class_logits": student[:, :c]}
      return terms | {"total": sum(terms.values())} | sizes | slices

    for output, value in golden_tools.section(arrays, "out_").items():
      gradient = {"student": arrays["grad_student_outputs"]}
      yield Check(
        loss="cross_entropy" if output == "loss_ce" else "binary_cross_entropy",
        source=MAKD,
        name=f"{file}/{case}/{output}",
        call=lambda output=output, parts=parts, **given: parts(**given)[output],
        inputs={
          "student": arrays["in_student_outputs"],
          "labels": arrays["in_labels"],
          "aspects": arrays["in_aspect_targets"],
        },
        value=value,
        gradients=gradient if output == "total" else {},
      )


def _mix() -> Iterator[Check]:
  file = "mix_kd__losses"
  for case, arrays in golden_tools.cases(file).items():
    gamma, alpha = (
      float(arrays[f"param_{name}"]) for name in ("gamma", "alpha")
    )

    def parts(student, teacher, soft, gamma=gamma, alpha=alpha):
      # A shift by the mean changes no softmax; the reference has no epsilon.
      scaled = losses.standardize(student, eps=0.0)
      ce = losses.soft_cross_entropy(scaled, soft).mean()
      kd = losses.kl(scaled, losses.standardize(teacher, eps=0.0)).mean()
      return {
        "loss_cls_weighted": gamma * ce,
        "loss_kd_weighted": alpha * kd,
        "loss": gamma * ce + alpha * kd,
        "kl_T4": losses.kl(student, teacher, temperature=4.0).mean(),
      }

    gradients = {
      "loss": {
        "student": arrays["grad_student_logits"],
        "teacher": arrays["grad_teacher_logits_unstopped"],
      },
      "kl_T4": {"student": arrays["grad_kl_T4_student"]},
    }
    for output, value in golden_tools.section(arrays, "out_").items():
      yield Check(
        loss="soft_cross_entropy" if output == "loss_cls_weighted" else "kl",
        source=MIX if output != "kl_T4" else "hchoi71/MIX-KD@6e8c149 KD.py",
        name=f"{file}/{case}/{output}",
        call=lambda output=output, parts=parts, **given: parts(**given)[output],
        inputs={
          "student": arrays["in_student_logits"],
          "teacher": arrays["in_teacher_logits"],
          "soft": arrays["in_soft_targets"],
        },
        value=value,
        gradients=gradients.get(output, {}),
        rtol=5e-5,
        gradient_rtol=5e-5,
      )


def _proc() -> Iterator[Check]:
  file = "proc_kd__prototypes.derived"
  calls = {
    # Averaged over the classes too.
    "soft_cross_entropy": (
      "soft_cross_entropy",
      lambda first, second: (
        losses.soft_cross_entropy(first, jax.nn.softmax(second)).mean()
        / first.shape[-1]
      ),
    ),
    "kl_categorical": (
      "reverse_kl",
      lambda first, second: losses.reverse_kl(first, second).mean(),
    ),
  }
  for case in ("logit0", "logit1"):
    arrays = golden_tools.section(golden_tools.load(file), f"{case}_")
    for output, (loss, call) in calls.items():
      yield Check(
        loss=loss,
        source=f"{PROC}:{output}",
        name=f"{file}/{case}/{output}",
        call=call,
        inputs={name: arrays[f"in_{name}"] for name in ("first", "second")},
        value=np.asarray(arrays[f"out_{output}"]),
        gradients={"first": arrays[f"grad_first_{output}"]},
      )


def checks() -> Iterator[Check]:
  """Every output of DHKD's losses, DHO, MaKD, MIX-KD, ProC-KD's logits."""
  yield from table_checks("dhkd__binary_kl", _binary)
  yield from _aligned()
  yield from _dho()
  yield from _makd()
  yield from _mix()
  yield from _proc()
