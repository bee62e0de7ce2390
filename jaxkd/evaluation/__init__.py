"""Numbers about models: accuracy, calibration, fidelity, and their spread."""

from jaxkd.evaluation.classification import (
  accuracy,
  confusion_matrix,
  cross_entropy,
  expected_calibration_error,
  log_softmax,
  summarise,
)
from jaxkd.evaluation.evaluation import Classification, Evaluation
from jaxkd.evaluation.fidelity import agreement, mean_kl
from jaxkd.evaluation.frechet import Generation, frechet_distance
from jaxkd.evaluation.retrieval import Retrieval, recall_at, retrieval
from jaxkd.evaluation.sequences import (
  Sequences,
  head_mass,
  mean_reverse_kl,
  perplexity,
  tail_mass,
  token_accuracy,
  token_cross_entropy,
)
from jaxkd.evaluation.statistics import (
  PairedDifference,
  mean_interval,
  paired_difference,
)
from jaxkd.evaluation.subsets import (
  combination_name,
  modality_combinations,
  subset_accuracies,
  weak_set,
)

__all__ = [
  "Classification",
  "Evaluation",
  "Generation",
  "PairedDifference",
  "Retrieval",
  "Sequences",
  "accuracy",
  "agreement",
  "combination_name",
  "confusion_matrix",
  "cross_entropy",
  "expected_calibration_error",
  "frechet_distance",
  "head_mass",
  "log_softmax",
  "mean_interval",
  "mean_kl",
  "mean_reverse_kl",
  "modality_combinations",
  "paired_difference",
  "perplexity",
  "recall_at",
  "retrieval",
  "subset_accuracies",
  "summarise",
  "tail_mass",
  "token_accuracy",
  "token_cross_entropy",
  "weak_set",
]
