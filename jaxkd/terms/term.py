"""What all terms have in common, and what they may look at."""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.losses import TopK
from jaxkd.method import Batch, Step
from jaxkd.network import Network, Outputs
from jaxkd.roles import Nets
from jaxkd.schedules import Decayed, Interpolated, Scheduled, at

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a network showed.

  Attributes:
    logits: [B, ..., C], `TopK` of them, or None where no term reads them.
    label: its most probable class, int32 [B, ...].
    taps: outputs of submodules by path.
  """

  logits: Array | TopK | None
  label: Array | None = None
  taps: Mapping[str, Array] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class View:
  """What a term may look at.

  Attributes:
    nets: the roles, to run projectors.
    batch: the examples.
    step: where training stands.
    student: what the trained network returned.
    teachers: what its teachers showed, by role.
  """

  nets: Nets
  batch: Batch
  step: Step
  student: Outputs
  teachers: Mapping[str, Seen]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term(abc.ABC):
  """One summand: weight times loss.

  Attributes:
    loss: a function or divergence of `jaxkd.losses`.
    options: its keyword arguments; numbers may be schedules.
    weight: of the term, a number or a schedule.
    name: of the term's metric and projectors; the loss's name by default.
  """

  loss: Callable[..., Array]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  weight: Scheduled = 1.0
  name: str = ""

  def __post_init__(self):
    """Checks the options against the loss and fills in the name."""
    if not callable(self.loss):
      raise ConfigError(
        f"{type(self).__name__}.loss={self.loss!r}: expected a loss such as kl"
      )
    bare = getattr(self.loss, "func", self.loss)  # of a partial
    own = getattr(bare, "__name__", type(bare).__name__)
    if not self.name:
      object.__setattr__(self, "name", own)
    for option, value in self.options.items():
      if option not in self._parameters or option in ("where", "labels"):
        raise ConfigError(
          f"term {self.name!r}: {own} has no option {option!r}"
          + did_you_mean(option, self._parameters)
        )
      scheduled = isinstance(value, Interpolated | Decayed)
      if option == "temperature" and scheduled and not value.positive:
        raise ConfigError(
          f"term {self.name!r}: temperature={value}; expected values above 0"
        )

  @property
  def _parameters(self) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(self.loss).parameters

  @property
  def roles(self) -> Mapping[str, Network]:
    """The networks that are trained for this term alone."""
    return {}

  @property
  def taught(self) -> bool:
    """Whether it reads a teacher."""
    return True

  @property
  def labelled(self) -> bool:
    """Whether it reads labels of the data."""
    return "labels" in self._parameters

  def reads(self, teacher: str, first: str) -> tuple[str, ...]:
    """What it reads of a teacher: `logits`, `label`, or paths.

    Args:
      teacher: the teacher's name.
      first: the name of the first teacher.
    """
    del teacher, first
    return ()

  @abc.abstractmethod
  def value(self, view: View) -> Array:
    """The unweighted loss, [B], or a scalar for the batch."""

  @property
  def memory(self) -> Mapping[str, Any]:
    """First values of what it keeps between steps."""
    return {}

  def evaluate(self, view: View) -> tuple[Array, Mapping[str, Any]]:
    """The unweighted loss, and new values of what it keeps."""
    return self.value(view), {}

  def weighted(self, view: View) -> tuple[Array, Array, Mapping[str, Any]]:
    """The term, its unweighted loss, [B] each or scalars, and its memory."""
    value, memory = self.evaluate(view)
    if value.ndim > 1:  # positions of an example count alike
      value = value.reshape(len(value), -1).mean(1)
    return at(self.weight, view.step.epoch) * value, value, memory

  def call(self, view: View, *arrays: Any) -> Array:
    """The loss of arrays, with what else its signature asks for."""
    keywords = {
      name: at(value, view.step.epoch) for name, value in self.options.items()
    }
    mask = view.batch["mask"]
    if "where" in self._parameters:
      shape = arrays[0].shape[:-1] if self.per_position else mask.shape
      mask = mask.reshape(mask.shape + (1,) * (len(shape) - 1))
      keywords["where"] = jnp.broadcast_to(mask, shape)
    if "labels" in self._parameters:
      keywords["labels"] = self.labels(view)
    return self.loss(*arrays, **keywords)

  def labels(self, view: View) -> Array:
    """The labels that the loss is given, if it takes any."""
    return view.batch["label"]

  @property
  def per_position(self) -> bool:
    """Whether masks have one entry per position of the first array."""
    return False


def teacher_of(term: str, view: View, name: str) -> Seen:
  """What a teacher showed; an error that names the nearest one."""
  if name not in view.teachers:
    raise ConfigError(
      f"term {term!r}: no teacher {name!r}"
      + did_you_mean(name, view.teachers)
      + f" (has {', '.join(view.teachers) or 'none'})"
    )
  return view.teachers[name]
