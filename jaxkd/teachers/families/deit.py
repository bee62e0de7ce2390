"""Vision transformers with a token that a teacher teaches (DeiT)."""

from __future__ import annotations

from typing import Any

from jaxkd.nets.vit import VisionTransformer
from jaxkd.teachers import names
from jaxkd.teachers.base import Config, Family
from jaxkd.teachers.families import vit

# The head of each of their classes, and whether the class has a pooler.
_CLASSES = {
  "DeiTModel": ("none", True),
  "DeiTForImageClassification": ("classes", False),
  "DeiTForImageClassificationWithTeacher": ("distilled", False),
}


def build(
  config: Config, **options: Any
) -> tuple[VisionTransformer, tuple[str, ...]]:
  """Makes our net of their config; see `vit.net_of` for the options."""
  return vit.net_of(config, _CLASSES, taught=True, **options), ("image",)


def describe(net: VisionTransformer) -> dict[str, Any]:
  """Returns the config that `build` makes the net of."""
  return {"model_type": "deit"} | vit.config_of(net, _CLASSES)


FAMILY = Family(
  name="deit",
  model_types=("deit",),
  names=names.NameMap(
    (
      *vit.rules_of("deit"),
      *names.linear("cls_classifier", "class_head"),
      *names.linear("distillation_classifier", "taught_head"),
      *names.linear("classifier", "head"),
    )
  ),
  build=build,
  describe=describe,
)
