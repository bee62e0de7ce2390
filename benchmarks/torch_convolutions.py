"""The kernels of `benchmarks.kernels` in PyTorch, the peer of `convolutions`.

Images are `[B, C, H, W]`, stored in that order or channels last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.kernels import Array, Case, Spec

Tensor = torch.Tensor
FORMATS = {
  "torch": torch.contiguous_format,
  "torch_channels_last": torch.channels_last,
}
_IMAGE, _IMAGE_BACK = (0, 3, 1, 2), (0, 2, 3, 1)
_KERNEL, _KERNEL_BACK = (3, 2, 0, 1), (2, 3, 1, 0)


def record(threads: int) -> dict[str, Any]:
  """Sets the number of threads; returns what the record says of torch."""
  torch.set_num_threads(threads)
  return {
    "threads": torch.get_num_threads(),
    "versions": {"torch": torch.__version__},
  }


def peers(spec: Spec, case: Case) -> dict[str, Peer]:
  """The computation by the order in which images are stored."""
  return {name: Peer(spec, case, order) for name, order in FORMATS.items()}


class Peer:
  """A computation and its gradients; members go one after the other."""

  def __init__(self, spec: Spec, case: Case, order: torch.memory_format):
    """Takes over the arrays.

    Args:
      spec: what is computed.
      case: its arrays.
      order: how images and kernels are stored.
    """

    def stored(array: Array, axes: tuple[int, ...]) -> list[Tensor]:
      parts = np.array(array).reshape(-1, *array.shape[-4:])
      return [
        torch.from_numpy(part).permute(axes).contiguous(memory_format=order)
        for part in parts
      ]

    self._spec = spec
    self._images = stored(case.arrays[0], _IMAGE)
    self._kernels = [
      kernel for array in case.arrays[1:] for kernel in stored(array, _KERNEL)
    ]
    self._gradients = stored(case.gradient(), _IMAGE)
    self._groups = [(self._images, _IMAGE_BACK), (self._kernels, _KERNEL_BACK)]
    self._groups = [self._groups[n] for n in case.wanted]
    for tensors, _ in self._groups:
      for tensor in tensors:
        tensor.requires_grad_()

  def __call__(self) -> list[Tensor]:
    """Computes results and gradients; returns the results, by member."""
    for tensors, _ in self._groups:
      for tensor in tensors:
        tensor.grad = None
    results = self._results()
    for result, gradient in zip(results, self._gradients, strict=True):
      result.backward(gradient)
    return results

  def arrays(self) -> list[np.ndarray]:
    """Result and gradients with jax's order of axes, members stacked."""
    results = [result.detach() for result in self()]
    groups = [(results, _IMAGE_BACK)]
    for tensors, axes in self._groups:
      groups.append(([tensor.grad for tensor in tensors], axes))
    return [
      np.stack([tensor.permute(axes).numpy() for tensor in tensors])
      for tensors, axes in groups
    ]

  def _results(self) -> list[Tensor]:
    spec, (x, *_) = self._spec, self._images
    window = {"stride": spec.strides, "padding": spec.padding}
    if spec.kind == "pool":
      return [functional.max_pool2d(x, spec.kernel, **window)]
    if spec.kind == "members":
      pairs = zip(self._images, self._kernels, strict=True)
      return [functional.conv2d(*pair, **window) for pair in pairs]
    groups = spec.inputs if spec.kind == "depthwise" else 1
    for kernel in self._kernels:
      x = functional.conv2d(x, kernel, groups=groups, **window)
    return [x]
