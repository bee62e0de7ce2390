"""Tiny random ResNet, MobileNetV2 and EfficientNet models of transformers.

  python tests/golden/make/transformers_convnets.py [OUT]

Needs torch and transformers. All weights and statistics are drawn anew, so that
batch norms are not at 0 and 1, and are numbers that float16 holds, which halves
the files.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

OUT = pathlib.Path(__file__).parents[1]
LABELS = {"id2label": {i: f"LABEL_{i}" for i in range(5)}}


def drawn(model, seed):
  """Draws all weights and statistics of a model."""
  random = torch.Generator().manual_seed(seed)
  for name, weight in model.state_dict().items():
    noise = torch.randn(weight.shape, generator=random)
    if name.endswith("num_batches_tracked"):
      continue
    if name.endswith("running_var"):
      noise = 0.5 + noise.abs()
    elif weight.ndim > 1:
      noise *= (2 / weight[0].numel()) ** 0.5
    else:
      noise = 0.2 * noise + (name.endswith("weight"))
    weight.copy_(noise.half().float())
  return model.eval()


BASIC = {"hidden_sizes": [8, 12, 16, 20], "depths": [2, 1, 1, 2]}
BOTTLENECK = {"hidden_sizes": [16, 24, 32], "depths": [2, 1, 2]}


def resnet(layer_type, seed, sizes):
  """A ResNet of one kind of block."""
  config = transformers.ResNetConfig(
    layer_type=layer_type, embedding_size=8, **LABELS, **sizes
  )
  return drawn(transformers.ResNetForImageClassification(config), seed)


def mobilenet(seed, **options):
  """A narrow MobileNetV2."""
  config = transformers.MobileNetV2Config(
    depth_multiplier=0.1, **LABELS, **options
  )
  return drawn(transformers.MobileNetV2ForImageClassification(config), seed)


def efficientnet(seed):
  """A narrow EfficientNet; its ninth block reads a map of odd sides."""
  config = transformers.EfficientNetConfig(
    width_coefficient=0.25,
    depth_coefficient=1.2,
    num_block_repeats=[1, 2, 2, 1],
    kernel_sizes=[3, 5, 3, 5],
    strides=[1, 2, 2, 2],
    expand_ratios=[1, 6, 4, 6],
    in_channels=[32, 16, 24, 40],
    out_channels=[16, 24, 40, 80],
    depthwise_padding=[8],
    hidden_dim=320,
    **LABELS,
  )
  return drawn(transformers.EfficientNetForImageClassification(config), seed)


MODELS = {  # and the sides of the images
  "resnet_basic": (lambda: resnet("basic", 1, BASIC), (35, 62)),
  "resnet_bottleneck": (lambda: resnet("bottleneck", 2, BOTTLENECK), (40, 29)),
  "mobilenet_v2": (lambda: mobilenet(3), (33, 26)),
  "efficientnet": (lambda: efficientnet(5), (40, 40)),
}


def arrays(name):
  """All arrays of a golden file: weights, config, input and outputs."""
  make, sides = MODELS[name]
  model = make()
  random = np.random.Generator(np.random.Philox(len(name)))
  image = random.standard_normal((2, *sides, 3), dtype=np.float32)
  given = torch.tensor(image).permute(0, 3, 1, 2)
  with torch.no_grad():
    found = model(given, output_hidden_states=True)
    pooled = model.base_model(given).pooler_output
  config = json.dumps(model.config.to_dict()).encode()
  weights = {
    f"weight:{key}": value.numpy().astype(np.float16)
    for key, value in model.state_dict().items()
    if value.is_floating_point()
  }
  outputs = {
    "logits": found.logits,
    "pooled": pooled.flatten(1),
    "last": found.hidden_states[-1].permute(0, 2, 3, 1),
  }
  if name == "mobilenet_v2":
    symmetric = mobilenet(3, tf_padding=False)
    with torch.no_grad():
      outputs["symmetric_logits"] = symmetric(given).logits
  return {
    **weights,
    "config": np.frombuffer(config, np.uint8),
    "input:image": image,
    **{f"output:{key}": value.numpy() for key, value in outputs.items()},
  }


if __name__ == "__main__":
  out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
  for each in MODELS:
    np.savez_compressed(out / f"transformers__{each}.npz", **arrays(each))
