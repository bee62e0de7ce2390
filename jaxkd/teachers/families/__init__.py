"""Families of models from elsewhere, one file each.

To add one: a file with its `FAMILY`, its import here, its entry in `FAMILIES`.
"""

from __future__ import annotations

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.teachers.base import Config, Family
from jaxkd.teachers.families import (
  bert,
  clip,
  deit,
  efficientnet,
  llama,
  mobilenet,
  resnet,
  static,
  vit,
)

__all__ = ["FAMILIES", "Family", "family_of"]

FAMILIES: tuple[Family, ...] = (
  bert.FAMILY,
  clip.FAMILY,
  deit.FAMILY,
  efficientnet.FAMILY,
  efficientnet.VARIANTS,
  llama.FAMILY,
  mobilenet.FAMILY,
  resnet.FAMILY,
  resnet.VARIANTS,
  static.FAMILY,
  vit.FAMILY,
)


def family_of(config: Config) -> Family:
  """The family of a model from elsewhere.

  Args:
    config: their `config.json`.

  Raises:
    ConfigError: if `model_type` is not given or belongs to no family.
  """
  known = {kind: family for family in FAMILIES for kind in family.model_types}
  if "model_type" not in config:
    raise ConfigError(
      "the config has no 'model_type'; expected one of " + ", ".join(known)
    )
  kind = config["model_type"]
  if kind not in known:
    raise ConfigError(
      f"model_type {kind!r} belongs to no family"
      + did_you_mean(str(kind), known)
      + f" (known: {', '.join(sorted(known))})"
    )
  return known[kind]
