"""Losses of the single activations of a map, each with its own target.

Notation as in `maps`: s and t are the entries of the student's and the
teacher's map at one place and channel. AB and OFD read maps before their ReLU,
as do the weights of their stages: with several stages, shallow first, stage i
of n counts 2^-(n-1-i).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.stats import norm as normal

from jaxkd.losses import checks
from jaxkd.losses.maps import (
  fitnet,
  keep_examples,
  mean_of_example,
  norm,
  prepared,
)
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array
Stages = Array | Sequence[Array]


def _total(x: Array) -> Array:
  """Sum over all but the first axis."""
  return jnp.sum(x, tuple(range(1, x.ndim)))


def as_stages(loss: str, **stages: Stages) -> tuple[list[Array], ...]:
  """Lists of stages of equal lengths; an array is the list of itself."""
  lists = {
    name: list(value) if isinstance(value, list | tuple) else [value]
    for name, value in stages.items()
  }
  lengths = {len(value) for value in lists.values()}
  if len(lengths) > 1 or 0 in lengths:
    given = ", ".join(f"{len(stages)} of {n}" for n, stages in lists.items())
    raise ValueError(f"{loss}: {given}; expected as many stages, at least one")
  return tuple(lists.values())


def _per_channel(loss: str, name: str, x: Array, feature: Array) -> Array:
  """Numbers [C] of the channels of a feature, to be broadcast with it."""
  if x.shape != feature.shape[-1:]:
    raise ValueError(
      f"{loss}: {name} {x.shape}; expected {feature.shape[-1:]}, one number "
      "per channel"
    )
  return at_least_float32(x).reshape((1,) * (feature.ndim - 1) + (-1,))


def _deepest_most(values: Sequence[Array]) -> Array:
  """sum_i 2^-(n-1-i) value_i: every stage counts half of the next."""
  last = len(values) - 1
  return sum(value * 2.0 ** (i - last) for i, value in enumerate(values))


def activation_boundary(
  student: Stages,
  teacher: Stages,
  *,
  margin: float = 1.0,
  where: Array | None = None,
) -> Array:
  """Activation boundary (AB): the student's neurons fire where the teacher's.

    sum (s + m)^2 [t <= 0, s > -m] + (s - m)^2 [t > 0, s <= m]

  over all places and channels of the maps before their ReLU. RepDistiller
  multiplies by 3/1000.

  Args:
    student: [B, *spatial, C], or the maps of several stages.
    teacher: [B, *spatial', C], or as many.
    margin: m, above 0.
    where: [B].

  Returns:
    [B], a sum over places and channels.

  Raises:
    ValueError: if axes, examples, channels or numbers of stages differ.

  Needs: maps, taps of stages; access white; per example.
  Checked: HobbitLong/RepDistiller@b84f547;
    yoshitomo-matsubara/torchdistill@3e4373c.
  Reference: Heo et al., https://arxiv.org/abs/1811.03233.
  """
  name = "activation_boundary"
  checks.positive(name, "margin", margin)
  values = []
  stages = as_stages(name, student=student, teacher=teacher)
  for s, t in zip(*stages, strict=True):
    s, t = prepared(name, s, t, where)
    below, above = jnp.minimum(s - margin, 0), jnp.maximum(s + margin, 0)
    value = _total(jnp.where(t > 0, below, above) ** 2)
    values.append(keep_examples(value, where))
  return _deepest_most(values)


def ofd(
  student: Stages,
  teacher: Stages,
  margin: Stages,
  *,
  where: Array | None = None,
) -> Array:
  """Overhaul of feature distillation (OFD): partial squared distance.

    sum (s - r)^2 without the entries where s <= r <= 0,  r = max(t, m_c)

  over all places and channels of maps before their ReLU. The student's map
  comes through a trained `nets.Connector`; m_c < 0 is the channel's margin,
  `ofd_margin` of the teacher's batch norm. The paper weighs the sum by 1e-3.

  Args:
    student: [B, *spatial, C], or the maps of several stages.
    teacher: [B, *spatial', C], or as many.
    margin: m, [C], or as many.
    where: [B].

  Returns:
    [B], a sum over places and channels.

  Raises:
    ValueError: if axes, examples, channels or numbers of stages differ.

  Needs: maps, taps of stages; access white; per example.
  Checked: megvii-research/mdistiller@a08d46f.
  Reference: Heo et al., https://arxiv.org/abs/1904.01866.
  """
  values = []
  stages = as_stages("ofd", student=student, teacher=teacher, margin=margin)
  for s, t, m in zip(*stages, strict=True):
    s, t = prepared("ofd", s, t, where)
    target = jnp.maximum(t, _per_channel("ofd", "margin", m, s))
    counts = (s > target) | (target > 0)
    value = _total(jnp.where(counts, s - target, 0.0) ** 2)
    values.append(keep_examples(value, where))
  return _deepest_most(values)


def ofd_margin(scale: Array, bias: Array) -> Array:
  """Expected value of a channel where it is negative, from its batch norm.

    m = E[x | x < 0] = bias - s phi(bias / s) / Phi(-bias / s),  s = |scale|

  for x ~ N(bias, s^2); -3 s where P(x < 0) <= 1e-3.

  Args:
    scale: of the batch norm before the ReLU, [C].
    bias: of the same, [C].

  Returns:
    [C], margins for `ofd`.

  Raises:
    ValueError: if the shapes differ.

  Reference: Heo et al., https://arxiv.org/abs/1904.01866.
  """
  checks.same("ofd_margin", scale=scale, bias=bias)
  s = jnp.abs(at_least_float32(scale))
  mean = at_least_float32(bias)
  z = mean / jnp.where(s > 0, s, 1.0)
  negative = jnp.where(s > 0, normal.cdf(-z), jnp.where(mean < 0, 1.0, 0.0))
  often = negative > 1e-3
  safe = jnp.where(often, negative, 1.0)
  return jnp.where(often, mean - s * normal.pdf(z) / safe, -3 * s)


def vid(
  student: Array,
  teacher: Array,
  variance: Array,
  *,
  where: Array | None = None,
) -> Array:
  """Variational information distillation (VID): a Gaussian of the teacher.

    mean_i ((mu_i - t_i)^2 / v_c + ln v_c) / 2

  the negative log-likelihood, without its constant, of the teacher's map under
  a mean mu read off the student's map and a variance v per channel, both
  trained: `nets.VIDRegressor`, which returns the three arguments.

  Args:
    student: mu, [B, *spatial, C].
    teacher: t, [B, *spatial', C].
    variance: v, above 0, [C].
    where: [B].

  Returns:
    [B], nats per entry of the map.

  Raises:
    ValueError: if axes, examples or channels differ.

  Needs: maps; access white; per example.
  Checked: HobbitLong/RepDistiller@b84f547.
  Reference: Ahn et al., https://arxiv.org/abs/1904.05835.
  """
  mu, t = prepared("vid", student, teacher, where)
  v = _per_channel("vid", "variance", variance, mu)
  value = mean_of_example((mu - t) ** 2 / v + jnp.log(v)) / 2
  return keep_examples(value, where)


def disagreement(
  student: Array, teacher: Array, *, where: Array | None = None
) -> Array:
  """How much two networks disagree on an example, as a weight.

    w = sigmoid(||z_S - z_T + 1e-6||_2), in [1/2, 1)

  Args:
    student: logits z_S, [B, C].
    teacher: logits z_T, [B, C].
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if the shapes differ.

  Reference: Tang et al., KD3, https://arxiv.org/abs/2307.11469.
  """
  checks.logits("disagreement", student, teacher)
  gap = keep_examples(student, where) - keep_examples(teacher, where)
  return keep_examples(jax.nn.sigmoid(norm(gap + 1e-6)), where)


def weighted_alignment(
  student: Array,
  teacher: Array,
  student_logits: Array,
  teacher_logits: Array,
  *,
  where: Array | None = None,
) -> Array:
  """Alignment of features, the more the networks disagree (KD3).

    w mean_i (P(f^S)_i - f^T_i)^2,  w = disagreement(z_S, z_T)

  The weight is a constant of the gradient. P is `nets.SimKDTransfer`.

  Args:
    student: P(f^S), [B, *spatial, C].
    teacher: f^T, [B, *spatial', C].
    student_logits: z_S, [B, K].
    teacher_logits: z_T, [B, K].
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if axes, examples, channels or classes differ.

  Needs: features, logits; access white; per example.
  Checked: tangjialiang97/KD3@91e2d4c.
  Reference: Tang et al., KD3, https://arxiv.org/abs/2307.11469.
  """
  checks.features("weighted_alignment", student, teacher, where)
  checks.logits("weighted_alignment", student_logits, teacher_logits)
  weight = disagreement(student_logits, teacher_logits, where=where)
  return stop_gradient(weight) * fitnet(student, teacher, where=where)
