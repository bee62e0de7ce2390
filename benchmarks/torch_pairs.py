"""The distillation steps of `pairs` in PyTorch, the peer of `overhead`.

Written for this benchmark, on the networks of `torch_nets` with the weights
that jaxkd begins at. Wherever PyTorch leaves a choice, the faster one is taken:
channels-last maps, fused Adam, a frozen teacher without gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from benchmarks import torch_mst
from benchmarks.pairs import Pair
from benchmarks.torch_nets import network, weights

Tensor = torch.Tensor


class TorchKD:
  """A distillation step with Adam."""

  def __init__(
    self,
    pair: Pair,
    variables: Mapping[str, Mapping[str, Any]],
    *,
    lr: float,
    temperature: float,
    alpha: float,
    compiled: bool,
  ):
    teacher, student = (
      network(pair, getattr(pair, role)) for role in ("teacher", "student")
    )
    teacher.load_state_dict(weights(variables["teacher"]))
    student.load_state_dict(weights(variables["student"]))
    self.teacher = teacher.eval().requires_grad_(False)
    self.student = student.train()
    if pair.kind == "resnet":
      for net in (teacher, student):
        net.to(memory_format=torch.channels_last)
    self.temperature, self.alpha = temperature, alpha
    self.inputs, self.label = tensors(pair)
    self._adam = torch.optim.Adam(student.parameters(), lr=lr, fused=True)
    self._objective = self.loss
    if compiled:
      self._objective = torch.compile(self.loss, fullgraph=True, dynamic=False)

  def loss(self, inputs: Tensor, label: Tensor) -> Tensor:
    """The loss of a batch."""
    with torch.no_grad():
      target = self.teacher(inputs)
    logits = self.student(inputs)
    return distillation(logits, target, label, self.temperature, self.alpha)

  def step(self) -> float:
    """One step of Adam; returns the loss before it."""
    self._adam.zero_grad(set_to_none=True)
    loss = self._objective(self.inputs, self.label)
    loss.backward()
    self._adam.step()
    return loss.item()


def distillation(
  logits: Tensor,
  target: Tensor,
  label: Tensor,
  temperature: float,
  alpha: float,
) -> Tensor:
  """(1 - alpha) CE + alpha T^2 KL, the mean over all predictions."""
  logits, target = logits.flatten(0, -2), target.flatten(0, -2)
  kl = functional.kl_div(
    functional.log_softmax(logits / temperature, -1),
    functional.log_softmax(target / temperature, -1),
    reduction="batchmean",
    log_target=True,
  )
  task = functional.cross_entropy(logits, label.flatten())
  return (1 - alpha) * task + alpha * temperature**2 * kl


def tensors(pair: Pair) -> tuple[Tensor, Tensor]:
  """A batch: images [B, C, H, W] in channels-last memory, or tokens; labels."""
  arrays = pair.arrays(pair.batch_size)
  label = torch.from_numpy(arrays["label"]).long()
  if pair.kind == "decoder":
    return torch.from_numpy(arrays["tokens"]).long(), label
  return torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2), label


@functools.cache
def compile_error() -> str | None:
  """Why `torch.compile` does not work here; None where it does."""
  try:
    torch.compile(torch.sin)(torch.ones(8))
  except RuntimeError as error:
    return str(error).splitlines()[0]
  return None


def record(threads: int) -> dict[str, Any]:
  """Sets the number of threads; returns what the record says of torch."""
  return {**torch_mst.record(threads), "compile_error": compile_error()}


def steps(
  pair: Pair,
  variables: Mapping[str, Mapping[str, Any]],
  *,
  lr: float,
  temperature: float,
  alpha: float,
) -> dict[str, Callable[[], float]]:
  """The distillation steps of a pair, each on networks of its own.

  Args:
    pair: the networks and the batch.
    variables: jaxkd's at the beginning, of teacher and student.
    lr: of Adam.
    temperature: T.
    alpha: weight of the distillation term.

  Returns:
    Functions that make one step and return its loss: `torch`, and where it
    works `torch_compile`. What earlier calls compiled is compiled anew.
  """
  torch.compiler.reset()  # the limit of compilations is that of one pair
  names = {"torch": False, "torch_compile": True}
  if compile_error():
    del names["torch_compile"]
  options = {"lr": lr, "temperature": temperature, "alpha": alpha}
  return {
    name: TorchKD(pair, variables, **options, compiled=compiled).step
    for name, compiled in names.items()
  }
