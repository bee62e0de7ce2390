"""Losses of networks that have to work with any subset of modalities.

Notation: M modalities, B examples, K classes.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxkd.losses import checks, rows
from jaxkd.losses.logits import cross_entropy
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def entropy_weights(logits: Array, keep: Array) -> Array:
  """Entropies of softmax(logits), divided by their sum over the batch.

    w_i = H_i / sum_j H_j

  Args:
    logits: [B, K].
    keep: [B], 1 for examples that count.

  Returns:
    [B]; 0 where all are certain.
  """
  log_p = jax.nn.log_softmax(rows.flat(logits, keep))
  entropy = -keep * jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
  return rows.over(entropy, jnp.sum(entropy))


def margin_aware(
  student: Array,
  teacher: Array,
  teacher_logits: Array,
  *,
  weights: Literal["rows", "columns"] = "rows",
  halves: bool = False,
  where: Array | None = None,
) -> Array:
  """Margin-aware distillation: similar examples, where the teacher doubts.

    sum_i w_i sum_j (G^S_ij - G^T_ij)^2,
    G_i = g_i / |g_i|, g_ij = <f_i, f_j>, w_i = H(p_i) / sum_j H(p_j)

  p is the softmax of the teacher's logits and H its entropy. The released code
  puts w on the columns j for classification. For segmentation (every pixel an
  example) it cuts the columns into two halves, the first n // 2 and the rest,
  and divides the rows of each by their own lengths.

  Args:
    student: features f, [B, ...].
    teacher: features, [B, ...].
    teacher_logits: [B, K].
    weights: what w weighs: rows, as the paper says, or columns.
    halves: whether rows are normalised in two halves.
    where: [B], examples that count; halves are those without the others.

  Returns:
    Scalar, without unit.

  Raises:
    ValueError: if the batches differ or the option is not known.

  Needs: features, logits; access white; batch level.
  Checked: shicaiwei123/MMANet@c330689; formula.
  Reference: Wei et al. (MMANet), https://arxiv.org/abs/2304.08028.
  """
  name = "margin_aware"
  ours, theirs, keep = rows.both(name, student, teacher, where)
  rows.both(name, teacher, teacher_logits, where)
  checks.one_of(name, "weights", weights, ("rows", "columns"))
  w = entropy_weights(teacher_logits, keep)
  parts = [keep]
  if halves:
    order = rows.compacted(keep)
    ours, theirs, w, keep = (x[order] for x in (ours, theirs, w, keep))
    first = jnp.arange(len(keep)) < jnp.sum(keep) // 2
    parts = [keep * first, keep * ~first]
  square = sum(
    (rows.unit_gram(ours, part) - rows.unit_gram(theirs, part)) ** 2
    for part in parts
  )
  square = square * keep[:, None] * keep[None]
  return jnp.sum((w[:, None] if weights == "rows" else w[None]) * square)


def modality_aware(
  student: Array,
  labels: Array,
  drawn: Array,
  weak: Array,
  *,
  broadcast: bool = False,
  where: Array | None = None,
) -> Array:
  """Modality-aware regularisation: classify more where modalities are weak.

    sum_{c of weak} [m_i = c] CE(z_i, y_i)

  z are the logits of an auxiliary head on the same masked features. In the
  released code the selection has axes too many and every selected example adds
  the mean over the whole batch; `broadcast` is that.

  Args:
    student: logits z of the auxiliary head, [B, K].
    labels: y, integers, [B].
    drawn: modalities that were kept, 0 or 1, [B, M].
    weak: combinations to regularise, [W, M]: the one that
      `combination_divergence` found, and its single modalities.
    broadcast: whether each example's term counts once for each of the batch
      that is selected.
    where: [B], examples that count.

  Returns:
    [B], nats; with `broadcast` they depend on each other.

  Raises:
    ValueError: if the shapes do not fit.

  Needs: logits, labels; access text; per example.
  Checked: shicaiwei123/MMANet@c330689.
  Reference: Wei et al. (MMANet), https://arxiv.org/abs/2304.08028.
  """
  name = "modality_aware"
  checks.rank(name, "logits", student, "B K")
  checks.labels(name, labels, student.shape[:1])
  checks.same(name, drawn=drawn[0], weak=weak[0])
  keep = rows.counted(name, where, len(student))
  labels = jnp.where(keep > 0, labels, 0)
  matches = jnp.all(drawn[:, None] == weak[None], axis=-1)
  selected = keep * jnp.sum(matches, axis=1)
  if broadcast:
    selected = jnp.broadcast_to(jnp.sum(selected), selected.shape)
  return keep * selected * cross_entropy(rows.flat(student, keep), labels)


def combination_divergence(
  predicted: Array, full: Array, classes: int
) -> Array:
  """How far labels predicted from some modalities are from those of all.

    KL(softmax(v) || softmax(v_full)), v_k = share of the examples with label k

  Summed over epochs, the largest is the weak combination of MMANet. Frequencies
  go through a softmax as in its code.

  Args:
    predicted: labels from each combination, integers, [W, N].
    full: labels from all modalities, integers, [N].
    classes: K.

  Returns:
    [W], nats.

  Reference: Wei et al. (MMANet), https://arxiv.org/abs/2304.08028.
  """
  v, v_full = (
    jnp.mean(jax.nn.one_hot(x, classes), axis=-2) for x in (predicted, full)
  )
  return kl(jnp.broadcast_to(v_full[None], v.shape), v)


def cosines(x: Array) -> Array:
  """Cosines of all pairs of rows: [K, D] -> [K, K].

    <x_k, x_l> / (|x_k| |x_l|)

  Args:
    x: [K, D].

  Returns:
    [K, K].
  """
  x = rows.unit(x)
  return x @ x.T


def reference_cosines(x: Array, reference: Array) -> Array:
  """Cosines of M vectors of an example with one reference.

    <x_m, r> / (|x_m| |r|)

  Args:
    x: [B, M, D].
    reference: r, [B, D].

  Returns:
    [B, M].
  """
  return jnp.sum(rows.unit(x) * rows.unit(reference)[:, None], axis=-1)


def inter_modal_correlation(
  student: Array,
  teacher: Array,
  scene: Array,
  *,
  temperature: float = 1.0,
  where: Array | None = None,
) -> Array:
  """Inter-modal correlation: modalities relate as their embeddings do.

    T^2 KL(softmax_m(cos(E_m, E) / T) || softmax_m(cos(f_m, mean_m f_m) / T))

  E_m embeds what modality m shows, E a description of the scene. The paper's
  divergence is not public; this is a reading.

  Args:
    student: features f_m of each modality, [B, M, ...].
    teacher: embeddings E_m, [B, M, D].
    scene: embedding E, [B, D].
    temperature: T, above 0.
    where: [B], examples that count.

  Returns:
    [B], nats times T^2.

  Raises:
    ValueError: if the shapes do not fit, or T is not above 0.

  Needs: features, embeddings of inputs and text; access white; per example.
  Checked: formula.
  Reference: Zheng et al. (Any2Seg), https://arxiv.org/abs/2407.11351, Eq. 1-2.
  """
  name = "inter_modal_correlation"
  checks.rank(name, "teacher", teacher, "B M D")
  checks.same(name, scene=scene, teacher=teacher[:, 0])
  features = student.reshape(*student.shape[:2], -1)
  checks.same(name, student=features[..., 0], teacher=teacher[..., 0])
  keep = rows.counted(name, where, len(student))

  f, e = (
    jnp.where(keep[:, None, None] > 0, at_least_float32(x), 0.0)
    for x in (features, teacher)
  )
  given = reference_cosines(e, rows.flat(scene, keep))
  ours = reference_cosines(f, jnp.mean(f, axis=1))
  return kl(ours, given, temperature=temperature, where=keep)


def class_prototypes(
  features: Array, labels: Array, classes: int, keep: Array | None = None
) -> tuple[Array, Array]:
  """Mean feature of all places of the batch that have a class.

    c_k = mean of f over the places with y = k

  Args:
    features: f, [B, *places, C].
    labels: y, integers, [B, *places]; outside 0..K-1 for places left out.
    classes: K.
    keep: [B], 1 for examples that count.

  Returns:
    [K, C] and which classes there are, bool [K]; the others are 0.
  """
  y = labels
  if keep is not None:
    y = jnp.where(keep.reshape(-1, *(1,) * (y.ndim - 1)) > 0, y, classes)
  y = y.reshape(-1)
  y = jnp.where((y >= 0) & (y < classes), y, classes)
  f = rows.flat(features.reshape(len(y), -1), (y < classes) * 1.0)
  total = jax.ops.segment_sum(f, y, classes + 1)[:classes]
  count = jnp.bincount(y, length=classes + 1)[:classes]
  return rows.over(total, count[:, None].astype(f.dtype)), count > 0


def prototype_correlation(
  student: Array,
  embeddings: Array,
  labels: Array,
  *,
  squared: bool = False,
  where: Array | None = None,
) -> Array:
  """Intra-modal correlation: classes relate as the embeddings of their names.

    mean_k KL(softmax_l(cos(E_k, E_l)) || softmax_l(cos(c_k, c_l))),
    c_k = mean feature of the places of class k in the batch

  over the classes that are in the batch. The paper's divergence is not public;
  with `squared` it is mean_kl (cos(c_k, c_l) - cos(E_k, E_l))^2.

  Args:
    student: features, [B, *places, C].
    embeddings: of the names of the classes, [K, D].
    labels: integers, [B, *places]; outside 0..K-1 for places left out.
    squared: whether the squared difference takes the place of the KL.
    where: [B], examples that count.

  Returns:
    Scalar, nats, or without unit.

  Raises:
    ValueError: if the shapes do not fit or labels are no integers.

  Needs: features, labels, embeddings of the classes; access white; batch level.
  Checked: formula.
  Reference: Zheng et al. (Any2Seg), https://arxiv.org/abs/2407.11351, Eq. 3-5.
  """
  name = "prototype_correlation"
  checks.labels(name, labels, student.shape[:-1])
  checks.rank(name, "embeddings", embeddings, "K D")
  keep = rows.counted(name, where, len(student))
  c, there = class_prototypes(student, labels, len(embeddings), keep)
  ours, theirs = cosines(c), cosines(at_least_float32(embeddings))
  there = there.astype(jnp.float32)
  if squared:
    return rows.mean((ours - theirs) ** 2, there[:, None] * there[None])
  ours, theirs = (
    jnp.where(there[None] > 0, x, -jnp.inf) for x in (ours, theirs)
  )
  return rows.mean(kl(ours, theirs, where=there), there)
