"""ResNet: that of transformers, and that of torchvision and timm.

The second one's `model_type` is the name of the model, such as `resnet50`.
"""

from __future__ import annotations

from typing import Any

from jaxkd.errors import ConfigError
from jaxkd.nets.resnet import RESNETS, ResNet, resnet_variant
from jaxkd.teachers import configs, convnets, names
from jaxkd.teachers.base import Config, Family

_FIXED = {
  "hidden_act": "relu",
  "downsample_in_first_stage": False,
  "downsample_in_bottleneck": False,
}
# What a config stands for that does not say it.
_DEFAULTS = {
  **_FIXED,
  "embedding_size": 64,
  "hidden_sizes": (256, 512, 1024, 2048),
  "depths": (3, 4, 6, 3),
  "layer_type": "bottleneck",
}


def build(config: Config, **options: Any) -> tuple[ResNet, tuple[str, ...]]:
  """Makes our net of a config of transformers.

  Args:
    config: their `config.json`.
    **options: `head`, `num_classes`, `dtype`, `remat`, see `convnets.fields`.

  Returns:
    The net, and the batch entries that it reads.

  Raises:
    ConfigError: for a value in the config that is not supported.
  """
  config = {**_DEFAULTS, **config}
  for key, value in _FIXED.items():
    configs.require(config, key, (value,))
  kind = configs.require(config, "layer_type", ("bottleneck", "basic"))
  net = ResNet(
    depths=tuple(config["depths"]),
    features=tuple(config["hidden_sizes"]),
    bottleneck=kind == "bottleneck",
    stem_features=configs.size(config, "embedding_size"),
    **convnets.fields(config, convnets.classes(config, "ResNet"), **options),
  )
  return net, ("image",)


def describe(net: ResNet) -> dict[str, Any]:
  """Returns the config for transformers that `build` makes the net of."""
  return {
    "model_type": "resnet",
    **convnets.class_entries("ResNet", net.num_classes),
    "depths": list(net.depths),
    "hidden_sizes": list(net.features),
    "layer_type": "bottleneck" if net.bottleneck else "basic",
    "embedding_size": net.stem_features,
  }


def build_variant(
  config: Config, **options: Any
) -> tuple[ResNet, tuple[str, ...]]:
  """Makes our net of the name of a model of torchvision.

  Args:
    config: `model_type`, and perhaps `num_classes` (by default 1000).
    **options: `head`, `num_classes`, `dtype`, `remat`, see `convnets.fields`.
  """
  depth = int(config["model_type"].removeprefix("resnet"))
  count = config.get("num_classes", 1000)
  return resnet_variant(depth, **convnets.fields(config, count, **options)), (
    "image",
  )


def describe_variant(net: ResNet) -> dict[str, Any]:
  """Returns the config that `build_variant` makes the net of.

  Raises:
    ConfigError: it is of no published size.
  """
  free = {"num_classes": net.num_classes, "dtype": net.dtype}
  for depth in RESNETS:
    if net == resnet_variant(depth, **free, remat=net.remat):
      count = net.num_classes or 0
      return {"model_type": f"resnet{depth}", "num_classes": count}
  raise ConfigError(
    f"ResNet with depths={net.depths}, features={net.features}: expected one "
    f"of the published sizes {', '.join(map(str, RESNETS))}, unchanged"
  )


def _part(conv: str, bn: str, ours: str, our_bn: str) -> tuple[names.Rule, ...]:
  return (
    *names.conv(conv, ours, bias=False),
    *names.batch_norm(bn, our_bn),
  )


def _transformers(prefix: str) -> tuple[names.Rule, ...]:
  """Rules of their net without its classifier."""
  stem = f"{prefix}embedder.embedder"
  block = f"{prefix}encoder.stages.{{i}}.layers.{{j}}"
  ours = "stage{i+1}/block{j+1}"
  rules = []
  for theirs, conv, bn in (
    (stem, "stem/conv", "stem/bn"),
    (f"{block}.layer.{{k}}", f"{ours}/conv{{k+1}}", f"{ours}/bn{{k+1}}"),
    (f"{block}.shortcut", f"{ours}/shortcut", f"{ours}/shortcut_bn"),
  ):
    rules += _part(f"{theirs}.convolution", f"{theirs}.normalization", conv, bn)
  return tuple(rules)


def _torchvision() -> tuple[names.Rule, ...]:
  """Rules of torchvision."""
  block, ours = "layer{i}.{j}", "stage{i}/block{j+1}"
  shortcut = f"{block}.downsample"
  return (
    *_part("conv1", "bn1", "stem/conv", "stem/bn"),
    *_part(
      f"{block}.conv{{k}}",
      f"{block}.bn{{k}}",
      f"{ours}/conv{{k}}",
      f"{ours}/bn{{k}}",
    ),
    *_part(
      f"{shortcut}.0",
      f"{shortcut}.1",
      f"{ours}/shortcut",
      f"{ours}/shortcut_bn",
    ),
    *names.linear("fc", "fc"),
  )


FAMILY = Family(
  name="resnet",
  model_types=("resnet",),
  names=names.NameMap(
    rules=(
      *_transformers("resnet."),
      *_transformers(""),
      *names.linear("classifier.1", "fc"),
    ),
    ignored=(convnets.COUNTS,),
  ),
  build=build,
  describe=describe,
)
VARIANTS = Family(
  name="resnet-torchvision",
  model_types=tuple(f"resnet{depth}" for depth in RESNETS),
  names=names.NameMap(rules=_torchvision(), ignored=(convnets.COUNTS,)),
  build=build_variant,
  describe=describe_variant,
)
