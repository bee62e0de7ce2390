"""Decoders of the Llama, Mistral, Qwen2 and Qwen3 families.

They are one architecture: Mistral has a window, Qwen2 biases of queries, keys
and values, Qwen3 norms of every head's queries and keys.

Inputs are `tokens` alone, as padding at the end of rows needs no mask; rows
that are padded elsewhere are read by `Network(module, ("tokens",
"token_mask"))`.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxkd.errors import ConfigError
from jaxkd.nets import CausalDecoder
from jaxkd.teachers import configs, rotary_configs
from jaxkd.teachers.base import Config, Family
from jaxkd.teachers.names import NameMap, Rule, embedding, linear, norm, under

_PARTS = (
  *norm("input_layernorm", "attention_norm", bias=False),
  *linear("self_attn.q_proj", "attention/query"),
  *linear("self_attn.k_proj", "attention/key"),
  *linear("self_attn.v_proj", "attention/value"),
  *linear("self_attn.o_proj", "attention/out"),
  *norm("self_attn.q_norm", "attention/query_norm", bias=False),
  *norm("self_attn.k_norm", "attention/key_norm", bias=False),
  *norm("post_attention_layernorm", "mlp_norm", bias=False),
  *linear("mlp.gate_proj", "mlp/gate", bias=False),
  *linear("mlp.up_proj", "mlp/up", bias=False),
  *linear("mlp.down_proj", "mlp/down", bias=False),
)


def _trunk(prefix: str) -> tuple[Rule, ...]:
  """The rules of all but the head."""
  return (
    *embedding(f"{prefix}embed_tokens", "embedding"),
    *under(f"{prefix}layers.{{i}}", "block{i+1}", _PARTS),
    *norm(f"{prefix}norm", "norm", bias=False),
  )


_NAMES = NameMap(
  rules=(
    *_trunk("model."),
    *linear("lm_head", "head", bias=False),
    *_trunk(""),  # files of the trunk alone
  ),
  ignored=(r".*rotary_emb\.inv_freq",),
)

_SIZES = {
  "vocabulary_size": "vocab_size",
  "width": "hidden_size",
  "depth": "num_hidden_layers",
  "heads": "num_attention_heads",
  "hidden": "intermediate_size",
}
# What a config means that does not say it; for some types something else.
_DEFAULTS = {
  "num_key_value_heads": None,
  "head_dim": None,
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "attention_bias": False,
  "sliding_window": 4096,
  "use_sliding_window": False,
  "max_window_layers": 28,
  "layer_types": None,
}
_OWN_DEFAULTS = {
  "llama": {},
  "mistral": {"num_key_value_heads": 8},
  "qwen2": {"num_key_value_heads": 32},
  "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
# Values that change what is computed, and the one that is computed here.
_ONLY = {
  "hidden_act": "silu",
  "attention_dropout": 0.0,
  "mlp_bias": False,
  "partial_rotary_factor": 1.0,
  "quantization_config": None,
}
_CLASSES = {
  "llama": "Llama",
  "mistral": "Mistral",
  "qwen2": "Qwen2",
  "qwen3": "Qwen3",
}
_HEADS = {"next_token": "ForCausalLM", "none": "Model"}


def build(
  config: Config,
  *,
  head: Literal["next_token", "none"] | None = None,
  **options: Any,
) -> tuple[CausalDecoder, tuple[str, ...]]:
  """Makes our net of their config.

  Args:
    config: their `config.json`.
    head: of the net; None for that of the checkpoint's class.
    **options: further fields of the net: dtype, remat, scan_layers, dropout.

  Returns:
    The net, and the batch entries that it reads.

  Raises:
    ConfigError: for a key that is missing or a value that is not supported.
  """
  kind = config["model_type"]
  said = {**_DEFAULTS, **_OWN_DEFAULTS[kind], **config}
  only = {**_ONLY, **rotary_configs.parameters(said), **said}
  for key, value in _ONLY.items():
    configs.require({"model_type": kind, key: only[key]}, key, (value,))
  missing = [key for key in _SIZES.values() if key not in said]
  if missing:
    raise ConfigError(f"config {kind}: expected also {', '.join(missing)}")
  classes = {f"{_CLASSES[kind]}{end}": name for name, end in _HEADS.items()}
  usual = f"{_CLASSES[kind]}ForCausalLM"
  head = head or classes[configs.architecture(said, classes, usual)]
  always = bool(said["attention_bias"]) and kind in ("llama", "qwen3")
  sizes = {ours: configs.size(said, theirs) for ours, theirs in _SIZES.items()}
  net = CausalDecoder(
    **sizes,
    key_value_heads=said["num_key_value_heads"] or sizes["heads"],
    head_size=said["head_dim"] or sizes["width"] // sizes["heads"],
    qk_norm=kind == "qwen3",
    bias=always or kind == "qwen2",
    out_bias=always,
    rotary_base=rotary_configs.base(said),
    rotary_scaling=rotary_configs.scaling(said),
    window=_window(said),
    epsilon=said["rms_norm_eps"],
    tied=said["tie_word_embeddings"],
    head=head,
    **options,
  )
  return net, ("tokens",)


def describe(net: CausalDecoder) -> dict[str, Any]:
  """Returns the config that `build` makes the net of.

  Raises:
    ConfigError: if no model of these families is this net.
  """
  kind, width, heads = _kind(net), net.width, net.heads
  config = {
    "model_type": kind,
    "architectures": [f"{_CLASSES[kind]}{_HEADS[net.head]}"],
    "vocab_size": net.vocabulary_size,
    "hidden_size": width,
    "intermediate_size": net.hidden or round(net.mlp_ratio * width),
    "num_hidden_layers": net.depth,
    "num_attention_heads": heads,
    "num_key_value_heads": net.key_value_heads or heads,
    "head_dim": net.head_size or width // heads,
    "hidden_act": "silu",
    "rms_norm_eps": net.epsilon,
    "tie_word_embeddings": net.tied,
    "rope_theta": net.rotary_base,
    **rotary_configs.described(net.rotary_scaling),
  }
  if kind in ("llama", "qwen3"):
    config["attention_bias"] = net.bias
  if kind == "mistral":
    config["sliding_window"] = net.window
  elif net.window is not None:
    config["sliding_window"] = net.window
    config |= {"use_sliding_window": True, "max_window_layers": 0}
  return config


def _window(config: Config) -> int | None:
  """The window that all blocks have."""
  kind, window = config["model_type"], config["sliding_window"]
  if kind == "llama":
    return None
  kinds = set(config["layer_types"] or ())
  if len(kinds) > 1:
    raise ConfigError(
      f"config {kind}: layer_types are {', '.join(sorted(kinds))}; expected "
      "one kind in all layers"
    )
  if kind == "mistral":
    return window
  if kinds:
    return window if kinds == {"sliding_attention"} else None
  if not config["use_sliding_window"]:
    return None
  first, depth = config["max_window_layers"], config["num_hidden_layers"]
  if 0 < first < depth:
    raise ConfigError(
      f"config {kind}: max_window_layers={first}; expected 0 or the number of "
      f"layers, {depth}: all have a window or none has"
    )
  return window if first <= 0 else None


def _kind(net: CausalDecoder) -> str:
  """The model type that has all that the net has."""
  biases, windowed = (net.bias, net.out_bias), net.window is not None
  capped = net.attention_cap is not None or net.logit_cap is not None
  if not capped and net.qk_norm and net.bias == net.out_bias:
    return "qwen3"
  if not capped and not net.qk_norm:
    if biases == (True, False):
      return "qwen2"
    if biases == (False, False) and windowed:
      return "mistral"
    if net.bias == net.out_bias and not windowed:
      return "llama"
  raise ConfigError(
    "no Llama, Mistral, Qwen2 or Qwen3 has all that this CausalDecoder has: "
    f"qk_norm={net.qk_norm}, bias={net.bias}, out_bias={net.out_bias}, "
    f"window={net.window}, attention_cap={net.attention_cap}, "
    f"logit_cap={net.logit_cap}"
  )


FAMILY = Family(
  name="llama",
  model_types=tuple(_CLASSES),
  names=_NAMES,
  build=build,
  describe=describe,
)
