"""Subclasses that a teacher's embeddings hide in its classes (LELP).

Notation: h are embeddings [..., D], W and b the teacher's last layer, C
classes of S subclasses each, subclass s of class c at index c S + s. The
directions are made once from the training set; targets of any example follow
from them by products.
"""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxkd.losses import checks
from jaxkd.losses.softmax import at_least_float32, log_probabilities

Array = jax.Array


@flax.struct.dataclass
class SubclassDirections:
  """Where the subclasses of every class lie.

  Attributes:
    means: of the classes' embeddings, [C, D].
    directions: orthonormal within a class, [C, D, S].
    variances: of the classes' embeddings along the directions as they were
      found, before any rotation, [C, S].
  """

  means: Array
  directions: Array
  variances: Array

  def rotated(self, rotations: Array) -> SubclassDirections:
    """The directions V_c times orthogonal matrices Q_c, [C, S, S].

    Random rotations give all directions of a class the same expected variance;
    otherwise the first one makes the subclasses unbalanced.
    """
    directions = jnp.einsum("cds,cst->cdt", self.directions, rotations)
    return self.replace(directions=directions)


def null_projector(kernel: Array) -> Array:
  """The projector on what the last layer does not see: I - W^+ W.

  Args:
    kernel: W^T, [D, C], as Flax keeps it.

  Returns:
    [D, D].

  Reference: Loo et al. (LELP), https://arxiv.org/abs/2409.20449.
  """
  kernel = at_least_float32(kernel)
  return jnp.eye(len(kernel)) - kernel @ jnp.linalg.pinv(kernel)


def subclass_directions(
  embeddings: Array,
  labels: Array,
  *,
  classes: int,
  subclasses: int,
  kernel: Array | None = None,
) -> SubclassDirections:
  """Principal directions of every class outside of what the logits say.

  The eigenvectors of largest eigenvalue of the covariance of (h - mean_c) P
  over the examples of class c, P = null_projector(kernel). Their signs are
  arbitrary.

  Args:
    embeddings: h, [N, D].
    labels: integers in 0..C-1, [N].
    classes: C.
    subclasses: S, 1 to D.
    kernel: of the last layer, [D, C]; without it P is the identity.

  Returns:
    The directions, not rotated.

  Raises:
    ValueError: if the labels do not fit or S is out of range.

  Reference: Loo et al. (LELP), https://arxiv.org/abs/2409.20449.
  """
  name = "subclass_directions"
  checks.labels(name, labels, embeddings.shape[:-1])
  checks.between(name, "subclasses", subclasses, 1, embeddings.shape[-1])
  h = at_least_float32(embeddings)
  members = jax.nn.one_hot(labels, classes, dtype=h.dtype)  # [N, C]
  counts = jnp.sum(members, 0)
  means = (members.T @ h) / jnp.maximum(counts, 1)[:, None]
  centred = h - means[labels]
  if kernel is not None:
    centred = centred @ null_projector(kernel)
  covariances = jnp.einsum("nc,nd,ne->cde", members, centred, centred)
  covariances /= jnp.maximum(counts, 1)[:, None, None]
  values, vectors = jnp.linalg.eigh(covariances)
  return SubclassDirections(
    means=means,
    directions=vectors[..., ::-1][..., :subclasses],
    variances=values[..., ::-1][..., :subclasses],
  )


def subclass_log_probs(
  teacher: Array,
  embeddings: Array,
  directions: SubclassDirections,
  *,
  subclass_temperature: float = 1.0,
  temperature: float = 1.0,
  kernel: Array | None = None,
) -> Array:
  """The teacher's log-probabilities of all subclasses.

    log softmax(t / T)_c + log softmax_s(((h - mean_c) P) U_c / beta)

  Over the subclasses of a class they sum to the class's probability.

  Args:
    teacher: logits t, [..., C].
    embeddings: h, [..., D].
    directions: U and the means.
    subclass_temperature: beta, above 0.
    temperature: T, above 0.
    kernel: of the last layer, [D, C], as it was given for the directions.

  Returns:
    [..., C S].

  Raises:
    ValueError: if a number is out of range or the shapes do not fit.

  Reference: Loo et al. (LELP), https://arxiv.org/abs/2409.20449, in a reading
    of its text.
  """
  name = "subclass_log_probs"
  checks.temperature(name, temperature)
  checks.positive(name, "subclass_temperature", subclass_temperature)
  if teacher.shape != (*embeddings.shape[:-1], len(directions.means)):
    raise ValueError(
      f"{name}: teacher logits {teacher.shape}, embeddings {embeddings.shape}, "
      f"{len(directions.means)} classes of directions; expected [..., C] and "
      "[..., D]"
    )
  scores = subclass_projections(embeddings, directions, kernel=kernel)
  within = log_probabilities(scores, subclass_temperature)
  values = log_probabilities(teacher, temperature)[..., None] + within
  return values.reshape(*teacher.shape[:-1], -1)


def subclass_projections(
  embeddings: Array,
  directions: SubclassDirections,
  *,
  kernel: Array | None = None,
) -> Array:
  """How far embeddings lie along the directions of every class.

    ((h - mean_c) P) U_c

  Args:
    embeddings: h, [..., D].
    directions: U and the means.
    kernel: of the last layer, [D, C]; without it P is the identity.

  Returns:
    [..., C, S].
  """
  h = at_least_float32(embeddings)
  means = jnp.broadcast_to(
    directions.means, (*h.shape[:-1], *directions.means.shape)
  )
  centred = h[..., None, :] - means
  if kernel is not None:
    centred = centred @ null_projector(kernel)
  return jnp.einsum("...cd,cds->...cs", centred, directions.directions)


def class_log_probs(student: Array, subclasses: int) -> Array:
  """Log-probabilities of classes from logits of their subclasses.

    log sum_s softmax(z)_{c, s}

  The student predicts with their argmax: the sum counts, not the largest
  subclass. `cross_entropy` takes them as logits.

  Args:
    student: logits, [..., C S].
    subclasses: S.

  Returns:
    [..., C], nats.

  Raises:
    ValueError: if S does not divide the number of logits.

  Reference: Loo et al. (LELP), https://arxiv.org/abs/2409.20449.
  """
  count = student.shape[-1]
  if subclasses < 1 or count % subclasses:
    raise ValueError(
      f"class_log_probs: {count} logits, subclasses={subclasses}; expected a "
      "divisor"
    )
  log_q = log_probabilities(student)
  return logsumexp(log_q.reshape(*student.shape[:-1], -1, subclasses), axis=-1)
