"""Vision transformers (ViT)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from jaxkd.nets.readout import Pool
from jaxkd.nets.vit import VisionTransformer
from jaxkd.teachers import configs, names
from jaxkd.teachers.base import Config, Family

# What a config stands for that does not say it.
DEFAULTS = {
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.0,
  "attention_probs_dropout_prob": 0.0,
  "layer_norm_eps": 1e-12,
  "image_size": 224,
  "patch_size": 16,
  "num_channels": 3,
  "qkv_bias": True,
  "pooler_act": "tanh",
}
# The head of each of their classes, and whether the class has a pooler.
_CLASSES = {
  "ViTModel": ("none", True),
  "ViTForImageClassification": ("classes", False),
}


def build(
  config: Config, **options: Any
) -> tuple[VisionTransformer, tuple[str, ...]]:
  """Makes our net of their config; see `net_of` for the options."""
  return net_of(config, _CLASSES, taught=False, **options), ("image",)


def net_of(
  config: Config,
  classes: Mapping[str, tuple[str, bool]],
  *,
  taught: bool,
  head: str | None = None,
  num_classes: int | None = None,
  pooling: Pool | None = None,
  pooler: bool | None = None,
  image_size: int | None = None,
  **options: Any,
) -> VisionTransformer:
  """Makes our net of the config of a vision transformer.

  Args:
    config: their `config.json`.
    classes: theirs: head, and whether there is a pooler; the default first.
    taught: whether a token is taught.
    head: of the net; None for that of the checkpoint's class.
    num_classes: of the heads; None for the config's.
    pooling: of the net; None for `first` if the head is `classes`, else for
      none.
    pooler: whether the checkpoint has a pooler; None for what its class has.
    image_size: None for the config's; for another, interpolate positions.
    **options: further fields of the net: dtype, remat, scan_layers, dropout,
      attention_dropout (by default the config's), stochastic_depth.

  Returns:
    The net.

  Raises:
    ConfigError: for a value in the config that is not supported.
  """
  config = {**DEFAULTS, **config}
  default = next(iter(classes))
  usual, has_pooler = classes[configs.architecture(config, classes, default)]
  head = head or usual
  pooler = has_pooler if pooler is None else pooler
  if pooler or pooling == "pooler":
    configs.require(config, "pooler_act", ("tanh",))
    if config.get("pooler_output_size") is not None:
      configs.require(config, "pooler_output_size", (config["hidden_size"],))
  fields = {
    **configs.encoder_fields(config),
    "dropout": config["hidden_dropout_prob"],
    "attention_dropout": config["attention_probs_dropout_prob"],
    **options,
  }
  return VisionTransformer(
    image_size=image_size or configs.square(config, "image_size"),
    patch=configs.square(config, "patch_size"),
    channels=configs.size(config, "num_channels"),
    taught=taught,
    bias=configs.require(config, "qkv_bias", (True, False)),
    pooling=pooling or ("first" if head == "classes" else "none"),
    pooler=pooler,
    head=head,
    num_classes=num_classes or configs.class_count(config),
    **fields,
  )


def describe(net: VisionTransformer) -> dict[str, Any]:
  """Returns the config that `build` makes the net of."""
  return {"model_type": "vit"} | config_of(net, _CLASSES)


def config_of(
  net: VisionTransformer, classes: Mapping[str, tuple[str, bool]]
) -> dict[str, Any]:
  """Returns the config of a vision transformer, without its `model_type`.

  Raises:
    ConfigError: transformers has no such net.
  """
  configs.require_field(net, "head", tuple(h for h, _ in classes.values()))
  if net.head == "classes":
    configs.require_field(net, "pooling", ("first",))
  kinds = {head: name for name, (head, _) in classes.items()}
  config = {
    "architectures": [kinds[net.head]],
    **configs.described_encoder(net),
    "hidden_dropout_prob": net.dropout,
    "attention_probs_dropout_prob": net.attention_dropout,
    "image_size": net.image_size,
    "patch_size": net.patch,
    "num_channels": net.channels,
    "qkv_bias": net.bias,
  }
  return config | (
    configs.labels(net.num_classes) if net.head != "none" else {}
  )


def _block() -> Iterable[names.Rule]:
  """Rules of a block."""
  yield from names.norm("layernorm_before", "attention_norm")
  for part in ("query", "key", "value"):
    yield from names.linear(f"attention.attention.{part}", f"attention/{part}")
  yield from names.linear("attention.output.dense", "attention/out")
  yield from names.norm("layernorm_after", "mlp_norm")
  yield from names.linear("intermediate.dense", "mlp/fc1")
  yield from names.linear("output.dense", "mlp/fc2")


def rules_of(net: str) -> tuple[names.Rule, ...]:
  """Rules of a vision transformer without its heads.

  Args:
    net: what the classes with a head call it, which the plain class reads too;
      its names are therefore written with it.
  """
  rules = (
    names.Rule("embeddings.cls_token", "params/stem/class_token"),
    names.Rule("embeddings.distillation_token", "params/stem/taught_token"),
    names.Rule("embeddings.position_embeddings", "params/stem/positions"),
    *names.conv("embeddings.patch_embeddings.projection", "stem/patches"),
    *names.under("encoder.layer.{i}", "block{i+1}", tuple(_block())),
    *names.norm("layernorm", "norm"),
    *names.linear("pooler.dense", "pooler/fc"),
  )
  named = (dataclasses.replace(r, theirs=f"{net}.{r.theirs}") for r in rules)
  return (*named, *rules)


FAMILY = Family(
  name="vit",
  model_types=("vit",),
  names=names.NameMap((*rules_of("vit"), *names.linear("classifier", "head"))),
  build=build,
  describe=describe,
)
