"""Companions that stand in for the teacher's map or read several stages."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxkd import losses, nets
from tests import golden_tools
from tests.losses.vectors import Check
from tests.losses.vectors.companions import (
  BASE,
  common,
  dotted,
  family,
  train,
  variables,
)
from tests.losses.vectors.maps import MDISTILLER, last
from tests.nets import companion_maps as name_maps

SIMKD = "DefangChen/SimKD@2b389c3"
KD3 = "tangjialiang97/KD3@91e2d4c"


def _simkd() -> Iterator[Check]:
  file = f"{BASE}simkd_module"
  make = family(file, f"{SIMKD} models/util.py:SimKD")
  net = nets.SimKDTransfer()
  for case, arrays in golden_tools.cases(file).items():
    tree = variables(arrays, name_maps.SIMKD_TRANSFER, "weight_transfer_")
    classifier = (
      arrays["weight_teacher_classifier_weight"].T,
      arrays["weight_teacher_classifier_bias"],
    )

    def projected(student, teacher, tree=tree):
      return train(net, tree, student, teacher)[0]

    def logits(student, teacher, projected=projected, classifier=classifier):
      feature = projected(student, teacher)
      return nets.reuse_classifier(feature, *classifier)

    def target(student, teacher):
      return losses.match_sizes(student, teacher)[1]

    def loss(student, teacher, projected=projected):
      return losses.fitnet(projected(student, teacher), teacher).mean()

    inputs = common(arrays)
    for what, name, call in (
      ("projected", "SimKDTransfer", projected),
      ("target", "match_sizes", target),
      ("logits", "reuse_classifier", logits),
    ):
      value = arrays[f"out_{what}"]
      yield make(case, what, name, call, inputs, last(value))
    yield make(
      case,
      "loss",
      "fitnet",
      loss,
      inputs,
      arrays["out_loss"],
      {"student": last(arrays["grad_student_map_nchw"])},
    )


def _kd3() -> Iterator[Check]:
  file = "kd3__losses"
  make = family(file, f"{KD3} models/util.py:KDDD", rtol=1e-4, atol=1e-5)
  net = nets.SimKDTransfer()
  for case in ("project0", "project1"):
    arrays = golden_tools.section(golden_tools.load(file), f"{case}_")
    weights = golden_tools.section(arrays, "param_transfer__")
    weights = {name.replace("__", "."): w for name, w in weights.items()}
    tree = golden_tools.convert(weights, name_maps.SIMKD_TRANSFER)
    classifier = (
      arrays["param_teacher_cls_weight"].T,
      arrays["param_teacher_cls_bias"],
    )
    runs = {
      "eval": lambda s, t, tree=tree: net.apply(tree, s, t),
      "train": lambda s, t, tree=tree: train(net, tree, s, t)[0],
    }
    inputs = {
      "student": last(arrays["in_student_feat"]),
      "teacher": last(arrays["in_teacher_feat"]),
    }
    for mode, run in runs.items():

      def projected(student, teacher, run=run):
        return run(student, teacher)

      def logits(student, teacher, run=run, classifier=classifier):
        return nets.reuse_classifier(run(student, teacher), *classifier)

      for what, name, call in (
        ("proj_feat", "SimKDTransfer", projected),
        ("logits", "reuse_classifier", logits),
      ):
        value = last(arrays[f"out_{mode}_{what}"])
        yield make(case, f"{mode}_{what}", name, call, inputs, value)
    slope = arrays["grad_student_feat_of_mean_square_proj_train"]
    train_value = arrays["out_train_proj_feat"].astype(np.float64)
    yield make(
      case,
      "mean_square",
      "SimKDTransfer",
      lambda student, teacher, run=runs["train"]: jnp.mean(
        run(student, teacher) ** 2
      ),
      inputs,
      np.float32(np.mean(train_value**2)),
      {"student": last(slope)},
    )
    yield make(
      case,
      "target_feat",
      "match_sizes",
      lambda student, teacher: losses.match_sizes(student, teacher)[1],
      inputs,
      last(arrays["out_eval_target_feat"]),
    )


def _ofd() -> Iterator[Check]:
  file = f"{BASE}ofd_module"
  make = family(file, f"{MDISTILLER} OFD.py:OFD", rtol=1e-4, atol=1e-4)
  for case, arrays in golden_tools.cases(file).items():
    count = sum(name.startswith("out_margin") for name in arrays)
    trees = [
      variables(arrays, name_maps.CONNECTOR, f"weight_connectors_{i}_")
      for i in range(count)
    ]
    batch_norms = [
      {
        "scale": arrays[f"in_teacher_bn_weight{i}"],
        "bias": arrays[f"in_teacher_bn_bias{i}"],
      }
      for i in range(count)
    ]
    for i, given in enumerate(batch_norms):
      value = arrays[f"out_margin{i}"]
      call = lambda scale, bias: losses.ofd_margin(scale, bias)
      yield make(case, f"margin{i}", "ofd_margin", call, given, value)

    def loss(trees=trees, batch_norms=batch_norms, **maps):
      numbers = range(len(trees))
      teacher = [maps[f"teacher{i}"] for i in numbers]
      student = [
        train(nets.Connector(), trees[i], maps[f"student{i}"], teacher[i])[0]
        for i in numbers
      ]
      margins = [
        losses.ofd_margin(*map(jnp.asarray, given.values()))
        for given in batch_norms
      ]
      return losses.ofd(student, teacher, margins).mean()

    yield make(
      case,
      "loss",
      "ofd",
      loss,
      {
        f"{who}{i}": last(arrays[f"in_{who}_stage{i}_nchw"])
        for who in ("student", "teacher")
        for i in range(count)
      },
      arrays["out_loss_before_weight"],
      {
        f"student{i}": last(arrays[f"grad_student_stage{i}_nchw"])
        for i in range(count)
      },
    )


def _review() -> Iterator[Check]:
  file = f"{BASE}reviewkd_module"
  make = family(
    file, f"{MDISTILLER} ReviewKD.py:ReviewKD", rtol=1e-4, atol=1e-4
  )
  for case, arrays in golden_tools.cases(file).items():
    count = sum(name.startswith("in_student_feat") for name in arrays)
    rules = name_maps.review_fusion(count + 1)
    weights = golden_tools.section(arrays, "weight_abf")
    tree = golden_tools.convert(dotted(weights), rules)
    inputs = {
      "student_pooled": arrays["in_student_pooled"],
      "teacher_pooled": arrays["in_teacher_pooled"],
    }
    slopes = {"student_pooled": arrays["grad_student_pooled_epoch40"]}
    for i in range(count):
      name = f"student{i}"
      inputs[name] = last(arrays[f"in_student_feat{i}_nchw"])
      inputs[f"teacher{i}"] = last(arrays[f"in_teacher_preact{i}_nchw"])
      slopes[name] = last(arrays[f"grad_student_feat{i}_nchw_epoch40"])

    def loss(scale, tree=tree, count=count, **maps):
      student, teacher = (
        [*(maps[f"{who}{i}"] for i in range(count)), maps[f"{who}_pooled"]]
        for who in ("student", "teacher")
      )
      fused = train(nets.ReviewFusion(), tree, student, teacher)[0]
      return scale * losses.review_kd(fused, teacher).mean()

    # Weight 5, warmed up over 20 epochs.
    for epoch, scale, gradients in ((5, 5 * 5 / 20, {}), (40, 5.0, slopes)):
      yield make(
        case,
        f"epoch{epoch}",
        "ReviewFusion",
        lambda loss=loss, scale=scale, **maps: loss(scale, **maps),
        inputs,
        arrays[f"out_loss_epoch{epoch}_weight5_warmup20"],
        gradients,
      )


def checks() -> Iterator[Check]:
  """Every output and gradient, in training mode unless a name says eval."""
  yield from _simkd()
  yield from _kd3()
  yield from _ofd()
  yield from _review()
