"""EfficientNet: that of transformers, and that of EfficientNet-PyTorch.

The second one's files come without a config. Its `model_type` is the name of
the model, with which the names of its files begin: `efficientnet-lite0`. Where
maps have an odd side, images of a size for which a net was not made are padded
by transformers in another way than by TensorFlow and here.
"""

from __future__ import annotations

from typing import Any

from jaxkd.errors import ConfigError
from jaxkd.nets.efficientnet import (
  SCALES,
  EfficientNet,
  efficientnet_variant,
)
from jaxkd.nets.inverted import MobileStage
from jaxkd.teachers import configs, convnets, names
from jaxkd.teachers.base import Config, Family

_STEM = 32  # channels of the stem before scaling
_LISTS = (  # of the fields of MobileStage
  "num_block_repeats",
  "kernel_sizes",
  "strides",
  "expand_ratios",
  "out_channels",
)
# What a config stands for that does not say it.
_DEFAULTS = {
  "width_coefficient": 2.0,
  "depth_coefficient": 3.1,
  "depth_divisor": 8,
  "num_block_repeats": (1, 2, 2, 3, 3, 4, 1),
  "kernel_sizes": (3, 3, 5, 3, 5, 5, 3),
  "strides": (1, 2, 2, 2, 1, 2, 1),
  "expand_ratios": (1, 6, 6, 6, 6, 6, 6),
  "in_channels": (32, 16, 24, 40, 80, 112, 192),
  "out_channels": (16, 24, 40, 80, 112, 192, 320),
  "squeeze_expansion_ratio": 0.25,
  "hidden_act": "swish",
  "pooling_type": "mean",
  "batch_norm_eps": 1e-3,
  "drop_connect_rate": 0.2,
}
_ACTIVATIONS = {"swish": "swish", "silu": "swish", "relu6": "relu6"}


def build(
  config: Config, **options: Any
) -> tuple[EfficientNet, tuple[str, ...]]:
  """Makes our net of a config of transformers.

  Args:
    config: their `config.json`.
    **options: `head`, `num_classes`, `dtype`, `remat`, `stochastic_depth` (by
      default the config's), see `convnets.fields`.

  Returns:
    The net, and the batch entries that it reads.

  Raises:
    ConfigError: for a value in the config that is not supported.
  """
  config = {**_DEFAULTS, **config}
  for key in ("depth_divisor", "pooling_type"):
    configs.require(config, key, (_DEFAULTS[key],))
  activation = configs.require(config, "hidden_act", tuple(_ACTIVATIONS))
  widths = [_STEM, *config["out_channels"]][:-1]
  configs.require(
    {**config, "in_channels": list(config["in_channels"])},
    "in_channels",
    (widths,),
  )
  net = EfficientNet(
    width=config["width_coefficient"],
    depth=config["depth_coefficient"],
    stages=tuple(
      MobileStage(*stage)
      for stage in zip(*(config[key] for key in _LISTS), strict=True)
    ),
    squeeze=config["squeeze_expansion_ratio"],
    activation=_ACTIVATIONS[activation],
    epsilon=config["batch_norm_eps"],
    **convnets.fields(
      config,
      convnets.classes(config, "EfficientNet"),
      **{"stochastic_depth": config["drop_connect_rate"], **options},
    ),
  )
  return net, ("image",)


def describe(net: EfficientNet) -> dict[str, Any]:
  """Returns the config for transformers that `build` makes the net of.

  Raises:
    ConfigError: transformers has no such net: Lite, or symmetric padding.
  """
  if net.fixed_ends or not net.squeeze or net.padding != "same":
    raise ConfigError(
      f"EfficientNet with fixed_ends={net.fixed_ends}, squeeze={net.squeeze}, "
      f"padding={net.padding!r}: transformers has no such net; it has those "
      "with fixed_ends=False, squeeze above 0 and padding 'same'"
    )
  stages = [MobileStage(*stage) for stage in net.stages]
  lists = zip(*stages, strict=True)
  return {
    "model_type": "efficientnet",
    **convnets.class_entries("EfficientNet", net.num_classes),
    "width_coefficient": net.width,
    "depth_coefficient": net.depth,
    **dict(zip(_LISTS, map(list, lists), strict=True)),
    "in_channels": [_STEM, *(stage.width for stage in stages)][:-1],
    "hidden_dim": net.head_width,
    "squeeze_expansion_ratio": net.squeeze,
    "hidden_act": net.activation,
    "batch_norm_eps": net.epsilon,
    "drop_connect_rate": net.stochastic_depth,
  }


def build_variant(
  config: Config, **options: Any
) -> tuple[EfficientNet, tuple[str, ...]]:
  """Makes our net of the name of a model of EfficientNet-PyTorch.

  Args:
    config: `model_type`, and perhaps `num_classes` (by default 1000).
    **options: `head`, `num_classes`, `dtype`, `remat`, see `convnets.fields`.
  """
  variant = config["model_type"].removeprefix(_NAMED)
  count = config.get("num_classes", 1000)
  net = efficientnet_variant(
    variant, **convnets.fields(config, count, **options)
  )
  return net, ("image",)


def describe_variant(net: EfficientNet) -> dict[str, Any]:
  """Returns the config that `build_variant` makes the net of.

  Raises:
    ConfigError: it is of no published size.
  """
  fields = ("num_classes", "dtype", "remat", "stochastic_depth")
  free = {field: getattr(net, field) for field in fields}
  for variant in SCALES:
    if net == efficientnet_variant(variant, **free):
      count = net.num_classes or 0
      return {"model_type": f"{_NAMED}{variant}", "num_classes": count}
  raise ConfigError(
    f"EfficientNet with width={net.width}, depth={net.depth}: expected one of "
    f"the published sizes {', '.join(SCALES)}, unchanged"
  )


def _transformers(prefix: str) -> tuple[names.Rule, ...]:
  """Rules of their net without its classifier."""
  stem, encoder = f"{prefix}embeddings", f"{prefix}encoder"
  block, ours = f"{encoder}.blocks.{{i}}", "block{i+1}"
  expand, project = f"{block}.expansion.expand", f"{block}.projection.project"
  filters, gate = f"{block}.depthwise_conv.depthwise", f"{block}.squeeze_excite"
  return (
    *convnets.conv_norm(f"{stem}.convolution", f"{stem}.batchnorm", "stem"),
    *convnets.conv_norm(f"{expand}_conv", f"{expand}_bn", f"{ours}/expand"),
    *convnets.conv_norm(
      f"{filters}_conv", f"{filters}_norm", f"{ours}/depthwise"
    ),
    *names.conv(f"{gate}.reduce", f"{ours}/gate/reduce"),
    *names.conv(f"{gate}.expand", f"{ours}/gate/expand"),
    *convnets.conv_norm(f"{project}_conv", f"{project}_bn", f"{ours}/project"),
    *convnets.conv_norm(f"{encoder}.top_conv", f"{encoder}.top_bn", "head"),
  )


def _pytorch() -> tuple[names.Rule, ...]:
  """Rules of EfficientNet-PyTorch."""
  block, ours = "_blocks.{i}", "block{i+1}"
  parts = (
    ("_conv_stem", "_bn0", "stem"),
    (f"{block}._expand_conv", f"{block}._bn0", f"{ours}/expand"),
    (f"{block}._depthwise_conv", f"{block}._bn1", f"{ours}/depthwise"),
    (f"{block}._project_conv", f"{block}._bn2", f"{ours}/project"),
    ("_conv_head", "_bn1", "head"),
  )
  return (
    *(rule for part in parts for rule in convnets.conv_norm(*part)),
    *names.conv(f"{block}._se_reduce", f"{ours}/gate/reduce"),
    *names.conv(f"{block}._se_expand", f"{ours}/gate/expand"),
    *names.linear("_fc", "fc"),
  )


_NAMED = "efficientnet-"

FAMILY = Family(
  name="efficientnet",
  model_types=("efficientnet",),
  names=names.NameMap(
    rules=(
      *_transformers("efficientnet."),
      *_transformers(""),
      *names.linear("classifier", "fc"),
    ),
    ignored=(convnets.COUNTS,),
  ),
  build=build,
  describe=describe,
)
VARIANTS = Family(
  name="efficientnet-pytorch",
  model_types=tuple(f"{_NAMED}{variant}" for variant in SCALES),
  names=names.NameMap(rules=_pytorch(), ignored=(convnets.COUNTS,)),
  build=build_variant,
  describe=describe_variant,
)
