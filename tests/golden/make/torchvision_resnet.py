"""Logits of torchvision's ResNets, whose weights are a formula.

  python -m tests.golden.make.torchvision_resnet [OUT]

Needs torch and torchvision.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import torchvision

from tests import golden_tools

OUT = pathlib.Path(__file__).parents[1]
MODELS = {"resnet18": 1.0, "resnet50": 2.0}  # and the formula's phase
SIDES = (64, 45)


def images():
  """Two images, channels last."""
  random = np.random.Generator(np.random.Philox(0))
  return random.standard_normal((2, *SIDES, 3), dtype=np.float32)


def arrays():
  """All arrays of the golden file."""
  found = {}
  for name, phase in MODELS.items():
    model = getattr(torchvision.models, name)().eval()
    state = model.state_dict()
    entries = [
      [key, list(value.shape)]
      for key, value in state.items()
      if value.is_floating_point()
    ]
    text = json.dumps(entries)
    for key, value in golden_tools.formula_weights(text, phase).items():
      state[key].copy_(torch.tensor(value))
    with torch.no_grad():
      logits = model(torch.tensor(images()).permute(0, 3, 1, 2))
    found[f"{name}:names"] = np.frombuffer(text.encode(), np.uint8)
    found[f"{name}:logits"] = logits.numpy()
  return found


if __name__ == "__main__":
  out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
  np.savez_compressed(out / "torchvision__resnet.npz", **arrays())
