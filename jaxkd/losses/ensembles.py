"""Several teachers, or several networks that teach each other.

The two means give logits that stand in the place of one teacher's: any loss of
teacher logits takes them. The mean of the losses to the single teachers is the
third way: with fixed weights KL then has the gradient of `probability_mean`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from jaxkd.losses import checks
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.softmax import at_least_float32, log_probabilities

Array = jax.Array


def _weights(loss: str, teachers: Array, weights: Array | None) -> Array:
  """Weights [K, ..., 1] that sum to 1 over the teachers [K, ..., C]."""
  if weights is None:
    weights = jnp.ones(teachers.shape[:1])
  if weights.shape not in (teachers.shape[:1], teachers.shape[:-1]):
    raise ValueError(
      f"{loss}: weights {weights.shape} of teachers {teachers.shape}; expected "
      f"{teachers.shape[:1]}, or one per example, {teachers.shape[:-1]}"
    )
  weights = at_least_float32(weights)
  weights = weights / jnp.sum(weights, 0, keepdims=True)
  return weights.reshape(weights.shape + (1,) * (teachers.ndim - weights.ndim))


def probability_mean(
  teachers: Array,
  *,
  weights: Array | None = None,
  temperature: float = 1.0,
) -> Array:
  """Logits of the mean of the teachers' probabilities at T.

    T log sum_k w_k softmax(t_k / T)

  Their softmax at the same T is the mean, so that they go into a loss with
  that T; at T = 1 they are log-probabilities.

  Args:
    teachers: logits t, [K, ..., C].
    weights: w, [K] or one per example [K, ...], at least 0; they are divided by
      their sum. Equal if not given.
    temperature: T, above 0.

  Returns:
    [..., C], float32 at least.

  Raises:
    ValueError: if the weights do not fit or T is not above 0.

  Reference: Hinton et al., https://arxiv.org/abs/1503.02531, Sec. 2.
  """
  checks.temperature("probability_mean", temperature)
  w = _weights("probability_mean", teachers, weights)
  log_p = log_probabilities(teachers, temperature)
  somewhere = jnp.any((log_p > -jnp.inf) & (w > 0), axis=0)
  safe = jnp.where(somewhere, log_p, 0.0)
  mean = logsumexp(safe, axis=0, b=jnp.broadcast_to(w, safe.shape))
  return temperature * jnp.where(somewhere, mean, -jnp.inf)


def logit_mean(teachers: Array, *, weights: Array | None = None) -> Array:
  """Mean of the teachers' logits, the geometric mean of their probabilities.

    sum_k w_k t_k

  Its softmax at any T is the normalised geometric mean of the teachers' softmax
  at that T. A class at -inf in one of them (of weight above 0) is so in the
  mean.

  Args:
    teachers: logits t, [K, ..., C].
    weights: w, [K] or one per example [K, ...], at least 0; they are divided by
      their sum. Equal if not given.

  Returns:
    [..., C], float32 at least.

  Raises:
    ValueError: if the weights do not fit.

  Reference: Hinton et al., https://arxiv.org/abs/1503.02531, Sec. 2.
  """
  w = _weights("logit_mean", teachers, weights)
  t = at_least_float32(teachers)
  return jnp.sum(jnp.where(w > 0, w * jnp.where(w > 0, t, 0.0), 0.0), 0)


def mutual_kl(
  networks: Array,
  *,
  temperature: float = 1.0,
  where: Array | None = None,
) -> Array:
  """Mean KL of every network to each of the others (deep mutual learning).

    L_k = T^2 / (K - 1) sum_{j != k} KL(softmax(z_j / T) || softmax(z_k / T))

  The others' predictions z_j are constants: no gradient. The authors' code sums
  over the others (times K - 1).

  Args:
    networks: logits z, [K, ..., C], 2 networks or more.
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [K, ...], nats times T^2.

  Raises:
    ValueError: if there are fewer than 2 networks or T is not above 0.

  Needs: logits; access white; per example.
  Checked: formula.
  Reference: Zhang et al. (DML), https://arxiv.org/abs/1706.00384.
  """
  count = networks.shape[0]
  if count < 2:
    raise ValueError(
      f"mutual_kl: networks {networks.shape}; expected [K, ..., C] with 2 "
      "networks or more"
    )
  checks.where("mutual_kl", where, networks.shape[1:-1])
  everywhere = (count, count, *networks.shape[1:])
  own = jnp.broadcast_to(networks[:, None], everywhere)
  others = jnp.broadcast_to(stop_gradient(networks)[None], everywhere)
  if where is not None:
    where = jnp.broadcast_to(where, everywhere[:-1])
  values = kl(own, others, temperature=temperature, where=where)
  return jnp.sum(values, axis=1) / (count - 1)
