"""How the contract of the losses calls each of them, one family a file.

Every module of this package has `ENTRIES`, by public name.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable

import jax

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """How the contract calls a loss.

  Attributes:
    call: student, teacher, where [B] or None -> the loss.
    shape: of the student's and the teacher's array, batch first.
    best: teacher -> the student at which the loss is least, or None if that
      is no single place.
    least: the loss there, or None if it is not one number.
    batch_level: whether the loss is one number for the batch.
    masks: whether it takes `where`.
    differentiable: whether the student gets a gradient.
    logits: whether the arrays are logits, so that a constant added to all
      classes changes nothing and one class costs nothing.
    finite: whether inputs of 1e4, and equal ones, give finite values and
      gradients.
    absent: whether a class may be at -inf in both networks.
    step: of the finite differences.
    stops: whether a factor that depends on the student counts as a constant,
      so that the gradient is not that of the value.
  """

  call: Callable[[Array, Array, Array | None], Array]
  shape: tuple[int, ...] = (6, 5)
  best: Callable[[Array], Array] | None = lambda teacher: teacher
  least: float | None = 0.0
  batch_level: bool = False
  masks: bool = False
  differentiable: bool = True
  logits: bool = True
  finite: bool = True
  absent: bool = True
  step: float = 1e-2
  stops: bool = False


def entries() -> dict[str, Entry]:
  """The entries of all families by the losses' public names."""
  found = {}
  for module in pkgutil.iter_modules(__path__):
    family = importlib.import_module(f"{__name__}.{module.name}").ENTRIES
    twice = found.keys() & family.keys()
    assert not twice, f"{module.name}: {twice} have two entries"
    found |= family
  return found
