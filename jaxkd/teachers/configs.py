"""What the families read in and write to a `config.json` in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd.errors import ConfigError, did_you_mean

# Their names of activations, and ours. The first of two is written.
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
}
_BACK = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


def require(config: Mapping[str, Any], key: str, values: Sequence[Any]) -> Any:
  """Returns a value of a config that has to be one of some.

  Args:
    config: theirs, with defaults filled in.
    key: of the value.
    values: those that are supported.

  Raises:
    ConfigError: it is another one.
  """
  value = config[key]
  if value not in values:
    kind = config.get("model_type", "")
    raise ConfigError(
      f"config {kind}: {key}={value!r} is not supported (supported: "
      f"{', '.join(map(repr, values))})"
      + did_you_mean(str(value), map(str, values))
    )
  return value


def require_field(net: Any, field: str, values: Sequence[Any]) -> None:
  """Checks a field of a net that is to be written.

  Raises:
    ConfigError: their nets do not have its value.
  """
  value = getattr(net, field)
  if value not in values:
    raise ConfigError(
      f"{type(net).__name__}.{field}={value!r} has no place in a config.json "
      f"(supported: {', '.join(map(repr, values))})"
    )


def size(config: Mapping[str, Any], key: str) -> int:
  """Returns a whole number of a config.

  Raises:
    ConfigError: it is none, or less than 1.
  """
  value = config[key]
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise ConfigError(
      f"config {config.get('model_type', '')}: {key}={value!r}; expected a "
      "positive whole number"
    )
  return value


def square(config: Mapping[str, Any], key: str) -> int:
  """Returns the side of a square, given as a number or as two equal ones."""
  value = config[key]
  if isinstance(value, list | tuple) and len(set(value)) == 1:
    value = value[0]
  return size({**config, key: value}, key)


def activation(config: Mapping[str, Any], key: str = "hidden_act") -> str:
  """Returns our name of a config's activation."""
  return ACTIVATIONS[require(config, key, tuple(ACTIVATIONS))]


def their_activation(name: str) -> str:
  """Returns their name of one of our activations."""
  return _BACK[name]


def encoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of an encoder that all families of them call the same.

  Args:
    config: theirs, with defaults filled in.
  """
  return {
    "width": size(config, "hidden_size"),
    "depth": size(config, "num_hidden_layers"),
    "heads": size(config, "num_attention_heads"),
    "hidden": size(config, "intermediate_size"),
    "activation": activation(config),
    "epsilon": config["layer_norm_eps"],
  }


def described_encoder(net: Any) -> dict[str, Any]:
  """Returns the entries that `encoder_fields` makes the fields of."""
  return {
    "hidden_size": net.width,
    "num_hidden_layers": net.depth,
    "num_attention_heads": net.heads,
    "intermediate_size": net.hidden,
    "hidden_act": their_activation(net.activation),
    "layer_norm_eps": net.epsilon,
  }


def architecture(
  config: Mapping[str, Any], known: Mapping[str, Any], default: str
) -> str:
  """Returns the name of the model class that wrote a checkpoint.

  Args:
    config: theirs.
    known: supported names.
    default: for a config that names none.
  """
  names = config.get("architectures") or [default]
  return require(
    {"architectures": names[0], "model_type": config.get("model_type", "")},
    "architectures",
    tuple(known),
  )


def class_count(config: Mapping[str, Any]) -> int:
  """Returns the number of classes; they write none if there are two."""
  if config.get("id2label"):
    return len(config["id2label"])
  return config.get("num_labels") or 2


def labels(count: int) -> dict[str, dict]:
  """Returns the entries of a config that say how many classes there are."""
  names = {str(i): f"LABEL_{i}" for i in range(count)}
  numbers = {name: int(i) for i, name in names.items()}
  return {"id2label": names, "label2id": numbers}
