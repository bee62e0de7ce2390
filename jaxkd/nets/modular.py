"""Networks that are cut into modules, so that modules can be exchanged.

A network is a chain of M modules, numbered from 0 as in the paper: module 0
owns the stem and maps the image, module M-1 owns the norm and the classifier
and gives the logits. What goes from one module to the next are the states:
vectors `[B, D]` or tokens `[B, T, D]`.

A *meta* network with one block in every module is the common harness. The
hybrid of position i is the meta network with its module i exchanged for that of
another network:

  states = meta.apply(v, image, index=i, method="prefix")
  states = teacher.apply(w, states, index=i, method="module")
  logits = meta.apply(v, states, index=i, method="suffix")

A module is a submodule, `module0`, `module1`, ..., so that taps and edits make
the same hybrids in a whole run: an edit of the meta network's `module1` puts
other states, or logits, in the place of its own.

A student of another width reads and writes the states of the harness through
stitches, which are no part of the network that is deployed.

Reference: Lo et al. (m2mKD), https://arxiv.org/abs/2402.16918.
"""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd import errors
from jaxkd.nets import blocks

Array = jax.Array
Maker = Callable[..., nn.Module]  # of a layer, from its name


class CutModule(nn.Module, kw_only=True):
  """One module: a chain of named layers, with or without its stitches.

  Shapes: image or states -> states or logits.

  Taps: the names of the layers.

  Attributes:
    layers: name and maker of every layer in order; those whose names end in
      `stitch` are stitches.
  """

  layers: tuple[tuple[str, Maker], ...]

  @nn.compact
  def __call__(self, inputs: Array, *, stitched: bool = True) -> Array:
    """Returns the states behind the module, or the logits."""
    x = inputs
    for name, make in self.layers:
      if stitched or not name.endswith("stitch"):
        x = make(name=name)(x)
    return x


class ModularNet(nn.Module, kw_only=True):
  """Base of networks that are cut into modules.

  A subclass says what stem, blocks and head are, as makers of layers.

  Attributes:
    divided_depths: number of blocks of every module.
    width: size of the states, D.
    stitch_width: size of the harness's states, for a network with stitches.
    keep_stitches: whether the whole network runs through its stitches; else
      they have weights but are left out.
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  divided_depths: tuple[int, ...]
  width: int
  stitch_width: int | None = None
  keep_stitches: bool = False
  num_classes: int = 10
  dtype: DTypeLike | None = None

  def setup(self) -> None:
    """Makes the modules."""
    if not self.divided_depths or min(self.divided_depths) < 0:
      raise errors.ConfigError(
        f"{type(self).__name__}.divided_depths = {self.divided_depths}: "
        "expected the number of blocks of every module"
      )
    for index in range(len(self.divided_depths)):
      setattr(self, f"module{index}", CutModule(layers=self._layers(index)))

  def __call__(self, image: Array) -> Array:
    """Returns the logits of `image`."""
    if self.is_initializing():
      self.stitched(image)  # stitches get their weights even if left out
    x = image
    for index in range(len(self.divided_depths)):
      x = self._part(index)(x, stitched=self.keep_stitches)
    return x

  def stitched(self, image: Array) -> Array:
    """Returns the logits with all stitches in use, whatever is deployed."""
    return self.suffix(self.module(image, index=0), index=0)

  def prefix(self, image: Array, *, index: int) -> Array:
    """Returns the states before a module: those behind the one before it.

    Args:
      image: of module 0, which itself is given the image.
      index: of the module; negative ones count from the end.
    """
    x = image
    for before in range(self._place(index)):
      x = self._part(before)(x)
    return x

  def module(self, states: Array, *, index: int) -> Array:
    """Returns the states behind a module, or the logits of the last one.

    Args:
      states: what the module is given, the image for module 0.
      index: of the module; negative ones count from the end.
    """
    return self._part(self._place(index))(states)

  def suffix(self, states: Array, *, index: int) -> Array:
    """Returns the logits of the states behind a module.

    Args:
      states: those behind the module; behind the last one, the logits.
      index: of the module; negative ones count from the end.
    """
    x = states
    for after in range(self._place(index) + 1, len(self.divided_depths)):
      x = self._part(after)(x)
    return x

  def _part(self, index: int) -> CutModule:
    return getattr(self, f"module{index}")

  def _place(self, index: int) -> int:
    """Returns the index counted from the front, or raises."""
    count = len(self.divided_depths)
    if not -count <= index < count:
      raise errors.ConfigError(
        f"module {index} of {type(self).__name__}: expected {-count} to "
        f"{count - 1}"
      )
    return index % count

  def _layers(self, index: int) -> tuple[tuple[str, Maker], ...]:
    """Returns the layers of a module in order."""
    count = len(self.divided_depths)
    layers = []
    if index == 0:
      layers.append(("stem", self._stem()))
    elif self.stitch_width:
      layers.append(("pre_stitch", self._stitch(self.width)))
    for number in range(1, self.divided_depths[index] + 1):
      layers.append((f"block{number}", self._block(index)))
    if index == count - 1:
      layers.append(("head", self._head()))
    elif self.stitch_width:
      layers.append(("post_stitch", self._stitch(self.stitch_width)))
    return tuple(layers)

  def _stitch(self, width: int) -> Maker:
    return functools.partial(blocks.Stitch, features=width, dtype=self.dtype)

  def _stem(self) -> Maker:
    raise NotImplementedError

  def _block(self, index: int) -> Maker:
    raise NotImplementedError

  def _head(self) -> Maker:
    return functools.partial(
      blocks.ClassHead, num_classes=self.num_classes, dtype=self.dtype
    )


class ModularMLP(ModularNet, kw_only=True):
  """A residual MLP on vectors, cut into modules.

  Shapes: `[B, ...]`, flattened -> logits `[B, num_classes]`; states
  `[B, width]`.

  Taps:
    module0, module1, ...: the states behind each module, the logits of the
      last one; inside: `block1`, `block2`, ... (see `ResidualBlock`), and
      `stem`, `head`, `pre_stitch`, `post_stitch` where the module has them.

  Attributes:
    divided_depths: number of blocks of every module.
    width: size of the states.
    stitch_width: size of the harness's states, for a network with stitches.
    keep_stitches: whether the whole network runs through its stitches.
    hidden_factor: size of the layer inside a block, in widths.
    experts: how many take the place of a block's MLP; 0 for the MLP.
    chosen: how many experts an example is given.
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  divided_depths: tuple[int, ...] = (2, 2, 2)
  width: int = 32
  hidden_factor: int = 2
  experts: int = 0
  chosen: int = 2

  def _stem(self) -> Maker:
    return functools.partial(
      blocks.VectorStem, width=self.width, dtype=self.dtype
    )

  def _block(self, index: int) -> Maker:
    del index
    return functools.partial(
      blocks.ResidualBlock,
      hidden=self.hidden_factor * self.width,
      experts=self.experts,
      chosen=self.chosen,
      dtype=self.dtype,
    )


class ModularViT(ModularNet, kw_only=True):
  """A vision transformer, or one with experts (V-MoE), cut into modules.

  Shapes: image `[B, H, W, C]` -> logits `[B, num_classes]`; states
  `[B, 1 + H W / patch^2, width]`, the class token first.

  Taps:
    module0, module1, ...: the states behind each module, the logits of the
      last one; inside: `block1`, `block2`, ... (see `ResidualBlock`), and
      `stem`, `head`, `pre_stitch`, `post_stitch` where the module has them.

  Attributes:
    divided_depths: number of blocks of every module.
    width: size of a token.
    stitch_width: size of the harness's tokens, for a network with stitches.
    keep_stitches: whether the whole network runs through its stitches.
    patch: side of a patch.
    heads: attention heads.
    hidden_factor: size of the layer inside a block's MLP, in widths.
    experts: how many take the place of a block's MLP; 0 for the MLP.
    chosen: how many experts a token is given.
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  divided_depths: tuple[int, ...] = (2, 2, 2)
  width: int = 64
  patch: int = 4
  heads: int = 4
  hidden_factor: int = 4
  experts: int = 0
  chosen: int = 2

  def _stem(self) -> Maker:
    return functools.partial(
      blocks.PatchStem, width=self.width, patch=self.patch, dtype=self.dtype
    )

  def _block(self, index: int) -> Maker:
    del index
    return functools.partial(
      blocks.ResidualBlock,
      hidden=self.hidden_factor * self.width,
      heads=self.heads,
      experts=self.experts,
      chosen=self.chosen,
      dtype=self.dtype,
    )


def check_harness(meta: ModularNet, **others: ModularNet) -> None:
  """Raises unless modules of the others fit in the places of the meta network.

  Args:
    meta: the common harness, with one block in every module.
    **others: networks by role, a student with stitches among them.

  Raises:
    ConfigError: a module of the meta network has not one block, or another
      network has not as many modules or states of the same size.
  """
  depths = meta.divided_depths
  if any(depth != 1 for depth in depths):
    raise errors.ConfigError(
      f"meta network: divided_depths = {depths}: expected 1 everywhere, one "
      "block for every module of the others"
    )
  for role, net in others.items():
    if len(net.divided_depths) != len(depths):
      raise errors.ConfigError(
        f"{role}: divided_depths = {net.divided_depths}: expected "
        f"{len(depths)} modules, as many as the meta network has"
      )
    size = net.stitch_width or net.width
    if size != meta.width:
      name = "stitch_width" if net.stitch_width else "width"
      raise errors.ConfigError(
        f"{role}: {name} = {size}: expected {meta.width}, the width of the "
        "meta network"
      )
