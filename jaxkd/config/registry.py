"""The public names that a config can build or refer to, package-wide unique."""

import builtins
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxkd.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Registered:
  """A registered object: its short name, the room it is in, and itself."""

  name: str
  module: str
  obj: Any

  @property
  def selector(self) -> str:
    """The name by which gin knows it."""
    return f"{self.module}.{self.name}"


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter that a config can bind."""

  name: str
  annotation: Any  # Any, if it has none or it cannot be evaluated
  default: Any
  required: bool

  def __str__(self) -> str:
    """Returns `name=default`, or `name (required)`."""
    if self.required:
      return f"{self.name} (required)"
    return f"{self.name}={_brief(self.default)}"


_TABLE: dict[str, Registered] = {}
_ROOMS_REGISTERED = False


def register(obj: Any, *, module: str, name: str | None = None) -> None:
  """Makes a public class or function available to configs.

  Args:
    obj: The class, the function, or an object that is called like one. It is
      not changed; to register it again, say from a second room that shows it,
      does nothing.
    module: The room it is public in, such as `jaxkd.methods`.
    name: Its name in configs, by default its own.

  Raises:
    ConfigError: If another object has the name already.
  """
  name = name or obj.__name__
  if not name.isidentifier() or not callable(obj):
    raise ConfigError(
      f"register: {name!r} must be a class or a function with a Python name"
    )
  known = _TABLE.get(name)
  if known and known.obj is not obj:
    raise ConfigError(
      f"register: {module}.{name} has the name of {known.selector}; names in"
      " configs are unique over all rooms"
    )
  if not known:
    _TABLE[name] = Registered(name, module, obj)


def registered() -> dict[str, Any]:
  """Returns the registered objects by their short names."""
  return {name: entry.obj for name, entry in sorted(_TABLE.items())}


def entry(name: str) -> Registered | None:
  """Returns the entry of a short name, or None."""
  return _TABLE.get(name)


def carries_bindings(name: str) -> bool:
  """Whether `@name`, without a call, is the function with its bindings.

  A class that is passed without a call is the class itself.
  """
  known = _TABLE.get(name)
  return known is not None and not inspect.isclass(known.obj)


def register_all() -> None:
  """Registers the public classes of all rooms, and the losses.

  A second call does nothing.
  """
  global _ROOMS_REGISTERED
  if _ROOMS_REGISTERED:
    return
  from jaxkd import (
    catalog,
    data,
    evaluation,
    experiment,
    methods,
    nets,
    network,
    parallel,
    schedules,
    teachers,
    terms,
  )
  from jaxkd.training import phase, teacher

  for name, loss in catalog.public().items():
    register(loss, module="jaxkd.losses", name=name)
  for room in (methods, nets):
    for obj in _public_classes(room):
      register(obj, module=room.__name__)
  for obj in _public_classes(data):
    if dataclasses.is_dataclass(obj) and hasattr(obj, "splits"):
      register(obj, module=data.__name__)
  for obj in _public_classes(evaluation):
    if dataclasses.is_dataclass(obj) and hasattr(obj, "check"):
      register(obj, module=evaluation.__name__)
  for obj in (
    experiment.Experiment,
    network.Network,
    parallel.FSDPRules,
    parallel.Frozen,
    parallel.MLPRules,
    parallel.Mesh,
    parallel.ReplicatedRules,
    parallel.TransformerRules,
    phase.Settings,
    schedules.Decayed,
    schedules.Interpolated,
    teachers.Checkpoint,
    teachers.Ensemble,
    teachers.Pretrained,
    teacher.OrbaxRun,
    terms.Contrast,
    terms.Features,
    terms.Labels,
    terms.Logits,
  ):
    register(obj, module=obj.__module__)
  _ROOMS_REGISTERED = True


@functools.cache
def parameters(obj: Callable[..., Any]) -> Mapping[str, Parameter]:
  """Returns what a config can bind of a class or function, in its own order.

  The `parent` and `name` that Flax adds to every Linen module are left out:
  the first is no value, the second would rename the module's parameters.
  """
  hints = _hints(obj)
  hidden = ("parent", "name") if _is_linen(obj) else ()
  named = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
  named += (inspect.Parameter.KEYWORD_ONLY,)
  return {
    p.name: Parameter(
      name=p.name,
      annotation=hints.get(p.name, Any),
      default=p.default,
      required=p.default is inspect.Parameter.empty,
    )
    for p in inspect.signature(obj).parameters.values()
    if p.kind in named and p.name not in hidden
  }


@functools.cache
def accepts_any(obj: Callable[..., Any]) -> bool:
  """Returns whether a function takes any keyword (`**kwargs`)."""
  kinds = [p.kind for p in inspect.signature(obj).parameters.values()]
  return inspect.Parameter.VAR_KEYWORD in kinds


def _public_classes(room: Any) -> Iterator[type]:
  for name in room.__all__:
    obj = getattr(room, name)
    if inspect.isclass(obj) and not inspect.isabstract(obj):
      yield obj


def _hints(obj: Any) -> dict[str, Any]:
  """Returns the evaluated annotations; none where one cannot be evaluated."""
  owners = [obj]
  if inspect.isclass(obj) and not dataclasses.is_dataclass(obj):
    owners = [obj.__init__]
  for owner in owners:
    try:
      return typing.get_type_hints(owner)
    except (NameError, TypeError, AttributeError):
      continue
  return {}


def _is_linen(obj: Any) -> bool:
  linen = sys.modules.get("flax.linen")
  return bool(linen and inspect.isclass(obj) and issubclass(obj, linen.Module))


def _brief(value: Any) -> str:
  """Returns a default for an error message: short, and without addresses."""
  if isinstance(value, str | int | float | bool | bytes | None):
    text = repr(value)
  elif isinstance(value, tuple):
    parts = [_brief(v) for v in value]
    text = f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
  elif type(value).__module__ == builtins.__name__ and not callable(value):
    text = repr(value)
  else:
    text = getattr(value, "__name__", None) or "..."
  return text if len(text) <= 40 else text[:37] + "..."
