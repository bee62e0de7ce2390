"""Graphs of tokens; correlations of modalities and classes; weak modalities."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd.losses import graphs, modalities, rows
from tests import golden_tools
from tests.losses.vectors import Check

MMANET = "shicaiwei123/MMANet@c330689 classification/lib"


def _sampled(tokens, index):
  return tokens.reshape(-1, tokens.shape[-1])[index]


def _adjacency(tokens, k, variance):
  edges = graphs.nearest_neighbours(tokens, k)
  return edges * jnp.exp(-rows.squared_distances(tokens) / 2 / variance)


def _local(a, index) -> Iterator[dict]:
  """The local loss in both directions, which the files sum over nodes."""
  for name, divergence in (
    ("student_teacher", losses.reverse_kl),
    ("teacher_student", losses.kl),
  ):
    yield {
      "loss": "token_graph",
      "name": f"local_kl_{name}",
      "call": lambda student, teacher, _d=divergence: (
        len(index)
        * losses.token_graph(
          _sampled(student, index),
          _sampled(teacher, index),
          neighbours=int(a["param_k"]),
          variance=float(a["param_sigma"]),
          divergence=_d,
        )
      ),
    }


def _trg() -> Iterator[Check]:
  golden = "trg__losses.derived"
  for case, a in golden_tools.cases(golden).items():
    index = a["in_sampled_index"]
    k, sigma = int(a["param_k"]), float(a["param_sigma"])
    make = functools.partial(Check, source="formula", rtol=1e-4, atol=1e-5)
    both = {
      "student": a["in_student_tokens"],
      "teacher": a["in_teacher_tokens"],
    }
    for who, tokens in both.items():
      yield make(
        loss="token_graph",
        name=f"{golden}/{case}/adjacency_{who}",
        call=lambda x, _i=index, _k=k, _v=sigma: _adjacency(
          _sampled(x, _i), _k, _v
        ),
        inputs={"x": tokens},
        value=a[f"out_adjacency_{who}"],
      )
      yield make(
        loss="token_graph",
        name=f"{golden}/{case}/mask_{who}",
        call=lambda x, _i=index, _k=k: graphs.nearest_neighbours(
          _sampled(x, _i), _k
        ),
        inputs={"x": tokens},
        value=a[f"out_mask_{who}"],
      )
    inner = {
      "loss": "contextual_relations",
      "name": "inner_contextual",
      "call": lambda **x: losses.contextual_relations(**x).mean(),
    }
    for given in (*_local(a, index), inner):
      output = given.pop("name")
      yield make(
        **given,
        name=f"{golden}/{case}/{output}",
        inputs=both,
        value=a[f"out_{output}"],
        gradients={"student": a[f"grad_student_tokens__{output}"]},
        gradient_atol=1e-5,
      )
    tau = float(a["param_tau_global"])
    output = "global_infonce"
    yield make(
      loss="info_nce",
      name=f"{golden}/{case}/{output}",
      # A sum over tokens there.
      call=lambda student, teacher, projection, _i=index, _t=tau: (
        len(_i)
        * losses.info_nce(
          _sampled(student, _i) @ projection,
          _sampled(teacher, _i),
          temperature=_t,
        )
      ),
      inputs=both | {"projection": a["in_projection"]},
      value=a[f"out_{output}"],
      gradients={
        "student": a[f"grad_student_tokens__{output}"],
        "projection": a[f"grad_projection__{output}"],
      },
      gradient_atol=1e-5,
    )


def _mar() -> Iterator[Check]:
  golden = "mmanet__mar"
  a = golden_tools.section(golden_tools.load(golden), "mar_")
  rank = golden_tools.section(golden_tools.load(golden), "rank_")
  weak = rank["out_weak_combinations"]
  call = functools.partial(losses.modality_aware, drawn=a["in_modality_mask"])
  make = functools.partial(
    Check,
    loss="modality_aware",
    source=f"{MMANET}/model_develop.py",
    rtol=5e-5,
    gradient_rtol=5e-5,
    inputs={"student": a["in_aux_logits"]},
  )
  labels = jnp.asarray(a["in_labels"])
  yield make(
    name=f"{golden}/as_coded",
    call=lambda student: call(
      student, labels, weak=weak, broadcast=True
    ).mean(),
    value=a["out_loss_total"],
    gradients={"student": a["grad_aux_logits"]},
  )
  for i, part in enumerate(a["out_loss_parts_as_coded"]):
    yield make(
      name=f"{golden}/as_coded/part{i}",
      call=lambda student, _i=i: call(
        student, labels, weak=weak[_i : _i + 1], broadcast=True
      ).mean(),
      value=part,
    )
  yield make(
    name=f"{golden}/masked",
    call=lambda student: call(student, labels, weak=weak).mean(),
    value=a["out_loss_masked_reference"],
  )
  predicted = rank["in_predicted_labels"]  # epochs, pairs and all, examples
  yield Check(
    loss="combination_divergence",
    source=f"{MMANET}/processing_utils.py:get_dataself_hist",
    name=f"{golden}/divergence",
    call=lambda predicted, full: sum(
      losses.combination_divergence(v, w, int(rank["param_class_num"]))
      for v, w in zip(predicted, full, strict=True)
    ),
    inputs={"predicted": predicted[:, :-1], "full": predicted[:, -1]},
    value=rank["out_accumulated_divergence"],
    rtol=5e-5,
  )


def _any2seg() -> Iterator[Check]:
  golden = "any2seg__lscd.derived"
  a = golden_tools.load(golden)
  a = golden_tools.section(a, "case0_")
  make = functools.partial(Check, source="formula", rtol=5e-5)
  # Modalities first and channels second there: [M, B, C, H, W].
  features = np.moveaxis(a["in_modality_features"], (1, 2), (0, -1))
  embeddings = np.moveaxis(a["in_visual_embeddings"], 1, 0)
  labels = jnp.asarray(a["in_labels"])
  inter = {
    "student": features,
    "teacher": embeddings,
    "scene": a["in_scene_text_embedding"],
  }
  intra = {"student": features, "names": a["in_class_text_embeddings"]}

  def inter_kl(student, teacher, scene):
    return losses.inter_modal_correlation(student, teacher, scene).mean()

  def intra_kl(student, names, squared=False):
    return losses.prototype_correlation(
      student.mean(1), names, labels, squared=squared
    )

  def prototypes(student):
    return modalities.class_prototypes(student.mean(1), labels, 5)

  yield make(
    loss="inter_modal_correlation",
    name=f"{golden}/inter",
    call=inter_kl,
    inputs=inter,
    value=a["out_loss_inter_kl"],
  )
  yield make(
    loss="prototype_correlation",
    name=f"{golden}/intra_kl",
    call=intra_kl,
    inputs=intra,
    value=a["out_loss_intra_kl"],
  )
  yield make(
    loss="prototype_correlation",
    name=f"{golden}/intra_mse",
    call=functools.partial(intra_kl, squared=True),
    inputs=intra,
    value=a["out_loss_intra_mse"],
  )
  gradient = np.moveaxis(a["grad_modality_features"], (1, 2), (0, -1))
  yield make(
    loss="prototype_correlation",
    name=f"{golden}/sum",
    call=lambda student, teacher, scene, names: (
      inter_kl(student, teacher, scene) + intra_kl(student, names)
    ),
    inputs=inter | intra,
    value=a["out_loss_inter_kl"] + a["out_loss_intra_kl"],
    gradients={"student": gradient},
    gradient_rtol=5e-5,
  )
  yield from _correlations(make, golden, a, features, embeddings, prototypes)


def _correlations(
  make, golden, a, features, embeddings, prototypes
) -> Iterator[Check]:
  """What the two losses compare."""
  for i, output in enumerate(("class_prototypes", "class_present")):
    yield make(
      loss="prototype_correlation",
      name=f"{golden}/{output}",
      call=lambda student, _i=i: prototypes(student)[_i],
      inputs={"student": features},
      value=a[f"out_{output}"],
    )
  for output, call, inputs in (
    (
      "feature_correlation",
      lambda x: modalities.reference_cosines(
        x.reshape(*x.shape[:2], -1), x.reshape(*x.shape[:2], -1).mean(1)
      ),
      {"x": features},
    ),
    (
      "embedding_correlation",
      modalities.reference_cosines,
      {"x": embeddings, "reference": a["in_scene_text_embedding"]},
    ),
  ):
    yield make(
      loss="inter_modal_correlation",
      name=f"{golden}/{output}",
      call=call,
      inputs=inputs,
      value=a[f"out_{output}"],
    )
  for output, call, inputs in (
    (
      "feature_class_correlation",
      lambda x: modalities.cosines(prototypes(x)[0]),
      {"x": features},
    ),
    (
      "text_class_correlation",
      modalities.cosines,
      {"x": a["in_class_text_embeddings"]},
    ),
  ):
    yield make(
      loss="prototype_correlation",
      name=f"{golden}/{output}",
      call=call,
      inputs=inputs,
      value=a[f"out_{output}"],
    )


def checks() -> Iterator[Check]:
  """Values and gradients of all of them."""
  yield from _trg()
  yield from _mar()
  yield from _any2seg()
