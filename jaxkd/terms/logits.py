"""Terms of logits: against labels, against teachers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.schedules import at
from jaxkd.terms.term import Term, View, teacher_of

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels(Term):
  """A loss of the student's logits and of labels: cross entropy.

  Attributes:
    of: the teacher whose most probable class is the label; the data's label
      if not given.
  """

  loss: Callable[..., Array] = losses.cross_entropy
  of: str = ""

  @property
  def taught(self) -> bool:
    """Labels of the data need no teacher."""
    return bool(self.of)

  @property
  def labelled(self) -> bool:
    """Labels are the data's or a teacher's."""
    return not self.of

  def reads(self, teacher: str, first: str) -> tuple[str, ...]:
    """The class that its teacher names."""
    del first
    return ("label",) if teacher == self.of else ()

  def value(self, view: View) -> Array:
    """The loss of the student."""
    return self.call(view, view.student.logits)

  def labels(self, view: View) -> Array:
    """The data's labels, or the teacher's."""
    if not self.of:
      return view.batch["label"]
    seen = teacher_of(self.name, view, self.of)
    return jnp.argmax(seen.logits, -1) if seen.label is None else seen.label

  @property
  def per_position(self) -> bool:
    """Logits of dense tasks have positions."""
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logits(Term):
  """A loss of the student's and the teachers' logits.

  Attributes:
    teachers: the roles that teach; all if not given.
    combine: makes one teacher's logits of the list of several, such as
      `probability_mean`; without it the losses of all are averaged.
  """

  loss: Callable[..., Array] = losses.kl
  teachers: tuple[str, ...] = ()
  combine: Callable[..., Array] | None = None

  def reads(self, teacher: str, first: str) -> tuple[str, ...]:
    """The logits of every teacher, or of those it names."""
    del first
    return ("logits",) if teacher in (self.teachers or (teacher,)) else ()

  def value(self, view: View) -> Array:
    """The loss of the combined teachers, or the mean over the teachers."""
    logits = [
      teacher_of(self.name, view, name).logits
      for name in self.teachers or view.teachers
    ]
    if self.combine is not None:
      logits = [self._combined(logits, view)]
    values = [self.call(view, view.student.logits, x) for x in logits]
    return sum(values) / len(values)

  def _combined(self, logits: Sequence[Array], view: View) -> Array:
    takes = inspect.signature(self.combine).parameters
    keywords = {}
    if "temperature" in takes and "temperature" in self.options:
      temperature = at(self.options["temperature"], view.step.epoch)
      keywords["temperature"] = temperature
    return self.combine(jnp.stack(logits), **keywords)

  @property
  def per_position(self) -> bool:
    """Logits of dense tasks have positions."""
    return True
