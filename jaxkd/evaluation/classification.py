"""Numbers about a classifier, from its logits and labels.

Everything is NumPy in float64 on the host, in log-space. Shapes: N examples, C
classes; `logits` is [..., C], `labels` and `mask` have the leading shape. A
logit of -inf is a class that cannot be; it has probability zero. An example
counts where its mask is not 0, and the mean of no example is nan.
"""

from typing import Any

import numpy as np

from jaxkd.errors import RefusedInput


def log_softmax(logits: Any) -> np.ndarray:
  """Returns [..., C] log-probabilities in float64 (nats).

  A row without a finite maximum (all -inf, or with +inf or nan) is no
  distribution and becomes nan.
  """
  z = np.asarray(logits).astype(np.float64)
  if z.ndim == 0 or z.shape[-1] == 0:
    raise RefusedInput(f"logits have shape {z.shape}, expected [..., classes]")
  m = z.max(axis=-1, keepdims=True)
  z = np.where(np.isfinite(m), z - np.where(np.isfinite(m), m, 0.0), np.nan)
  return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def kept(mask: Any, shape: tuple[int, ...]) -> np.ndarray:
  """Returns booleans of the given shape: which examples count.

  Args:
    mask: [...] 0 marks an example left out; None keeps all.
    shape: the leading shape of the logits.

  Raises:
    RefusedInput: the mask has another shape.
  """
  if mask is None:
    return np.ones(shape, bool)
  keep = np.asarray(mask).astype(np.float64) != 0.0
  if keep.shape != shape:
    raise RefusedInput(f"mask has shape {keep.shape}, expected {shape}")
  return keep


def accuracy(logits: Any, labels: Any) -> np.ndarray:
  """Returns [...] 1.0 where the largest logit is the label's, else 0.0.

  Args:
    logits: [..., C]. The first of equal logits wins; a row with nan is wrong.
    labels: [...] integers in [0, C).

  Raises:
    RefusedInput: the shapes do not belong together or a label is not a class.
  """
  z, y = _check(logits, labels)
  return ((z.argmax(axis=-1) == y) & ~np.isnan(z).any(axis=-1)).astype(
    np.float64
  )


def cross_entropy(logits: Any, labels: Any) -> np.ndarray:
  """Returns [...] `-log softmax(logits)[label]` in nats.

  Args:
    logits: [..., C].
    labels: [...] integers in [0, C).

  Returns:
    float64; inf where the label's logit is -inf, nan where the row is no
    distribution.

  Raises:
    RefusedInput: the shapes do not belong together or a label is not a class.
  """
  z, y = _check(logits, labels)
  log_q = np.take_along_axis(log_softmax(z), y[..., None], axis=-1)
  return 0.0 - log_q[..., 0]


def expected_calibration_error(
  logits: Any, labels: Any, mask: Any = None, *, bins: int = 15
) -> float:
  """Returns the mean gap between confidence and accuracy, in [0, 1].

  Examples are sorted into equal-width bins (low, high] of the largest
  probability: `sum_b (n_b / N) |accuracy(b) - confidence(b)|`.

  Args:
    logits: [..., C].
    labels: [...] integers in [0, C); what is masked may be anything.
    mask: [...] 0 marks the examples left out.
    bins: how many bins.

  Returns:
    The error; nan without an example, or where a row is no distribution.

  Raises:
    RefusedInput: the shapes do not belong together or a label is not a class.

  Reference:
    https://arxiv.org/abs/1706.04599, Eq. 3
  """
  z, y = _select(logits, labels, mask)
  confidence = np.exp(log_softmax(z).max(axis=-1))
  correct = accuracy(z, y)
  if confidence.size == 0 or np.isnan(confidence).any():
    return float("nan")
  index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  gap = np.bincount(index, weights=correct - confidence, minlength=bins)
  return float(np.abs(gap).sum() / confidence.size)


def confusion_matrix(
  predictions: Any, labels: Any, num_classes: int, mask: Any = None
) -> np.ndarray:
  """Returns [C, C] counts: the row is the label, the column the prediction.

  Args:
    predictions: [...] integers in [0, C).
    labels: [...] integers in [0, C).
    num_classes: C.
    mask: [...] 0 marks the examples left out.

  Raises:
    RefusedInput: the shapes differ or an entry is not a class.
  """
  p, y = np.asarray(predictions), np.asarray(labels)
  if p.shape != y.shape:
    raise RefusedInput(
      f"predictions have shape {p.shape} and labels {y.shape}, expected equal"
    )
  keep = kept(mask, y.shape)
  p, y = p[keep].astype(np.int64), y[keep].astype(np.int64)
  _check_classes("prediction", p, num_classes)
  _check_classes("label", y, num_classes)
  counts = np.bincount(y * num_classes + p, minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes)


def summarise(
  logits: Any, labels: Any, mask: Any, num_classes: int
) -> dict[str, Any]:
  """Returns the numbers that `evaluation.json` holds for one role.

  Args:
    logits: [..., C].
    labels: [...] integers in [0, C); what is masked may be anything.
    mask: [...] 1 marks a real example, 0 padding; None keeps all.
    num_classes: C.

  Returns:
    `accuracy` and `ece` in [0, 1], `cross_entropy` in nats, and `confusion`,
    [C][C] counts as lists. The first three are nan without an example.

  Raises:
    RefusedInput: the shapes do not belong together or a label is not a class.
  """
  z, y = _select(logits, labels, mask)
  if z.shape[-1] != num_classes:
    raise RefusedInput(
      f"logits have {z.shape[-1]} classes, expected {num_classes}"
    )
  return {
    "accuracy": _mean(accuracy(z, y)),
    "cross_entropy": _mean(cross_entropy(z, y)),
    "ece": expected_calibration_error(z, y),
    "confusion": confusion_matrix(z.argmax(-1), y, num_classes).tolist(),
  }


def _mean(x: np.ndarray) -> float:
  return float(x.mean()) if x.size else float("nan")


def _select(
  logits: Any, labels: Any, mask: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Returns checked [N, C] logits and [N] labels, without the masked ones."""
  z, y = np.asarray(logits), np.asarray(labels)
  _check_shapes(z, y)
  keep = kept(mask, y.shape)
  return _check(z[keep], y[keep])


def _check(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns float64 logits and integer labels that belong together."""
  z, y = np.asarray(logits).astype(np.float64), np.asarray(labels)
  _check_shapes(z, y)
  y = y.astype(np.int64)
  _check_classes("label", y, z.shape[-1])
  return z, y


def _check_shapes(z: np.ndarray, y: np.ndarray) -> None:
  if z.ndim == 0 or z.shape[:-1] != y.shape:
    raise RefusedInput(
      f"logits have shape {z.shape} and labels {y.shape}, expected"
      " [..., classes] and [...]"
    )


def _check_classes(what: str, x: np.ndarray, num_classes: int) -> None:
  bad = x[(x < 0) | (x >= num_classes)]
  if bad.size:
    raise RefusedInput(
      f"{what} {int(bad.flat[0])} is not a class, expected 0 to"
      f" {num_classes - 1}"
    )
