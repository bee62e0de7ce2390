"""The chunked KL in plain PyTorch, the peer of `chunked_divergence`.

Written for this benchmark: a loop over chunks of tokens, each with its own
backward pass, so that the logits of one chunk are there at a time and nothing
is computed twice. The head's gradient is added up by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch.nn import functional

Tensor = torch.Tensor


def record(threads: int) -> dict[str, Any]:
  """Sets the number of threads; returns what the record says of torch."""
  torch.set_num_threads(threads)
  return {
    "threads": torch.get_num_threads(),
    "versions": {"torch": torch.__version__},
  }


def step(
  given: Sequence[jax.Array], *, token_chunk: int
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
  """The mean KL and its gradients.

  Args:
    given: student's hidden states and head, teacher's hidden states and head.
    token_chunk: tokens in a chunk.

  Returns:
    A call that returns the loss and the gradients of the student's hidden
    states and head, when they are there.
  """
  device = "cuda" if torch.cuda.is_available() else "cpu"
  hidden, head, teacher_hidden, teacher_head = (
    _tensor(array).to(device) for array in given
  )
  head.requires_grad_()

  def call():
    head.grad = None
    gradients, total = [], 0.0
    for ours, theirs in zip(
      hidden.split(token_chunk), teacher_hidden.split(token_chunk), strict=True
    ):
      ours = ours.detach().requires_grad_()
      with torch.no_grad():
        log_p = functional.log_softmax((theirs @ teacher_head).float(), -1)
      log_q = functional.log_softmax((ours @ head).float(), -1)
      loss = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
      loss = loss / len(hidden)
      loss.backward()
      gradients.append(ours.grad)
      total = total + loss.detach()
    if device == "cuda":
      torch.cuda.synchronize()
    return total, torch.cat(gradients), head.grad

  return call


def _tensor(array: jax.Array) -> Tensor:
  """The array as a tensor of its own, in its type."""
  tensor = torch.from_numpy(np.array(array, np.float32))
  return tensor.to(getattr(torch, array.dtype.name))
