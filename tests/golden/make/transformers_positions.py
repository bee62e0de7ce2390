"""ViT and DeiT of the other golden files on images of other sizes.

  python -m tests.golden.make.transformers_positions [OUT]

Needs torch and transformers. The models, whose positions are those of images of
12 by 12, are those of `transformers_encoders.py`; they interpolate them.
"""

import pathlib
import sys

import numpy as np
import torch

from tests.golden.make import transformers_encoders

OUT = pathlib.Path(__file__).parents[1]
SIDES = (8, 20)  # of images; of grids 2 and 5, of the models' 3
KINDS = ("vit_classes", "deit_distilled")


def images(side):
  """Two images, channels last."""
  random = np.random.default_rng(side)
  return random.normal(size=(2, side, side, 3)).astype(np.float32)


def arrays():
  """Images by their side, and logits by model and side."""
  found = {f"image{side}": images(side) for side in SIDES}
  for kind in KINDS:
    model, _ = transformers_encoders.MODELS[kind]()
    for side in SIDES:
      given = torch.tensor(found[f"image{side}"]).permute(0, 3, 1, 2)
      with torch.no_grad():
        logits = model(given, interpolate_pos_encoding=True).logits
      found[f"{kind}{side}"] = logits.numpy()
  return found


if __name__ == "__main__":
  out = pathlib.Path(sys.argv[1]) if sys.argv[1:] else OUT
  np.savez_compressed(out / "transformers__positions.npz", **arrays())
