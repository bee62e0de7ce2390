"""Which examples of a pool get a label next.

U examples in the pool, L with labels, C classes, Q to pick. Every function
gives positions in the pool, int32 [min(Q, U)], in the order of picking; of
equal examples the first one. All are jittable with `count` static, and keep
O(U) numbers beside their arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd.losses import rows

Array = jax.Array
Distances = Callable[[Array, Array], Array]  # [U, D], [D] -> [U]


def euclidean(points: Array, centre: Array) -> Array:
  """Returns the distances of points [U, D] from one centre [D]."""
  return rows.root(jnp.sum((points - centre[None]) ** 2, axis=-1))


def k_centre(
  pool: Array, centres: Array, *, count: int, distances: Distances = euclidean
) -> tuple[Array, Array]:
  """Picks again and again what is farthest from all centres.

    i = argmax_u min_c d(x_u, c); x_i becomes a centre

  Args:
    pool: x, [U, D].
    centres: the first ones, [L, D]; without any, the first pick is the pool's
      first example.
    count: Q.
    distances: d, from every point to one centre.

  Returns:
    Positions [min(Q, U)], and how far each pick was from the nearest centre.

  Reference: Sener and Savarese, https://arxiv.org/abs/1708.00489, Algorithm 1.
  """
  pool = jnp.asarray(pool)
  nearest, _ = jax.lax.scan(
    lambda d, centre: (jnp.minimum(d, distances(pool, centre)), None),
    jnp.full(len(pool), jnp.inf),
    centres,
  )
  return _greedy(nearest, lambda i: distances(pool, pool[i]), count)


def probability_coreset(pool: Array, labelled: Array, *, count: int) -> Array:
  """Covers the space of the student's probabilities (PCoreSet).

  `k_centre` from the labelled examples' predictions, not from their labels.

  Args:
    pool: probabilities p, [U, C].
    labelled: probabilities that the same student gives to the labelled
      examples, [L, C].
    count: Q.

  Returns:
    Positions, [min(Q, U)].

  Reference: Kang et al. (PCoreSet), https://arxiv.org/abs/2506.00910.
  """
  return k_centre(pool, labelled, count=count)[0]


def feature_coreset(pool: Array, labelled: Array, *, count: int) -> Array:
  """Covers the space of the student's features, by their cosines.

  Args:
    pool: features, [U, D].
    labelled: features of the labelled examples, [L, D].
    count: Q.

  Returns:
    Positions, [min(Q, U)].

  Reference: Sener and Savarese, https://arxiv.org/abs/1708.00489.
  """
  pool, labelled = rows.unit(pool), rows.unit(labelled)
  distances = lambda points, centre: 1 - points @ centre
  return k_centre(pool, labelled, count=count, distances=distances)[0]


def uncertainty(pool: Array, *, count: int, eps: float = 1e-10) -> Array:
  """Picks the predictions with the largest entropy.

    -sum_c p_c log(p_c + eps)

  Args:
    pool: probabilities p, [U, C].
    count: Q.
    eps: bounds the logarithm.

  Returns:
    Positions, [min(Q, U)].
  """
  entropy = -jnp.sum(pool * jnp.log(pool + eps), axis=-1)
  return _least(count, -entropy)


def badge(pool: Array, features: Array, *, count: int) -> Array:
  """Picks gradients of the last layer that point in different directions.

    g = (onehot(argmax p) - p) f^T, 1 - cos(g_i, g_j) apart

  `k_centre` that starts with the longest gradient. No gradient is formed: the
  cosine of two is that of their factors, multiplied.

  Args:
    pool: probabilities p, [U, C].
    features: f, [U, D].
    count: Q.

  Returns:
    Positions, [min(Q, U)].

  Reference: Ash et al. (BADGE), https://arxiv.org/abs/1906.03671; farthest
    points in place of its random ones, as PCoreSet compares with.
  """
  error = jax.nn.one_hot(jnp.argmax(pool, -1), pool.shape[-1]) - pool
  length = jnp.linalg.norm(error, axis=-1) * jnp.linalg.norm(features, axis=-1)
  error, features = rows.unit(error), rows.unit(features)
  apart = lambda i: 1 - (error @ error[i]) * (features @ features[i])
  # No two are more than 2 apart, so that the longest one is the first pick.
  nearest = jnp.full(len(pool), 2.0).at[jnp.argmax(length)].set(jnp.inf)
  return _greedy(nearest, apart, count)[0]


def class_balanced(
  key: Array, pool: Array, labels: Array, *, count: int
) -> Array:
  """Picks at random within predicted classes, more where labels are few.

  A predicted class with n labels has a quota proportional to 1 / (n + 1),
  rounded down; what is left goes, one each, to the classes with fewest labels.
  Where a class has too few examples, any others take their places.

  Args:
    key: of the random draws.
    pool: probabilities p, [U, C].
    labels: of the labelled examples, integers [L].
    count: Q.

  Returns:
    Positions, [min(Q, U)].
  """
  classes = pool.shape[-1]
  predicted = jnp.argmax(pool, axis=-1)
  size = jnp.bincount(predicted, length=classes)
  weight = (size > 0) / (jnp.bincount(labels, length=classes) + 1)
  quota = jnp.floor(count * weight / jnp.sum(weight) + 1e-4).astype(int)
  turn = jnp.argsort(jnp.argsort(-weight, stable=True), stable=True)
  quota += (turn < count - jnp.sum(quota)) & (size > 0)
  noise = jax.random.uniform(key, predicted.shape)
  order = jnp.lexsort((noise, predicted))
  first = jnp.cumsum(size) - size
  place = jnp.arange(len(pool)) - first[predicted[order]]
  place = jnp.zeros_like(place).at[order].set(place)  # within the class
  return _least(count, noise, place >= quota[predicted])


def at_random(key: Array, size: int, *, count: int) -> Array:
  """Picks without looking.

  Args:
    key: of the random draws.
    size: U.
    count: Q.

  Returns:
    Positions, [min(Q, U)].
  """
  return jax.random.permutation(key, size)[:count].astype(jnp.int32)


def _greedy(
  nearest: Array, distances_from: Callable[[Array], Array], count: int
) -> tuple[Array, Array]:
  """Picks the farthest again and again.

  Args:
    nearest: distance of every example from the nearest centre, [U].
    distances_from: position -> the distances of all from that example, [U].
    count: Q.
  """
  count = min(count, len(nearest))

  def pick(turn: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    nearest, picked, distance = state
    chosen = jnp.argmax(nearest)
    picked = picked.at[turn].set(chosen.astype(jnp.int32))
    distance = distance.at[turn].set(nearest[chosen])
    nearest = jnp.minimum(nearest, distances_from(chosen))
    return nearest.at[chosen].set(-jnp.inf), picked, distance

  empty = jnp.zeros(count, jnp.int32), jnp.zeros(count)
  return jax.lax.fori_loop(0, count, pick, (nearest, *empty))[1:]


def _least(count: int, *keys: Array) -> Array:
  """Positions of the least values; the last key decides first."""
  return jnp.lexsort(keys)[:count].astype(jnp.int32)
