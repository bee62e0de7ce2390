"""RepBlend: a few learned image-text pairs in place of a dataset.

Zhang, Zhang, Du, Liu and Zhou, NeurIPS 2025, https://arxiv.org/abs/2505.14705.

What is trained is data: images X, embeddings of texts Y, their similarities
S = diag(a) + (alpha / r) L R^T and the learning rates eta. Two heads on frozen
encoders, started where an expert stood at theta_0 and trained on mini-batches
of the pairs, should arrive where the expert was an epoch of real data later:

  theta_k+1 = theta_k - eta SG[g_k],  g_k = d L_k / d theta at theta_k
  L = sum over both heads of |theta_0 - eta sum_k g_k - theta*|^2
                             / |theta_0 - theta*|^2

L_k is the weighted binary cross entropy of the scores against S, at embeddings
that are blended between encoder and head while S is not, so that the pairs
need not grow alike for it: with one share and one order a mini-batch,

  x~ = lambda E(X) + (1 - lambda) E(X)[order], y~ likewise, lambda ~ Beta
"""

import dataclasses
import functools
import operator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.method import Loss, Method, Phase, Update, label_loss
from jaxkd.nets import SyntheticPairs
from jaxkd.network import Network

INNER = {
  "wbce": losses.balanced_similarity_bce,
  "bce": losses.similarity_bce,
  "nce": losses.soft_info_nce,
  "cwcl": functools.partial(losses.soft_info_nce, normalize=True),
  "kl": losses.similarity_kl,
  "mse": losses.similarity_mse,
}
WAYS = ("image", "text")
SEEN = ("embedded", "text")  # what the heads are given of either way


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepBlend(Method):
  """Distillation of image-text data by matched training trajectories.

  Roles: encoder of images, frozen after its own training; `expert` and
  `student`, the two heads; `synthetic`, the pairs. Texts come embedded, several
  for an image: `caption_features`. Phases: `encode`; `expert_0`, `expert_1`,
  ... on the data; `distil` and `student` on the pairs alone. Prediction: what
  heads embed that were trained on the pairs. Memory: `trajectories`, the
  experts' parameters [experts, expert_epochs + 1, ...].
  """

  encoder: Network
  encoder_layer: str  # tap of the encoder with the embedding, [B, D]
  heads: Network  # of `embedded` and `text`; TwoTowers of ProjectionHeads
  shape: tuple[int, ...]  # of an image
  dimensions: tuple[int, int]  # of embeddings of images and of texts
  pairs: int = 99
  temperature: float = 0.07  # of scores
  rank: int = 10  # r
  similarity_scale: float = 3.0  # alpha
  learn_similarity: bool = True  # False: S = 1, only pairs are similar
  inner_loss: Literal["wbce", "bce", "nce", "cwcl", "kl", "mse"] = "wbce"
  blend: float = 1.0  # both parameters of Beta; 0 blends nothing
  merged: bool = False  # one quotient of both heads, not a sum of two
  through_parameters: bool = False  # the whole unrolled training, as in MTT
  resample_dropout: bool = False  # where data get their gradient, as released
  encode_epochs: int = 10
  encode_lr: float = 1e-3  # of Adam
  experts: int = 20
  expert_epochs: int = 10
  expert_lr: float = 0.1  # of SGD
  max_start: int = 2  # epochs at which a trajectory may be met: 0 to this - 1
  steps: int = 3000  # outer ones
  inner_steps: int = 8  # K
  inner_batch: int = 20
  rate: float = 0.1  # eta at the start
  image_lr: float = 100.0  # of SGD, as the following ones
  text_lr: float = 100.0
  similarity_lr: float = 10.0
  rate_lr: float = 1e-2
  momentum: float = 0.5
  student_epochs: int = 100  # over the pairs
  student_batch: int = 128
  student_decay: float = 5e-4  # of weights

  def __post_init__(self):
    """Checks the numbers."""
    if self.inner_loss not in INNER:
      raise ConfigError(
        f"RepBlend.inner_loss={self.inner_loss!r}: expected one of "
        + ", ".join(INNER)
      )
    if not 0 < self.max_start <= self.expert_epochs:
      raise ConfigError(
        f"RepBlend.max_start={self.max_start}: expected 1 to expert_epochs="
        f"{self.expert_epochs}"
      )
    if not 0 < self.inner_batch <= self.pairs:
      raise ConfigError(
        f"RepBlend.inner_batch={self.inner_batch}: expected 1 to pairs="
        f"{self.pairs}"
      )

  @property
  def roles(self):
    """The encoder, the heads twice, the pairs."""
    pairs = SyntheticPairs(
      pairs=self.pairs,
      image=self.shape,
      text=self.dimensions[1],
      rank=self.rank,
      rate=self.rate,
    )
    return {
      "encoder": self.encoder,
      "expert": self.heads,
      "student": self.heads,
      "synthetic": Network(pairs, inputs=()),
    }

  @property
  def memory(self):
    """Room for the experts' parameters after every epoch."""
    drawn = jax.eval_shape(self._heads, jax.random.key(0))
    count = (self.experts, self.expert_epochs + 1)
    return {
      "trajectories": jax.tree.map(
        lambda x: jnp.zeros((*count, *x.shape), x.dtype), drawn
      )
    }

  def _heads(self, rng):
    """Parameters of fresh heads."""
    sizes = zip(SEEN, self.dimensions, strict=True)
    given = {name: jnp.zeros((1, size)) for name, size in sizes}
    return self.heads.init(rng, given)["params"]

  @property
  def phases(self):
    """The encoder, the experts, then the pairs, then heads on the pairs."""

    def phase(name, trainable, loss, optimizer, **options):
      update = Update(trainable=trainable, loss=loss, optimizer=optimizer)
      return Phase(name=name, updates=(update,), **options)

    found = []
    if self.encode_epochs:
      adam, epochs = optax.adam(self.encode_lr), self.encode_epochs
      found.append(
        phase(
          "encode", ("encoder",), self.encode, adam, epochs=epochs, memory=()
        )
      )
    found += [
      phase(
        f"expert_{number}",
        ("expert",),
        self.contrast,
        optax.sgd(self.expert_lr),
        epochs=self.expert_epochs,
        targets={"embedded": self.embed},
        begin=functools.partial(self.start_expert, number),
        after_epoch=functools.partial(self.end_epoch, number),
      )
      for number in range(self.experts)
    ]
    found.append(
      phase(
        "distil",
        self._learned(),
        self.match,
        self._descent(),
        steps=self.steps,
        stream=None,
        begin=self.copy_pairs,
      )
    )
    steps = self.student_epochs * -(-self.pairs // self.student_batch)
    falls = optax.piecewise_constant_schedule(1.0, {steps // 2: 0.1})
    student = phase(
      "student",
      ("student",),
      self.fit,
      optax.sgd(falls, momentum=0.9),  # times the learned rates, see `fit`
      steps=steps,
      stream=None,
      memory=(),
    )
    return (*found, student)

  def _learned(self):
    kinds = ["image", "text", "rate_image", "rate_text"]
    if self.learn_similarity:
      kinds += ["diagonal", "left", "right"]
    return tuple(f"synthetic/{kind}" for kind in kinds)

  def _descent(self):
    """Momentum, with a rate for each kind of number."""
    rates = {
      "image": self.image_lr,
      "text": self.text_lr,
      **dict.fromkeys(("diagonal", "left", "right"), self.similarity_lr),
      **dict.fromkeys(("rate_image", "rate_text"), self.rate_lr),
    }
    return optax.multi_transform(
      {name: optax.sgd(lr, self.momentum) for name, lr in rates.items()},
      lambda params: {
        "synthetic": {name: name for name in params["synthetic"]}
      },
    )

  # The experts.

  def encode(self, nets, batch, step):
    """Cross entropy of the encoder."""
    del step
    return label_loss(nets.encoder(batch).logits, batch)

  def embed(self, nets, batch):
    """What the heads see of images."""
    taps = (self.encoder_layer,)
    return nets.encoder(batch, taps=taps).taps[self.encoder_layer]

  def start_expert(self, number, host):
    """Another start for every expert."""
    host.params["expert"] = self._heads(host.key("expert"))
    self._keep(host, number, 0)

  def end_epoch(self, number, host):
    """A point of the trajectory."""
    self._keep(host, number, host.epoch + 1)

  def _keep(self, host, number, epochs):
    host.memory["trajectories"] = jax.tree.map(
      lambda kept, now: kept.at[number, epochs].set(now),
      host.memory["trajectories"],
      host.params["expert"],
    )

  def contrast(self, nets, batch, step):
    """InfoNCE of images and one of their captions."""
    del step
    captions = batch["caption_features"]
    drawn = jax.random.randint(
      nets.key("caption"), captions.shape[:1], 0, captions.shape[1]
    )
    text = captions[jnp.arange(len(captions)), drawn]
    found = nets.expert({"embedded": batch["embedded"], "text": text}).value
    loss = losses.info_nce(
      found["image"],
      found["text"],
      temperature=self.temperature,
      symmetric=True,
      where=batch["mask"],
    )
    return Loss.mean(loss, where=batch["mask"])

  # The pairs.

  def pair(self, nets, batch):
    """A real image with one of its texts."""
    del nets
    return {"image": batch["image"], "text": batch["caption_features"][:, 0]}

  def copy_pairs(self, host):
    """The pairs start as real ones."""
    count = len(host.splits.train)
    if count < self.pairs:
      raise ConfigError(
        f"RepBlend.pairs={self.pairs}: expected at most the {count} examples "
        "of the training split"
      )
    order = np.asarray(jax.random.permutation(host.key("pairs"), count))
    found = host.run(self.pair, rows=order[: self.pairs])
    host.params["synthetic"] = {**host.params["synthetic"], **found}

  def _pairs(self, nets):
    """The pairs with embeddings in place of images; taken once a step."""
    data = nets.synthetic({}).value
    return {**data, "embedded": self.embed(nets, {"image": data["image"]})}

  def _loss(self, run, data, chosen, order, share):
    """L_k: of a mini-batch of the pairs, blended below the heads."""
    own = {name: data[name][chosen] for name in SEEN}
    found = run(losses.blend(own, order=order, share=share)).value
    scores = found["image"] @ found["text"].T / self.temperature
    parts = (data[name][chosen] for name in ("diagonal", "left", "right"))
    similarity = losses.low_rank_similarity(*parts, scale=self.similarity_scale)
    return INNER[self.inner_loss](scores, similarity)

  def draws(self, key):
    """What differs between inner steps: examples, partners, shares, keys."""
    each = self.pairs // self.inner_batch  # batches of one shuffled list
    lists, order, share, drop = jax.random.split(key, 4)
    lists = jax.random.split(lists, -(-self.inner_steps // each))
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, self.pairs))(lists)
    chosen = shuffled[:, : each * self.inner_batch]
    chosen = chosen.reshape(-1, self.inner_batch)[: self.inner_steps]
    shares = jnp.ones(self.inner_steps)
    if self.blend:
      shares = jax.random.beta(share, self.blend, self.blend, shares.shape)
    order, drop = (jax.random.split(k, self.inner_steps) for k in (order, drop))
    partners = functools.partial(jax.random.permutation, x=self.inner_batch)
    return {
      "chosen": chosen,
      "order": jax.vmap(partners)(order),
      "share": shares,
      "drop": drop,
    }

  def match(self, nets, batch, step):
    """How far the pairs lead from where an epoch of data led."""
    del step
    which, when = nets.key("expert"), nets.key("epoch")
    expert = jax.random.randint(which, (), 0, self.experts)
    epoch = jax.random.randint(when, (), 0, self.max_start)
    start, end = (
      jax.tree.map(
        operator.itemgetter((expert, at)), nets.memory["trajectories"]
      )
      for at in (epoch, epoch + 1)
    )
    data = self._pairs(nets)

    def inner(params, data, given):
      heads = nets.replaced({"expert": params}, rng=given["drop"])
      run = functools.partial(heads.expert, train=True)
      names = ("chosen", "order", "share")
      return self._loss(run, data, *(given[name] for name in names))

    draws, retaken = self.draws(nets.key("inner")), None
    if self.resample_dropout:
      other = jax.random.split(nets.key("resampled"), self.inner_steps)
      retaken = {**draws, "drop": other}
    reached = losses.gradient_descent(
      inner,
      start,
      data,
      draws,
      learning_rates={way: data[f"rate_{way}"] for way in WAYS},
      through_parameters=self.through_parameters,
      retaken=retaken,
    )
    if self.merged:
      total = losses.trajectory_matching(reached, end, start=start)
    else:
      total = sum(
        losses.trajectory_matching(reached[way], end[way], start=start[way])
        for way in WAYS
      )
    return Loss.mean(
      total,
      where=batch["mask"],
      metrics={f"{way}_cosine": _mean_cosine(data[way]) for way in WAYS}
      | {f"rate_{way}": data[f"rate_{way}"] for way in WAYS},
    )

  def fit(self, nets, batch, step):
    """The inner loss of fresh heads, unblended, at the learned rates."""
    del step
    data = jax.lax.stop_gradient(self._pairs(nets))
    order = jax.random.permutation(nets.key("examples"), self.pairs)
    chosen = order[: min(self.student_batch, self.pairs)]
    same = jnp.arange(len(chosen))
    loss = functools.partial(
      self._loss, data=data, chosen=chosen, order=same, share=1.0
    )
    nets = nets.transformed(
      "student",
      lambda heads: {w: _scaled(heads[w], data[f"rate_{w}"]) for w in WAYS},
    )
    total = loss(nets.student)
    squares = sum(
      jnp.sum(x**2) for x in jax.tree.leaves(nets.params("student"))
    )
    total += self.student_decay / 2 * squares
    return Loss.mean(total, where=batch["mask"])

  def _embedded(self, nets, role, batch):
    given = {
      "embedded": self.embed(nets, batch),
      "text": batch["caption_features"],
    }
    return nets[role](given)

  def predict(self, nets, batch):
    """Embeddings of images and of all their captions."""
    return self._embedded(nets, "student", batch)

  def outputs(self, nets, batch):
    """Heads from the pairs, and the last expert: heads from all data."""
    return {
      "student": self.predict(nets, batch),
      "expert": self._embedded(nets, "expert", batch),
    }


def _scaled(params, rate):
  """The parameters, with gradients times a rate: descent at that rate."""
  fixed = jax.lax.stop_gradient(params)
  return jax.tree.map(lambda x, c: c + rate * (x - c), params, fixed)


def _mean_cosine(items):
  """Between different items of one modality, [N, ...], at most 1."""
  rows = items.reshape(len(items), -1)
  unit = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
  total = jnp.sum(jnp.sum(unit, axis=0) ** 2)
  return (total - len(rows)) / (len(rows) * (len(rows) - 1))
