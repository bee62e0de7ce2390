"""Which dimensions of a teacher's feature matter to another modality (MGDFR).

Modality-general features: those whose shuffling changes the distance of the
teacher's logits to the co-trained student's. The others are replaced by their
batch mean before the teacher is distilled.

Reference: Xue et al., https://arxiv.org/abs/2206.06487.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.losses import checks
from jaxkd.losses.maps import fitnet
from jaxkd.losses.rows import over

Array = jax.Array


def permute_features(
  features: Array, index: Array, permutation: Array
) -> Array:
  """Permutes some dimensions across the batch, x_bk -> x_{pi(b) k}.

  Args:
    features: [B, ..., D].
    index: dimensions of the last axis, [K].
    permutation: pi, [B].

  Returns:
    [B, ..., D].
  """
  return features.at[..., index].set(features[permutation][..., index])


def freeze_features(features: Array, index: Array) -> Array:
  """Replaces some dimensions by their batch mean, x_bk -> (1/B) sum_b x_bk.

  Args:
    features: [B, ..., D]; every place of a map has its own mean.
    index: dimensions of the last axis, [K].

  Returns:
    [B, ..., D].
  """
  mean = features[..., index].mean(0, keepdims=True)
  return features.at[..., index].set(mean)


def feature_salience(
  head: Callable[[Array], Array],
  features: Array,
  student: Array,
  permutations: Array,
  *,
  normalized: bool = True,
) -> Array:
  """Salience of every dimension of a teacher's feature, from 0 to 1.

    (s - min s) / (max s - min s),
    s_k = mean_rbc (h(x with x_k permuted by pi_rk) - z)^2_bc

  Args:
    head: h, the teacher from the feature on: [B, ..., D] -> logits [B, C].
    features: x, [B, ..., D].
    student: logits z, [B, C].
    permutations: pi, integers [R, D, B].
    normalized: False for s itself.

  Returns:
    [D]; 0 where all dimensions are alike.

  Raises:
    ValueError: if the permutations do not fit the features.

  Reference: Xue et al., https://arxiv.org/abs/2206.06487.
  """
  size = (features.shape[-1], features.shape[0])
  if permutations.shape[1:] != size:
    raise ValueError(
      f"feature_salience: permutations {permutations.shape}; expected "
      f"[R, {size[0]}, {size[1]}] for features {features.shape}"
    )

  def distance(k, permutation):
    logits = head(permute_features(features, k[None], permutation))
    return fitnet(student, logits).mean()

  def repeat(permutations):
    pairs = jnp.arange(size[0]), permutations
    return jax.lax.map(lambda pair: distance(*pair), pairs)

  raw = jax.lax.map(repeat, permutations).mean(0)
  low, high = raw.min(), raw.max()
  scaled = over(raw - low, high - low)
  return scaled if normalized else raw


def least_salient(salience: Array, ratio: float = 0.75) -> Array:
  """The floor(ratio D) dimensions of lowest salience, lowest first.

  Args:
    salience: [D].
    ratio: share of the dimensions, 0 to 1.

  Returns:
    int32, one entry per dimension removed; the first of equal ones goes first.

  Raises:
    ValueError: if the ratio is no share.

  Reference: Xue et al., https://arxiv.org/abs/2206.06487.
  """
  checks.between("least_salient", "ratio", ratio, 0.0, 1.0)
  count = int(np.floor(ratio * salience.shape[0]))
  return jnp.argsort(salience)[:count].astype(jnp.int32)
