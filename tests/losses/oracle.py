"""The divergences in float64 NumPy, value and gradient, from the formulas.

Nothing here uses JAX or the package: probabilities of all classes are there at
once, sums are plain sums, and every derivative is written out. p is the
teacher, q the student; a divergence gives D and h_c = q_c dD/dq_c, of which
the gradient of logits is h - q sum(h).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

Array = np.ndarray


def _log(x: Array) -> Array:
  return np.log(np.where(x > 0, x, 1.0))


def kl(p: Array, q: Array) -> tuple[Array, Array]:
  return np.sum(p * (_log(p) - _log(q)), -1), -p


def reverse_kl(p: Array, q: Array) -> tuple[Array, Array]:
  ratio = _log(q) - _log(p)
  return np.sum(q * ratio, -1), q * (ratio + 1)


def symmetric_kl(p, q, *, w=0.5):
  (a, ha), (b, hb) = kl(p, q), reverse_kl(p, q)
  return (1 - w) * a + w * b, (1 - w) * ha + w * hb


def jsd(p, q, *, beta=0.5, share=None):
  share = beta if share is None else share
  m = share * p + (1 - share) * q
  teacher, student = p * (_log(p) - _log(m)), q * (_log(q) - _log(m))
  over = q / np.where(m > 0, m, 1.0)
  value = np.sum(beta * teacher + (1 - beta) * student, -1)
  by_m = -(1 - share) * over * (beta * p + (1 - beta) * q)
  return value, by_m + (1 - beta) * (student + q)


def skew_kl(p, q, *, alpha=0.1):
  m = alpha * p + (1 - alpha) * q
  h = -(1 - alpha) * p * q / np.where(m > 0, m, 1.0)
  return np.sum(p * (_log(p) - _log(m)), -1), h


def skew_reverse_kl(p, q, *, alpha=0.1):
  m = (1 - alpha) * p + alpha * q
  terms = q * (_log(q) - _log(m))
  h = terms + q - alpha * q * q / np.where(m > 0, m, 1.0)
  return np.sum(terms, -1), h


def adaptive_kl(p, q, *, mass=0.5):
  """Heads are grown class by class from the sorted probabilities."""
  head = np.zeros(p.shape, bool)
  for row, chosen in zip(
    p.reshape(-1, p.shape[-1]), head.reshape(-1, p.shape[-1]), strict=True
  ):
    for least in sorted(set(row), reverse=True):
      if row[row >= least].sum() > mass and least < row.max():
        break
      chosen[row >= least] = True
  gap = np.abs(p - q)
  total = gap.sum(-1)
  w = (gap * head).sum(-1) / np.where(total > 0, total, 1.0)
  (a, ha), (b, hb) = kl(p, q), reverse_kl(p, q)
  return w * a + (1 - w) * b, w[..., None] * ha + (1 - w[..., None]) * hb


def total_variation(p, q):
  return np.abs(p - q).sum(-1) / 2, -0.5 * np.sign(p - q) * q


def alpha_divergence(p, q, *, a=0.5):
  power = _power(p, q, a)
  return (power.sum(-1) - 1) / (a * (a - 1)), -power / a


def renyi(p, q, *, a=0.5):
  power = _power(p, q, a)
  total = power.sum(-1, keepdims=True)
  return np.log(total[..., 0]) / (a - 1), -power / total


def _power(p, q, a):
  both = (p > 0) & (q > 0)
  return np.where(both, np.exp(a * _log(p) + (1 - a) * _log(q)), 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What every form takes; the caps are student and teacher."""

  temperature: float | Array = 1.0
  caps: tuple[float | None, float | None] = (None, None)
  standardize: bool = False
  vocab_size: int | None = None


Formula = Callable[[Array, Array], tuple[Array, Array]]


def dense(
  formula: Formula, student: Array, teacher: Array, options: Options
) -> tuple[Array, Array]:
  """T^2 D and its gradient with respect to the student's logits.

  Args:
    formula: one of the functions above.
    student: logits, [..., C].
    teacher: logits, [..., C].
    options: of both.

  Returns:
    [...] and [..., C]; rows whose classes are all at -inf give 0.
  """
  t = np.asarray(options.temperature, np.float64)[..., None]
  q, back = _probabilities(student, options, options.caps[0])
  p, _ = _probabilities(teacher, options, options.caps[1])
  value, h = formula(p, q)
  some = (p.sum(-1) > 0) & (q.sum(-1) > 0)
  gradient = back(t * (h - q * h.sum(-1, keepdims=True)))
  value = np.where(some, t[..., 0] ** 2 * value, 0.0)
  return value, np.where(some[..., None], gradient, 0.0)


def topk(
  formula: Formula,
  student: Array,
  ids: Array,
  log_probs: Array,
  options: Options,
  *,
  bucket: bool = True,
) -> tuple[Array, Array]:
  """The same of k classes, and of the others as one if `bucket`.

  Args:
    formula: one of the functions above.
    student: logits, [N, C].
    ids: [N, k].
    log_probs: [N, k]; -inf was not returned.
    options: no standardization.
    bucket: whether the classes outside count.

  Returns:
    [N] and [N, C].
  """
  t = float(options.temperature)
  untempered = dataclasses.replace(options, temperature=1.0)
  q, back = _probabilities(student, untempered, options.caps[0])
  values, gradients = np.zeros(len(q)), np.zeros(q.shape)
  for n, (chosen, given) in enumerate(zip(ids, log_probs, strict=True)):
    chosen, given = chosen[given > -np.inf], given[given > -np.inf]
    outside = np.ones(q.shape[1], bool)
    outside[chosen] = False
    p_slots, slots = np.exp(given.astype(np.float64)), q[n, chosen]
    rest = q[n, outside].sum()
    if bucket and rest > 0:
      slots = np.append(slots, rest)
      p_slots = np.append(p_slots, max(1 - p_slots.sum(), 2.0**-23))
    if not len(slots):
      continue
    r, p_slots = (x ** (1 / t) / np.sum(x ** (1 / t)) for x in (slots, p_slots))
    value, h = formula(p_slots[None], r[None])
    by_slot = t * (h[0] - r * h[0].sum())  # of log slots, sums to 0
    over = by_slot / np.where(slots > 0, slots, 1.0)
    values[n] = t**2 * value[0]
    if len(slots) > len(chosen):
      gradients[n, outside] = over[-1]
    gradients[n, chosen] = over[: len(chosen)]
    gradients[n] = q[n] * (gradients[n] - by_slot.sum())
  return values, back(gradients)


def _probabilities(logits, options, cap):
  """Softmax of what the options make of logits, and its chain rule."""
  raw = np.asarray(logits, np.float64)
  here = raw > -np.inf
  if options.vocab_size is not None:
    here &= np.arange(raw.shape[-1]) < options.vocab_size
  z = np.where(here, raw, 0.0)
  slope = np.where(here, 1.0, 0.0)
  if cap is not None:
    slope = slope * (1 - np.tanh(z / cap) ** 2)
    z = cap * np.tanh(z / cap)
  scale = None
  if options.standardize:
    count = here.sum(-1, keepdims=True)
    z = here * (z - (here * z).sum(-1, keepdims=True) / np.maximum(count, 1))
    variance = (z**2).sum(-1, keepdims=True) / np.maximum(count - 1, 1)
    std = np.sqrt(variance)
    scale = 1 / (std + 1e-7)
    z = z * scale
  y = z / np.asarray(options.temperature, np.float64)[..., None]
  top = np.where(here, y, -np.inf).max(-1, keepdims=True)
  exps = np.where(here, np.exp(y - np.where(top > -np.inf, top, 0.0)), 0.0)
  mass = exps.sum(-1, keepdims=True)

  def back(g):
    if scale is not None:
      n = np.maximum(count, 1)
      along = (g * z).sum(-1, keepdims=True) * z / np.maximum(count - 1, 1)
      # d(1 / (std + eps)) = -scale^2 d(std), and d(std) = z' dz / ((n-1) std).
      ratio = np.where(std > 0, 1 / (scale * np.where(std > 0, std, 1.0)), 0.0)
      g = here * scale * (g - g.sum(-1, keepdims=True) / n - along * ratio)
    return g * slope

  return exps / np.where(mass > 0, mass, 1.0), back
