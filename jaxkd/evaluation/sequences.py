"""Numbers about a language model, means over the tokens that count.

Shapes and conventions are those of `jaxkd.evaluation.classification`: NumPy in
float64 on the host, logits [..., V], labels and mask [...], where a mask of 0
leaves a token out; the mean of no token is nan. p is the teacher's
distribution, q the student's. `agreement` and `mean_kl`, the mean of KL(p||q),
take sequences as they are.

Reference: https://arxiv.org/abs/2501.16937, Sec. 6 (the masses).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.evaluation import classification, fidelity
from jaxkd.evaluation.evaluation import Classification


def token_accuracy(logits: Any, labels: Any, mask: Any = None) -> float:
  """Returns the share of tokens that are the most probable ones.

  Args:
    logits: [..., V].
    labels: [...] integers in [0, V); what is masked may be anything.
    mask: [...] 0 marks the tokens left out.

  Raises:
    RefusedInput: the shapes do not belong together or a label is no token.
  """
  z, y = _labelled(logits, labels, mask)
  return _mean(classification.accuracy(z, y))


def token_cross_entropy(logits: Any, labels: Any, mask: Any = None) -> float:
  """Returns the mean of `-log softmax(logits)[label]`, nats a token.

  Args:
    logits: [..., V].
    labels: [...] integers in [0, V); what is masked may be anything.
    mask: [...] 0 marks the tokens left out.

  Raises:
    RefusedInput: the shapes do not belong together or a label is no token.
  """
  z, y = _labelled(logits, labels, mask)
  return _mean(classification.cross_entropy(z, y))


def perplexity(logits: Any, labels: Any, mask: Any = None) -> float:
  """Returns exp of the mean cross entropy, V for a uniform distribution.

  Args:
    logits: [..., V].
    labels: [...] integers in [0, V); what is masked may be anything.
    mask: [...] 0 marks the tokens left out.

  Raises:
    RefusedInput: the shapes do not belong together or a label is no token.
  """
  with np.errstate(over="ignore"):
    return float(np.exp(token_cross_entropy(logits, labels, mask)))


def mean_reverse_kl(
  student_logits: Any, teacher_logits: Any, mask: Any = None
) -> float:
  """Returns the mean of `KL(q || p) = sum_v q_v (log q_v - log p_v)`.

  Args:
    student_logits: [..., V].
    teacher_logits: [..., V].
    mask: [...] 0 marks the tokens left out.

  Returns:
    Nats; inf where the teacher rules out a token to which the student gives
    a probability.

  Raises:
    RefusedInput: the shapes differ.
  """
  return fidelity.mean_kl(teacher_logits, student_logits, mask)


def head_mass(
  student_logits: Any, teacher_logits: Any, mask: Any = None, *, k: int = 3
) -> float:
  """Returns the student's mean probability of the teacher's k best tokens.

  Args:
    student_logits: [..., V].
    teacher_logits: [..., V]; the first of equal logits is the better one.
    mask: [...] 0 marks the tokens left out.
    k: how many tokens are the head.

  Returns:
    A number in [0, 1]; nan where a row is no distribution.

  Raises:
    RefusedInput: the shapes differ or k is not in 1..V.
  """
  q, p = _pair(student_logits, teacher_logits, mask)
  if not 1 <= k <= p.shape[-1]:
    raise RefusedInput(
      f"k is {k}, expected 1 to {p.shape[-1]}, the size of the vocabulary"
    )
  return _mean(_mass(q, np.argsort(-p, axis=-1, kind="stable")[:, :k]))


def tail_mass(
  student_logits: Any,
  teacher_logits: Any,
  mask: Any = None,
  *,
  share: float = 0.2,
) -> float:
  """Returns the student's mean probability of the teacher's worst tokens.

  Args:
    student_logits: [..., V].
    teacher_logits: [..., V]; the first of equal logits is the worse one.
    mask: [...] 0 marks the tokens left out.
    share: which part of the vocabulary is the tail, rounded down.

  Returns:
    A number in [0, 1]; nan where a row is no distribution.

  Raises:
    RefusedInput: the shapes differ or the share is not in [0, 1].
  """
  q, p = _pair(student_logits, teacher_logits, mask)
  if not 0.0 <= share <= 1.0:
    raise RefusedInput(f"share is {share}, expected 0 to 1")
  count = int(p.shape[-1] * share + 1e-6)
  return _mean(_mass(q, np.argsort(p, axis=-1, kind="stable")[:, :count]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequences:
  """Accuracy, cross entropy and perplexity of tokens; fidelity.

  The first predictor is also compared with the second one, its teacher:
  `agreement`, `mean_kl`, `mean_reverse_kl`. Both have `head_mass` and
  `tail_mass`, of the teacher's best and worst tokens.

  Attributes:
    head: how many tokens are the head.
    tail: which part of the vocabulary is the tail.
    mask: name of the entry that is 0 where a token does not count.
  """

  metric: ClassVar[str] = "perplexity"
  higher: ClassVar[bool] = False

  head: int = 3
  tail: float = 0.2
  mask: str = "token_mask"

  def of(self, outputs: Any) -> Any:
    """The logits."""
    return outputs.logits

  def check(self, outputs: Mapping[str, Any], task: Any) -> None:
    """Raises `ConfigError` where a predictor has another vocabulary."""
    Classification().check(outputs, task)

  def __call__(
    self, kept: Mapping[str, Any], rows: Mapping[str, np.ndarray], task: Any
  ) -> dict[str, dict[str, Any]]:
    """Numbers by predictor, from logits [N, L, V], `label` and the mask."""
    labels, mask = rows["label"], rows[self.mask]
    found = {
      name: {
        "accuracy": token_accuracy(logits, labels, mask),
        "cross_entropy": token_cross_entropy(logits, labels, mask),
        "perplexity": perplexity(logits, labels, mask),
      }
      for name, logits in kept.items()
    }
    student, *others = kept
    if not others:
      return found
    pair = (kept[student], kept[others[0]], mask)
    found[student]["agreement"] = fidelity.agreement(*pair)
    found[student]["mean_kl"] = fidelity.mean_kl(*pair)
    found[student]["mean_reverse_kl"] = mean_reverse_kl(*pair)
    for name in (student, others[0]):
      masses = (kept[name], *pair[1:])
      found[name]["head_mass"] = head_mass(*masses, k=self.head)
      found[name]["tail_mass"] = tail_mass(*masses, share=self.tail)
    return found


def _mean(x: np.ndarray) -> float:
  return float(x.mean()) if x.size else float("nan")


def _mass(q: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """Returns [N] sums of the chosen [N, k] probabilities of logits [N, V]."""
  probabilities = np.exp(classification.log_softmax(q))
  return np.take_along_axis(probabilities, chosen, axis=-1).sum(axis=-1)


def _labelled(
  logits: Any, labels: Any, mask: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Returns [N, V] logits and [N] labels without the masked ones."""
  z, y = np.asarray(logits), np.asarray(labels)
  if z.ndim == 0 or z.shape[:-1] != y.shape:
    raise RefusedInput(
      f"logits have shape {z.shape} and labels {y.shape}, expected"
      " [..., tokens] and [...]"
    )
  keep = classification.kept(mask, y.shape)
  return z[keep], y[keep]


def _pair(
  student: Any, teacher: Any, mask: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Returns both as float64 [N, V] without the masked tokens."""
  q, p = np.asarray(student), np.asarray(teacher)
  if q.shape != p.shape or q.ndim == 0:
    raise RefusedInput(
      f"student logits have shape {q.shape} and teacher logits {p.shape},"
      " expected equal shapes [..., tokens]"
    )
  keep = classification.kept(mask, q.shape[:-1])
  return q[keep].astype(np.float64), p[keep].astype(np.float64)
