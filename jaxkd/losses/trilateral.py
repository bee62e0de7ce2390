"""A teacher's share for every example, read from the geometry of predictions.

Notation: S and T are the probabilities of student and teacher, G the label as
a one-hot vector, and M (a class's mean) what the teacher gives to the label's
class on average. They are the corners of a figure; its sides are squared
differences and its angles products of differences, both class by class.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks, rows
from jaxkd.losses.logits import cross_entropy, kept, kept_labels
from jaxkd.losses.modalities import class_prototypes
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array
StateOption = Literal[
  "geometry",
  "probabilities",
  "distances",
  "angles",
  "probabilities_angles",
  "distances_angles",
  "all",
  "sg_tg",
  "sg_tg_st",
]

_CORNERS = ("S", "T", "G", "M")
_SIDES = ("MS", "GS", "TS")
_ANGLES = ("MSG", "TSG")
# Two letters: (X - Y)^2. Three, the corner in the middle: (X - Y) (Z - Y).
STATES: dict[str, tuple[str, ...]] = {
  "geometry": (*_CORNERS, *_SIDES, "TG", "MG"),
  "probabilities": _CORNERS,
  "distances": _SIDES,
  "angles": _ANGLES,
  "probabilities_angles": (*_CORNERS, *_ANGLES),
  "distances_angles": (*_SIDES, *_ANGLES),
  "all": (*_CORNERS, *_SIDES, *_ANGLES),
  "sg_tg": ("S", "T", "G", "GS", "TG"),
  "sg_tg_st": ("S", "T", "G", "GS", "TS", "TG"),
}


def class_mean_probabilities(
  teacher: Array, labels: Array, *, where: Array | None = None
) -> Array:
  """The teacher's mean probabilities of each class's examples.

    M_k = mean of softmax(t_i) over the examples with y_i = k

  All examples count, whether the teacher is right on them or not.

  Args:
    teacher: logits t of the whole training split, [N, C].
    labels: y, integers in 0..C-1, [N].
    where: [N], examples that count.

  Returns:
    [C, C], a row for each class; 0 for classes without an example.

  Raises:
    ValueError: if the labels do not fit the logits.

  Reference: Hu et al. (TGeo-KD), https://arxiv.org/abs/2312.15112.
  """
  name = "class_mean_probabilities"
  checks.rank(name, "teacher", teacher, "N C")
  checks.labels(name, labels, teacher.shape[:1])
  keep = rows.counted(name, where, len(teacher))
  p = jax.nn.softmax(rows.flat(teacher, keep), axis=-1)
  return class_prototypes(p, labels, teacher.shape[-1], keep)[0]


def trilateral_state(
  student: Array,
  teacher: Array,
  labels: Array,
  class_means: Array,
  *,
  option: StateOption = "geometry",
) -> Array:
  """What a controller sees of an example: corners, sides and angles.

    [S, T, G, M, (M-S)^2, (G-S)^2, (T-S)^2, (T-G)^2, (M-G)^2]

  for `geometry`, the released choice. The others of the code: `probabilities`
  (corners), `distances` (the sides at S), `angles`, which are (M-S) (G-S) and
  (T-S) (G-S), and these together. Of the paper's ablation: `sg_tg` lacks M and
  the side between S and T, `sg_tg_st` lacks M alone. The student is a constant.

  Args:
    student: logits, [B, C].
    teacher: logits, [B, C].
    labels: integers in 0..C-1, [B].
    class_means: from `class_mean_probabilities`, [C, C].
    option: which of them, in the order of `STATES`.

  Returns:
    [B, n C], float32 at least; n = 9 for `geometry`.

  Raises:
    ValueError: if the shapes do not fit or the option is not known.

  Reference: Hu et al. (TGeo-KD), https://arxiv.org/abs/2312.15112.
  """
  name = "trilateral_state"
  checks.logits(name, student, teacher)
  checks.labels(name, labels, student.shape[:-1])
  checks.one_of(name, "option", option, tuple(STATES))
  classes = student.shape[-1]
  if class_means.shape != (classes, classes):
    raise ValueError(
      f"{name}: class_means {class_means.shape}; expected "
      f"{(classes, classes)}, a row for each class"
    )
  corners = {
    "S": stop_gradient(jax.nn.softmax(at_least_float32(student), axis=-1)),
    "T": jax.nn.softmax(at_least_float32(teacher), axis=-1),
    "G": jax.nn.one_hot(labels, classes),
    "M": class_means[labels],
  }
  parts = [_part(corners, letters) for letters in STATES[option]]
  return jnp.concatenate(parts, axis=-1)


def _part(corners: dict[str, Array], letters: str) -> Array:
  """A corner, a side or an angle, [B, C]."""
  x, *rest = (corners[letter] for letter in letters)
  if not rest:
    return x
  y, z = rest if len(rest) == 2 else (rest[0], x)
  return (x - y) * (z - y)


def trilateral_kd(
  student: Array,
  teacher: Array,
  labels: Array,
  teacher_share: Array,
  *,
  temperature: float = 1.5,
  ce_on_probabilities: bool = False,
  where: Array | None = None,
) -> Array:
  """Distillation with a teacher's share of its own for every example.

    a_i T^2 KL(softmax(t_i / T) || softmax(z_i / T)) + (1 - a_i) CE(z_i, y_i)

  Gradient reaches the share: a controller learns through a step of the student
  on this loss.

  Args:
    student: logits z, [B, C].
    teacher: logits t, [B, C].
    labels: y, integers in 0..C-1, [B].
    teacher_share: a, 0 to 1, [B].
    temperature: T, above 0.
    ce_on_probabilities: whether the cross entropy takes softmax(z) for its
      logits, as the released code does.
    where: [B], examples that count.

  Returns:
    [B], nats.

  Raises:
    ValueError: if the shapes do not fit or T is not above 0.

  Needs: logits, labels; access white; per example.
  Checked: Chengming0501/TGeo-KD@5a69cbe; formula.
  Reference: Hu et al. (TGeo-KD), https://arxiv.org/abs/2312.15112.
  """
  name = "trilateral_kd"
  checks.logits(name, student, teacher)
  checks.temperature(name, temperature)
  labels = kept_labels(name, labels, student, where)
  checks.same(name, teacher_share=teacher_share, labels=labels)
  student, teacher = (checks.masked(name, x, where) for x in (student, teacher))
  share = kept(at_least_float32(teacher_share), where)
  logits = student
  if ce_on_probabilities:
    logits = jax.nn.softmax(at_least_float32(student), axis=-1)
  task = cross_entropy(logits, labels)
  distilled = kl(student, teacher, temperature=temperature)
  return kept(share * distilled + (1 - share) * task, where)
