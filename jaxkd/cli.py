"""The command line. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from jaxkd.commands import caching, common, exporting, looking, running
from jaxkd.errors import JaxkdError

EPILOG = """exit codes: 0 done, 2 wrong config, 3 refused input, 4 not finite,
5 storage failed, 6 workdir locked, 7 another process of the run was lost,
75 stopped as asked and can resume"""
Verb = Callable[..., argparse.ArgumentParser]


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
    common.say(f"jaxkd: {error}")
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
  shared = argparse.ArgumentParser(add_help=False)
  shared.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )

  def verb(name, call, text):
    made = verbs.add_parser(
      name, parents=[shared], help=text, description=text, epilog=EPILOG
    )
    made.set_defaults(call=call)
    return made

  _add_running(verb)
  _add_caching(verb)
  _add_looking(verb)
  _add_exporting(verb)
  verb("doctor", looking.doctor, "describe this installation, to be pasted")
  return parser


def _add_running(verb: Verb) -> None:
  """Adds the verbs that train."""
  run = verb("run", running.run, "train and evaluate an experiment; resumes")
  run.add_argument("experiment", metavar="EXPERIMENT.gin")
  _settings(run)
  run.add_argument("--seeds", metavar="0,1,2", help="in place of the file's")
  how = run.add_mutually_exclusive_group()
  how.add_argument(
    "--smoke",
    action="store_true",
    help="three steps of every phase, evaluation, checkpoint, restore",
  )
  _population(how)
  _processes(run)
  study = verb("study", running.study, "compare experiments on the same seeds")
  study.add_argument("experiments", nargs="+", metavar="EXPERIMENT.gin")
  _settings(study)
  study.add_argument("--seeds", type=int, default=5, help="how many (5)")
  _population(study)
  tune = verb("tune", running.tune, "choose settings on the validation split")
  tune.add_argument("experiments", nargs="+", metavar="EXPERIMENT.gin")
  _settings(tune)
  tune.add_argument("--seeds", type=int, default=3, help="how many (3)")
  _population(tune)
  tune.add_argument(
    "--over",
    action="append",
    required=True,
    metavar="'Name.param = a, b'",
    help="values to try for every experiment; repeated, all combinations",
  )


def _population(made: argparse._ActionsContainer) -> None:
  made.add_argument(
    "--population",
    action="store_true",
    help="train runs that differ in seeds and numbers side by side",
  )


def _add_caching(verb: Verb) -> None:
  """Adds the verb that runs a teacher once for all runs to come."""
  cache = verb(
    "cache-targets",
    caching.cache_targets,
    "write a frozen teacher's outputs, for runs with Settings.targets",
  )
  cache.add_argument("experiment", metavar="EXPERIMENT.gin")
  cache.add_argument(
    "--to", required=True, metavar="FOLDER", help="other targets in it stay"
  )
  _overrides(cache)
  cache.add_argument("--seeds", metavar="0,1,2", help="in place of the file's")
  cache.add_argument("--role", default="teacher", help="whose (teacher)")
  cache.add_argument(
    "--split",
    action="append",
    help="of which examples (train); may be repeated",
  )
  cache.add_argument(
    "--k", type=int, help="keep the k most probable classes (all logits)"
  )
  cache.add_argument(
    "--bits",
    type=int,
    help="of each log-probability (8, fewer where 128 classes would take more "
    "than 300 bytes)",
  )
  cache.add_argument(
    "--tap",
    action="append",
    default=[],
    metavar="PATH",
    help="also the output of a submodule; may be repeated",
  )
  cache.add_argument(
    "--where",
    default="",
    metavar="ENTRY",
    help="leave out positions where this batch entry is 0, such as token_mask",
  )
  cache.add_argument(
    "--temperatures",
    default="1",
    metavar="1,4",
    help="at which the error of top-k is measured (1)",
  )
  cache.add_argument(
    "--shard-mib", type=float, default=64.0, help="size of a file (64)"
  )


def _add_looking(verb: Verb) -> None:
  """Adds the verbs that only look."""
  show = verb("show", looking.show, "describe an experiment; compiles nothing")
  show.add_argument("experiment", metavar="EXPERIMENT.gin")
  _settings(show)
  plan = verb(
    "plan", looking.plan, "bytes and FLOPs on every device; trains nothing"
  )
  plan.add_argument("experiment", metavar="EXPERIMENT.gin")
  _overrides(plan)
  plan.add_argument(
    "--mesh",
    metavar="data=8,fsdp=1,tensor=1",
    help="in place of the file's; the CPU stands for as many devices",
  )
  plan.add_argument(
    "--device-memory", metavar="16GiB", help="what the device says if not given"
  )
  plan.add_argument("--json", action="store_true", help="as JSON")
  evaluate = verb(
    "evaluate", looking.evaluate, "evaluate a run's networks again"
  )
  evaluate.add_argument("workdir", metavar="WORKDIR")
  report = verb(
    "report", looking.report, "draw curves, routing and tables of a run"
  )
  report.add_argument("workdir", metavar="WORKDIR")
  names = verb(
    "list", looking.names, "list the methods, tasks and networks, or losses"
  )
  names.add_argument(
    "--losses",
    action="store_true",
    help="the losses: formula, what they need, paper, what proves them",
  )
  names.add_argument("--json", action="store_true", help="as JSON")
  describe = verb(
    "describe", looking.describe, "describe a method and its fields"
  )
  describe.add_argument("method", metavar="METHOD")


def _add_exporting(verb: Verb) -> None:
  """Adds the verbs that take a trained network elsewhere."""
  export = verb("export", exporting.export, "write a network for use elsewhere")
  export.add_argument("workdir", metavar="WORKDIR")
  export.add_argument(
    "--format", required=True, metavar="stablehlo|safetensors|orbax|onnx"
  )
  export.add_argument(
    "--role",
    default="student",
    help="a network of the run, or predictor, what the method deploys "
    "(student)",
  )
  export.add_argument("--seed", type=int, help="the run's first if not given")
  export.add_argument(
    "--out", metavar="DIR", help="WORKDIR/export/FORMAT/... if not given"
  )
  export.add_argument(
    "--license",
    metavar="SPDX-ID",
    help="of the network, for its card: Apache-2.0, ...; none if not given",
  )
  check = verb(
    "serve-check",
    exporting.serve_check,
    "run an export: its latency, and its difference to the trained network",
  )
  check.add_argument("exported", metavar="EXPORTED")
  check.add_argument(
    "--batch", type=int, help="examples at once (as many as lie beside it)"
  )
  check.add_argument(
    "--repetitions", type=int, default=20, help="of the timed run (20)"
  )


def _settings(verb: argparse.ArgumentParser) -> None:
  """Adds what every verb that runs an experiment takes."""
  _overrides(verb)
  verb.add_argument("--workdir", metavar="DIR", help="the run directory")


def _overrides(verb: argparse.ArgumentParser) -> None:
  """Adds what every verb that reads an experiment takes."""
  verb.add_argument(
    "--set",
    dest="overrides",
    action="append",
    default=[],
    metavar="'Name.param = value'",
    help="a binding or macro that wins over the file; may be repeated",
  )


def _processes(verb: argparse.ArgumentParser) -> None:
  """Adds what says that this process is one of several."""
  several = verb.add_argument_group(
    "several processes",
    "The same command is started once for every process, on one or more "
    "machines that share the run directory; together they must have as many "
    "devices as Mesh says.",
  )
  several.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    help="where process 0 listens: its machine and a free port",
  )
  several.add_argument(
    "--processes", type=int, metavar="N", help="how many there are"
  )
  several.add_argument(
    "--process", type=int, metavar="I", help="which one this is, from 0"
  )
  several.add_argument(
    "--distributed",
    action="store_true",
    help="let JAX find out the three from SLURM, MPI, GKE or a Cloud TPU",
  )


def _version() -> str:
  from jaxkd import __version__

  return f"jaxkd {__version__}"


def _complete(parser: argparse.ArgumentParser) -> None:
  if "_ARGCOMPLETE" in os.environ:
    import argcomplete

    argcomplete.autocomplete(parser)


if __name__ == "__main__":
  sys.exit(main())
