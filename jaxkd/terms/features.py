"""Terms of submodule outputs, with trained projectors between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.network import Network
from jaxkd.terms.term import Term, View, teacher_of

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features(Term):
  """A loss of submodule outputs, one pair of places after the other.

  Projectors are trained beside the student. They read `student`, `teacher` or
  both, the features of a pair. What `projector` returns takes the place of the
  student's feature; a tuple is all that the loss is given.

  Attributes:
    student: paths in the student.
    teacher: as many paths in the teacher.
    of: the teacher's role; the first one if not given.
    projector: of the student's feature, one for every pair.
    teacher_projector: of the teacher's feature, one for every pair.
    together: whether projectors and the loss take the lists of all pairs.
  """

  student: tuple[str, ...]
  teacher: tuple[str, ...]
  of: str = ""
  projector: Network | None = None
  teacher_projector: Network | None = None
  together: bool = False

  def __post_init__(self):
    """Checks the pairs and the projectors' inputs."""
    super().__post_init__()
    for field in ("student", "teacher"):
      value = getattr(self, field)
      if isinstance(value, str):
        object.__setattr__(self, field, (value,))
    if len(self.student) != len(self.teacher) or not self.student:
      raise ConfigError(
        f"term {self.name!r}: student={self.student}, teacher={self.teacher}; "
        "expected as many paths of both, at least one"
      )
    for network in (self.projector, self.teacher_projector):
      for name in network.inputs if network else ():
        if name not in ("student", "teacher"):
          raise ConfigError(
            f"term {self.name!r}: projector input {name!r}"
            + did_you_mean(name, ("student", "teacher"))
            + "; it is given the features 'student' and 'teacher'"
          )

  @property
  def roles(self) -> Mapping[str, Network]:
    """The projectors of every pair."""
    found = {}
    for number in range(1 if self.together else len(self.student)):
      for network, name in zip(
        (self.projector, self.teacher_projector),
        self._projectors(number),
        strict=True,
      ):
        found |= {name: network} if network else {}
    return found

  def _projectors(self, number: int) -> tuple[str, str]:
    return tuple(
      f"{self.name}_{kind}_{number + 1}"
      for kind in ("projector", "teacher_projector")
    )

  def reads(self, teacher: str, first: str) -> tuple[str, ...]:
    """Its paths in its teacher."""
    return self.teacher if teacher == (self.of or first) else ()

  def value(self, view: View) -> Array:
    """The loss of all pairs, or the sum over them."""
    return sum(self.call(view, *arrays) for arrays in self.arrays(view))

  def arrays(self, view: View) -> list[tuple[Any, ...]]:
    """What the loss is given, for every pair or for all of them at once."""
    name = self.of or next(iter(view.teachers), "teacher")
    seen = teacher_of(self.name, view, name)
    ours = [view.student.taps[path] for path in self.student]
    theirs = [seen.taps[path] for path in self.teacher]
    if self.together:
      return [self._projected(view, 0, ours, theirs)]
    return [
      self._projected(view, number, *pair)
      for number, pair in enumerate(zip(ours, theirs, strict=True))
    ]

  def _projected(self, view, number, student, teacher):
    given = {"student": student, "teacher": teacher}
    own, others = self._projectors(number)
    if self.teacher_projector:
      teacher = view.nets[others](given).value
    if self.projector:
      student = view.nets[own](given).value
      if isinstance(student, tuple):
        return student
    return student, teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast(Features):
  """Contrast against all examples: CRD and its memory bank.

  Both features go through projectors to rows of length 1. The bank holds the
  embeddings of every example, and the labels seen so far, so that negatives are
  of other classes from the second epoch on.

  Attributes:
    examples: of the training split.
    features: size of the embeddings.
    negatives: drawn for every example, with replacement.
  """

  loss: Callable[..., Any] = losses.crd
  examples: int
  features: int = 128
  negatives: int = 16384

  def __post_init__(self):
    """Checks that there are projectors and one pair."""
    super().__post_init__()
    both = self.projector and self.teacher_projector
    if not both or len(self.student) != 1 or self.together:
      raise ConfigError(
        f"term {self.name!r}: expected one pair of features, a projector and a "
        "teacher_projector, such as UnitEmbedding"
      )

  @property
  def labelled(self) -> bool:
    """Negatives are of other classes."""
    return True

  @property
  def memory(self) -> Mapping[str, Any]:
    """An empty bank: its rows are drawn at the first step."""
    key = jax.random.key(0)
    bank = losses.MemoryBank.create(key, self.examples, self.features)
    unseen = jnp.full((self.examples,), -1, jnp.int32)
    return {self.name: {"bank": bank, "labels": unseen}}

  def evaluate(self, view: View) -> tuple[Array, Mapping[str, Any]]:
    """The loss, and the bank after the batch."""
    kept = view.nets.memory[self.name]
    index, label = view.batch["index"], view.batch["label"]
    mask = view.batch["mask"].astype(bool)
    bank = jax.lax.cond(
      kept["bank"].ready,
      lambda _: kept["bank"],
      lambda key: losses.MemoryBank.create(key, self.examples, self.features),
      view.nets.key(f"{self.name}/bank"),
    )
    rows = jnp.where(mask, index, self.examples)  # beyond the end: dropped
    labels = kept["labels"].at[rows].set(label, mode="drop")
    negatives = losses.crd_negatives(
      view.nets.key(f"{self.name}/negatives"),
      label,
      labels,
      count=self.negatives,
      replace=True,
    )
    ((student, teacher),) = self.arrays(view)
    value, bank = self.call(view, student, teacher, bank, index, negatives)
    return value, {self.name: {"bank": bank, "labels": labels}}
