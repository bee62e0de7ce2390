"""Classifiers of prototypes: an example is of the class that it points to.

A network that has learned images and texts together classifies by the texts of
the classes' names; trained further on a few labels, the prototypes must not
leave the names behind (CLAP). Notation: f features [B, D], P prototypes [C, D],
P^0 those of the names, before training.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.losses import checks, rows
from jaxkd.losses.modalities import class_prototypes
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def prototype_logits(
  features: Array, prototypes: Array, *, scale: float | Array = 100.0
) -> Array:
  """Logits of the cosines with the prototypes.

    scale cos(f, P_c)

  Args:
    features: f, [B, D], of any length.
    prototypes: P, [C, D], of any length.
    scale: the inverse temperature.

  Returns:
    [B, C], float32 at least; a zero vector has cosine 0.

  Raises:
    ValueError: if the sizes D differ.

  Reference: Radford et al. (CLIP), https://arxiv.org/abs/2103.00020.
  """
  _check("prototype_logits", features, prototypes)
  features, prototypes = map(at_least_float32, (features, prototypes))
  return scale * rows.unit(features) @ rows.unit(prototypes).T


def class_confidence(
  features: Array, labels: Array, prototypes: Array, *, scale: float = 100.0
) -> Array:
  """How sure the prototypes are of the examples of each class.

    a_c = mean of softmax(scale cos(f, P))_c over the examples with label c

  Args:
    features: f, [B, D], of all labelled examples.
    labels: [B], integers.
    prototypes: P, [C, D].
    scale: the inverse temperature.

  Returns:
    [C], 0 to 1; 0 for a class without an example.

  Raises:
    ValueError: if the sizes differ or labels are no integers.

  Reference: Silva-Rodriguez et al. (CLAP), https://arxiv.org/abs/2312.12730.
  """
  logits = prototype_logits(features, prototypes, scale=scale)
  checks.labels("class_confidence", labels, logits.shape[:1])
  p = jax.nn.softmax(logits, axis=-1)
  mean, _ = class_prototypes(p, labels, len(prototypes))
  return jnp.diagonal(mean)


def prototype_constraint(
  student: Array, teacher: Array, *, weights: Array | None = None
) -> Array:
  """How far prototypes have moved from where they started.

    mean_c a_c |P_c - P^0_c|^2

  Args:
    student: P, [C, D], not normalised.
    teacher: P^0, [C, D].
    weights: a, [C], as `class_confidence` gives them; None for 1.

  Returns:
    Scalar, in the unit of the prototypes squared.

  Raises:
    ValueError: if the shapes differ.

  Needs: prototypes; access white; batch level.
  Checked: erjui/PCoreSet@075a76a.
  Reference: Silva-Rodriguez et al. (CLAP), https://arxiv.org/abs/2312.12730.
  """
  checks.same("prototype_constraint", student=student, teacher=teacher)
  student, teacher = map(at_least_float32, (student, teacher))
  square = jnp.sum((student - teacher) ** 2, axis=-1)
  if weights is None:
    return jnp.mean(square)
  checks.same("prototype_constraint", weights=weights, prototypes=square)
  return jnp.mean(weights * square)


def _check(name: str, features: Array, prototypes: Array) -> None:
  if prototypes.ndim != 2 or features.shape[-1:] != prototypes.shape[-1:]:
    raise ValueError(
      f"{name}: features {features.shape}, prototypes {prototypes.shape}; "
      "expected [B, D] and [C, D]"
    )
