"""CRD against its banks, NT-Xent of two views, partial ranking."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxkd import losses, nets
from jaxkd.losses import contrastive, memory_bank
from tests import golden_tools
from tests.losses.vectors import Check

MD = "megvii-research/mdistiller@a08d46f CRD.py"
MST = "Gray-OREO/MST-Distill@093b2fe KD_methods/CRD.py:CRDLoss"
KD3 = "tangjialiang97/KD3@91e2d4c KDDD/distiller_zoo/relation.py"


def _embed(x, kernel, bias):
  layer = {"linear": {"kernel": kernel.T, "bias": bias}}
  return nets.UnitEmbedding(features=len(bias)).apply({"params": layer}, x)


def _crd_step(step, weights, bank, z, options) -> Iterator[tuple]:
  """Outputs of a step: name, call of all inputs, value, gradients.

  Args:
    step: arrays of the step by common names.
    weights: of the embeddings, by `s_` and `t_`.
    bank: both banks before the step.
    z: both Z before the step, None at the first one.
    options: temperature and momentum.
  """
  index = jnp.asarray(step["index"])
  picked = jnp.asarray(step["picked"])
  np.testing.assert_array_equal(picked[:, 0], index)
  log_z = [0.0, 0.0] if z is None else [float(np.log(x)) for x in z]

  def run(s, t, s_weight, s_bias, t_weight, t_bias, student, teacher):
    memory = losses.MemoryBank(
      student, teacher, *map(jnp.asarray, log_z), jnp.asarray(z is not None)
    )
    embeddings = _embed(s, s_weight, s_bias), _embed(t, t_weight, t_bias)
    values, after = losses.crd(
      *embeddings, memory, index, picked[:, 1:], **options
    )
    return values, after, embeddings

  def scores(i, x):
    values, after, embeddings = run(**x)
    other = x["teacher" if i == 0 else "student"]
    products = memory_bank.bank_scores(other, embeddings[i], picked)
    after_z = after.student_log_z if i == 0 else after.teacher_log_z
    return products / options["temperature"] - after_z

  def side(i, x):
    noise = (picked.shape[1] - 1) / len(x["student"])
    log_ratio = scores(i, x) - jnp.log(noise)
    return memory_bank.noise_contrastive(log_ratio).mean()

  yield "loss", lambda **x: run(**x)[0].mean()
  for i, who in enumerate(("student", "teacher")):
    yield (
      f"z_{who}",
      lambda _w=who, **x: jnp.exp(getattr(run(**x)[1], f"{_w}_log_z")),
    )
    yield f"memory_{who}", lambda _w=who, **x: getattr(run(**x)[1], _w)
    yield f"scores_{who}", lambda _i=i, **x: jnp.exp(scores(_i, x))
    yield f"loss_{who}", lambda _i=i, **x: side(_i, x)


def _crd(golden, source, arrays, steps, name) -> Iterator[Check]:
  weights = {
    f"{letter}_{part}": arrays[name["weight"].format(letter, part)]
    for letter in "st"
    for part in ("weight", "bias")
  }
  bank = {who: arrays[name[f"bank_{who}"]] for who in ("student", "teacher")}
  options = {
    part: float(arrays[f"param_{part}"]) for part in ("temperature", "momentum")
  }
  z = None
  for step in steps:
    a = golden_tools.section(arrays, f"{step}_")
    common = {key: a[value] for key, value in name["step"].items()}
    inputs = {"s": common["s"], "t": common["t"]} | weights | bank
    for output, call in _crd_step(common, weights, bank, z, options):
      if output not in name["out"]:
        continue
      gradients = name["gradients"] if output == "loss" else {}
      yield Check(
        loss="crd",
        source=source,
        name=f"{golden}/{step}/{output}",
        call=call,
        inputs=inputs,
        value=a[name["out"][output]].reshape(
          a[name["out"][output]].shape if "loss" not in output else ()
        ),
        gradients={k: a[v] for k, v in gradients.items()},
        rtol=1e-4,
        atol=1e-5,
        gradient_atol=1e-5,
      )
    z = [a[name["out"][f"z_{who}"]] for who in bank]
    bank = {who: a[name["out"][f"memory_{who}"]] for who in bank}


MD_NAMES = {
  "weight": "weight_embed_{}_linear_{}",
  "bank_student": "in_memory_v1",
  "bank_teacher": "in_memory_v2",
  "step": {
    "s": "in_student_feat",
    "t": "in_teacher_feat",
    "index": "in_index",
    "picked": "in_contrast_index",
  },
  "out": {
    "loss": "out_loss",
    "loss_student": "out_loss_student",
    "loss_teacher": "out_loss_teacher",
    "scores_student": "out_scores_student",
    "scores_teacher": "out_scores_teacher",
    "z_student": "out_z_v1",
    "z_teacher": "out_z_v2",
    "memory_student": "out_memory_v1_after",
    "memory_teacher": "out_memory_v2_after",
  },
  "gradients": {
    "s": "grad_student_feat",
    "s_weight": "grad_embed_s_weight",
    "t_weight": "grad_embed_t_weight",
  },
}
MST_NAMES = {
  "weight": "w_embed_{}.linear.{}",
  "bank_student": "in_memory_student_init",
  "bank_teacher": "in_memory_teacher_init",
  "step": {
    "s": "in_student_features",
    "t": "in_teacher_features",
    "index": "in_idx",
    "picked": "in_contrast_idx",
  },
  "out": {
    "loss": "out_loss",
    "z_student": "out_Z_student",
    "z_teacher": "out_Z_teacher",
    "memory_student": "out_memory_student",
    "memory_teacher": "out_memory_teacher",
  },
  "gradients": {
    "s": "grad_student_features",
    "t": "grad_teacher_features",
    "t_weight": "gradw_embed_t.linear.weight",
  },
}


def _crd_all() -> Iterator[Check]:
  steps = ("step0", "step1")
  golden = "logit_feature_baselines__crd_module"
  for case, a in golden_tools.cases(golden).items():
    yield from _crd(f"{golden}/{case}", MD, a, steps, MD_NAMES)
  golden = "mst_distill_baselines__crd"
  yield from _crd(golden, MST, golden_tools.load(golden), steps, MST_NAMES)


def _nt_xent() -> Iterator[Check]:
  golden = "kd3__losses"
  arrays = golden_tools.load(golden)
  for i in range(3):
    a = golden_tools.section(arrays, f"contrast{i}_")
    yield Check(
      loss="nt_xent",
      source=f"{KD3}:Contrastive_loss_bn",
      name=f"{golden}/contrast{i}",
      call=functools.partial(
        losses.nt_xent, temperature=float(a["param_temperature"])
      ),
      inputs={"first": a["in_a"], "second": a["in_b"]},
      value=a["out_loss"],
      gradients={"first": a["grad_a"], "second": a["grad_b"]},
    )


def _ranking() -> Iterator[Check]:
  golden = "cprd__partial_ranking.derived"
  for case, a in golden_tools.cases(golden).items():
    k, tau = int(a["param_top_k"]), float(a["param_temperature"])
    delta = float(a["param_valid_threshold"])
    positive = jnp.asarray(a["in_is_positive"])
    given = jnp.asarray(a["in_teacher_scores"])

    def mined(queries, candidates, positive=positive, k=k):
      return losses.hard_negatives(queries @ candidates.T, positive, k)

    def ordered(mined=mined, given=given, **x):
      index = mined(**x)
      scores = jnp.take_along_axis(given, index, axis=1)
      order = jnp.argsort(-scores, axis=1)
      return tuple(
        jnp.take_along_axis(y, order, axis=1) for y in (index, scores)
      )

    def values(mined=mined, given=given, delta=delta, tau=tau, **x):
      index = mined(**x)
      student, teacher = (
        jnp.take_along_axis(y, index, axis=1)
        for y in (x["queries"] @ x["candidates"].T, given)
      )
      return losses.partial_ranking(
        student, teacher, threshold=delta, temperature=tau
      )

    def valid(ordered=ordered, delta=delta, **x):
      return (ordered(**x)[1] >= delta).sum(1)

    def itc(queries, candidates, positive=positive, tau=tau):
      own = jnp.eye(*positive.shape, dtype=bool)
      scores = queries @ candidates.T / tau
      scores = jnp.where(positive & ~own, -jnp.inf, scores)
      return losses.cross_entropy(scores, jnp.arange(len(queries)))

    inputs = {"queries": a["in_queries"], "candidates": a["in_candidates"]}
    for output, (loss, call) in {
      "hard_index_student_order": ("hard_negatives", mined),
      "hard_index_teacher_order": (
        "hard_negatives",
        lambda _o=ordered, **x: _o(**x)[0],
      ),
      "num_valid": ("partial_ranking", valid),
      "loss_sum_then_batch_mean": (
        "partial_ranking",
        lambda _v=values, **x: _v(**x).mean(),
      ),
      "loss_mean_over_valid": (  # of the batch, not of each query
        "partial_ranking",
        lambda _v=values, _n=valid, **x: (
          _v(**x).sum() / jnp.maximum(_n(**x).sum(), 1)
        ),
      ),
      "itc_per_query": ("cross_entropy", itc),
      "factors": (
        "partial_ranking",
        functools.partial(_factors, ordered, delta, tau),
      ),
    }.items():
      summed = output == "loss_sum_then_batch_mean"
      yield Check(
        loss=loss,
        source="formula",
        name=f"{golden}/{case}/{output}",
        call=call,
        inputs=inputs,
        value=a[f"out_{output}"],
        gradients={x: a[f"grad_{x}"] for x in inputs} if summed else {},
      )


def _factors(ordered, delta, tau, **x):
  """The factors of the valid candidates."""
  index, given = ordered(**x)
  scores = x["queries"] @ x["candidates"].T / tau
  scores = jnp.take_along_axis(scores, index, axis=1)
  return jnp.where(given >= delta, contrastive.ranking_factors(scores), 0.0)


def checks() -> Iterator[Check]:
  """Values and gradients of all of them."""
  yield from _crd_all()
  yield from _nt_xent()
  yield from _ranking()
