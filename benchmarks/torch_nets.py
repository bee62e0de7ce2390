"""The networks of `pairs` in PyTorch, and their weights from jaxkd's.

Layer by layer those of `jaxkd.nets`. Wherever PyTorch leaves a choice, the
faster one is taken: projections of one input are one layer, attention is
PyTorch's fused one, and behind a vision transformer's last block only the
class token is read.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from flax import traverse_util
from torch import nn
from torch.nn import functional

from benchmarks.pairs import CLASSES, VOCABULARY, Pair, Size

Tensor = torch.Tensor


def numbered(prefix: str, parts: Iterable[nn.Module]) -> nn.Sequential:
  """The parts one behind the other, named `prefix1`, `prefix2`, ..."""
  names = {f"{prefix}{i}": part for i, part in enumerate(parts, start=1)}
  return nn.Sequential(collections.OrderedDict(names))


class MLP(nn.Module):
  """Perceptron with ReLU between its layers: [B, ...] -> [B, widths[-1]]."""

  def __init__(self, *widths: int):
    super().__init__()
    self.layers = numbered(
      "fc", (nn.Linear(a, b) for a, b in itertools.pairwise(widths))
    )

  def forward(self, image: Tensor) -> Tensor:
    """Returns the logits of `image`."""
    x = image.flatten(1)
    for i, layer in enumerate(self.layers):
      x = layer(x.relu() if i else x)
    return x


def conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
  """A convolution without bias that keeps the size but for its stride."""
  return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions with batch norm, added to their input."""

  def __init__(self, inputs: int, outputs: int, stride: int):
    super().__init__()
    self.conv1 = conv(inputs, outputs, 3, stride)
    self.bn1 = nn.BatchNorm2d(outputs)
    self.conv2 = conv(outputs, outputs, 3, 1)
    self.bn2 = nn.BatchNorm2d(outputs)
    self.shortcut, self.shortcut_bn = nn.Identity(), nn.Identity()
    if inputs != outputs or stride > 1:
      self.shortcut = conv(inputs, outputs, 1, stride)
      self.shortcut_bn = nn.BatchNorm2d(outputs)

  def forward(self, x: Tensor) -> Tensor:
    """Returns the map behind the block."""
    y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
    y = self.bn2(self.conv2(y)) + self.shortcut_bn(self.shortcut(x))
    return functional.relu(y, inplace=True)


class ResNet(nn.Module):
  """Three stages of basic blocks: [B, 3, H, W] -> [B, CLASSES]."""

  def __init__(self, width: int, depth: int):
    super().__init__()
    stem = {
      "conv": conv(3, width, 7, 2),
      "bn": nn.BatchNorm2d(width),
      "relu": nn.ReLU(inplace=True),
      "pool": nn.MaxPool2d(3, 2, 1),
    }
    self.stem = nn.Sequential(collections.OrderedDict(stem))
    widths = (width, width, 2 * width, 4 * width)
    self.stages = numbered(
      "stage",
      (
        numbered("block", self._blocks(a, b, depth, stride))
        for (a, b), stride in zip(
          itertools.pairwise(widths), (1, 2, 2), strict=True
        )
      ),
    )
    self.fc = nn.Linear(widths[-1], CLASSES)

  def _blocks(
    self, inputs: int, outputs: int, depth: int, stride: int
  ) -> list[BasicBlock]:
    first = BasicBlock(inputs, outputs, stride)
    return [first, *(BasicBlock(outputs, outputs, 1) for _ in range(depth - 1))]

  def forward(self, image: Tensor) -> Tensor:
    """Returns the logits of `image`."""
    return self.fc(self.stages(self.stem(image)).mean((2, 3)))


class Attention(nn.Module):
  """Attention over tokens [B, L, D], causal if positions turn."""

  def __init__(self, width: int, heads: int, *, bias: bool):
    super().__init__()
    self.heads = heads
    self.key_query_value = nn.Linear(width, 3 * width, bias=bias)
    self.out = nn.Linear(width, width, bias=bias)

  def forward(
    self, x: Tensor, turns: tuple[Tensor, Tensor] | None = None
  ) -> Tensor:
    """Returns what the positions of `x` gather."""
    joint = self.key_query_value(x).unflatten(-1, (3, self.heads, -1))
    joint = joint.permute(2, 0, 3, 1, 4)  # [3, B, heads, L, size]
    if turns is None:
      key, query, value = joint
    else:
      key, query = rotary(joint[:2], *turns)
      value = joint[2]
    x = functional.scaled_dot_product_attention(
      query, key, value, is_causal=turns is not None
    )
    return self.out(x.transpose(1, 2).flatten(2))


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  """Turns the halves [..., L, size / 2] of `x` by their position's angles."""
  a, b = x.chunk(2, -1)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Perceptron(nn.Module):
  """Two layers with GELU between them."""

  def __init__(self, width: int):
    super().__init__()
    self.fc1 = nn.Linear(width, 4 * width)
    self.fc2 = nn.Linear(4 * width, width)

  def forward(self, x: Tensor) -> Tensor:
    """Returns the output for `x`."""
    return self.fc2(functional.gelu(self.fc1(x)))


class GatedMLP(nn.Module):
  """SwiGLU with a hidden layer of 8/3 widths."""

  def __init__(self, width: int):
    super().__init__()
    hidden = round(8 / 3 * width)
    self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
    self.down = nn.Linear(hidden, width, bias=False)

  def forward(self, x: Tensor) -> Tensor:
    """Returns the output for `x`."""
    gate, up = self.gate_up(x).chunk(2, -1)
    return self.down(functional.silu(gate) * up)


class Block(nn.Module):
  """Attention and a perceptron, each added to what it reads normalised."""

  def __init__(
    self,
    attention: Attention,
    mlp: nn.Module,
    norm: Callable[[], nn.Module],
  ):
    super().__init__()
    self.attention_norm, self.attention = norm(), attention
    self.mlp_norm, self.mlp = norm(), mlp

  def forward(
    self, x: Tensor, turns: tuple[Tensor, Tensor] | None = None
  ) -> Tensor:
    """Returns `x` with what both parts add."""
    x = x + self.attention(self.attention_norm(x), turns)
    return x + self.mlp(self.mlp_norm(x))


class ImageTokens(nn.Module):
  """Patches behind a class token: [B, 3, H, H] -> [B, L, width]."""

  def __init__(self, width: int, extent: int, patch: int):
    super().__init__()
    self.patches = nn.Conv2d(3, width, patch, patch)
    self.class_token = nn.Parameter(torch.zeros(1, 1, width))
    length = 1 + (extent // patch) ** 2
    self.positions = nn.Parameter(torch.zeros(1, length, width))

  def forward(self, image: Tensor) -> Tensor:
    """Returns the tokens of `image`."""
    x = self.patches(image).flatten(2).transpose(1, 2)
    first = self.class_token.expand(len(x), -1, -1)
    return torch.cat([first, x], 1) + self.positions


class VisionTransformer(nn.Module):
  """Patches of 4, 3 heads: [B, 3, H, H] -> [B, CLASSES]."""

  def __init__(self, width: int, depth: int, extent: int):
    super().__init__()
    norm = functools.partial(nn.LayerNorm, width, eps=1e-12)
    self.stem = ImageTokens(width, extent, 4)
    self.blocks = numbered(
      "block",
      (
        Block(Attention(width, 3, bias=True), Perceptron(width), norm)
        for _ in range(depth)
      ),
    )
    self.norm = norm()
    self.head = nn.Linear(width, CLASSES)

  def forward(self, image: Tensor) -> Tensor:
    """Returns the logits of `image`."""
    x = self.blocks(self.stem(image))
    return self.head(self.norm(x[:, 0]))


class CausalDecoder(nn.Module):
  """A decoder of 4 heads: tokens [B, L] -> logits [B, L, VOCABULARY]."""

  def __init__(self, width: int, depth: int, length: int):
    super().__init__()
    norm = functools.partial(nn.RMSNorm, width, eps=1e-6)
    self.embedding = nn.Embedding(VOCABULARY, width)
    self.blocks = numbered(
      "block",
      (
        Block(Attention(width, 4, bias=False), GatedMLP(width), norm)
        for _ in range(depth)
      ),
    )
    self.norm = norm()
    self.head = nn.Linear(width, VOCABULARY, bias=False)
    size = width // 4
    rates = 1e4 ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(length)[:, None] * rates
    self.register_buffer("cos", angles.cos(), persistent=False)
    self.register_buffer("sin", angles.sin(), persistent=False)

  def forward(self, tokens: Tensor) -> Tensor:
    """Returns the logits of what follows every one of `tokens`."""
    x = self.embedding(tokens)
    for block in self.blocks:
      x = block(x, (self.cos, self.sin))
    return self.head(self.norm(x))


def network(pair: Pair, size: Size) -> nn.Module:
  """The network of this size, as `Pair.network` makes it in jaxkd."""
  if pair.kind == "mlp":
    return MLP(pair.extent**2, *(size.width,) * size.depth, CLASSES)
  if pair.kind == "resnet":
    return ResNet(size.width, size.depth)
  kind = VisionTransformer if pair.kind == "vit" else CausalDecoder
  return kind(size.width, size.depth, pair.extent)


# What jaxkd's variables are called here. Of layers that are one here the
# outputs follow each other in the order of their names.
RENAMED = {
  **dict.fromkeys(("key", "query", "value"), "key_query_value"),
  **dict.fromkeys(("gate", "up"), "gate_up"),
  **dict.fromkeys(("kernel", "scale"), "weight"),
  "mean": "running_mean",
  "var": "running_var",
}
LISTS = {"fc": "layers", "stage": "stages", "block": "blocks"}


def weights(variables: Mapping[str, Any]) -> dict[str, Tensor]:
  """A network's state from that of jaxkd's network.

  Args:
    variables: `params`, and `batch_stats` if it has any.

  Returns:
    The state of the network that `network` makes for the same size.
  """
  found = collections.defaultdict(list)
  for tree in variables.values():
    for path, value in sorted(traverse_util.flatten_dict(tree).items()):
      value = np.array(value)
      if path[-1] == "kernel":  # inputs before outputs, behind the places
        value = np.moveaxis(value, (-1, -2), (0, 1))
      names = [RENAMED.get(name, name) for name in path]
      found[".".join(_listed(names))].append(value)
  return {
    name: torch.from_numpy(np.concatenate(parts))
    for name, parts in found.items()
  }


def _listed(names: list[str]) -> list[str]:
  """The path with the list that its first part is in, if it is in one."""
  first = names[0]
  kind = first.rstrip("0123456789")
  if kind != first:
    return [LISTS[kind], *names]
  return ["embedding", "weight"] if first == "embedding" else names
