"""Losses that treat the label's class and the other classes apart.

Notation: z are the student's logits, t the teacher's, y the label, T the
temperature; p and q are the softmax of t / T and z / T, and p' and q' the same
over the classes other than y, which is p / (1 - p_y) and q / (1 - q_y). The
label's class is left out exactly, not by a large negative number. Every loss
has one value per example (or position); examples where `where` is not true
give 0 and pass no gradient, whatever is in them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxkd.losses import checks
from jaxkd.losses.divergence import exp
from jaxkd.losses.logits import (
  cross_entropy,
  kept,
  kept_labels,
  soft_cross_entropy,
)
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.softmax import at_least_float32, log_probabilities

Array = jax.Array


def _prepared(
  loss: str,
  student: Array,
  teacher: Array,
  labels: Array,
  temperature: float,
  where: Array | None,
) -> tuple[Array, Array, Array]:
  """Both logits [..., C], checked and masked, and where the labels are."""
  checks.logits(loss, student, teacher)
  checks.temperature(loss, temperature)
  labels = kept_labels(loss, labels, student, where)
  student, teacher = (
    at_least_float32(checks.masked(loss, logits, where))
    for logits in (student, teacher)
  )
  return student, teacher, jax.nn.one_hot(labels, student.shape[-1], dtype=bool)


def _label_and_rest(
  logits: Array, is_label: Array, temperature: float
) -> Array:
  """Logarithms of q_y and 1 - q_y, [..., 2]."""
  log_q = log_probabilities(logits, temperature)
  label = jnp.sum(jnp.where(is_label, log_q, 0.0), -1)
  rest = jnp.where(is_label, -jnp.inf, log_q)
  some = jnp.any(rest > -jnp.inf, axis=-1)
  rest = logsumexp(jnp.where(some[..., None], rest, 0.0), axis=-1)
  return jnp.stack([label, jnp.where(some, rest, -jnp.inf)], axis=-1)


def target_class_kl(
  student: Array,
  teacher: Array,
  labels: Array,
  *,
  temperature: float = 4.0,
  where: Array | None = None,
) -> Array:
  """KL between "it is the label" and "it is not" (TCKD).

    T^2 [p_y log(p_y / q_y) + (1 - p_y) log((1 - p_y) / (1 - q_y))]

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    labels: integers in 0..C-1, [...].
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times T^2.

  Raises:
    ValueError: if shapes differ, labels are no integers, or T is not above 0.

  Needs: logits, labels; access white; per example.
  Checked: megvii-research/mdistiller@a08d46f.
  Reference: Zhao et al. (DKD), https://arxiv.org/abs/2203.08679, Eq. 5.
  """
  student, teacher, is_label = _prepared(
    "target_class_kl", student, teacher, labels, temperature, where
  )
  log_q = _label_and_rest(student, is_label, temperature)
  log_p = _label_and_rest(teacher, is_label, temperature)
  return temperature**2 * kl(log_q, log_p, where=where)


def non_target_class_kl(
  student: Array,
  teacher: Array,
  labels: Array,
  *,
  temperature: float = 4.0,
  where: Array | None = None,
) -> Array:
  """KL among the classes other than the label (NCKD).

    T^2 sum_{c != y} p'_c log(p'_c / q'_c)

  0 for two classes. The label's logits get no gradient.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    labels: integers in 0..C-1, [...].
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times T^2.

  Raises:
    ValueError: if shapes differ, labels are no integers, or T is not above 0.

  Needs: logits, labels; access white; per example.
  Checked: megvii-research/mdistiller@a08d46f.
  Reference: Zhao et al. (DKD), https://arxiv.org/abs/2203.08679, Eq. 5.
  """
  student, teacher, is_label = _prepared(
    "non_target_class_kl", student, teacher, labels, temperature, where
  )
  others_of_student = jnp.where(is_label, -jnp.inf, student)
  others_of_teacher = jnp.where(is_label, -jnp.inf, teacher)
  return kl(
    others_of_student, others_of_teacher, temperature=temperature, where=where
  )


def dkd(
  student: Array,
  teacher: Array,
  labels: Array,
  *,
  alpha: float = 1.0,
  beta: float = 8.0,
  temperature: float = 4.0,
  where: Array | None = None,
) -> Array:
  """Decoupled distillation: the two parts of KL with weights of their own.

    alpha target_class_kl + beta non_target_class_kl

  KL itself is the first part plus (1 - p_y) times the second.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    labels: integers in 0..C-1, [...].
    alpha: weight of the label's part.
    beta: weight of the other classes' part.
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times T^2.

  Raises:
    ValueError: if shapes differ, labels are no integers, or T is not above 0.

  Needs: logits, labels; access white; per example.
  Checked: SakanaAI/TAID@a062892; megvii-research/mdistiller@a08d46f;
    sunshangquan/logit-standardization-KD@f6e5aa5.
  Reference: Zhao et al. (DKD), https://arxiv.org/abs/2203.08679, Eq. 7.
  """
  checks.logits("dkd", student, teacher)
  data = (student, teacher, labels)
  options = {"temperature": temperature, "where": where}
  target = target_class_kl(*data, **options)
  others = non_target_class_kl(*data, **options)
  return alpha * target + beta * others


def nkd(
  student: Array,
  teacher: Array,
  labels: Array,
  *,
  gamma: float = 1.5,
  temperature: float = 1.0,
  where: Array | None = None,
) -> Array:
  """Normalised distillation: weighted label term and the other classes.

    -p_y log q_y at T = 1, minus gamma T^2 sum_{c != y} p'_c log q'_c

  Cross entropies, not divergences: the value has the teacher's entropy in it.
  It is used beside the cross entropy of the labels.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    labels: integers in 0..C-1, [...].
    gamma: weight of the other classes.
    temperature: T of the other classes, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats (times T^2 in the second term).

  Raises:
    ValueError: if shapes differ, labels are no integers, or T is not above 0.

  Needs: logits, labels; access white; per example.
  Checked: yzd-v/cls_KD@1e5d48f.
  Reference: Yang et al. (NKD), https://arxiv.org/abs/2303.13005.
  """
  student, teacher, is_label = _prepared(
    "nkd", student, teacher, labels, temperature, where
  )
  p_label = exp(_label_and_rest(teacher, is_label, 1.0)[..., 0])
  target = p_label * cross_entropy(student, kept(labels, where))
  others_of_student = jnp.where(is_label, -jnp.inf, student)
  others_of_teacher = jnp.where(is_label, -jnp.inf, teacher)
  others = soft_cross_entropy(
    others_of_student / temperature,
    exp(log_probabilities(others_of_teacher, temperature)),
  )
  return kept(target + gamma * temperature**2 * others, where)


def ofa(
  student: Array,
  teacher: Array,
  labels: Array,
  *,
  exponent: float = 1.1,
  temperature: float = 1.0,
  where: Array | None = None,
) -> Array:
  """Soft cross entropy in which the label's class counts more (OFA-KD).

    -T^2 sum_c [(p_c + [c = y])^e - [c = y]] log q_c

  e = 1 is the plain soft cross entropy. The authors' code has no T^2. It is
  computed for every stage of the student, through projectors to class logits.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    labels: integers in 0..C-1, [...].
    exponent: e, 1 or more.
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times T^2.

  Raises:
    ValueError: if shapes differ, labels are no integers, or a number is out of
      range.

  Needs: logits, labels; access white; per example.
  Checked: Gray-OREO/MST-Distill@093b2fe.
  Reference: Hao et al. (OFA-KD), https://arxiv.org/abs/2310.19444.
  """
  checks.between("ofa", "exponent", exponent, 1, float("inf"))
  student, teacher, is_label = _prepared(
    "ofa", student, teacher, labels, temperature, where
  )
  p = exp(log_probabilities(teacher, temperature))
  weights = (p + is_label) ** exponent - is_label
  values = soft_cross_entropy(student / temperature, weights)
  return kept(temperature**2 * values, where)


def zeroed_target_kl(
  student: Array,
  teacher: Array,
  labels: Array,
  *,
  temperature: float = 1.0,
  where: Array | None = None,
) -> Array:
  """KL of logits whose label's entry is set to 0 on both sides (C2KD).

    T^2 KL(softmax(t0 / T) || softmax(z0 / T)), t0 = t [c != y], z0 likewise

  The label's class is not left out: it keeps the mass of a logit of 0, so that
  a constant added to the logits changes the value. C2KD takes the mean over the
  whole batch of this loss times [kendall_tau(student, teacher) > threshold]:
  that condition is a `where`.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    labels: integers in 0..C-1, [...].
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times T^2.

  Raises:
    ValueError: if shapes differ, labels are no integers, or T is not above 0.

  Needs: logits, labels; access white; per example.
  Checked: Gray-OREO/MST-Distill@093b2fe.
  Reference: Huo et al. (C2KD), CVPR 2024, as MST-Distill's code has it.
  """
  student, teacher, is_label = _prepared(
    "zeroed_target_kl", student, teacher, labels, temperature, where
  )
  return kl(
    jnp.where(is_label, 0.0, student),
    jnp.where(is_label, 0.0, teacher),
    temperature=temperature,
    where=where,
  )
