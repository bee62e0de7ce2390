"""Relations of a batch: RKD, CC, PKT, margin-aware Gram matrices, DisWOT."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxkd import losses, nets
from jaxkd.losses import graphs, modalities, relations, rows
from tests import golden_tools
from tests.losses.vectors import Check

MD = "megvii-research/mdistiller@a08d46f"
RD = "HobbitLong/RepDistiller@b84f547"
TD = "yoshitomo-matsubara/torchdistill@3e4373c"
MST = "Gray-OREO/MST-Distill@093b2fe KD_methods/RKD.py"
MMANET = "shicaiwei123/MMANet@c330689"
DISWOT = "lilujunai/DisWOT-CVPR2023@dffe4e6"


def _unit(x):
  return x / jnp.linalg.norm(x, axis=1, keepdims=True)


# Output -> public loss, whose code, call.
BASELINES = {
  "hint_mse": (
    "fitnet",
    f"{RD} FitNet.py:HintLoss",
    lambda **x: losses.fitnet(**x).mean(),
  ),
  "pkt": ("pkt", f"{MD} PKT.py:pkt_loss", losses.pkt),
  "cc_repdistiller": (
    "correlated_differences",
    f"{RD} CC.py:Correlation",
    losses.correlated_differences,
  ),
  "rkd_25_50": (
    "rkd",
    f"{MD} RKD.py:rkd_loss",
    functools.partial(losses.rkd, distance_weight=25, angle_weight=50),
  ),
  "rkd_distance_only": (
    "rkd_distance",
    f"{MD} RKD.py:rkd_loss",
    losses.rkd_distance,
  ),
  "rkd_angle_only": ("rkd_angle", f"{MD} RKD.py:rkd_loss", losses.rkd_angle),
  "rkd_distance_squared": (
    "rkd_distance",
    f"{MD} RKD.py:rkd_loss",
    functools.partial(losses.rkd_distance, squared=True),
  ),
  "rkd_torchdistill_1_2": (
    "rkd",
    f"{TD} mid_level.py:RKDLoss",
    functools.partial(losses.rkd, chunk=2),
  ),
  "cckd_torchdistill_gaussian_l2normed_inputs": (
    "correlation_congruence",
    f"{TD} mid_level.py:CCKDLoss",
    functools.partial(losses.correlation_congruence, gamma=0.4, order=2),
  ),
  "cckd_torchdistill_bilinear": (
    "gram_congruence",
    f"{TD} mid_level.py:CCKDLoss",
    losses.gram_congruence,
  ),
}


def _baselines() -> Iterator[Check]:
  golden = "logit_feature_baselines__vectors"
  for case, arrays in golden_tools.cases(golden).items():
    for output, (loss, source, call) in BASELINES.items():
      rkd = output.startswith("rkd")
      yield Check(
        loss=loss,
        source=source,
        name=f"{golden}/{case}/{output}",
        call=call,
        inputs={
          "student": arrays["in_student_feat"],
          "teacher": arrays["in_teacher_feat"],
        },
        value=arrays[f"out_{output}"],
        gradients={"student": arrays[f"grad_student_feat__{output}"]},
        rtol=2e-5,
        atol=1e-5,
        gradient_rtol=1e-4 if rkd else 2e-5,
        gradient_atol=1e-4 if rkd else 1e-5,
      )


def _embed(x, kernel, bias):
  layer = {"linear": {"kernel": kernel.T, "bias": bias}}
  return nets.UnitEmbedding(features=len(bias)).apply({"params": layer}, x)


def _rkd() -> Iterator[Check]:
  golden = "mst_distill_baselines__rkd"
  make = functools.partial(
    Check, source=MST, rtol=5e-5, atol=2e-6, gradient_rtol=5e-5,
    gradient_atol=2e-6,
  )  # fmt: skip
  parts = {"distance": "rkd_distance", "angle": "rkd_angle"}
  for case, a in golden_tools.cases(golden).items():
    if case == "case2":
      continue
    weights = {
      f"{letter}_{name}": a[f"w_embed_{letter}.linear.{name}"]
      for letter in "st"
      for name in ("weight", "bias")
    }
    inputs = {"s": a["in_student_features"], "t": a["in_teacher_features"]}

    def embedded(s, t, s_weight, s_bias, t_weight, t_bias):
      return _embed(s, s_weight, s_bias), _embed(t, t_weight, t_bias)

    yield make(
      loss="rkd",
      name=f"{golden}/{case}/loss",
      call=lambda _f=embedded, **x: losses.rkd(*_f(**x)),
      inputs=inputs | weights,
      value=a["out_loss"],
      gradients={
        "s": a["grad_student_features"],
        "s_weight": a["gradw_embed_s.linear.weight"],
      },
    )
    for i, who in enumerate(("student", "teacher")):
      yield make(
        loss="UnitEmbedding",
        name=f"{golden}/{case}/embed_{who}",
        call=lambda _f=embedded, _i=i, **x: _f(**x)[_i],
        inputs=inputs | weights,
        value=a[f"out_embed_{who}"],
      )
    for part, loss in parts.items():
      yield make(
        loss=loss,
        name=f"{golden}/{case}/{part}",
        call=lambda _f=embedded, _l=loss, **x: getattr(losses, _l)(*_f(**x)),
        inputs=inputs | weights,
        value=a[f"out_loss_{part}"],
      )
    yield make(
      loss="rkd_distance",
      name=f"{golden}/{case}/pdist",
      call=relations.pairwise_distances,
      inputs={"x": a["out_embed_student"]},
      value=a["out_pdist_student"],
    )


def _rkd_of_equal_rows() -> Iterator[Check]:
  golden = "mst_distill_baselines__rkd"
  make = functools.partial(
    Check, source=MST, rtol=5e-5, atol=2e-6, gradient_rtol=1e-3,
    gradient_atol=2e-6,
  )  # fmt: skip
  a = golden_tools.cases(golden)["case2"]
  inputs = {"student": a["in_student_embed"], "teacher": a["in_teacher_embed"]}
  for part in ("distance", "angle"):
    loss = f"rkd_{part}"
    yield make(
      loss=loss,
      name=f"{golden}/case2/{part}",
      call=getattr(losses, loss),
      inputs=inputs,
      value=a[f"out_loss_{part}"],
    )
  # Rows 1 and 3 are equal: the reference's gradient there is noise of 1e9.
  equal, others = np.array([1, 3]), np.array([0, 2, 4])

  def assembled(other, pair, teacher):
    student = jnp.zeros((5, other.shape[-1]))
    student = student.at[others].set(other).at[equal].set(pair)
    return losses.rkd(student, teacher)

  yield make(
    loss="rkd",
    name=f"{golden}/case2/gradient",
    call=assembled,
    inputs={
      "other": inputs["student"][others],
      "pair": inputs["student"][equal],
      "teacher": inputs["teacher"],
    },
    value=a["out_loss_distance"] + 2 * a["out_loss_angle"],
    gradients={"other": a["grad_student_embed"][others]},
  )


def _mad() -> Iterator[Check]:
  golden = "mmanet__mad"
  classification = f"{MMANET} classification/loss/kd/mad.py:MAD"
  segmentation = f"{MMANET} segmentation/loss/kd/mad.py:MAD"
  options = {
    "classification": (classification, {"weights": "columns"}),
    "segmentation": (segmentation, {"halves": True}),
    "rowweighted": ("formula", {}),
  }
  for case, a in golden_tools.cases(golden).items():
    # Sums over all features: the order of axes does not matter.
    inputs = {
      "student": a["in_student_features"],
      "teacher": a["in_teacher_features"],
    }
    make = functools.partial(
      Check, rtol=5e-5, gradient_rtol=5e-5, gradient_atol=1e-6
    )
    for output, (source, option) in options.items():
      gradient = a.get(f"grad_mad_{output}_student")
      yield make(
        loss="margin_aware",
        source=source,
        name=f"{golden}/{case}/{output}",
        call=functools.partial(losses.margin_aware, **option),
        inputs=inputs | {"teacher_logits": a["in_teacher_logits"]},
        value=a[f"out_mad_{output}"],
        gradients={} if gradient is None else {"student": gradient},
      )
    yield make(
      loss="similarity_preserving",
      source=f"{MMANET} classification/loss/kd/mad.py:SP",
      name=f"{golden}/{case}/sp",
      call=losses.similarity_preserving,
      inputs=inputs,
      value=a["out_sp"],
    )
    for who, x in inputs.items():
      yield make(
        loss="margin_aware",
        source=classification,
        name=f"{golden}/{case}/gram_{who}",
        call=lambda x: rows.unit_gram(x.reshape(len(x), -1)),
        inputs={"x": x},
        value=a[f"out_gram_{who}"],
      )
    yield make(
      loss="margin_aware",
      source=classification,
      name=f"{golden}/{case}/weight",
      call=lambda x: modalities.entropy_weights(x, jnp.ones(len(x))),
      inputs={"x": a["in_teacher_logits"]},
      value=a["out_entropy_weight"],
    )


def _last(x):
  return np.moveaxis(x, 1, -1)


def _maps(arrays, golden, kind, loss, call) -> Iterator[Check]:
  """A loss of two maps, with the gradient of the student's."""
  source = {"relation": "SP.py:Similarity", "channel": "ICKD.py:ICKDLoss"}
  for i in range(3):
    a = golden_tools.section(arrays, f"{kind}{i}_")
    inputs = {
      "student": _last(a["in_student_feat"]),
      "teacher": _last(a["in_teacher_feat"]),
    }
    make = functools.partial(
      Check,
      loss=loss,
      source=f"{DISWOT} distiller_zoo/{source[kind]}",
      inputs=inputs,
      gradient_rtol=1e-5,
    )
    yield make(
      name=f"{golden}/{kind}{i}",
      call=call,
      value=a["out_loss"],
      gradients={"student": _last(a["grad_student_feat"])},
    )
    if "out_score" in a:
      yield make(
        name=f"{golden}/{kind}{i}/score",
        call=lambda **x: -call(**x),
        value=a["out_score"],
      )


def _channels(student, teacher):
  flat = (x.reshape(len(x), -1, x.shape[-1]) for x in (student, teacher))
  return graphs.channel_correlation(*flat).mean()


def _diswot() -> Iterator[Check]:
  golden = "diswot__scores"
  arrays = golden_tools.load(golden)
  yield from _maps(
    arrays, golden, "relation", "similarity_preserving",
    losses.similarity_preserving,
  )  # fmt: skip
  yield from _maps(arrays, golden, "channel", "semantic_correlation", _channels)
  for i in range(2):
    a = golden_tools.section(arrays, f"semantic{i}_")
    labels = jnp.asarray(a["in_labels"], jnp.int32)
    kernels = [a[f"param_{who}_fc_weight"].T for who in ("student", "teacher")]

    def call(student, teacher, labels=labels, kernels=kernels):
      s, t = (
        f @ kernel
        for f, kernel in zip((student, teacher), kernels, strict=True)
      )
      return losses.semantic_correlation(s, t, labels, student, teacher)

    make = functools.partial(
      Check,
      loss="semantic_correlation",
      source=f"{DISWOT} distiller_zoo/ICKD.py:ICKDLoss",
    )
    both = {
      "student": a["in_student_pooled"],
      "teacher": a["in_teacher_pooled"],
    }
    for name, sign in (("loss", 1), ("score", -1)):
      yield make(
        name=f"{golden}/semantic{i}/{name}",
        call=lambda _call=call, _sign=sign, **x: _sign * _call(**x),
        inputs=both,
        value=a[f"out_{name}"],
      )
    for kernel, (who, x) in zip(kernels, both.items(), strict=True):
      yield make(
        name=f"{golden}/semantic{i}/gradient_{who}",
        call=lambda x, _k=kernel, _y=labels: graphs.classifier_gradient(
          x, x @ _k, _y
        ),
        inputs={"x": x},
        value=a[f"out_{who}_fc_weight_grad"],
      )


def checks() -> Iterator[Check]:
  """Values and gradients of all of them."""
  yield from _baselines()
  yield from _rkd()
  yield from _rkd_of_equal_rows()
  yield from _mad()
  yield from _diswot()
