"""InfoNCE of embeddings, and losses of pairs with soft similarities."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxkd import losses, nets
from tests import golden_tools
from tests.losses.vectors import Check

REPBLEND = "zhangxin-xd/RepBlend@4724e63 src/similarity_mining.py"

# Output -> public loss and how the released code's number is called.
PAIRS = {
  "WBCE": ("balanced_similarity_bce", losses.balanced_similarity_bce),
  # Targets in [0, 1]: the sigmoid of the similarities.
  "BCE": (
    "similarity_bce",
    lambda x, s: losses.similarity_bce(x, jax.nn.sigmoid(s)),
  ),
  "NCE": ("soft_info_nce", losses.soft_info_nce),
  "CWCL": (
    "soft_info_nce",
    functools.partial(losses.soft_info_nce, normalize=True),
  ),
  # A mean over all elements, not over rows.
  "KL": ("similarity_kl", lambda x, s: losses.similarity_kl(x, s) / len(x)),
  "MSE": ("similarity_mse", losses.similarity_mse),
}


def _pairs() -> Iterator[Check]:
  golden = "repblend__similarity_losses"
  for case, a in golden_tools.cases(golden).items():
    learned = {
      "diagonal": a["in_diag"],
      "left": a["in_left"],
      "right": a["in_right"],
    }
    similarity = functools.partial(
      losses.low_rank_similarity, scale=float(a["param_alpha"])
    )
    yield Check(
      loss="low_rank_similarity",
      source=f"{REPBLEND}:LowRankSimilarityGenerator",
      name=f"{golden}/{case}/similarity",
      call=similarity,
      inputs=learned,
      value=a["out_similarity"],
    )
    for output, (loss, call) in PAIRS.items():
      yield Check(
        loss=loss,
        source=f"{REPBLEND}:MultilabelContrastiveLoss",
        name=f"{golden}/{case}/{output}",
        call=lambda scores, _c=call, _s=similarity, **x: _c(scores, _s(**x)),
        inputs={"scores": a["in_logits"]} | learned,
        value=a[f"out_loss_{output}"],
        gradients={
          ours: a[f"grad_{theirs}_{output}"]
          for ours, theirs in (
            ("scores", "logits"),
            ("diagonal", "diag"),
            ("left", "left"),
            ("right", "right"),
          )
        },
        # The reference's gradients of CWCL are 8e-6 from those in float64.
        gradient_atol=1e-5 if output == "CWCL" else 1e-6,
      )


def _align() -> Iterator[Check]:
  """Semantic embeddings, adapted, against collaborative ones."""
  golden = "prorec__align_distill.derived"
  arrays = golden_tools.load(golden)
  names = {"proj": "project", "scale": "scale", "shift": "shift"}
  for i in range(2):
    a = golden_tools.section(arrays, f"align{i}_")
    make = functools.partial(
      Check,
      source="formula",
      inputs={
        "semantic": a["in_semantic"],
        "collaborative": a["in_collaborative"],
        **golden_tools.section(a, "weight_"),
      },
    )

    def adapted(semantic, a=a, **weights):
      params = {
        ours: {
          "kernel": weights[f"{theirs}_w"].T,
          "bias": weights[f"{theirs}_b"],
        }
        for theirs, ours in names.items()
      }
      net = nets.ModulatedProjection(features=len(a["weight_proj_b"]))
      return net.apply({"params": params}, semantic)

    def align(collaborative, adapted=adapted, a=a, symmetric=True, **x):
      return losses.info_nce(
        collaborative,
        adapted(**x),
        temperature=float(a["param_temperature"]),
        symmetric=symmetric,
      )

    yield make(
      loss="ModulatedProjection",
      name=f"{golden}/align{i}/adapted",
      call=lambda collaborative, _a=adapted, **x: _a(**x),
      value=a["out_adapted"],
    )
    yield make(
      loss="info_nce",
      name=f"{golden}/align{i}/one_way",
      call=functools.partial(align, symmetric=False),
      value=a["out_loss_one_way"],
    )
    yield make(
      loss="info_nce",
      name=f"{golden}/align{i}/symmetric",
      call=align,
      value=a["out_loss_symmetric"],
      gradients={
        name: a[f"grad_{name}"]
        for name in ("collaborative", "proj_w", "scale_w")
      },
    )


def _distill() -> Iterator[Check]:
  """Tokens against the embeddings of items, some of them twice."""
  golden = "prorec__align_distill.derived"
  arrays = golden_tools.load(golden)
  for i in range(2):
    a = golden_tools.section(arrays, f"distill{i}_")
    inputs = {
      "student": a["in_student_token"],
      "teacher": a["in_teacher_embedding"],
    }
    tau, ids = float(a["param_temperature"]), jnp.asarray(a["in_item_ids"])
    contrast = functools.partial(losses.info_nce, temperature=tau)
    for loss, output, call in (
      ("info_nce", "loss", functools.partial(contrast, groups=ids)),
      ("info_nce", "loss_unmasked", contrast),
      (
        "cosine_distance",
        "loss_cosine",
        lambda **x: losses.cosine_distance(**x).mean(),
      ),
    ):
      gradient = {"student": a["grad_student_token"]}
      yield Check(
        loss=loss,
        source="formula",
        name=f"{golden}/distill{i}/{output}",
        call=call,
        inputs=inputs,
        value=a[f"out_{output}"],
        gradients=gradient if output == "loss" else {},
      )


def checks() -> Iterator[Check]:
  """Values and gradients of all of them."""
  yield from _pairs()
  yield from _align()
  yield from _distill()
