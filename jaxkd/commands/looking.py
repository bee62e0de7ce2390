"""The verbs that only look at what is there, and train nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jaxkd.commands import common
from jaxkd.errors import ConfigError, did_you_mean


def show(options: argparse.Namespace) -> int:
  """Describes an experiment; compiles nothing."""
  common.start()
  from jaxkd import config
  from jaxkd.show import show

  config.register_all()
  resolved = config.resolve(options.experiment, options.overrides)
  print(resolved.text())
  print()
  print(show(config.load(options.experiment, overrides=options.overrides)))
  return 0


def plan(options: argparse.Namespace) -> int:
  """Says what a run would take of every device; trains nothing."""
  import dataclasses

  common.start()
  import jax

  from jaxkd import plan

  experiment, _ = common.load(options.experiment, options.overrides)
  if options.mesh:
    mesh = plan.mesh_of(options.mesh)
    experiment = dataclasses.replace(experiment, mesh=mesh)
  memory = options.device_memory and plan.bytes_of(options.device_memory)
  common.devices(experiment.mesh.size)
  found = []
  for phase in plan.plan(experiment, device_memory=memory):
    found.append(phase.plain())
    if not options.json:
      print(phase.text(), end="\n\n", flush=True)
  if options.json:
    about = {
      "mesh": dataclasses.asdict(experiment.mesh),
      "platform": jax.default_backend(),
    }
    print(json.dumps({**about, "phases": found}, indent=2))
  return 0


def evaluate(options: argparse.Namespace) -> int:
  """Evaluates a run's networks again."""
  common.start()
  from jaxkd import experiment as experiments
  from jaxkd import report

  opened, experiment = common.reopen(options.workdir)
  result = experiments.evaluate(experiment, opened.root)
  report.print_table(result.rows(), title=common.title(result.summary))
  if result.shares():
    print(result.shares())
  return 0


def report(options: argparse.Namespace) -> int:
  """Draws curves, routing and tables of a run."""
  common.start()
  from jaxkd import report

  study = Path(options.workdir) / "study.json"
  draw = report.study_report if study.exists() else report.build
  for name, path in draw(options.workdir).items():
    print(f"{name}: {path}")
  return 0


def names(options: argparse.Namespace) -> int:
  """Lists the methods, tasks and networks, or the losses."""
  if options.losses:
    return _losses(options.json)
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


def describe(options: argparse.Namespace) -> int:
  """Describes a method and its fields."""
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


def doctor(options: argparse.Namespace) -> int:
  """Describes this installation."""
  del options
  common.start()
  from jaxkd.doctor import doctor

  print(doctor())
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


def _losses(as_json: bool) -> int:
  common.start()
  from jaxkd import catalog

  found = catalog.entries()
  if as_json:
    print(json.dumps([entry.plain() for entry in found], indent=2))
    return 0
  print(catalog.listing(found))
  return 0
