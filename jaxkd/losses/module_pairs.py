"""Module-to-module distillation.

Notation: one network is cut into modules, and one of its modules is exchanged
for that of a teacher or of a student; z and t are the logits of the two hybrids
that this gives, C the number of classes, T the temperature.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxkd.losses import checks
from jaxkd.losses.logits import cross_entropy, soft_cross_entropy
from jaxkd.losses.relative_entropy import kl

Array = jax.Array


def module_pair(
  student: Array,
  teacher: Array,
  labels: Array,
  *,
  teacher_weight: float = 0.5,
  temperature: float = 1.0,
  label_smoothing: float = 0.1,
  hard: bool = False,
  kd_reduction: Literal["batchmean", "numel"] = "batchmean",
  where: Array | None = None,
) -> Array:
  """The loss of a student's module against the teacher's in one harness.

    (1 - a) CE(z, y) + a D(t, z),
    D = T^2 KL(softmax(t / T) || softmax(z / T)), or CE(z, argmax t) if hard

  The released code divides the KL by the number of entries B C and not by B:
  with 1000 classes the teacher's part is 1000 times smaller. `numel` is that.

  Args:
    student: logits z of the hybrid with the student's module, [B, C].
    teacher: logits t of the hybrid with the teacher's module, [B, C].
    labels: integers [B], or probabilities [B, C] of mixed images.
    teacher_weight: a, 0 to 1.
    temperature: T, above 0.
    label_smoothing: of integer labels, 0 to 1; soft ones have theirs.
    hard: whether the teacher gives its most probable class alone.
    kd_reduction: what the KL is divided by beside the mean over the batch:
      nothing, or the number of classes.
    where: [B], examples that count.

  Returns:
    [B], nats.

  Raises:
    ValueError: if shapes differ or a number is out of range.

  Needs: logits, labels; access white; per example.
  Checked: kamanphoebe/m2mKD@067fa1f; formula.
  Reference: Lo et al. (m2mKD), https://arxiv.org/abs/2402.16918.
  """
  name = "module_pair"
  checks.logits(name, student, teacher)
  checks.temperature(name, temperature)
  checks.between(name, "teacher_weight", teacher_weight, 0, 1)
  checks.one_of(name, "kd_reduction", kd_reduction, ("batchmean", "numel"))
  if labels.ndim == student.ndim:
    base = soft_cross_entropy(student, labels, where=where)
  else:
    base = cross_entropy(
      student, labels, label_smoothing=label_smoothing, where=where
    )
  if hard:
    distilled = cross_entropy(student, jnp.argmax(teacher, -1), where=where)
  else:
    distilled = kl(student, teacher, temperature=temperature, where=where)
    if kd_reduction == "numel":
      distilled = distilled / student.shape[-1]
  return (1 - teacher_weight) * base + teacher_weight * distilled
