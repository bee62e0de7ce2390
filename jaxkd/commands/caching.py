"""The verb that writes a frozen teacher's outputs: cache-targets."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from jaxkd.commands import common


def cache_targets(options: argparse.Namespace) -> int:
  """Writes a role's outputs on the splits of every seed; goes on if killed."""
  common.start()
  from jaxkd.training.program import Programs
  from jaxkd.training.target_files import Wanted, cache

  experiment, _ = common.load(options.experiment, options.overrides)
  seeds = (
    common.numbers("--seeds", options.seeds, int)
    if options.seeds
    else experiment.seeds
  )
  splits = options.split or ["train"]
  programs, done = Programs(experiment.method), set()
  for seed, split in itertools.product(seeds, splits):
    data = experiment.task.splits(seed)
    found = cache(
      Wanted(
        role=options.role,
        split=split,
        k=options.k,
        bits=options.bits,
        taps=tuple(options.tap),
        where=options.where,
        temperatures=common.numbers(
          "--temperatures", options.temperatures, float
        ),
        shard_mib=options.shard_mib,
      ),
      experiment.method,
      data,
      Path(options.to),
      seed=seed,
      inputs=programs.usage(data, experiment.task.batch_size).inputs,
      batch_size=experiment.settings.target_batch_size,
      placement=experiment.placement,
    )
    if found.place not in done:  # seeds may share their data
      done.add(found.place)
      print("\n".join(found.lines()))
  return 0
