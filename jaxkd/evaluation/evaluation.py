"""What is measured of a method's predictors on a split."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.evaluation import classification, fidelity


@runtime_checkable
class Evaluation(Protocol):
  """Numbers about predictors; any object with these functions will do.

  An evaluation is a frozen dataclass, so that equal fields mean equal numbers.

  Attributes:
    metric: the number of a predictor that tables compare.
    higher: whether more of it is better.
  """

  metric: ClassVar[str]
  higher: ClassVar[bool]

  def of(self, outputs: Any) -> Any:
    """What is kept of a predictor's outputs: arrays [B, ...]; jitted."""
    ...

  def check(self, outputs: Mapping[str, Any], task: Any) -> None:
    """Raises `ConfigError` where shapes of outputs do not fit the task."""
    ...

  def __call__(
    self, kept: Mapping[str, Any], rows: Mapping[str, np.ndarray], task: Any
  ) -> dict[str, dict[str, Any]]:
    """Numbers, and nested lists, by predictor.

    Args:
      kept: arrays [N, ...] by predictor; the first one is deployed.
      rows: the split's entries [N, ...].
      task: the task.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Classification:
  """Accuracy, cross entropy, calibration error, confusion; fidelity.

  The first predictor is also compared with the second one, its teacher:
  `agreement` and `mean_kl`.
  """

  metric: ClassVar[str] = "accuracy"
  higher: ClassVar[bool] = True

  def of(self, outputs: Any) -> Any:
    """The logits."""
    return outputs.logits

  def check(self, outputs: Mapping[str, Any], task: Any) -> None:
    """Raises `ConfigError` where a predictor has other classes."""
    for name, output in outputs.items():
      classes = output.logits.shape[-1]
      if classes != task.num_classes:
        raise ConfigError(
          f"{name} gives {classes} logits, but {task.name} has "
          f"{task.num_classes} classes"
        )

  def __call__(
    self, kept: Mapping[str, Any], rows: Mapping[str, np.ndarray], task: Any
  ) -> dict[str, dict[str, Any]]:
    """Numbers by predictor, from logits [N, ..., C] and `label`."""
    labels = rows["label"]
    mask = np.ones(labels.shape, np.float32)
    found = {
      name: classification.summarise(logits, labels, mask, task.num_classes)
      for name, logits in kept.items()
    }
    first, *others = kept
    if others:
      pair = (kept[first], kept[others[0]])
      found[first]["agreement"] = fidelity.agreement(*pair)
      found[first]["mean_kl"] = fidelity.mean_kl(*pair)
    return found
