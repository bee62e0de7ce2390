"""MST-Distill in PyTorch, the peer that `mst_distill` is timed against.

Written for this benchmark from the method's description: the AV-MNIST
networks, mask networks with `nn.MultiheadAttention`, masks put on by forward
hooks, one Adam per mask. Wherever PyTorch leaves a choice, the faster one is
taken: frozen networks need no gradients, and attention returns no weights.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

Tensor = torch.Tensor
TEMPERATURE = 4.0


class LeNetTrunk(nn.Module):
  """LeNet-5 up to the ReLU behind `fc1`: [B, 1, 28, 28] -> [B, 84]."""

  def __init__(self):
    super().__init__()
    self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
    self.conv2 = nn.Conv2d(6, 16, 5)
    self.conv3 = nn.Conv2d(16, 120, 5)
    self.fc1 = nn.Linear(120, 84)

  def forward(self, image: Tensor) -> Tensor:
    """Returns the features of `image`."""
    x = functional.avg_pool2d(self.conv1(image).relu(), 2)
    x = functional.avg_pool2d(self.conv2(x).relu(), 2)
    return self.fc1(self.conv3(x).relu().flatten(1)).relu()


class LeNet5(nn.Module):
  """The student: [B, 1, 28, 28] -> [B, 10]."""

  def __init__(self, classes: int = 10):
    super().__init__()
    self.trunk = LeNetTrunk()
    self.fc2 = nn.Linear(84, classes)

  def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the logits of the batch's images."""
    return self.fc2(self.trunk(batch["image"]))


class ThreeLayerCNN(nn.Module):
  """The auxiliary network: [B, 1, 112, 112] -> [B, 10]."""

  def __init__(self, classes: int = 10):
    super().__init__()
    self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
    self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
    self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
    self.fc1 = nn.Linear(128 * 14 * 14, classes)

  def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the logits of the batch's spectrograms."""
    x = batch["audio"]
    for conv in (self.conv1, self.conv2, self.conv3):
      x = functional.max_pool2d(conv(x).relu(), 2)
    return self.fc1(x.flatten(1))


class CNNI(nn.Module):
  """The multimodal teacher: image and spectrogram -> [B, 10]."""

  def __init__(self, classes: int = 10):
    super().__init__()
    self.image_branch = LeNetTrunk()
    widths = (1, 32, 64, 128, 256, 512)
    self.convs = nn.ModuleList(
      nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)
    )
    self.concat = nn.Identity()
    self.fc1 = nn.Linear(84 + widths[-1], 298)
    self.fc2 = nn.Linear(298, classes)

  def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the logits of the pairs."""
    x = self.convs[0](batch["audio"]).relu()
    for conv in self.convs[1:]:
      x = conv(functional.max_pool2d(x, 2)).relu()
    both = torch.cat([self.image_branch(batch["image"]), x.mean((2, 3))], 1)
    return self.fc2(self.fc1(self.concat(both)))


class MaskNet1d(nn.Module):
  """Mask of a vector by attention over its dimensions: [B, D] -> [B, D]."""

  def __init__(self, size: int, factor: int = 2, heads: int = 3):
    super().__init__()
    self.hidden = size // (factor * heads) * heads
    self.embed = nn.Linear(size, size * self.hidden)
    self.attention = nn.MultiheadAttention(self.hidden, heads, batch_first=True)
    self.fc = nn.Linear(self.hidden, 1)

  def forward(self, feature: Tensor) -> Tensor:
    """Returns the mask of `feature`."""
    x = self.embed(feature).view(*feature.shape, self.hidden)
    x, _ = self.attention(x, x, x, need_weights=False)
    return self.fc(x).squeeze(-1).sigmoid()


class MaskNet2d(nn.Module):
  """Mask of the channels of a map: [B, C, H, W] -> [B, C]."""

  def __init__(self, size: int, factor: int = 2, heads: int = 3):
    super().__init__()
    self.reduce = nn.Sequential(
      nn.Conv2d(size, size, 3, 2, 1, groups=size, bias=False),
      nn.Conv2d(size, size, 1, bias=False),
      nn.BatchNorm2d(size),
      nn.ReLU(),
    )
    self.mask = MaskNet1d(size, factor, heads)

  def forward(self, feature: Tensor) -> Tensor:
    """Returns the mask of `feature`."""
    return self.mask(self.reduce(feature).mean((2, 3)))


class GateNet(nn.Module):
  """Chooses among `ways` teachers: [B, C] -> [B, ways]."""

  def __init__(self, classes: int, ways: int):
    super().__init__()
    self.fc1 = nn.Linear(classes, 2 * classes)
    self.fc2 = nn.Linear(2 * classes, ways)

  def forward(self, logits: Tensor) -> Tensor:
    """Returns the gate's logits."""
    return self.fc2(self.fc1(logits))


def kd(student: Tensor, teacher: Tensor) -> Tensor:
  """T^2 KL(softmax(teacher / T) || softmax(student / T)), batch mean."""
  p = functional.log_softmax(student / TEMPERATURE, 1)
  q = functional.log_softmax(teacher / TEMPERATURE, 1)
  value = functional.kl_div(p, q, reduction="batchmean", log_target=True)
  return TEMPERATURE**2 * value


class TorchMST:
  """The three stages; every `stage*` method makes one optimizer step."""

  def __init__(self, *, hidden_dim_factor: int = 2, lr: float = 1e-4):
    self.lr = lr
    self.student, self.aux, self.teacher = LeNet5(), ThreeLayerCNN(), CNNI()
    options = {"factor": hidden_dim_factor}
    # Name -> (network, masked layer, mask network), as in jaxkd.
    self.specialists: dict[str, tuple[nn.Module, nn.Module, nn.Module]] = {
      "teacher_1": (
        self.teacher, self.teacher.concat, MaskNet1d(596, **options)
      ),
      "teacher_2": (self.teacher, self.teacher.fc1, MaskNet1d(298, **options)),
      "aux_1": (self.aux, self.aux.conv2, MaskNet2d(64, **options)),
      "aux_2": (self.aux, self.aux.conv3, MaskNet2d(128, **options)),
    }  # fmt: skip
    self.gate = GateNet(10, len(self.specialists))

  @property
  def roles(self) -> dict[str, nn.Module]:
    """All networks by the names that jaxkd gives them."""
    masks = {name: mask for name, (_, _, mask) in self.specialists.items()}
    trio = {"student": self.student, "aux": self.aux, "teacher": self.teacher}
    return {**trio, **masks, "gate": self.gate}

  def parameters(self) -> dict[str, int]:
    """The number of parameters of every role."""
    return {
      role: sum(p.numel() for p in net.parameters())
      for role, net in self.roles.items()
    }

  def begin(self, stage: int) -> None:
    """Sets up modes and optimizers of a stage, 1 to 3."""
    masks = {name: mask for name, (_, _, mask) in self.specialists.items()}
    trained = {
      1: (self.student, self.aux, self.teacher),
      2: tuple(masks.values()),
      3: (self.student, self.gate),
    }[stage]
    for net in self.roles.values():
      net.train(net in trained).requires_grad_(net in trained)
    if stage == 2:
      self._adams = {n: self._adam([mask]) for n, mask in masks.items()}
    else:
      self._adam_all = self._adam(trained)

  def _adam(self, nets: Iterable[nn.Module]) -> torch.optim.Adam:
    chain = itertools.chain.from_iterable(net.parameters() for net in nets)
    return torch.optim.Adam(chain, lr=self.lr)

  def stage1(self, batch: Mapping[str, Tensor]) -> float:
    """Labels, and every network learns from the two others, undetached."""
    logits = [net(batch) for net in (self.student, self.aux, self.teacher)]
    loss = sum(functional.cross_entropy(x, batch["label"]) for x in logits)
    loss = loss + sum(kd(x, y) for x, y in itertools.permutations(logits, 2))
    return _descend(self._adam_all, loss)

  def stage2(self, batch: Mapping[str, Tensor]) -> float:
    """Every mask in turn learns from the frozen student."""
    with torch.no_grad():
      target = self.student(batch)
    total = 0.0
    for name, (net, _, _) in self.specialists.items():
      with self._masked(name):
        loss = kd(net(batch), target)
      total += _descend(self._adams[name], loss)
    return total

  @contextlib.contextmanager
  def _masked(self, *names: str) -> Iterator[None]:
    """Puts the masks of these specialists on, for a while."""
    handles = []
    for name in names:
      _, layer, mask = self.specialists[name]

      def edit(module, inputs, output, mask=mask):
        del module, inputs
        factor = mask(output)
        return output * factor.view(*factor.shape, *[1] * (output.ndim - 2))

      handles.append(layer.register_forward_hook(edit))
    try:
      yield
    finally:
      for handle in handles:
        handle.remove()

  @torch.no_grad()
  def specialist_logits(self, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits of all specialised teachers, masks accumulating, [B, n, C]."""
    logits, worn = [], []
    for name, (net, _, _) in self.specialists.items():
      worn.append(name)
      with self._masked(*[n for n in worn if self.specialists[n][0] is net]):
        logits.append(net(batch))
    return torch.stack(logits, 1)

  def stage3(self, batch: Mapping[str, Tensor]) -> float:
    """The specialised teachers, computed now, and the student's step."""
    return self.student_step(batch, self.specialist_logits(batch))

  def student_step(
    self, batch: Mapping[str, Tensor], specialists: Tensor
  ) -> float:
    """Labels, the chosen specialist (k = 1) and load balance."""
    logits = self.student(batch)
    gate = self.gate(logits).softmax(1)
    chosen = gate.argmax(1)
    rows = torch.arange(len(chosen))
    share, ways = gate.mean(0), gate.shape[1]
    uniform = torch.full_like(share, 1 / ways)
    balance = functional.kl_div(share.log(), uniform, reduction="sum") / ways
    loss = functional.cross_entropy(logits, batch["label"])
    loss = loss + kd(logits, specialists[rows, chosen]) + balance
    return _descend(self._adam_all, loss)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
  """One optimizer step; returns the loss."""
  optimizer.zero_grad(set_to_none=True)
  loss.backward()
  optimizer.step()
  return loss.item()


def record(threads: int) -> dict[str, Any]:
  """Sets the number of threads; returns what the record says of torch."""
  torch.set_num_threads(threads)
  return {
    "threads": torch.get_num_threads(),
    "versions": {"torch": torch.__version__},
  }


def channels_first(batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
  """The entries of a channels-last batch that the networks read."""
  moved = {
    name: torch.from_numpy(np.moveaxis(batch[name], -1, 1).copy())
    for name in ("image", "audio")
  }
  return {**moved, "label": torch.from_numpy(batch["label"]).long()}


def steps(
  stage: int, batch: Mapping[str, np.ndarray], *, hidden_dim_factor: int
) -> dict[str, Callable[[], float]]:
  """The steps of a stage on fresh networks.

  Args:
    stage: 1 to 3.
    batch: channels last.
    hidden_dim_factor: of the mask networks.

  Returns:
    Functions that make one step, by name; in stage 3 also the student's part
    alone.
  """
  torch.manual_seed(0)
  method = TorchMST(hidden_dim_factor=hidden_dim_factor)
  method.begin(stage)
  batch = channels_first(batch)
  if stage < 3:
    step = getattr(method, f"stage{stage}")
    return {f"torch_stage{stage}": lambda: step(batch)}
  logits = method.specialist_logits(batch)
  return {
    "torch_stage3": lambda: method.stage3(batch),
    "torch_stage3_student": lambda: method.student_step(batch, logits),
  }
