"""Losses of logits against labels, probabilities, or class by class.

Notation: z are the student's logits, t the teacher's, q = softmax(z), y the
label, T the temperature, C the number of classes. Every loss has one value per
example (or position); examples where `where` is not true give 0 and pass no
gradient, whatever is in them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.losses import checks
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.softmax import at_least_float32, log_probabilities

Array = jax.Array


def kept(values: Array, where: Array | None) -> Array:
  """Values [...] with 0 where `where` is not true."""
  return values if where is None else jnp.where(where.astype(bool), values, 0)


def kept_labels(
  loss: str, labels: Array, logits: Array, where: Array | None
) -> Array:
  """Checked labels of logits [..., C], with 0 where `where` is not true."""
  checks.labels(loss, labels, logits.shape[:-1])
  checks.where(loss, where, labels.shape)
  return kept(labels, where)


def cross_entropy(
  student: Array,
  labels: Array,
  *,
  label_smoothing: float = 0.0,
  axis: int = -1,
  where: Array | None = None,
) -> Array:
  """Cross entropy of integer labels, smoothed or not.

    -(1 - e) log q_y - (e / C) sum_c log q_c

  Some libraries spread e over the C - 1 other classes: that is this formula
  with e C / (C - 1). Classes at -inf get no share.

  Args:
    student: logits, [..., C].
    labels: integers in 0..C-1, [...]; values where `where` is not true are
      not read.
    label_smoothing: e, 0 to 1.
    axis: the class axis.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats.

  Raises:
    ValueError: if the labels' shape is not that of the logits without the
      class axis, they are not integers, or a number is out of range.

  Needs: logits, labels; access text; per example.
  Checked: Jin-Ying/Multi-Level-Logit-Distillation@5ee473f; erjui/DHO@846de75;
    skyshoumeng/Label_Assisted_Distillation@cd08406;
    sunshangquan/logit-standardization-KD@f6e5aa5; taegyeong-lee/MaKD@89461d1;
    yuanli2333/Teacher-free-Knowledge-Distillation@d000ab3; formula.
  Reference: Szegedy et al., https://arxiv.org/abs/1512.00567, Sec. 7.
  """
  checks.between("cross_entropy", "label_smoothing", label_smoothing, 0, 1)
  student = jnp.moveaxis(student, axis, -1)
  labels = kept_labels("cross_entropy", labels, student, where)
  log_q = log_probabilities(checks.masked("cross_entropy", student, where))
  values = -jnp.take_along_axis(log_q, labels[..., None], axis=-1)[..., 0]
  if label_smoothing:
    real = log_q > -jnp.inf
    total = -jnp.sum(jnp.where(real, log_q, 0.0), -1)
    smooth = total / jnp.maximum(jnp.sum(real, -1), 1)
    values = (1 - label_smoothing) * values + label_smoothing * smooth
  return kept(values, where)


def soft_cross_entropy(
  student: Array,
  probabilities: Array,
  *,
  axis: int = -1,
  where: Array | None = None,
) -> Array:
  """Cross entropy of soft labels, such as a teacher's probabilities.

    -sum_c p_c log q_c

  Its gradient with respect to the logits is q - p, as that of KL at T = 1; the
  value has the entropy of p in it. Born-again networks and codistillation use
  it. A list-wise loss on the top-one probabilities (ListNet) is the same.

  Args:
    student: logits, [..., C].
    probabilities: p, [..., C], at least 0; they need not sum to 1.
    axis: the class axis.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats.

  Raises:
    ValueError: if the shapes differ.

  Needs: logits; access white; per example.
  Checked: Daniel00008/ProC-KD@56c6adc; hchoi71/MIX-KD@6e8c149; formula.
  Reference: Furlanello et al. (BAN), https://arxiv.org/abs/1805.04770, Sec. 3.
  """
  checks.logits("soft_cross_entropy", student, probabilities, axis)
  student, probabilities = (
    checks.masked("soft_cross_entropy", jnp.moveaxis(x, axis, -1), where)
    for x in (student, probabilities)
  )
  p = at_least_float32(probabilities)
  log_q = log_probabilities(student)
  log_q = jnp.where((p == 0) & jnp.isneginf(log_q), 0.0, log_q)
  return kept(-jnp.sum(p * log_q, -1), where)


def binary_cross_entropy(
  student: Array, probabilities: Array, *, where: Array | None = None
) -> Array:
  """Mean cross entropy of yes/no questions with soft answers.

    (1/C) sum_c [-a_c log sigmoid(z_c) - (1 - a_c) log sigmoid(-z_c)]

  Args:
    student: logits of yes, [..., C], one per question.
    probabilities: a, of yes, [..., C], 0 to 1.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats per question.

  Raises:
    ValueError: if the shapes differ.

  Needs: logits; access text; per example.
  Checked: taegyeong-lee/MaKD@89461d1.
  Reference: Lee et al. (MaKD), https://arxiv.org/abs/2501.13341.
  """
  name = "binary_cross_entropy"
  checks.logits(name, student, probabilities)
  z = at_least_float32(checks.masked(name, student, where))
  a = at_least_float32(checks.masked(name, probabilities, where))
  values = a * jax.nn.softplus(-z) + (1 - a) * jax.nn.softplus(z)
  return kept(jnp.mean(values, -1), where)


def binary_kl(
  student: Array,
  teacher: Array,
  *,
  temperature: float = 1.0,
  where: Array | None = None,
) -> Array:
  """Sum over the classes of the KL between two sigmoids.

    T^2 sum_c [a_c log(a_c / b_c) + (1 - a_c) log((1 - a_c) / (1 - b_c))],
    a = sigmoid(t / T), b = sigmoid(z / T)

  Unlike a softmax it sees the common offset of the logits. It is computed from
  log-sigmoids: saturated logits have finite values and gradients.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times T^2.

  Raises:
    ValueError: if the shapes differ or the temperature is not above 0.

  Needs: logits; access white; per example.
  Checked: penghui-yang/DHKD@7976c69.
  Reference: Yang et al. (DHKD), https://arxiv.org/abs/2411.08937.
  """
  z, t = _scaled_logits("binary_kl", student, teacher, temperature, where)
  yes, no = jax.nn.sigmoid(t), jax.nn.sigmoid(-t)
  terms = yes * (jax.nn.log_sigmoid(t) - jax.nn.log_sigmoid(z))
  terms += no * (jax.nn.log_sigmoid(-t) - jax.nn.log_sigmoid(-z))
  return kept(temperature**2 * jnp.sum(terms, -1), where)


def normalized_binary_kl(
  student: Array,
  teacher: Array,
  *,
  temperature: float = 2.0,
  where: Array | None = None,
) -> Array:
  """Binary KL of the difference of the logits from 0.

    T^2 sum_c log cosh(u_c / 2), u = (z - t) / T

  which is T^2 sum_c KL((1/2, 1/2) || (sigmoid(u_c), sigmoid(-u_c))): about
  (z - t)^2 / 8 for small differences at any T, linear with slope T / 2 for
  large ones.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times T^2.

  Raises:
    ValueError: if the shapes differ or the temperature is not above 0.

  Needs: logits; access white; per example.
  Checked: penghui-yang/DHKD@7976c69.
  Reference: Yang et al. (DHKD), https://arxiv.org/abs/2411.08937.
  """
  name = "normalized_binary_kl"
  z, t = _scaled_logits(name, student, teacher, temperature, where)
  half = (z - t) / 2
  near = jnp.abs(half) < 1
  small = jnp.log1p(2 * jnp.sinh(jnp.where(near, half, 0.0) / 2) ** 2)
  size = jnp.abs(jnp.where(near, 1.0, half))
  large = size + jnp.log1p(jnp.exp(-2 * size)) - jnp.log(2.0)
  values = jnp.sum(jnp.where(near, small, large), -1)
  return kept(temperature**2 * values, where)


def _scaled_logits(
  loss: str,
  student: Array,
  teacher: Array,
  temperature: float,
  where: Array | None,
) -> tuple[Array, Array]:
  """Both logits divided by T, and 0 in classes that neither has."""
  checks.logits(loss, student, teacher)
  checks.temperature(loss, temperature)
  absent = jnp.isneginf(student) & jnp.isneginf(teacher)
  return tuple(
    at_least_float32(checks.masked(loss, jnp.where(absent, 0.0, logits), where))
    / temperature
    for logits in (student, teacher)
  )


def virtual_teacher(
  labels: Array, classes: int, *, correct: float = 0.99
) -> Array:
  """Probabilities of a teacher that was made by hand.

    u_y = correct, u_c = (1 - correct) / (C - 1) else

  Args:
    labels: integers in 0..C-1, [...].
    classes: C.
    correct: the label's probability, 0 to 1.

  Returns:
    [..., C], float32.

  Raises:
    ValueError: if correct is out of range.

  Reference: Yuan et al. (Tf-KD), https://arxiv.org/abs/1909.11723.
  """
  checks.between("virtual_teacher", "correct", correct, 0, 1)
  rest = (1 - correct) / max(classes - 1, 1)
  is_label = jax.nn.one_hot(labels, classes, dtype=bool)
  return jnp.where(is_label, correct, rest).astype(jnp.float32)


def teacher_free_kl(
  student: Array,
  labels: Array,
  *,
  correct: float = 0.99,
  temperature: float = 20.0,
  where: Array | None = None,
) -> Array:
  """KL to a virtual teacher, a form of label smoothing (Tf-KD-reg).

    KL(softmax(u / T) || q), u = virtual_teacher(labels, C)

  The probabilities u go through a softmax themselves, T is the teacher's alone
  and there is no T^2. The authors' code averages over the classes too (divide
  by C) and multiplies by 100.

  Args:
    student: logits, [..., C].
    labels: integers in 0..C-1, [...].
    correct: the label's probability in u, 0 to 1.
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats.

  Raises:
    ValueError: if the labels do not fit the logits or a number is out of range.

  Needs: logits, labels; access text; per example.
  Checked: yuanli2333/Teacher-free-Knowledge-Distillation@d000ab3.
  Reference: Yuan et al. (Tf-KD), https://arxiv.org/abs/1909.11723.
  """
  checks.temperature("teacher_free_kl", temperature)
  labels = kept_labels("teacher_free_kl", labels, student, where)
  u = virtual_teacher(labels, student.shape[-1], correct=correct)
  return kl(student, u / temperature, where=where)
