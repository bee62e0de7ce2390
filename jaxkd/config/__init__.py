"""Configs: gin files in, plain Python objects out.

gin builds, Python runs. A gin file binds the parameters of registered classes
(`KD.temperature = 2.0`) and refers to what it wants built (`@KD()`). Before
anything is built, every statement is checked against the signatures of the
registered classes, and all that is wrong is said at once, each line with the
file, the line and the nearest valid name:

  experiments/kd/digits.gin:12: KD.temperatur: no such parameter, did you mean
  temperature? (has temperature=4.0, weight=0.9)

A config is data, not a program: it imports nothing, includes only files of its
own `experiments` folder, and reaches only what is registered. The objects are
of the original classes; `KD()` in Python never sees a binding.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxkd.config.registry import parameters, register, register_all, registered

if TYPE_CHECKING:
  from jaxkd.config.resolved import Entry, Resolved

__all__ = [
  "Entry",
  "Resolved",
  "load",
  "operative_text",
  "parameters",
  "register",
  "register_all",
  "registered",
  "resolve",
]


def load(
  path: str, *, overrides: Sequence[str] = (), root: str = "Experiment"
) -> Any:
  """Checks a gin file and builds the object that it describes.

  gin's own bindings are cleared before and after, so that two loads in one
  process share nothing; a process that uses gin for itself loads first.

  Args:
    path: The gin file. What it includes lies in the nearest folder above it
      that is called `experiments`, else in its own folder.
    overrides: Bindings such as `KD.temperature=2`, `teacher/MLP.depth=3` or
      `SEEDS=5`, which win over the file.
    root: Registered name of the object to build.

  Returns:
    The object that `@<root>()` builds, of its original class.

  Raises:
    ConfigError: If anything in the config is wrong; one line for each mistake.
  """
  from jaxkd.config import building

  return building.build(resolve(path, overrides, root=root))


def resolve(
  path: str, overrides: Sequence[str] = (), *, root: str = "Experiment"
) -> "Resolved":
  """Checks a gin file and says where each value comes from, building nothing.

  Args:
    path: The gin file, as in `load`.
    overrides: Bindings that win over the file, as in `load`.
    root: Registered name of the object that would be built.

  Returns:
    The winning bindings with their files and lines; `.text()` prints them.

  Raises:
    ConfigError: If anything in the config is wrong; one line for each mistake.
  """
  from jaxkd.config import walker

  return walker.walk(path, overrides, root=root)


def operative_text(resolved: "Resolved") -> str:
  """Returns one gin text, without includes, that builds the same objects.

  Macros are kept; bindings that nothing built refers to any more (their
  consumer was overridden) are left out. This is what a run directory stores.

  Args:
    resolved: What `resolve` returned.
  """
  return resolved.operative_text()


def __getattr__(name: str) -> Any:
  """Loads the two result types on first use, and with them nothing of gin."""
  if name in ("Entry", "Resolved"):
    from jaxkd.config import resolved

    return getattr(resolved, name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
