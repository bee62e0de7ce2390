"""Optimal transport with an entropy term, and the losses made of it.

Notation: C is a cost [N, M], a and b are the masses of its rows and columns,
and the plan P moves a to b. Sinkhorn's iterations scale the rows and then the
columns of exp(-C / eps); here they run on logarithms, so that eps may be as
small as the precision of C / eps allows.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.divergence import exp
from jaxkd.losses.logits import kept
from jaxkd.losses.softmax import at_least_float32, log_probabilities

Array = jax.Array


def sinkhorn(
  cost: Array,
  *,
  eps: float = 0.1,
  iterations: int = 20,
  source: Array | None = None,
  target: Array | None = None,
) -> Array:
  """Transport plan of Sinkhorn's iterations.

    P_ij = exp(f_i + g_j - C_ij / eps), where every iteration sets
    f_i = log a_i - log sum_j exp(g_j - C_ij / eps), then
    g_j = log b_j - log sum_i exp(f_i - C_ij / eps)

  The last step is that of the columns: they have the target's masses exactly
  and the rows have the source's only in the limit. The iterations are a scan
  of fixed length through which gradients flow, both to the cost and to the
  masses; its memory grows with the iterations. To treat the plan as a constant
  put `stop_gradient` around it.

  Args:
    cost: C, [..., N, M]; infinite where nothing may be moved.
    eps: above 0; the smaller, the closer to unregularised transport, and the
      more iterations it takes.
    iterations: at least 1.
    source: a, [..., N], at least 0; 1 / N each by default.
    target: b, [..., M], of the same total; 1 / M each by default.

  Returns:
    [..., N, M], float32 at least; 0 in rows and columns without mass.

  Raises:
    ValueError: if shapes do not fit or a number is out of range.

  Needs: a cost; access white; batch level.
  Checked: 2018cx/SinKD@1ffac901; RUCAIBox/LC-Rec@e6f1b3b.
  Reference: Cuturi, https://arxiv.org/abs/1306.0895, Alg. 1.
  """
  checks.positive("sinkhorn", "eps", eps)
  checks.positive("sinkhorn", "iterations", iterations)
  if cost.ndim < 2:
    raise ValueError(f"sinkhorn: cost {cost.shape}; expected [..., N, M]")
  kernel = -at_least_float32(cost) / eps
  log_a = _log_masses("source", source, cost.shape[:-1])
  log_b = _log_masses("target", target, cost.shape[:-2] + cost.shape[-1:])

  def step(potentials, _):
    _, g = potentials
    f = _difference(log_a, _log_sum(kernel + g[..., None, :], -1))
    g = _difference(log_b, _log_sum(kernel + f[..., None], -2))
    return (f, g), None

  start = (jnp.zeros_like(log_a), jnp.zeros_like(log_b))
  (f, g), _ = jax.lax.scan(step, start, length=iterations)
  return exp(f[..., None] + g[..., None, :] + kernel)


def _log_masses(
  name: str, masses: Array | None, shape: tuple[int, ...]
) -> Array:
  """Logarithms of the masses, -inf where there is none."""
  if masses is None:
    return jnp.full(shape, -jnp.log(shape[-1]))
  if masses.shape != shape:
    raise ValueError(f"sinkhorn: {name} {masses.shape}; expected {shape}")
  some = masses > 0
  safe = jnp.where(some, at_least_float32(masses), 1.0)
  return jnp.where(some, jnp.log(safe), -jnp.inf)


def _log_sum(x: Array, axis: int) -> Array:
  """Log of a sum of exponentials; 0, with no gradient, where all are -inf."""
  largest = stop_gradient(jnp.max(x, axis, keepdims=True))
  largest = jnp.where(jnp.isneginf(largest), 0.0, largest)
  total = jnp.sum(jnp.exp(x - largest), axis)
  return jnp.log(jnp.where(total > 0, total, 1.0)) + largest.squeeze(axis)


def _difference(log_mass: Array, log_total: Array) -> Array:
  """What a potential becomes; -inf where there is no mass."""
  some = log_mass > -jnp.inf
  return jnp.where(some, jnp.where(some, log_mass, 0.0) - log_total, -jnp.inf)


def _probabilities(
  loss: str,
  student: Array,
  teacher: Array,
  temperature: float,
  where: Array | None,
) -> tuple[Array, Array]:
  """Checked q and p; uniform where `where` is not true."""
  checks.temperature(loss, temperature)
  checks.logits(loss, student, teacher)
  q, p = (
    exp(log_probabilities(checks.masked(loss, logits, where), temperature))
    for logits in (student, teacher)
  )
  return q, p


def batch_transport(
  student: Array,
  teacher: Array,
  *,
  temperature: float = 2.0,
  eps: float = 0.1,
  iterations: int = 20,
  mean: bool = False,
  where: Array | None = None,
) -> Array:
  """Sinkhorn distance between the batches of predictions (SinKD).

    T^2 sum_ij P_ij D_ij, D_ij = sum_c |q_ic - p_jc|,
    P = B sinkhorn(D), q and p softmax of logits / T

  Rows are the student's examples and columns the teacher's, every one of mass
  1: the sum grows with the batch. It does not depend on the order of the
  teacher's examples, so it cannot say which one has which label: use it beside
  a loss that does. Gradients flow through D and through the iterations. The
  paper's code has no T^2: its weight of 0.001 at T = 2 is 0.00025 of this.

  Args:
    student: logits, [B, C].
    teacher: logits, [B, C].
    temperature: T, above 0.
    eps: of `sinkhorn`.
    iterations: of `sinkhorn`.
    mean: whether the sum is divided by the number of examples.
    where: [B], examples that are not true are left out on both sides.

  Returns:
    A scalar: total variation has the half of this unit, times T^2.

  Raises:
    ValueError: if shapes differ or a number is out of range.

  Needs: logits; access white; batch level.
  Checked: 2018cx/SinKD@1ffac901.
  Reference: Cui et al. (SinKD), https://arxiv.org/abs/2402.17110.
  """
  checks.rank("batch_transport", "logits", student, "B C")
  q, p = _probabilities("batch_transport", student, teacher, temperature, where)
  gap = q[:, None] - p[None]
  # The gradient of abs is 1 at 0, that of this 0.
  distance = jnp.sum(gap * jnp.sign(gap), axis=-1)
  masses = jnp.ones(len(q)) if where is None else where.astype(bool) * 1.0
  plan = sinkhorn(
    distance, eps=eps, iterations=iterations, source=masses, target=masses
  )
  total = temperature**2 * jnp.sum(plan * distance)
  return total / jnp.maximum(masses.sum(), 1) if mean else total


def class_transport(
  student: Array,
  teacher: Array,
  cost: Array,
  *,
  temperature: float = 2.0,
  eps: float = 0.1,
  iterations: int = 20,
  where: Array | None = None,
) -> Array:
  """Sinkhorn distance between two predictions, moved from class to class.

    T^2 sum_cd P_cd C_cd, P = sinkhorn(C, source=q, target=p),
    q and p softmax of logits / T

  The form per example, beside `batch_transport`: a class that is close to the
  right one costs less than one that is far. Because of the entropy term it is
  above 0 at p = q, the more so the larger eps is.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    cost: of moving mass from class c to class d, [C, C], at least 0.
    temperature: T, above 0.
    eps: of `sinkhorn`, in the unit of the cost.
    iterations: of `sinkhorn`.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], the unit of the cost times T^2.

  Raises:
    ValueError: if shapes differ or a number is out of range.

  Needs: logits, a cost between classes; access white; per example.
  Checked: property tests only.
  Reference: Cuturi, https://arxiv.org/abs/1306.0895, Eq. 2.
  """
  classes = student.shape[-1]
  if cost.shape != (classes, classes):
    raise ValueError(
      f"class_transport: cost {cost.shape}; expected {(classes, classes)}, "
      "from class to class"
    )
  q, p = _probabilities("class_transport", student, teacher, temperature, where)
  cost = jnp.broadcast_to(at_least_float32(cost), (*q.shape, classes))
  plan = sinkhorn(cost, eps=eps, iterations=iterations, source=q, target=p)
  moved = jnp.where(plan > 0, cost, 0.0) * plan
  values = temperature**2 * jnp.sum(moved, axis=(-2, -1))
  return kept(values, where)


def balanced_assignment(
  cost: Array, *, eps: float = 0.003, iterations: int = 50
) -> Array:
  """Assigns every item to a code so that all codes are about equally used.

    argmax_k P_ik, P = sinkhorn(C / scale), C centred to [-1, 1]

  Plain nearest codes collide where items crowd; the plan's columns have equal
  masses. Two items may still get the same code.

  Args:
    cost: such as squared distances of items and codes, [N, K].
    eps: above 0, in units of half the range of the cost.
    iterations: at least 1.

  Returns:
    Code numbers, int32 [N].

  Raises:
    ValueError: if the cost is no matrix or a number is out of range.

  Needs: distances; access white; batch level.
  Checked: RUCAIBox/LC-Rec@e6f1b3b.
  Reference: Zheng et al. (LC-Rec), https://arxiv.org/abs/2311.09049.
  """
  checks.rank("balanced_assignment", "cost", cost, "N K")
  plan = sinkhorn(centred(cost), eps=eps, iterations=iterations)
  return jnp.argmax(plan, axis=-1).astype(jnp.int32)


def centred(cost: Array) -> Array:
  """The cost moved and scaled to [-1, 1], which makes eps a pure number.

    (C - middle) / (max - middle + 1e-5), middle = (max + min) / 2

  Args:
    cost: C, [...].

  Returns:
    [...], float32 at least.
  """
  cost = at_least_float32(cost)
  highest, lowest = cost.max(), cost.min()
  middle = (highest + lowest) / 2
  return (cost - middle) / (highest - middle + 1e-5)
