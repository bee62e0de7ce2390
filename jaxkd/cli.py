"""The command line. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.errors import ConfigError, JaxkdError, RefusedInput, did_you_mean

EPILOG = """exit codes: 0 done, 2 wrong config, 3 refused input, 4 not finite,
5 storage failed, 6 workdir locked, 75 stopped as asked and can resume"""


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Args:
    arguments: as in `sys.argv[1:]`, which is the default.

  Returns:
    The exit code.
  """
  parser = _parser()
  _complete(parser)
  options = parser.parse_args(arguments)
  try:
    return options.call(options) or 0
  except JaxkdError as error:
    if options.debug:
      traceback.print_exc()
    print(f"jaxkd: {error}", file=sys.stderr)
    return error.exit_code
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="jaxkd", description="Knowledge distillation in JAX.", epilog=EPILOG
  )
  parser.add_argument("--version", action="version", version=_version())
  verbs = parser.add_subparsers(required=True, metavar="VERB")
  common = argparse.ArgumentParser(add_help=False)
  common.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )

  def verb(name, call, text):
    made = verbs.add_parser(
      name, parents=[common], help=text, description=text, epilog=EPILOG
    )
    made.set_defaults(call=call)
    return made

  run = verb("run", _run, "train and evaluate an experiment; resumes")
  run.add_argument("experiment", metavar="EXPERIMENT.gin")
  _settings(run)
  run.add_argument("--seeds", metavar="0,1,2", help="in place of the file's")
  run.add_argument(
    "--smoke",
    action="store_true",
    help="three steps of every phase, evaluation, checkpoint, restore",
  )
  study = verb("study", _study, "compare experiments on the same seeds")
  study.add_argument("experiments", nargs="+", metavar="EXPERIMENT.gin")
  _settings(study)
  study.add_argument("--seeds", type=int, default=5, help="how many (5)")
  tune = verb("tune", _tune, "choose settings on the validation split")
  tune.add_argument("experiments", nargs="+", metavar="EXPERIMENT.gin")
  _settings(tune)
  tune.add_argument("--seeds", type=int, default=3, help="how many (3)")
  tune.add_argument(
    "--over",
    action="append",
    required=True,
    metavar="'Name.param = a, b'",
    help="values to try for every experiment; repeated, all combinations",
  )
  show = verb("show", _show, "describe an experiment; compiles nothing")
  show.add_argument("experiment", metavar="EXPERIMENT.gin")
  _settings(show)
  evaluate = verb("evaluate", _evaluate, "evaluate a run's networks again")
  evaluate.add_argument("workdir", metavar="WORKDIR")
  report = verb("report", _report, "draw curves, routing and tables of a run")
  report.add_argument("workdir", metavar="WORKDIR")
  names = verb("list", _list, "list the methods, tasks and networks, or losses")
  names.add_argument(
    "--losses",
    action="store_true",
    help="the losses: formula, what they need, paper, what proves them",
  )
  names.add_argument("--json", action="store_true", help="as JSON")
  describe = verb("describe", _describe, "describe a method and its fields")
  describe.add_argument("method", metavar="METHOD")
  verb("doctor", _doctor, "describe this installation, to be pasted")
  return parser


def _settings(verb: argparse.ArgumentParser) -> None:
  """Adds what every verb that reads an experiment takes."""
  verb.add_argument(
    "--set",
    dest="overrides",
    action="append",
    default=[],
    metavar="'Name.param = value'",
    help="a binding or macro that wins over the file; may be repeated",
  )
  verb.add_argument("--workdir", metavar="DIR", help="the run directory")


def _version() -> str:
  from jaxkd import __version__

  return f"jaxkd {__version__}"


def _complete(parser: argparse.ArgumentParser) -> None:
  if "_ARGCOMPLETE" in os.environ:
    import argcomplete

    argcomplete.autocomplete(parser)


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _start() -> None:
  """Announces the slow import and turns the compilation cache on."""
  if "jax" not in sys.modules:
    _say("importing jax ...")
  from jaxkd import cache

  cache.enable()


def _load(path: str, overrides: Sequence[str]) -> tuple[Any, str]:
  """The experiment of a gin file and its operative text."""
  from jaxkd import config

  config.register_all()
  experiment = config.load(path, overrides=overrides)
  text = config.operative_text(config.resolve(path, overrides))
  return experiment, text


def _seeds(text: str) -> tuple[int, ...]:
  try:
    return tuple(int(part) for part in text.split(","))
  except ValueError:
    raise ConfigError(
      f"--seeds {text}: expected numbers such as 0,1,2"
    ) from None


def _command() -> str:
  return shlex.join(["jaxkd", *sys.argv[1:]])


def _workdir(options: argparse.Namespace, name: str) -> Path:
  if options.workdir:
    return Path(options.workdir)
  stamp = time.strftime("%Y%m%d-%H%M%S")
  return Path("runs") / f"{name}-{stamp}"


def _run(options: argparse.Namespace) -> int:
  import dataclasses

  _start()
  from jaxkd import experiment as experiments
  from jaxkd import report

  experiment, text = _load(options.experiment, options.overrides)
  if options.seeds:
    experiment = dataclasses.replace(experiment, seeds=_seeds(options.seeds))
  workdir = _workdir(options, Path(options.experiment).stem)
  _say(f"workdir {workdir}")
  if options.smoke:
    result = experiments.smoke(experiment, workdir)
  else:
    result = experiments.run(
      experiment, workdir, config_text=text, command=_command()
    )
  report.print_table(result.rows(), title=_title(result.summary))
  if result.shares():
    print(result.shares())
  print(f"summary: {workdir / 'summary.json'}; plots: jaxkd report {workdir}")
  return 0


def _title(summary: dict[str, Any]) -> str:
  return (
    f"{summary['method']} on {summary['task']}, {len(summary['seeds'])} "
    f"seed(s), {summary['wall_seconds']:.0f} s"
  )


def _study(options: argparse.Namespace) -> int:
  _start()
  from jaxkd import studies

  if options.seeds < 1:
    raise ConfigError(f"--seeds {options.seeds}: expected at least 1")
  paths = list(dict.fromkeys(options.experiments))  # the first one leads
  names = [Path(path).stem for path in paths]
  if len(set(names)) != len(names):
    raise ConfigError(f"two experiments have one name: {', '.join(names)}")
  loaded = {
    name: _load(path, options.overrides)
    for name, path in zip(names, paths, strict=True)
  }
  workdir = _workdir(options, "study")
  _say(f"workdir {workdir}")
  studies.study(
    {name: experiment for name, (experiment, _) in loaded.items()},
    workdir,
    seeds=range(options.seeds),
    texts={name: text for name, (_, text) in loaded.items()},
  )
  print((workdir / "study.md").read_text())
  return 0


def _tune(options: argparse.Namespace) -> int:
  _start()
  from jaxkd import studies

  grid = [_candidates(text) for text in options.over]
  candidates = {
    Path(path).stem: {
      ",".join(f"{name.split('.')[-1]}={value}" for name, value in chosen): (
        _load(path, [*options.overrides, *map(" = ".join, chosen)])[0]
      )
      for chosen in itertools.product(*grid)
    }
    for path in options.experiments
  }
  workdir = _workdir(options, "tune")
  _say(f"workdir {workdir}")
  found = studies.choose(candidates, workdir, seeds=range(options.seeds))
  print((workdir / "study.md").read_text())
  for name, setting in found["chosen"].items():
    print(f"{name}: {setting}")
  return 0


def _candidates(text: str) -> list[tuple[str, str]]:
  """Name and value of the bindings of `Name.param = a, b`."""
  name, equals, values = text.partition("=")
  values = [value.strip() for value in values.split(",")]
  if not equals or not all(values):
    raise ConfigError(f"--over {text!r}: expected 'Name.param = a, b'")
  return [(name.strip(), value) for value in values]


def _show(options: argparse.Namespace) -> int:
  _start()
  from jaxkd import config
  from jaxkd.show import show

  config.register_all()
  resolved = config.resolve(options.experiment, options.overrides)
  print(resolved.text())
  print()
  print(show(config.load(options.experiment, overrides=options.overrides)))
  return 0


def _evaluate(options: argparse.Namespace) -> int:
  _start()
  from jaxkd import experiment as experiments
  from jaxkd import report
  from jaxkd.training import files
  from jaxkd.training.workdir import Workdir

  opened = Workdir.read(options.workdir)
  if not opened.summary.exists():
    raise RefusedInput(
      f"{opened.root} has no summary.json yet: finish it with jaxkd run"
    )
  if not opened.config.read_text().strip():
    raise RefusedInput(
      f"{opened.root} was made from Python and has no config.gin; "
      "jaxkd.experiment.evaluate takes the Experiment itself"
    )
  seeds = tuple(files.read_json(opened.summary)["seeds"])
  experiment, _ = _load(str(opened.config), [f"Experiment.seeds = {seeds}"])
  result = experiments.evaluate(experiment, opened.root)
  report.print_table(result.rows(), title=_title(result.summary))
  if result.shares():
    print(result.shares())
  return 0


def _report(options: argparse.Namespace) -> int:
  _start()
  from jaxkd import report

  study = Path(options.workdir) / "study.json"
  draw = report.study_report if study.exists() else report.build
  for name, path in draw(options.workdir).items():
    print(f"{name}: {path}")
  return 0


def _public() -> dict[str, dict[str, Any]]:
  """Public classes by kind and name."""
  from jaxkd import config, data, methods, nets

  config.register_all()
  names = config.registered()
  rooms = {"methods": methods, "tasks": data, "networks": nets}
  return {
    kind: {n: names[n] for n in room.__all__ if n in names}
    for kind, room in rooms.items()
  }


def _first_line(obj: Any) -> str:
  return (obj.__doc__ or "").strip().split("\n")[0]


def _list(options: argparse.Namespace) -> int:
  if options.losses:
    return _list_losses(options.json)
  kinds = {
    kind: {name: _first_line(obj) for name, obj in objects.items()}
    for kind, objects in _public().items()
  }
  if options.json:
    print(json.dumps(kinds, indent=2))
    return 0
  for kind, lines in kinds.items():
    print(f"{kind}:")
    for name, line in lines.items():
      print(f"  {name:<16} {line}")
  return 0


def _list_losses(as_json: bool) -> int:
  _start()
  from jaxkd import catalog

  found = catalog.entries()
  if as_json:
    print(json.dumps([entry.plain() for entry in found], indent=2))
    return 0
  print(catalog.listing(found))
  return 0


def _describe(options: argparse.Namespace) -> int:
  import inspect

  from jaxkd import config

  public = {n: o for objects in _public().values() for n, o in objects.items()}
  if options.method not in public:
    raise ConfigError(
      f"no method {options.method!r}"
      + did_you_mean(options.method, public)
      + f" (has {', '.join(_public()['methods'])})"
    )
  cls = public[options.method]
  module = inspect.getmodule(cls)
  if "methods" in module.__name__:
    print(inspect.getdoc(module), end="\n\n")
  print(inspect.getdoc(cls), end="\n\nfields:\n")
  for parameter in config.parameters(cls).values():
    print(f"  {parameter}")
  return 0


def _doctor(options: argparse.Namespace) -> int:
  del options
  _start()
  from jaxkd.doctor import doctor

  print(doctor())
  return 0


if __name__ == "__main__":
  sys.exit(main())
