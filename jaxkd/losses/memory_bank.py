"""Contrastive representation distillation against banks of all examples.

Notation: n training examples, d features, e^S_i and e^T_i the embeddings of
example i, rows of length 1; m^S, m^T the banks [n, d]; K negatives per
example, tau the temperature.

All B n products of embeddings with a bank are computed and K + 1 of each row
read, which takes less memory than to gather [B, K + 1, d] unless n exceeds
K d. For negatives from the batch alone use `info_nce` with the labels as its
groups.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.lax import stop_gradient

from jaxkd.losses import checks, rows

Array = jax.Array


@struct.dataclass
class MemoryBank:
  """What CRD remembers: arrays, to be kept with the training state.

  Attributes:
    student: m^S, [n, d].
    teacher: m^T, [n, d].
    student_log_z: log Z of the student's embeddings against m^T, a scalar.
    teacher_log_z: log Z of the teacher's embeddings against m^S, a scalar.
    ready: whether both Z are fixed, a scalar.
  """

  student: Array
  teacher: Array
  student_log_z: Array
  teacher_log_z: Array
  ready: Array

  @classmethod
  def create(cls, key: Array, examples: int, features: int) -> MemoryBank:
    """Banks before the first batch, uniform in +-1 / sqrt(d / 3).

    Args:
      key: of the two banks.
      examples: n.
      features: d.

    Returns:
      Banks whose rows are not yet of length 1, and no Z.
    """
    bound = 1 / math.sqrt(features / 3)
    student, teacher = jax.random.uniform(
      key, (2, examples, features), minval=-bound, maxval=bound
    )
    zero = jnp.zeros(())
    return cls(student, teacher, zero, zero, jnp.zeros((), bool))


def crd_negatives(
  key: Array,
  labels: Array,
  all_labels: Array,
  *,
  count: int = 16384,
  replace: bool = False,
) -> Array:
  """Positions of random examples of other classes.

  Each row is drawn uniformly from the examples with another label; without
  replacement, but for examples that have fewer than `count` others, which draw
  with it. Drawing without replacement sorts [B, n] numbers.

  Args:
    key: of the draw.
    labels: of the batch, integers, [B].
    all_labels: of the training set in the order of the banks, integers, [n].
    count: K, at least 1.
    replace: whether all draw with replacement, which is cheap.

  Returns:
    int32 [B, K]; where all examples are of one class, arbitrary positions.

  Raises:
    ValueError: if labels are no integers, or count is below 1.
  """
  checks.labels("crd_negatives", labels, labels.shape[:1])
  checks.labels("crd_negatives", all_labels, all_labels.shape[:1])
  checks.positive("crd_negatives", "count", count)
  many, few = jax.random.split(key)
  n, batch = len(all_labels), len(labels)
  order = jnp.argsort(all_labels)
  start, stop = (
    jnp.searchsorted(all_labels[order], labels, side=side)[:, None]
    for side in ("left", "right")
  )
  others = n - (stop - start)
  drawn = jax.random.randint(many, (batch, count), 0, jnp.maximum(others, 1))
  drawn = drawn + jnp.where(drawn >= start, stop - start, 0)
  repeated = order[jnp.minimum(drawn, n - 1)].astype(jnp.int32)
  if replace or count > n:
    return repeated
  height = jax.random.uniform(few, (batch, n))
  height = jnp.where(labels[:, None] == all_labels[None], -1.0, height)
  distinct = jax.lax.top_k(height, count)[1].astype(jnp.int32)
  return jnp.where(others >= count, distinct, repeated)


def bank_scores(bank: Array, embedding: Array, picked: Array) -> Array:
  """Inner products <m_j, e_i> of the rows of a bank that are picked.

  All [B, n] of them are computed. The bank gets no gradient.

  Args:
    bank: m, [n, d].
    embedding: e, [B, d].
    picked: positions j in the bank, integers, [B, P].

  Returns:
    [B, P].
  """
  products = embedding @ stop_gradient(bank).T
  return jnp.take_along_axis(products, picked, axis=1)


def noise_contrastive(log_ratio: Array) -> Array:
  """Which of the columns is the right one, the first.

    log(1 + 1 / r_0) + sum_{k > 0} log(1 + r_k)

  Args:
    log_ratio: log r, of a column's probability to K times that of noise,
      [B, K + 1].

  Returns:
    [B], nats.
  """
  own = jax.nn.softplus(-log_ratio[:, 0])
  return own + jnp.sum(jax.nn.softplus(log_ratio[:, 1:]), axis=1)


def _updated(
  bank: Array, embedding: Array, index: Array, keep: Array, momentum: float
) -> Array:
  """The bank with the rows of the batch moved and brought to length 1."""
  moved = momentum * bank[index] + (1 - momentum) * embedding
  index = jnp.where(keep > 0, index, len(bank))  # beyond the end: dropped
  row = rows.unit(moved).astype(bank.dtype)
  return stop_gradient(bank.at[index].set(row, mode="drop"))


def crd(
  student: Array,
  teacher: Array,
  bank: MemoryBank,
  index: Array,
  negatives: Array,
  *,
  temperature: float = 0.07,
  momentum: float = 0.5,
  where: Array | None = None,
) -> tuple[Array, MemoryBank]:
  """Contrastive representation distillation (CRD) and the new banks.

    l(e^S, m^T) + l(e^T, m^S),
    l(e, m) = log(1 + c / P_i) + sum_{k of K negatives} log(1 + P_k / c),
    P_j = exp(<m_j, e_i> / tau) / Z, c = K / n

  that is, -log P_i / (P_i + c) - sum_k log c / (P_k + c): noise-contrastive
  estimation of which of K + 1 rows of the other network's bank is the
  example's own. Each Z is n times the mean of its exponentials in the first
  batch, a constant from then on. After the scores the rows of the batch become
  normalise(momentum old + (1 - momentum) e); of an index that is twice in the
  batch one row stays. Banks and Z get no gradient, both embeddings do: the
  teacher's embedding layer is trained too. Released code adds 1e-7 to the
  denominators.

  Args:
    student: embeddings e^S, [B, d], rows of length 1 as of `UnitEmbedding`.
    teacher: embeddings e^T, [B, d], likewise.
    bank: `MemoryBank`.
    index: i, positions of the batch in the training set, integers, [B].
    negatives: positions of other examples, integers, [B, K]; `crd_negatives`.
    temperature: tau, above 0.
    momentum: of the banks, 0 to 1.
    where: [B], examples that count.

  Returns:
    [B], nats, and the banks after the batch.

  Raises:
    ValueError: if shapes do not fit or a number is out of range.

  Needs: features, memory, labels for the negatives; access white; per example.
  Checked: Gray-OREO/MST-Distill@093b2fe; megvii-research/mdistiller@a08d46f.
  Reference: Tian et al., https://arxiv.org/abs/1910.10699.
  """
  student, teacher, keep = rows.pair("crd", student, teacher, where)
  _check(student, bank, index, negatives, temperature, momentum)
  index = jnp.where(keep > 0, index, 0)
  picked = jnp.concatenate([index[:, None], negatives], axis=1)
  side = functools.partial(_side, picked, temperature, keep, bank.ready)
  ours, student_log_z = side(student, bank.teacher, bank.student_log_z)
  theirs, teacher_log_z = side(teacher, bank.student, bank.teacher_log_z)
  after = MemoryBank(
    _updated(bank.student, student, index, keep, momentum),
    _updated(bank.teacher, teacher, index, keep, momentum),
    student_log_z,
    teacher_log_z,
    bank.ready | (jnp.sum(keep) > 0),
  )
  return keep * (ours + theirs), after


def _check(
  embedding: Array,
  bank: MemoryBank,
  index: Array,
  negatives: Array,
  temperature: float,
  momentum: float,
) -> None:
  checks.temperature("crd", temperature)
  checks.between("crd", "momentum", momentum, 0, 1)
  checks.labels("crd", index, embedding.shape[:1])
  checks.rank("crd", "negatives", negatives, "B K")
  checks.same("crd", banks=bank.teacher[0], embeddings=embedding[0])


def _side(
  picked: Array,
  temperature: float,
  keep: Array,
  ready: Array,
  embedding: Array,
  memory: Array,
  log_z: Array,
) -> tuple[Array, Array]:
  """One direction: the values of its examples, and its log Z."""
  scores = bank_scores(memory, embedding, picked) / temperature
  first = _log_mean(scores, keep, len(memory))
  log_z = stop_gradient(jnp.where(ready, log_z, first))
  log_c = math.log((picked.shape[1] - 1) / len(memory))
  return noise_contrastive(scores - log_z - log_c), log_z


def _log_mean(scores: Array, keep: Array, examples: int) -> Array:
  """log(n mean exp(scores)) over the rows that count; 0 if none does."""
  scores = stop_gradient(scores)
  counted = jnp.sum(keep) > 0
  weights = jnp.broadcast_to(
    jnp.where(counted, keep, 1.0)[:, None], scores.shape
  )
  total = jax.nn.logsumexp(scores, b=weights)
  log_z = total - jnp.log(jnp.sum(weights)) + math.log(examples)
  return jnp.where(counted, log_z, 0.0)
