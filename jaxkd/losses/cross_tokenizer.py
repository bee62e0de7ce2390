"""Distillation between tokenizers: unequal vocabularies, unequal lengths.

Three steps, each a function: which positions belong together (`align_answers`
by order, or `byte_groups` and `merge_tokens` by the text they cover), what
distribution stands at each, and how two distributions over different
vocabularies are compared (`uld`, `sorted_distance`).

  student, teacher, where = align_answers(
    student_logits, teacher_logits, student_where, teacher_where
  )
  values = uld(student, teacher, where=where)          # [B, L]

`student_where` and `teacher_where` are the positions that predict the answer,
`predicts(roles, Position.ANSWER)`. Libraries differ by one position: TRL's
"observed" reads the logits at the answer's tokens, which predict the next one.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.losses import checks
from jaxkd.losses.divergence import exp
from jaxkd.losses.logits import kept
from jaxkd.losses.softmax import at_least_float32, log_probabilities

Array = jax.Array


def uld(
  student: Array,
  teacher: Array,
  *,
  temperature: float = 1.0,
  teacher_temperature: float | None = None,
  where: Array | None = None,
) -> Array:
  """Universal logit distillation: the distance of sorted probabilities.

    sum_i |q_(i) - p_(i)|, q_(1) >= q_(2) >= ... and p likewise,
    q = softmax(z_S / T_S), p = softmax(z_T / T_T)

  The vocabularies may differ in size, the smaller is filled up with 0. It is
  the optimal transport distance if any two tokens cost the same, and sees how
  sure the teacher is, not of what. There is no factor T^2, for there are two T.

  Args:
    student: logits z_S, [..., V].
    teacher: logits z_T, [..., V'].
    temperature: T_S, above 0.
    teacher_temperature: T_T, above 0; T_S by default.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], 0 to 2, no unit.

  Raises:
    ValueError: if positions differ in shape or a temperature is not above 0.

  Needs: logits; access white; per example.
  Checked: Nicolas-BZRD/llm-recipes@ab6e7980; huggingface/trl@f2cd5771.
  Reference: Boizard et al. (ULD), https://arxiv.org/abs/2402.12030.
  """
  checks.white("uld", teacher)
  if teacher_temperature is None:
    teacher_temperature = temperature
  checks.temperature("uld", temperature)
  checks.temperature("uld", teacher_temperature)
  q, p = (
    exp(log_probabilities(checks.masked("uld", logits, where), divide))
    for logits, divide in (
      (student, temperature),
      (teacher, teacher_temperature),
    )
  )
  return sorted_distance(q, p, where=where)


def sorted_distance(
  student: Array, teacher: Array, *, where: Array | None = None
) -> Array:
  """The distance of sorted masses, whatever they sum to.

    sum_i |q_(i) - p_(i)|

  Args:
    student: q, at least 0, [..., V].
    teacher: p, at least 0, [..., V'].
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], no unit.

  Raises:
    ValueError: if positions differ in shape.

  Needs: probabilities; access white; per example.
  Checked: huggingface/trl@f2cd5771.
  Reference: Boizard et al. (ULD), https://arxiv.org/abs/2402.12030.
  """
  if student.shape[:-1] != teacher.shape[:-1]:
    raise ValueError(
      f"uld: student {student.shape}, teacher {teacher.shape}; expected one "
      "shape but for the last axis"
    )
  most = max(student.shape[-1], teacher.shape[-1])
  q, p = (
    _descending(at_least_float32(checks.masked("uld", x, where)), most)
    for x in (student, teacher)
  )
  gap = q - p
  # The gradient of abs is 1 at 0, that of this 0.
  return kept(jnp.sum(gap * jnp.sign(gap), axis=-1), where)


def _descending(masses: Array, count: int) -> Array:
  """The largest first, filled up with 0."""
  masses = jnp.flip(jnp.sort(masses, axis=-1), axis=-1)
  missing = count - masses.shape[-1]
  return jnp.pad(masses, [(0, 0)] * (masses.ndim - 1) + [(0, missing)])


def align_answers(
  student: Array, teacher: Array, student_where: Array, teacher_where: Array
) -> tuple[Array, Array, Array]:
  """Moves both answers to the front, so that the i-th positions meet.

  Args:
    student: logits, [..., L, V].
    teacher: logits, [..., L', V'].
    student_where: [..., L], the positions of the answer.
    teacher_where: [..., L'].

  Returns:
    Logits [..., N, V] and [..., N, V'] with N = min(L, L'), and [..., N] where
    both have a position.

  Raises:
    ValueError: if a mask does not have the shape of its positions.
  """
  checks.same("align_answers", positions=student[..., 0], where=student_where)
  checks.same("align_answers", positions=teacher[..., 0], where=teacher_where)
  most = min(student.shape[-2], teacher.shape[-2])
  (student, of_student), (teacher, of_teacher) = (
    _to_front(logits, where.astype(bool), most)
    for logits, where in ((student, student_where), (teacher, teacher_where))
  )
  return student, teacher, of_student & of_teacher


def _to_front(logits: Array, where: Array, most: int) -> tuple[Array, Array]:
  order = jnp.argsort(~where, axis=-1, stable=True)[..., :most]
  moved = jnp.take_along_axis(logits, order[..., None], axis=-2)
  return moved, jnp.take_along_axis(where, order, axis=-1)


def byte_groups(
  student_ends: np.ndarray,
  teacher_ends: np.ndarray,
  student_where: np.ndarray,
  teacher_where: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Groups the tokens of two tokenizers that cover the same text (on the host).

  A group ends where a token of both ends at the same byte. What is left after
  the last common end is a group too, unless one side has nothing left.

  Args:
    student_ends: byte at which each token of the text ends, integers [B, L].
    teacher_ends: [B, L'].
    student_where: [B, L], the tokens of the text.
    teacher_where: [B, L'].

  Returns:
    Number of the group of every token, from 0, and -1 for those that have no
    partner or are not of the text; int32 [B, L] and [B, L'].

  Raises:
    ValueError: if shapes do not fit.
  """
  checks.same("byte_groups", ends=student_ends, where=student_where)
  checks.same("byte_groups", ends=teacher_ends, where=teacher_where)
  groups = tuple(
    np.full(ends.shape, -1, np.int32) for ends in (student_ends, teacher_ends)
  )
  for row in range(len(student_ends)):
    ours = np.flatnonzero(student_where[row])
    theirs = np.flatnonzero(teacher_where[row])
    groups[0][row, ours], groups[1][row, theirs] = _common_ends(
      student_ends[row, ours], teacher_ends[row, theirs]
    )
  return groups


def _common_ends(
  ours: np.ndarray, theirs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Groups of one text: whichever token ends first, its side goes on."""
  first, second = np.zeros_like(ours), np.zeros_like(theirs)
  i = j = group = 0
  while i < len(ours) and j < len(theirs):
    first[i] = second[j] = group
    gap = ours[i] - theirs[j]
    i, j, group = i + (gap <= 0), j + (gap >= 0), group + (gap == 0)
  first[i:] = second[j:] = group
  if group not in first or group not in second:
    first, second = (np.where(x == group, -1, x) for x in (first, second))
  return first, second


def merge_tokens(
  probabilities: Array,
  ids: Array,
  groups: Array,
  count: int,
  *,
  keep: Literal["first", "last"] = "last",
) -> tuple[Array, Array]:
  """One distribution for every group of tokens.

    m_g(c) = p_k(c) prod_{t in g, t != k} p_t(id_t), k the kept token

  The others count with the probability of the token that is there, so that the
  row has the joint probability at the text's own token and sums to less than
  1. "last" keeps the distribution of the group's last token given the others;
  "first" that of the first, of which the rest is only right for one.

  Args:
    probabilities: p, [..., L, V].
    ids: the tokens whose probabilities they are, integers [..., L].
    groups: numbers as `byte_groups` gives them, [..., L].
    count: how many groups to make room for, such as min(L, L').
    keep: which token's distribution stands.

  Returns:
    [..., count, V], 0 for a group that no token has, and whether one has it,
    [..., count].

  Raises:
    ValueError: if shapes do not fit or `keep` is neither.
  """
  checks.one_of("merge_tokens", "keep", keep, ("first", "last"))
  checks.labels("merge_tokens", ids, probabilities.shape[:-1])
  checks.labels("merge_tokens", groups, probabilities.shape[:-1])
  numbers = jnp.arange(count).reshape((1,) * groups.ndim + (count,))
  member = groups[..., None] == numbers  # [..., L, G]
  grouped = groups >= 0
  probabilities = checks.masked("merge_tokens", probabilities, grouped)
  safe = jnp.where(grouped, ids, 0)[..., None]
  here = jnp.take_along_axis(probabilities, safe, axis=-1)
  if keep == "first":
    place = jnp.argmax(member, axis=-2)
  else:
    length = member.shape[-2]
    place = length - 1 - jnp.argmax(jnp.flip(member, -2), axis=-2)
  kept_token = jnp.expand_dims(jnp.arange(member.shape[-2]), -1)
  kept_token = kept_token.reshape((1,) * (groups.ndim - 1) + kept_token.shape)
  other = member & (kept_token != place[..., None, :])
  factor = jnp.prod(jnp.where(other, here, 1.0), axis=-2)  # [..., G]
  rows = jnp.take_along_axis(probabilities, place[..., None], axis=-2)
  there = member.any(-2)
  merged = rows * factor[..., None]
  return jnp.where(there[..., None], merged, 0.0), there
