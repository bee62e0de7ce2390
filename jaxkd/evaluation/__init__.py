"""Numbers about models: accuracy, calibration, fidelity, and their spread."""

from jaxkd.evaluation.classification import (
  accuracy,
  confusion_matrix,
  cross_entropy,
  expected_calibration_error,
  log_softmax,
  summarise,
)
from jaxkd.evaluation.fidelity import agreement, mean_kl
from jaxkd.evaluation.statistics import (
  PairedDifference,
  mean_interval,
  paired_difference,
)

__all__ = [
  "PairedDifference",
  "accuracy",
  "agreement",
  "confusion_matrix",
  "cross_entropy",
  "expected_calibration_error",
  "log_softmax",
  "mean_interval",
  "mean_kl",
  "paired_difference",
  "summarise",
]
