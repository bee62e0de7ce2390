"""The verbs that train: run, study, tune."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from jaxkd.commands import common
from jaxkd.errors import ConfigError


def run(options: argparse.Namespace) -> int:
  """Trains and evaluates an experiment; resumes."""
  common.start()
  return common.together(options, _run)


def _run(options: argparse.Namespace) -> int:
  import dataclasses

  from jaxkd import experiment as experiments
  from jaxkd import report

  experiment, text = common.load(options.experiment, options.overrides)
  if options.seeds:
    seeds = common.numbers("--seeds", options.seeds, int)
    experiment = dataclasses.replace(experiment, seeds=seeds)
  workdir = common.workdir(options.workdir, Path(options.experiment).stem)
  common.say(f"workdir {workdir}")
  if options.smoke:
    result = experiments.smoke(experiment, workdir)
  else:
    result = experiments.run(
      experiment,
      workdir,
      config_text=text,
      command=common.command(),
      population=options.population,
    )
  if not common.is_main():
    return 0
  report.print_table(result.rows(), title=common.title(result.summary))
  if result.shares():
    print(result.shares())
  print(f"summary: {workdir / 'summary.json'}; plots: jaxkd report {workdir}")
  return 0


def study(options: argparse.Namespace) -> int:
  """Compares experiments on the same seeds."""
  common.start()
  from jaxkd import studies

  if options.seeds < 1:
    raise ConfigError(f"--seeds {options.seeds}: expected at least 1")
  paths = list(dict.fromkeys(options.experiments))  # the first one leads
  names = [Path(path).stem for path in paths]
  if len(set(names)) != len(names):
    raise ConfigError(f"two experiments have one name: {', '.join(names)}")
  loaded = {
    name: common.load(path, options.overrides)
    for name, path in zip(names, paths, strict=True)
  }
  workdir = common.workdir(options.workdir, "study")
  common.say(f"workdir {workdir}")
  studies.study(
    {name: experiment for name, (experiment, _) in loaded.items()},
    workdir,
    seeds=range(options.seeds),
    texts={name: text for name, (_, text) in loaded.items()},
    population=options.population,
  )
  print((workdir / "study.md").read_text())
  return 0


def tune(options: argparse.Namespace) -> int:
  """Chooses settings on the validation split."""
  common.start()
  from jaxkd import studies

  grid = [_candidates(text) for text in options.over]
  candidates = {
    Path(path).stem: {
      ",".join(f"{name.split('.')[-1]}={value}" for name, value in chosen): (
        common.load(path, [*options.overrides, *map(" = ".join, chosen)])[0]
      )
      for chosen in itertools.product(*grid)
    }
    for path in options.experiments
  }
  workdir = common.workdir(options.workdir, "tune")
  common.say(f"workdir {workdir}")
  found = studies.choose(
    candidates,
    workdir,
    seeds=range(options.seeds),
    population=options.population,
  )
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
