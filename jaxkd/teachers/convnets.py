"""What the families of convolutional networks have in common."""

from __future__ import annotations

from typing import Any

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.teachers import configs, names
from jaxkd.teachers.base import Config

COUNTS = r".*\bnum_batches_tracked"  # of batch norms; not used to run them
HEADS = ("classes", "none")


def conv_norm(conv: str, bn: str, ours: str) -> tuple[names.Rule, ...]:
  """Rules of a convolution without bias and its batch norm.

  Args:
    conv: their name of the convolution.
    bn: their name of the batch norm.
    ours: path of the part that has both, as `conv` and `bn`.
  """
  return (
    *names.conv(conv, f"{ours}/conv", bias=False),
    *names.batch_norm(bn, f"{ours}/bn"),
  )


def fields(
  config: Config,
  count: int,
  *,
  head: str | None = None,
  num_classes: int | None = None,
  scan_layers: bool = False,
  **options: Any,
) -> dict[str, Any]:
  """Returns the fields of a net that do not depend on its family.

  Args:
    config: theirs.
    count: of the checkpoint's classes; 0 for one without a classifier.
    head: `classes` or `none`; None for the checkpoint's.
    num_classes: of the classifier; None for the checkpoint's.
    scan_layers: refused, for the blocks are of many shapes.
    **options: further fields of the net: dtype, remat.

  Raises:
    ConfigError: for another head, or for `scan_layers`.
  """
  kind = config.get("model_type", "")
  if head not in (None, *HEADS):
    raise ConfigError(
      f"{kind}: head={head!r}{did_you_mean(str(head), HEADS)}; expected one "
      f"of {', '.join(HEADS)}"
    )
  if scan_layers:
    raise ConfigError(
      f"{kind}: scan_layers=True; its blocks are of many shapes and are no "
      "stack (remat=True saves memory)"
    )
  if head is None:
    head = "classes" if count else "none"
  if head == "none":
    return {"num_classes": None, **options}
  return {"num_classes": num_classes or count or 1000, **options}


def classes(config: Config, model: str) -> int:
  """Returns the classes of a checkpoint of transformers; 0 for none.

  Args:
    config: theirs.
    model: begin of the names of its classes, such as `ResNet`.
  """
  plain, classifier = f"{model}Model", f"{model}ForImageClassification"
  found = configs.architecture(config, (classifier, plain), classifier)
  return configs.class_count(config) if found == classifier else 0


def class_entries(model: str, num_classes: int | None) -> dict[str, Any]:
  """Returns the entries of a config for transformers: class and labels."""
  if num_classes is None:
    return {"architectures": [f"{model}Model"]}
  return {
    "architectures": [f"{model}ForImageClassification"],
    **configs.labels(num_classes),
  }
