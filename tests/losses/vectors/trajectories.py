"""RepBlend's outer step: training on learned pairs, matched to an expert's."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxkd import losses, nets
from jaxkd.losses import rows
from tests import golden_tools
from tests.losses.vectors import Check

SOURCE = "zhangxin-xd/RepBlend@4724e63"
WAYS = ("image", "text")
RATES = ("lr_image", "lr_text")


def _blends() -> Iterator[Check]:
  golden = "repblend__head_and_blend"
  arrays = golden_tools.load(golden)
  for i in range(2):
    a = golden_tools.section(arrays, f"blend{i}_")
    for way in WAYS:
      yield Check(
        loss="blend",
        source=f"{SOURCE} distill_repblend.py:mix_embedding_up_second",
        name=f"{golden}/blend{i}/{way}",
        call=functools.partial(
          losses.blend,
          order=jnp.asarray(a["in_perm"]),
          share=float(a["param_lambda"]),
        ),
        inputs={"examples": a[f"in_{way}_emb"]},
        value=a[f"out_{way}_emb"],
      )


def _head(flat, inputs):
  """The head whose weights a vector holds, at inputs; rows of length 1."""
  size = 5
  shapes = {
    ("projection", "kernel"): (size, inputs.shape[-1]),
    ("projection", "bias"): (size,),
    ("fc", "kernel"): (size, size),
    ("fc", "bias"): (size,),
    ("norm", "scale"): (size,),
    ("norm", "bias"): (size,),
  }
  params, start = {}, 0
  for (layer, name), shape in shapes.items():
    end = start + (shape[0] * shape[1] if len(shape) > 1 else shape[0])
    array = flat[start:end].reshape(shape)
    params.setdefault(layer, {})[name] = array.T
    start = end
  assert start == len(flat)
  head = nets.ProjectionHead(features=size, dropout=0.0)
  return rows.unit(head.apply({"params": params}, inputs))


def final(a, bce, *, images, texts, lr_image, lr_text, **learned):
  """The parameters after the inner steps, whose loss of scores is `bce`."""
  encoder = jnp.asarray(a["param_encoder_W"])

  def loss(parameters, data, step):
    chosen, order, share = step
    embedded = {
      "image": jnp.tanh(data["images"][chosen] @ encoder.T),
      "text": data["texts"][chosen],
    }
    embedded = losses.blend(embedded, order=order, share=share)
    u, v = (_head(parameters[way], embedded[way]) for way in WAYS)
    scores = u @ v.T / float(a["param_temperature"])
    return bce(scores, _similarity(a, data, chosen))

  return losses.gradient_descent(
    loss,
    {way: jnp.asarray(a[f"in_{way}_start"]) for way in WAYS},
    {"images": images, "texts": texts, **learned},
    tuple(
      jnp.asarray(a[f"in_{name}"])
      for name in ("minibatch_indices", "blend_perm", "blend_lambda")
    ),
    learning_rates={"image": lr_image, "text": lr_text},
  )


def _similarity(a, data, chosen):
  if "similarity" in data:
    return data["similarity"][chosen][:, chosen]
  parts = (data[name][chosen] for name in ("diag", "left", "right"))
  return losses.low_rank_similarity(*parts, scale=float(a["param_alpha"]))


def _ends(a, prefix):
  return {way: jnp.asarray(a[f"in_{way}_{prefix}"]) for way in WAYS}


def matched(a, ends, ways=WAYS, merged=False):
  """The loss of some branches that ended there, together or apart."""
  target, start = (
    {way: jnp.asarray(a[f"in_{way}_{which}"]) for way in WAYS}
    for which in ("target", "start")
  )
  if merged:
    return losses.trajectory_matching(ends, target, start=start)
  return sum(
    losses.trajectory_matching(ends[w], target[w], start=start[w]) for w in ways
  )


def merged_value(a):
  """The reference's loss of both branches together, from those apart."""
  ways = [np.sum((a[f"in_{w}_start"] - a[f"in_{w}_target"]) ** 2) for w in WAYS]
  return np.average([a[f"out_{w}_match_loss"] for w in WAYS], weights=ways)


def inputs(a):
  """What has a gradient in the reference: names of the data, all arrays."""
  learned = ("diag", "left", "right")
  learned = ("similarity",) if "in_similarity" in a else learned
  data = ("images", "texts", *learned)
  arrays = {name: a[f"in_{name}"] for name in data}
  return data, arrays | {name: a[f"param_{name}"] for name in RATES}


def _steps() -> Iterator[Check]:
  """The case whose numbers float32 does not spoil; `test_matching` has all."""
  golden = "repblend__matching_step"
  a = golden_tools.cases(golden)["case1"]
  data, arrays = inputs(a)
  make = functools.partial(
    Check,
    source=f"{SOURCE} distill_repblend.py",
    inputs=arrays,
    rtol=1e-4,
    atol=1e-5,
  )
  ends = functools.partial(final, a, losses.balanced_similarity_bce)
  for way in WAYS:
    yield make(
      loss="gradient_descent",
      name=f"{golden}/case1/{way}_param_final",
      call=lambda _w=way, **x: ends(**x)[_w],
      value=a[f"out_{way}_param_final"],
    )
    yield make(
      loss="trajectory_matching",
      name=f"{golden}/case1/{way}_match_loss",
      call=lambda _w=way, **x: matched(a, ends(**x), (_w,)),
      value=a[f"out_{way}_match_loss"],
    )
  # The data are trained by the merged loss, the rates by the branches' own.
  for which, names, merged, value in (
    ("data", data, True, merged_value(a)),
    ("rates", RATES, False, sum(a[f"out_{w}_match_loss"] for w in WAYS)),
  ):
    gradients = {name: a[f"grad_{name}"] for name in names}
    yield make(
      loss="trajectory_matching",
      name=f"{golden}/case1/gradients_of_{which}",
      call=lambda _m=merged, **x: matched(a, ends(**x), merged=_m),
      value=value,
      gradients=gradients,
      # Small entries carry the rounding of large ones: 1e-4 of the largest.
      gradient_atol=1e-4 * max(np.abs(g).max() for g in gradients.values()),
    )


def checks() -> Iterator[Check]:
  """Blends, parameters after the inner steps, matching losses, gradients."""
  yield from _blends()
  yield from _steps()
