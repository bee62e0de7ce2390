"""Two classifiers on one backbone: one of labels, one of the teacher (DHO).

Gradients of labels and of a biased teacher conflict where one classifier
receives both. Here each has a head of its own, and their probabilities are
mixed at the end.

Reference: Kang et al. (DHO), https://arxiv.org/abs/2505.07675.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxkd.losses import checks
from jaxkd.losses.logits import cross_entropy
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.softmax import log_probabilities

Array = jax.Array

SHARES = tuple(n / 20 for n in range(21))  # alpha
TEMPERATURES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)  # beta


def dual_head(
  label_head: Array,
  labels: Array,
  pairs: Sequence[tuple[Array, Array, Array | None]],
  *,
  temperature: float = 2.0,
  label_weight: float = 0.5,
  teacher_weight: float = 0.5,
  where: Array | None = None,
) -> Array:
  """Labels for one head, the teacher for the other one, on every stream.

    w_l mean_i CE(h^l_i, y_i) + w_t sum_streams mean_i T^2 KL(t_i || h^t_i)

  A mean is over its own stream: labelled and unlabelled examples count alike
  however many they are.

  Args:
    label_head: h^l of the labelled examples, logits, [B, C].
    labels: y, integers, [B].
    pairs: of every stream the logits h^t of the teacher's head, those of the
      teacher, [B', C] each, and which count, [B'] or None.
    temperature: T, above 0.
    label_weight: w_l; 1 for ImageNet with few labels.
    teacher_weight: w_t, likewise.
    where: [B], labelled examples that count.

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if shapes do not fit, or T is not above 0.
  """
  total = label_weight * _mean(
    cross_entropy(label_head, labels, where=where), where
  )
  for head, teacher, counts in pairs:
    values = kl(head, teacher, temperature=temperature, where=counts)
    total = total + teacher_weight * _mean(values, counts)
  return total


def mixed_log_probabilities(
  label_head: Array,
  teacher_head: Array,
  *,
  share: float | Array,
  temperature: float | Array = 1.0,
) -> Array:
  """The two heads as one classifier, in log-space.

    log(alpha softmax(h^l) + (1 - alpha) softmax(h^t / beta))

  Args:
    label_head: h^l, logits, [..., C].
    teacher_head: h^t, logits, [..., C].
    share: alpha, 0 to 1.
    temperature: beta, above 0.

  Returns:
    [..., C], nats.

  Raises:
    ValueError: if the shapes differ or a number is out of range.
  """
  name = "mixed_log_probabilities"
  checks.same(name, label_head=label_head, teacher_head=teacher_head)
  checks.between(name, "share", share, 0, 1)
  checks.positive(name, "temperature", temperature)
  share = jnp.asarray(share, jnp.float32)
  return jnp.logaddexp(
    jnp.log(share) + log_probabilities(label_head),
    jnp.log1p(-share) + log_probabilities(teacher_head, temperature),
  )


def best_mixture(
  label_head: Array,
  teacher_head: Array,
  labels: Array,
  *,
  shares: Sequence[float] = SHARES,
  temperatures: Sequence[float] = TEMPERATURES,
) -> tuple[Array, Array, Array]:
  """The mixture of the heads that is right most often.

  Temperatures are the outer loop of the grid; the first of equals wins.

  Args:
    label_head: logits, [N, C].
    teacher_head: logits, [N, C].
    labels: integers, [N].
    shares: values of alpha.
    temperatures: values of beta.

  Returns:
    alpha, beta and the accuracy, scalars.

  Raises:
    ValueError: if shapes do not fit or a number is out of range.
  """
  checks.labels("best_mixture", labels, label_head.shape[:-1])
  grid = jnp.asarray([(a, b) for b in temperatures for a in shares])

  def hits(point: Array) -> Array:
    mixed = mixed_log_probabilities(
      label_head, teacher_head, share=point[0], temperature=point[1]
    )
    return jnp.sum(jnp.argmax(mixed, -1) == labels)

  right = jax.lax.map(hits, grid)
  share, temperature = grid[jnp.argmax(right)]
  return share, temperature, jnp.max(right) / len(labels)


def _mean(values: Array, where: Array | None) -> Array:
  if where is None:
    return jnp.mean(values)
  weight = jnp.maximum(jnp.sum(where.astype(values.dtype)), 1e-30)
  return jnp.sum(values) / weight
