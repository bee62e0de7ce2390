"""CLIP: a tower of images and a tower of texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxkd.nets.clip import CLIPImageTower, CLIPTextTower
from jaxkd.nets.towers import TwoTowers
from jaxkd.teachers import configs, names
from jaxkd.teachers.base import Config, Family

# What a config stands for that does not say it.
_TOWER = {
  "num_hidden_layers": 12,
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
  "attention_dropout": 0.0,
}
_TEXT = {
  **_TOWER,
  "model_type": "clip_text_model",
  "vocab_size": 49408,
  "hidden_size": 512,
  "num_attention_heads": 8,
  "intermediate_size": 2048,
  "max_position_embeddings": 77,
  "eos_token_id": 49407,
}
_IMAGE = {
  **_TOWER,
  "model_type": "clip_vision_model",
  "hidden_size": 768,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "image_size": 224,
  "patch_size": 32,
  "num_channels": 3,
}
_DEFAULTS = {"projection_dim": 512, "logit_scale_init_value": 2.6592}
_CLASSES = ("CLIPModel",)
_HIGHEST = 2  # an end token of this number stands for the highest of a row


def build(config: Config, **options: Any) -> tuple[TwoTowers, tuple[str, ...]]:
  """Makes our net of their config.

  Args:
    config: their `config.json`.
    **options: further fields of both towers: dtype, remat, scan_layers,
      attention_dropout (by default the config's).

  Returns:
    The net, and the batch entries that it reads.

  Raises:
    ConfigError: for a value in the config that is not supported.
  """
  config = {**_DEFAULTS, **config}
  configs.architecture(config, dict.fromkeys(_CLASSES), _CLASSES[0])
  features = configs.size(config, "projection_dim")
  text = {**_TEXT, **(config.get("text_config") or {})}
  image = {**_IMAGE, **(config.get("vision_config") or {})}
  end = text["eos_token_id"]
  text_tower = CLIPTextTower(
    features=features,
    vocabulary_size=configs.size(text, "vocab_size"),
    length=configs.size(text, "max_position_embeddings"),
    end_token=None if end == _HIGHEST else configs.size(text, "eos_token_id"),
    **_tower(text, options),
  )
  image_tower = CLIPImageTower(
    features=features,
    image_size=configs.square(image, "image_size"),
    patch=configs.square(image, "patch_size"),
    channels=configs.size(image, "num_channels"),
    **_tower(image, options),
  )
  scale = math.exp(config["logit_scale_init_value"])
  net = TwoTowers(image=image_tower, text=text_tower, scale=scale)
  return net, ("image", "tokens")


def describe(net: TwoTowers) -> dict[str, Any]:
  """Returns the config that `build` makes the net of."""
  text, image = net.text, net.image
  end = _HIGHEST if text.end_token is None else text.end_token
  return {
    "model_type": "clip",
    "architectures": [*_CLASSES],
    "projection_dim": text.features,
    "logit_scale_init_value": math.log(net.scale),
    "text_config": {
      **_described(text),
      "model_type": _TEXT["model_type"],
      "vocab_size": text.vocabulary_size,
      "max_position_embeddings": text.length,
      "eos_token_id": end,
    },
    "vision_config": {
      **_described(image),
      "model_type": _IMAGE["model_type"],
      "image_size": image.image_size,
      "patch_size": image.patch,
      "num_channels": image.channels,
    },
  }


def _tower(
  config: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the fields that both towers have."""
  return {
    **configs.encoder_fields(config),
    "attention_dropout": config["attention_dropout"],
    **options,
  }


def _described(tower: CLIPTextTower | CLIPImageTower) -> dict[str, Any]:
  """Returns the entries of a tower's config that both have."""
  return {
    **configs.described_encoder(tower),
    "attention_dropout": tower.attention_dropout,
    "projection_dim": tower.features,
  }


def _block() -> Iterable[names.Rule]:
  """Rules of a block."""
  parts = {"q": "query", "k": "key", "v": "value", "out": "out"}
  for theirs, ours in parts.items():
    yield from names.linear(f"self_attn.{theirs}_proj", f"attention/{ours}")
  yield from names.norm("layer_norm1", "attention_norm")
  yield from names.linear("mlp.fc1", "mlp/fc1")
  yield from names.linear("mlp.fc2", "mlp/fc2")
  yield from names.norm("layer_norm2", "mlp_norm")


_BLOCKS = names.under("encoder.layers.{i}", "block{i+1}", tuple(_block()))
_TEXT_RULES = (
  *names.embedding("embeddings.token_embedding", "words"),
  *names.embedding("embeddings.position_embedding", "positions"),
  *_BLOCKS,
  *names.norm("final_layer_norm", "norm"),
)
_IMAGE_RULES = (
  names.Rule("embeddings.class_embedding", "params/stem/class_token"),
  names.Rule("embeddings.position_embedding.weight", "params/stem/positions"),
  *names.conv("embeddings.patch_embedding", "stem/patches", bias=False),
  *names.norm("pre_layrnorm", "stem_norm"),  # their spelling
  *_BLOCKS,
  *names.norm("post_layernorm", "norm"),
)

FAMILY = Family(
  name="clip",
  model_types=("clip",),
  names=names.NameMap(
    rules=(
      *names.under("text_model", "text", _TEXT_RULES),
      *names.under("vision_model", "image", _IMAGE_RULES),
      *names.linear("text_projection", "text/projection", bias=False),
      *names.linear("visual_projection", "image/projection", bias=False),
      names.Rule("logit_scale", "params/log_scale"),
    ),
    ignored=(r"(text|vision)_model\.embeddings\.position_ids",),
  ),
  build=build,
  describe=describe,
)
