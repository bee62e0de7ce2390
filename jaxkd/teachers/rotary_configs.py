"""Scalings of rotary positions, as a `config.json` says them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.nets import (
  DynamicScaling,
  LinearScaling,
  LlamaScaling,
  YarnScaling,
)
from jaxkd.nets.rotary import Scaling

_LENGTH = "original_max_position_embeddings"
# Their name of a scaling: our class, their names of its fields.
_KINDS = {
  "linear": (LinearScaling, {"factor": "factor"}),
  "dynamic": (DynamicScaling, {"factor": "factor", "trained_length": _LENGTH}),
  "llama3": (
    LlamaScaling,
    {
      "factor": "factor",
      "trained_length": _LENGTH,
      "slow": "low_freq_factor",
      "fast": "high_freq_factor",
    },
  ),
  "yarn": (
    YarnScaling,
    {
      "factor": "factor",
      "trained_length": _LENGTH,
      "slow": "beta_slow",
      "fast": "beta_fast",
      "amplitude": "attention_factor",
      "whole": "truncate",
    },
  ),
}


def parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """Their entry for rotary positions, which has an older and a newer name."""
  return config.get("rope_scaling") or config.get("rope_parameters") or {}


def base(config: Mapping[str, Any]) -> float:
  """The base of a config's rotary positions."""
  return parameters(config).get("rope_theta", config.get("rope_theta", 1e4))


def scaling(config: Mapping[str, Any]) -> Scaling | None:
  """Our scaling of their config.

  Raises:
    ConfigError: if it is not supported, or a number is missing.
  """
  given = dict(parameters(config))
  kind = given.get("rope_type", given.get("type", "default"))
  if kind == "default":
    return None
  if kind not in _KINDS:
    raise ConfigError(
      f"config {config.get('model_type', '')}: rope_type={kind!r} is not "
      f"supported (supported: default, {', '.join(_KINDS)})"
      + did_you_mean(str(kind), _KINDS)
    )
  if kind == "dynamic" or given.get(_LENGTH) is None:
    given[_LENGTH] = config.get("max_position_embeddings")
  if kind == "yarn":
    given["attention_factor"] = _amplitude(given)
  made, names = _KINDS[kind]
  values = {
    ours: given[theirs]
    for ours, theirs in names.items()
    if given.get(theirs) is not None
  }
  for field in dataclasses.fields(made):
    if field.default is dataclasses.MISSING and field.name not in values:
      raise ConfigError(
        f"config {config.get('model_type', '')}: rope_type={kind!r} needs "
        f"{names[field.name]!r} (has {', '.join(sorted(given))})"
      )
  return made(**values)


def described(found: Scaling | None) -> dict[str, Any]:
  """The entries that a config says a scaling with."""
  if found is None:
    return {}
  said: dict[str, Any] = {}
  for kind, (made, names) in _KINDS.items():
    if isinstance(found, made):
      said = {
        "rope_type": kind,
        **{theirs: getattr(found, ours) for ours, theirs in names.items()},
      }
  said = {name: value for name, value in said.items() if value is not None}
  if isinstance(found, LinearScaling):
    return {"rope_scaling": said}
  if isinstance(found, DynamicScaling):
    longest = said.pop(_LENGTH)
  else:
    longest = round(found.factor * found.trained_length)
  return {"rope_scaling": said, "max_position_embeddings": longest}


def _amplitude(given: Mapping[str, Any]) -> float | None:
  """What yarn multiplies by, if it is not our default for its factor."""
  above, below = given.get("mscale"), given.get("mscale_all_dim")
  if given.get("attention_factor") is not None or not (above and below):
    return given.get("attention_factor")
  grown = (0.1 * scale * math.log(given["factor"]) for scale in (above, below))
  first, second = (1 + size for size in grown)
  return first / second
