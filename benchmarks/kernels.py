"""Convolutions and poolings, and other ways to compute the same.

A `Spec` says which and how large; `case` makes the arrays and the ways of it.
The first way is XLA's convolution or window reduction; `in_use` is the one that
`jaxkd.nets` takes on a CPU.

Arrays: images `[B, H, W, C]`, kernels `[k, k, I / groups, O]`; several members
have them stacked along a leading axis, a chain its kernels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import formulas
from jaxkd.nets import pooling

Array = jax.Array
Way = Callable[..., Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """What is computed.

  Attributes:
    kind: "convolution", "depthwise", "patch" (windows side by side), "pool"
      (maxima), "members" (convolutions with a kernel each) or "chain" (one
      after the other, in a loop).
    batch: images.
    size: their side.
    inputs: channels.
    outputs: channels; those of the inputs for "depthwise", "pool", "chain".
    kernel: side of the window.
    strides: steps of the window.
    padding: zeros on every side.
    first: whether it is a network's first layer, whose input needs no gradient.
    count: members, or links of the chain.
  """

  kind: str
  batch: int = 32
  size: int
  inputs: int
  outputs: int
  kernel: int = 3
  strides: int = 1
  padding: int = 1
  first: bool = False
  count: int = 1


@dataclasses.dataclass(frozen=True)
class Case:
  """A computation in several ways.

  Attributes:
    arrays: image, and kernel unless it is a pooling.
    ways: functions of the arrays; XLA's is first.
    in_use: the way that jaxkd takes on a CPU; of several the one that a trial
      finds faster.
    wanted: which arrays' gradients are taken.
  """

  arrays: tuple[Array, ...]
  ways: Mapping[str, Way]
  in_use: tuple[str, ...]
  wanted: tuple[int, ...]

  @property
  def xla(self) -> str:
    """The name of XLA's way."""
    return next(iter(self.ways))

  def forward_and_backward(self, way: str) -> Callable[..., tuple]:
    """`(gradient, *arrays) -> (result, gradients of the wanted arrays)`."""

    def both(gradient, *arrays):
      def function(*wanted):
        given = dict(zip(self.wanted, wanted, strict=True))
        merged = [given.get(n, array) for n, array in enumerate(arrays)]
        return self.ways[way](*merged)

      result, back = jax.vjp(function, *(arrays[n] for n in self.wanted))
      return result, back(gradient)

    return both

  def gradient(self) -> Array:
    """A random gradient of the result."""
    shape = jax.eval_shape(self.ways[self.xla], *self.arrays).shape
    return _random(1, shape)


SPECS = {
  "conv3x3_1_32": Spec(
    kind="convolution", size=28, inputs=1, outputs=32, first=True
  ),
  "conv3x3_3_32": Spec(
    kind="convolution", size=64, inputs=3, outputs=32, first=True
  ),
  "conv3x3_16_16": Spec(kind="convolution", size=64, inputs=16, outputs=16),
  "conv3x3_64_64": Spec(kind="convolution", size=32, inputs=64, outputs=64),
  "conv3x3_128_128": Spec(kind="convolution", size=16, inputs=128, outputs=128),
  "conv3x3_stride_2": Spec(
    kind="convolution", size=32, inputs=64, outputs=128, strides=2
  ),
  "conv1x1_64_256": Spec(
    kind="convolution", size=16, inputs=64, outputs=256, kernel=1, padding=0
  ),
  "conv1x1_stride_2": Spec(
    kind="convolution",
    size=32,
    inputs=64,
    outputs=128,
    kernel=1,
    strides=2,
    padding=0,
  ),
  "depthwise3x3_96": Spec(kind="depthwise", size=32, inputs=96, outputs=96),
  "depthwise3x3_stride_2": Spec(
    kind="depthwise", size=32, inputs=96, outputs=96, strides=2
  ),
  "patch4_of_32": Spec(
    kind="patch",
    size=32,
    inputs=3,
    outputs=192,
    kernel=4,
    strides=4,
    padding=0,
    first=True,
  ),
  "patch16_of_224": Spec(
    kind="patch",
    batch=8,
    size=224,
    inputs=3,
    outputs=384,
    kernel=16,
    strides=16,
    padding=0,
    first=True,
  ),
  "max_pool_2": Spec(
    kind="pool",
    size=64,
    inputs=32,
    outputs=32,
    kernel=2,
    strides=2,
    padding=0,
  ),
  "max_pool_3_stride_2": Spec(
    kind="pool", size=32, inputs=64, outputs=64, strides=2
  ),
  "members_4": Spec(
    kind="members", batch=16, size=32, inputs=16, outputs=16, count=4
  ),
  "chain_4": Spec(kind="chain", size=32, inputs=32, outputs=32, count=4),
}


def small(spec: Spec) -> Spec:
  """The same in a size that runs in a moment."""
  return dataclasses.replace(
    spec,
    batch=2,
    size=4 * spec.strides,
    inputs=min(spec.inputs, 4),
    outputs=min(spec.outputs, 4),
  )


def case(spec: Spec) -> Case:
  """The arrays of a computation, and the ways to do it.

  Args:
    spec: which, and how large.

  Returns:
    The case.
  """
  image = (spec.batch, spec.size, spec.size, spec.inputs)
  groups = spec.inputs if spec.kind == "depthwise" else 1
  kernel = (spec.kernel, spec.kernel, spec.inputs // groups, spec.outputs)
  window = {"strides": spec.strides, "padding": spec.padding}
  if spec.kind == "members":
    image = (spec.count, *image)
  if spec.kind in ("members", "chain"):
    kernel = (spec.count, *kernel)
  ways, in_use = _KINDS[spec.kind](spec)
  ways = {name: functools.partial(way, **window) for name, way in ways.items()}
  if spec.kind == "pool":
    return Case((_random(0, image),), ways, in_use, (0,))
  fan_in = spec.kernel**2 * spec.inputs // groups
  arrays = _random(0, image), _random(2, kernel) / np.float32(fan_in) ** 0.5
  return Case(arrays, ways, in_use, (1,) if spec.first else (0, 1))


def _convolution(spec: Spec) -> tuple[dict[str, Way], tuple[str, ...]]:
  if spec.kernel == 1:
    return {"xla": formulas.convolve, "dot": formulas.dot}, ("dot",)
  ways = {
    "xla": formulas.convolve,
    "patches_dot": formulas.patches_dot,
    "shifted_dots": formulas.shifted_dots,
    "kernel_gradient_dot": formulas.kernel_gradient_dot,
  }
  few = spec.kernel**2 * spec.inputs <= 2 * spec.outputs
  return ways, ("patches_dot" if few else "xla",)


def _depthwise(spec: Spec) -> tuple[dict[str, Way], tuple[str, ...]]:
  del spec
  return {"xla": formulas.grouped, "shifted_sum": formulas.shifted_sum}, (
    "shifted_sum",
  )


def _patch(spec: Spec) -> tuple[dict[str, Way], tuple[str, ...]]:
  del spec
  return {"xla": formulas.convolve, "reshape_dot": formulas.reshape_dot}, (
    "reshape_dot",
  )


def _pool(spec: Spec) -> tuple[dict[str, Way], tuple[str, ...]]:
  def reduce_window(x, *, strides, padding):
    around = ((padding, padding),) * 2
    window = (spec.kernel, spec.kernel)
    return nn.max_pool(x, window, (strides, strides), padding=around)

  def shifted_max(x, *, strides, padding):
    shifted = formulas.windows(x, spec.kernel, strides, padding, fill=-jnp.inf)
    return functools.reduce(jnp.maximum, shifted)

  ways = {"reduce_window": reduce_window, "shifted_max": shifted_max}
  if spec.kernel != spec.strides:
    return ways, ("reduce_window",)

  def reshape_max(x, *, strides, padding):
    del padding
    return pooling.max_pool(x, strides)

  return {**ways, "reshape_max": reshape_max}, ("reshape_max",)


def _members(spec: Spec) -> tuple[dict[str, Way], tuple[str, ...]]:
  def together(way):
    return lambda x, kernel, **window: jax.vmap(
      functools.partial(way, **window)
    )(x, kernel)

  def loop(x, kernel, **window):
    return jnp.stack(
      [formulas.convolve(x[n], kernel[n], **window) for n in range(spec.count)]
    )

  def scan(x, kernel, **window):
    return jax.lax.map(
      lambda pair: formulas.convolve(*pair, **window), (x, kernel)
    )

  ways = {
    "vmap": together(formulas.convolve),
    "loop": loop,
    "scan": scan,
    "vmap_patches_dot": together(formulas.patches_dot),
    "vmap_shifted_dots": together(formulas.shifted_dots),
  }
  return ways, ("vmap", "loop")


def _chain(spec: Spec) -> tuple[dict[str, Way], tuple[str, ...]]:
  def scanned(way):
    def chain(x, kernel, **window):
      def link(x, kernel):
        return way(x, kernel, **window), None

      return jax.lax.scan(link, x, kernel)[0]

    return chain

  def unrolled(x, kernel, **window):
    for n in range(spec.count):
      x = formulas.convolve(x, kernel[n], **window)
    return x

  ways = {
    "scan": scanned(formulas.convolve),
    "unrolled": unrolled,
    "scan_patches_dot": scanned(formulas.patches_dot),
    "scan_shifted_dots": scanned(formulas.shifted_dots),
  }
  return ways, ("unrolled",)


_KINDS = {
  "convolution": _convolution,
  "depthwise": _depthwise,
  "patch": _patch,
  "pool": _pool,
  "members": _members,
  "chain": _chain,
}


def _random(seed: int, shape: tuple[int, ...]) -> Array:
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape, np.float32))
