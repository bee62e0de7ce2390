"""MobileNetV2 of transformers."""

from __future__ import annotations

from typing import Any

from jaxkd.nets.mobilenet import MobileNetV2
from jaxkd.teachers import configs, convnets, names
from jaxkd.teachers.base import Config, Family

_FIXED = {
  "depth_divisible_by": 8,
  "min_depth": 8,
  "expand_ratio": 6,
  "output_stride": 32,
  "first_layer_is_expansion": True,
  "finegrained_output": True,
}
# What a config stands for that does not say it.
_DEFAULTS = {
  **_FIXED,
  "depth_multiplier": 1.0,
  "hidden_act": "relu6",
  "tf_padding": True,
  "layer_norm_eps": 1e-3,
}
_ACTIVATIONS = {"relu6": "relu6", "swish": "swish", "silu": "swish"}


def build(
  config: Config, **options: Any
) -> tuple[MobileNetV2, tuple[str, ...]]:
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
  activation = configs.require(config, "hidden_act", tuple(_ACTIVATIONS))
  net = MobileNetV2(
    width=config["depth_multiplier"],
    activation=_ACTIVATIONS[activation],
    padding="same" if config["tf_padding"] else "symmetric",
    epsilon=config["layer_norm_eps"],
    **convnets.fields(
      config, convnets.classes(config, "MobileNetV2"), **options
    ),
  )
  return net, ("image",)


def describe(net: MobileNetV2) -> dict[str, Any]:
  """Returns the config for transformers that `build` makes the net of."""
  return {
    "model_type": "mobilenet_v2",
    **convnets.class_entries("MobileNetV2", net.num_classes),
    "depth_multiplier": net.width,
    "hidden_act": net.activation,
    "tf_padding": net.padding == "same",
    "layer_norm_eps": net.epsilon,
  }


def _rules(prefix: str) -> tuple[names.Rule, ...]:
  """Rules of their net without its classifier."""
  stem = f"{prefix}conv_stem"
  parts = [
    (f"{stem}.first_conv", "stem"),
    (f"{stem}.conv_3x3", "block1/depthwise"),
    (f"{stem}.reduce_1x1", "block1/project"),
    (f"{prefix}conv_1x1", "head"),
  ]
  for number in range(16):  # their first block is part of the stem
    block, ours = f"{prefix}layer.{number}", f"block{number + 2}"
    parts += [
      (f"{block}.expand_1x1", f"{ours}/expand"),
      (f"{block}.conv_3x3", f"{ours}/depthwise"),
      (f"{block}.reduce_1x1", f"{ours}/project"),
    ]
  return tuple(
    rule
    for theirs, ours in parts
    for rule in convnets.conv_norm(
      f"{theirs}.convolution", f"{theirs}.normalization", ours
    )
  )


FAMILY = Family(
  name="mobilenet_v2",
  model_types=("mobilenet_v2",),
  names=names.NameMap(
    rules=(
      *_rules("mobilenet_v2."),
      *_rules(""),
      *names.linear("classifier", "fc"),
    ),
    ignored=(convnets.COUNTS,),
  ),
  build=build,
  describe=describe,
)
