"""The verbs that take a trained network elsewhere: export, serve-check."""

from __future__ import annotations

import argparse
import json

from jaxkd.commands import common
from jaxkd.errors import RefusedInput


def export(options: argparse.Namespace) -> int:
  """Writes a finished run's network for use elsewhere."""
  common.start()
  from jaxkd import export

  opened, experiment = common.reopen(options.workdir)
  made = export.export(
    experiment,
    opened.root,
    format=options.format,
    role=options.role,
    seed=options.seed,
    out=options.out,
    license=options.license,
    command=common.command(),
  )
  for line in made.lines():
    print(line)
  return 0


def serve_check(options: argparse.Namespace) -> int:
  """Runs an exported network and compares it with what it gave at export."""
  common.start()
  from jaxkd import export

  found = export.serve_check(
    options.exported, batch=options.batch, repetitions=options.repetitions
  )
  print(json.dumps(found))
  if found["agrees"] is False:
    raise RefusedInput(
      f"{options.exported} gives something else than at export: a difference "
      f"of {found['difference']}, {found['relative']} of the outputs' scale; "
      f"allowed are {found['tolerance']:.0e}"
    )
  return 0
