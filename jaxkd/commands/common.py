"""What several verbs need: a start, a config, a workdir, a title."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jaxkd.errors import ConfigError, JaxkdError, RefusedInput

if TYPE_CHECKING:
  from jaxkd.experiment import Experiment
  from jaxkd.training.workdir import Workdir

N = TypeVar("N", int, float)


def say(text: str) -> None:
  """Prints a line beside the results; of several processes, process 0 does."""
  if is_main():
    print(text, file=sys.stderr, flush=True)


def is_main() -> bool:
  """Whether this process prints results; nothing heavy is imported for it."""
  processes = sys.modules.get("jaxkd.parallel.processes")
  return processes is None or processes.is_main()


def start() -> None:
  """Announces the slow import; memory is kept, and programs are cached."""
  if "jax" not in sys.modules:
    from jaxkd import allocator

    say("importing jax ...")
    allocator.keep()
  from jaxkd import cache

  cache.enable()


def devices(needed: int) -> None:
  """Lets the CPU stand for as many devices, unless JAX has started already.

  Args:
    needed: how many.

  Raises:
    ConfigError: there are fewer, and they are no CPUs.
  """
  import jax

  if needed > 1:
    with contextlib.suppress(RuntimeError):  # JAX has started
      jax.config.update("jax_num_cpu_devices", needed)
  platform = jax.default_backend()
  if needed > jax.device_count() and platform != "cpu":
    raise ConfigError(
      f"the mesh needs {needed} devices, there are {jax.device_count()} of "
      f"{platform}; with JAX_PLATFORMS=cpu the CPU stands for all of them"
    )


def together(
  options: argparse.Namespace, work: Callable[[argparse.Namespace], int]
) -> int:
  """Does a verb's work, as one of several processes if so asked.

  Args:
    options: of a verb that takes `--coordinator` and its companions.
    work: the verb's function; every process calls it.

  Returns:
    The exit code. A process of several that fails does not return: it tells
    the others why and ends.

  Raises:
    ConfigError: the options do not fit together, or nothing was found out.
  """
  if not _several(options):
    return work(options)
  from jaxkd.parallel import processes

  processes.start(options.coordinator, options.processes, options.process)
  text = ""
  try:
    code = work(options)
  except JaxkdError as error:
    if options.debug:
      traceback.print_exc()
    code, text = error.exit_code, str(error)
    prefix = f" (process {processes.rank()})" * (processes.count() > 1)
    print(f"jaxkd{prefix}: {text}", file=sys.stderr)
  except Exception as error:
    processes.doubt()  # ends this process if the cause is the end of another
    traceback.print_exc()
    code, text = 1, f"{type(error).__name__}: {error}"
  processes.leave(code, text)
  return code


def _several(options: argparse.Namespace) -> bool:
  """Whether this is one of several processes; refuses half an answer."""
  given = {
    "--coordinator": options.coordinator,
    "--processes": options.processes,
    "--process": options.process,
  }
  missing = [name for name, value in given.items() if value is None]
  if options.distributed and len(missing) < 3:
    raise ConfigError(
      "--distributed finds out which process this is; leave out "
      + ", ".join(name for name in given if name not in missing)
    )
  if 0 < len(missing) < 3:
    raise ConfigError(
      f"{' and '.join(missing)} not given: expected all of {', '.join(given)}"
    )
  return options.distributed or not missing


def load(path: str, overrides: Sequence[str]) -> tuple[Experiment, str]:
  """The experiment of a gin file and its operative text."""
  from jaxkd import config

  config.register_all()
  experiment = config.load(path, overrides=overrides)
  text = config.operative_text(config.resolve(path, overrides))
  return experiment, text


def reopen(path: str) -> tuple[Workdir, Experiment]:
  """A finished run's workdir and what was run there.

  Args:
    path: the workdir.

  Raises:
    RefusedInput: it is none, is not finished, or was made without a config.
  """
  from jaxkd.training import files
  from jaxkd.training.workdir import Workdir

  opened = Workdir.read(path)
  if not opened.summary.exists():
    raise RefusedInput(
      f"{opened.root} has no summary.json yet: finish it with jaxkd run"
    )
  if not opened.config.read_text().strip():
    raise RefusedInput(
      f"{opened.root} was made from Python and has no config.gin; "
      "jaxkd.experiment.evaluate and jaxkd.export.export take the Experiment "
      "itself"
    )
  seeds = tuple(files.read_json(opened.summary)["seeds"])
  experiment, _ = load(str(opened.config), [f"Experiment.seeds = {seeds}"])
  return opened, experiment


def numbers(flag: str, text: str, kind: type[N]) -> tuple[N, ...]:
  """The numbers of `1,2`, as a flag was given them."""
  try:
    return tuple(kind(part) for part in text.split(","))
  except ValueError:
    raise ConfigError(f"{flag} {text}: expected numbers such as 1,2") from None


def command() -> str:
  """The command line, to be pasted."""
  return shlex.join(["jaxkd", *sys.argv[1:]])


def workdir(given: str | None, name: str) -> Path:
  """The run directory that was asked for, else a new one under `runs`."""
  if given:
    return Path(given)
  from jaxkd.parallel import processes

  stamp = processes.decide(lambda: time.strftime("%Y%m%d-%H%M%S"))
  return Path("runs") / f"{name}-{stamp}"


def title(summary: dict[str, Any]) -> str:
  """What a table of results is of."""
  return (
    f"{summary['method']} on {summary['task']}, {len(summary['seeds'])} "
    f"seed(s), {summary['wall_seconds']:.0f} s"
  )
