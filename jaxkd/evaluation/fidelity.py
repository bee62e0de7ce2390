"""How closely a student follows its teacher, which is not how right it is.

Shapes and conventions are those of `jaxkd.evaluation.classification`: NumPy in
float64 on the host, -inf is a class that cannot be, the mean of no example is
nan. p is the teacher's distribution, q the student's.

Reference: https://arxiv.org/abs/2106.05945
"""

from typing import Any

import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.evaluation import classification


def agreement(
  student_logits: Any, teacher_logits: Any, mask: Any = None
) -> float:
  """Returns the share of examples on which both predict the same class.

  Args:
    student_logits: [..., C].
    teacher_logits: [..., C].
    mask: [...] 0 marks the examples left out.

  Returns:
    A number in [0, 1]; an example with nan logits counts as disagreement.

  Raises:
    RefusedInput: the shapes differ.
  """
  student, teacher = _rows(student_logits, teacher_logits, mask)
  if not len(teacher):
    return float("nan")
  same = classification.accuracy(student, teacher.argmax(axis=-1))
  return float(np.where(np.isnan(teacher).any(axis=-1), 0.0, same).mean())


def mean_kl(
  student_logits: Any, teacher_logits: Any, mask: Any = None
) -> float:
  """Returns the mean of `KL(p || q) = sum_c p_c (log p_c - log q_c)`.

  Args:
    student_logits: [..., C].
    teacher_logits: [..., C].
    mask: [...] 0 marks the examples left out.

  Returns:
    Nats; inf where the student rules out a class to which the teacher gives
    a probability.

  Raises:
    RefusedInput: the shapes differ.
  """
  student, teacher = _rows(student_logits, teacher_logits, mask)
  if not len(teacher):
    return float("nan")
  log_q = classification.log_softmax(student)
  log_p = classification.log_softmax(teacher)
  p = np.exp(log_p)
  impossible = p == 0.0  # contributes 0 log 0 = 0
  ratio = np.where(impossible, 0.0, log_p) - np.where(impossible, 0.0, log_q)
  kl = (p * ratio).sum(axis=-1)
  return float(np.maximum(kl, 0.0).mean())


def _rows(
  student: Any, teacher: Any, mask: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Returns both as float64 [N, C] without the masked examples."""
  q, p = np.asarray(student), np.asarray(teacher)
  if q.shape != p.shape or q.ndim == 0:
    raise RefusedInput(
      f"student logits have shape {q.shape} and teacher logits {p.shape},"
      " expected equal shapes [..., classes]"
    )
  keep = classification.kept(mask, q.shape[:-1])
  return q[keep].astype(np.float64), p[keep].astype(np.float64)
