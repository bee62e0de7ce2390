"""The steps of `accelerator` in PyTorch, on the networks of transformers.

The shapes are those of jaxkd's modules, the weights are drawn. Students are
float32 and compute in bfloat16 by autocast, teachers are bfloat16; attention is
PyTorch's fused one, maps are channels-last, Adam is fused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import transformers

from benchmarks.torch_pairs import distillation, tensors

if TYPE_CHECKING:
  from flax import linen as nn

  from benchmarks.accelerator import Large

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str]:
  """Of the packages."""
  return {"torch": torch.__version__, "transformers": transformers.__version__}


def network(kind: str, module: nn.Module, classes: int) -> torch.nn.Module:
  """The network of a module's shape.

  Args:
    kind: of the pair.
    module: jaxkd's.
    classes: of images, or the vocabulary.
  """
  if kind == "resnet":
    config = transformers.ResNetConfig(
      embedding_size=module.stem_features,
      hidden_sizes=list(module.features),
      depths=list(module.depths),
      layer_type="bottleneck",
      num_labels=classes,
    )
    made = transformers.ResNetForImageClassification(config)
    return made.to(memory_format=torch.channels_last)
  if kind == "vit":
    config = transformers.ViTConfig(
      image_size=module.image_size,
      patch_size=module.patch,
      hidden_size=module.width,
      num_hidden_layers=module.depth,
      num_attention_heads=module.heads,
      intermediate_size=module.hidden,
      hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0,
      num_labels=classes,
      attn_implementation="sdpa",
    )
    return transformers.ViTForImageClassification(config)
  config = transformers.LlamaConfig(
    vocab_size=classes,
    hidden_size=module.width,
    intermediate_size=module.hidden,
    num_hidden_layers=module.depth,
    num_attention_heads=module.heads,
    num_key_value_heads=module.key_value_heads,
    rms_norm_eps=module.epsilon,
    tie_word_embeddings=module.tied,
    use_cache=False,
    attn_implementation="sdpa",
  )
  return transformers.LlamaForCausalLM(config)


@dataclasses.dataclass
class TorchKD:
  """A distillation step with Adam.

  Attributes:
    step: makes one step and waits for it; returns the loss before it.
  """

  step: Callable[[], float]

  def peak_bytes(self) -> int | None:
    """What a GPU's allocator held at most since this was asked last."""
    if DEVICE == "cpu":
      return None
    held = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return held


def steps(
  pair: Large, *, lr: float, temperature: float, alpha: float
) -> dict[str, TorchKD]:
  """The step as it is, and by `torch.compile` on a GPU; they share networks.

  Args:
    pair: the shapes and the batch.
    lr: of Adam.
    temperature: T.
    alpha: weight of the distillation term.
  """
  torch.manual_seed(0)
  with torch.device(DEVICE):
    teacher, student = (
      network(pair.kind, module, pair.classes)
      for module in (pair.teacher, pair.student)
    )
  teacher.eval().requires_grad_(False).to(torch.bfloat16)
  adam = torch.optim.Adam(student.train().parameters(), lr=lr, fused=True)
  inputs, label = (x.to(DEVICE) for x in tensors(pair))

  def objective(inputs: Any, label: Any) -> Any:
    with torch.no_grad():
      same = inputs if pair.kind == "decoder" else inputs.bfloat16()
      target = teacher(same).logits.float()
    with torch.autocast(DEVICE, torch.bfloat16):
      logits = student(inputs).logits
    return distillation(logits.float(), target, label, temperature, alpha)

  def made(objective):
    def step() -> float:
      adam.zero_grad(set_to_none=True)
      loss = objective(inputs, label)
      loss.backward()
      adam.step()
      return loss.item()

    return TorchKD(step)

  found = {"torch": made(objective)}
  if DEVICE == "cuda":
    found["torch_compile"] = made(torch.compile(objective, dynamic=False))
  return found
