"""Modules of neural attentive circuits (NAC), in small.

States are latents `[B, U, C]`. Every linear map of a module is modulated by the
module's code vector. The graph that says which module listens to which, and the
propagation over several rounds, are left out, as they are while the modules are
distilled: sender and receiver are the same states.

References: Weiss et al. (NAC), https://arxiv.org/abs/2210.08031; Lo et al.
(m2mKD), https://arxiv.org/abs/2402.16918.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import blocks, initializers
from jaxkd.nets.modular import Maker, ModularNet

Array = jax.Array

_EPSILON = 1e-5
_DRAWN = ("code", "latents")


def _drawn(
  module: nn.Module, name: str, shape: tuple[int, ...], seed: int | None
) -> Array:
  """Returns a normal draw: a parameter, or with a seed a constant."""
  init = jax.nn.initializers.normal(1.0)
  if seed is None:
    return module.param(name, init, shape, jnp.float32)
  key = jax.random.fold_in(jax.random.key(seed), _DRAWN.index(name))
  return init(key, shape, jnp.float32)


def _norm(name: str, dtype: DTypeLike | None) -> nn.LayerNorm:
  return blocks.layer_norm(name, dtype, epsilon=_EPSILON)


class ModulatedLinear(nn.Module, kw_only=True):
  """A linear map whose inputs are scaled by a code vector.

    y = (x * (1 + g LN(c U))) W + b, LN without parameters

  Shapes: states `[B, U, I]`, codes `[U, K]` or one for all `[1, K]` ->
  `[B, U, features]`.

  Taps:
    norm: `[U, I]` or `[1, I]`.

  Parameters: `kernel` W, `bias` b, `scale` U `[K, I]`, `gain` g, 0.1 at first.

  Attributes:
    features: size of the output.
    use_bias: whether b is added.
    dtype: computation type; None: float32.
  """

  features: int
  use_bias: bool = True
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, states: Array, codes: Array) -> Array:
    """Returns the map of `states`."""
    size = states.shape[-1]
    init = initializers.fan_in_uniform()
    scale = self.param("scale", init, (codes.shape[-1], size), jnp.float32)
    gain = self.param(
      "gain", jax.nn.initializers.constant(0.1), (), jnp.float32
    )
    norm = nn.LayerNorm(
      epsilon=_EPSILON,
      use_bias=False,
      use_scale=False,
      use_fast_variance=False,
      name="norm",
    )
    factor = 1 + gain * norm(codes @ scale)  # [U or 1, I]
    kernel = self.param("kernel", init, (size, self.features), jnp.float32)
    dtype = self.dtype or jnp.promote_types(states.dtype, jnp.float32)
    outputs = (states * factor[None]).astype(dtype) @ kernel.astype(dtype)
    if not self.use_bias:
      return outputs
    bias = self.param(
      "bias", initializers.fan_in_bias(size), (self.features,), jnp.float32
    )
    return outputs + bias.astype(dtype)[None, None]


class LatentAttention(nn.Module, kw_only=True):
  """Attention of receiving latents to senders, by modulated maps.

  Receivers and senders go through one layer norm. Queries, keys and values have
  no bias.

  Shapes: receivers `[B, U, C]`, senders `[B, V, C]`, codes `[1, K]` ->
  `[B, U, C]`, the message to be added or taken.

  Taps:
    norm: of the receivers and of the senders.
    query: `[B, U, heads * head_size]`.
    key, value: `[B, V, heads * head_size]`.
    exit: `[B, U, C]`, before its scale.

  Attributes:
    heads: attention heads.
    head_size: size of a head.
    dtype: computation type; None: float32.
  """

  heads: int = 2
  head_size: int = 8
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, receivers: Array, senders: Array, codes: Array) -> Array:
    """Returns the scaled messages."""
    norm = _norm("norm", self.dtype)
    r, s = norm(receivers), norm(senders)
    inner = self.heads * self.head_size
    query, key, value = (
      ModulatedLinear(
        features=inner, use_bias=False, dtype=self.dtype, name=name
      )(x, codes).reshape(*x.shape[:2], self.heads, self.head_size)
      for name, x in (("query", r), ("key", s), ("value", s))
    )
    x = jax.nn.dot_product_attention(query, key, value)
    size = receivers.shape[-1]
    leave = ModulatedLinear(features=size, dtype=self.dtype, name="exit")
    x = leave(x.reshape(*x.shape[:2], inner), codes)
    return x * _layer_scale(self, size).astype(x.dtype)


def _layer_scale(module: nn.Module, size: int) -> Array:
  """Returns the parameter `gamma` of a residual branch, `[1, 1, size]`."""
  init = jax.nn.initializers.constant(0.1)
  return module.param("gamma", init, (size,), jnp.float32)[None, None]


class GatedFeedForward(nn.Module, kw_only=True):
  """Two modulated maps with a gated GELU between them, added to the input.

  Shapes: states `[B, U, C]`, codes `[1, K]` -> `[B, U, C]`.

  Taps:
    norm: `[B, U, C]`.
    fc1: `[B, U, 2 hidden]`: the first half times the GELU of the second one.
    fc2: `[B, U, C]`, before its scale.

  Attributes:
    hidden: size between the maps.
    dtype: computation type; None: float32.
  """

  hidden: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, states: Array, codes: Array) -> Array:
    """Returns the new states."""
    size = states.shape[-1]
    x = _norm("norm", self.dtype)(states)
    fc1 = ModulatedLinear(
      features=2 * self.hidden, dtype=self.dtype, name="fc1"
    )
    value, gate = jnp.split(fc1(x, codes), 2, axis=-1)
    x = value * nn.gelu(gate, approximate=False)
    fc2 = ModulatedLinear(features=size, dtype=self.dtype, name="fc2")
    x = fc2(x, codes)
    return states + x * _layer_scale(self, size).astype(x.dtype)


class Mediator(nn.Module, kw_only=True):
  """A module in the middle: latents attend to each other, then an MLP.

  Shapes: states `[B, U, C]` -> `[B, U, C]`.

  Taps:
    attention: `[B, U, C]`, what is added; inside: see `LatentAttention`.
    ffn: `[B, U, C]`; inside: see `GatedFeedForward`.

  Attributes:
    hidden_factor: size inside the MLP, in widths C.
    heads: attention heads.
    head_size: size of a head.
    code_size: size of the code vector.
    seed: draws the code, which then is a constant; None: it is learned, the
      parameter `code` `[1, code_size]`.
    dtype: computation type; None: float32.
  """

  hidden_factor: int = 2
  heads: int = 2
  head_size: int = 8
  code_size: int = 16
  seed: int | None = 0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, states: Array) -> Array:
    """Returns the new states."""
    codes = _drawn(self, "code", (1, self.code_size), self.seed)
    attention = _attention(self)
    x = states + attention(states, states, codes)
    return _feed_forward(self, states.shape[-1])(x, codes)


class ReadIn(nn.Module, kw_only=True):
  """The first module: latents attend to the patches of the image.

  Shapes: image `[B, H, W, I]` -> states `[B, latents, width]`; H and W
  multiples of `patch`.

  Taps:
    tokens: `[B, 1 + P, width]`; inside: see `PatchStem`.
    attention, ffn: `[B, latents, width]`, as in `Mediator`.

  Attributes:
    width: size of a latent, C.
    latents: number of latents.
    patch: side of a patch.
    hidden_factor: size inside the MLP, in widths.
    heads: attention heads.
    head_size: size of a head.
    code_size: size of the code vector.
    seed: draws code and first latents, which then are constants; None: they
      are learned, the parameters `code` and `latents`.
    dtype: computation type; None: float32.
  """

  width: int
  latents: int = 8
  patch: int = 4
  hidden_factor: int = 2
  heads: int = 2
  head_size: int = 8
  code_size: int = 16
  seed: int | None = 0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Returns the states of `image`."""
    stem = blocks.PatchStem(
      width=self.width, patch=self.patch, dtype=self.dtype, name="tokens"
    )
    return _received(self, stem(image))


class ReadOut(nn.Module, kw_only=True):
  """The last module: latents attend to the states; their mean is classified.

  Shapes: states `[B, U, C]` -> logits `[B, num_classes]`.

  Taps:
    attention, ffn: `[B, latents, C]`, as in `Mediator`.
    head: `[B, num_classes]`; inside: `norm`, `fc`.

  Attributes:
    num_classes: number of classes.
    latents: number of latents.
    hidden_factor: size inside the MLP, in widths C.
    heads: attention heads.
    head_size: size of a head.
    code_size: size of the code vector.
    seed: draws code and first latents, which then are constants; None: they
      are learned, the parameters `code` and `latents`.
    dtype: computation type; None: float32.
  """

  num_classes: int
  latents: int = 4
  hidden_factor: int = 2
  heads: int = 2
  head_size: int = 8
  code_size: int = 16
  seed: int | None = 0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, states: Array) -> Array:
    """Returns the logits of `states`."""
    x = _received(self, states).mean(1)
    head = blocks.ClassHead(
      num_classes=self.num_classes, dtype=self.dtype, name="head"
    )
    return head(x)


def _attention(module: Mediator | ReadIn | ReadOut) -> LatentAttention:
  """Returns the submodule `attention` with the settings of `module`."""
  return LatentAttention(
    heads=module.heads,
    head_size=module.head_size,
    dtype=module.dtype,
    name="attention",
  )


def _feed_forward(
  module: Mediator | ReadIn | ReadOut, size: int
) -> GatedFeedForward:
  """Returns the submodule `ffn` with the settings of `module`."""
  hidden = module.hidden_factor * size
  return GatedFeedForward(hidden=hidden, dtype=module.dtype, name="ffn")


def _received(module: ReadIn | ReadOut, senders: Array) -> Array:
  """Returns what the latents of `module` take from `senders`, [B, U, C]."""
  size = senders.shape[-1]
  codes = _drawn(module, "code", (1, module.code_size), module.seed)
  latents = _drawn(module, "latents", (1, module.latents, size), module.seed)
  latents = jnp.broadcast_to(
    latents.astype(senders.dtype), (len(senders), *latents.shape[1:])
  )
  x = _attention(module)(latents, senders, codes)
  return _feed_forward(module, size)(x, codes)


class ModularNAC(ModularNet, kw_only=True):
  """A chain of NAC modules: read-in, mediators, read-out.

  Shapes: image `[B, H, W, I]` -> logits `[B, num_classes]`; states
  `[B, latents, width]`.

  Taps:
    module0: behind the read-in; inside: `stem` (see `ReadIn`), `post_stitch`.
    module1, ...: behind each mediator; inside: `block1` (see `Mediator`),
      `pre_stitch`, `post_stitch`.
    the last module: the logits; inside: `head` (see `ReadOut`), `pre_stitch`.

  Attributes:
    divided_depths: number of mediators of every module.
    width: size of a latent, C.
    stitch_width: size of the harness's states, for a network with stitches;
      the stitches are linear maps without a norm.
    keep_stitches: whether the whole network runs through its stitches.
    latents: number of latents of the states.
    output_latents: number of latents of the read-out.
    patch: side of a patch.
    hidden_factor: size inside a module's MLP, in widths.
    heads: attention heads.
    head_size: size of a head.
    code_size: size of a code vector.
    seed: draws codes and first latents, different ones for every module, which
      then are constants; None: they are learned.
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  divided_depths: tuple[int, ...] = (0, 1, 0)
  width: int = 16
  latents: int = 8
  output_latents: int = 4
  patch: int = 4
  hidden_factor: int = 2
  heads: int = 2
  head_size: int = 8
  code_size: int = 16
  seed: int | None = 0

  def _stem(self) -> Maker:
    options = {"width": self.width, "patch": self.patch}
    return functools.partial(
      ReadIn, latents=self.latents, **options, **self._options(0)
    )

  def _block(self, index: int) -> Maker:
    return functools.partial(Mediator, **self._options(index))

  def _head(self) -> Maker:
    return functools.partial(
      ReadOut,
      num_classes=self.num_classes,
      latents=self.output_latents,
      **self._options(len(self.divided_depths) - 1),
    )

  def _stitch(self, width: int) -> Maker:
    return functools.partial(
      blocks.Stitch, features=width, norm=False, dtype=self.dtype
    )

  def _options(self, index: int) -> dict:
    """Returns what the modules have in common; the seed is the module's own."""
    seed = self.seed
    if seed is not None:
      seed = seed * len(self.divided_depths) + index
    return {
      "hidden_factor": self.hidden_factor,
      "heads": self.heads,
      "head_size": self.head_size,
      "code_size": self.code_size,
      "seed": seed,
      "dtype": self.dtype,
    }
