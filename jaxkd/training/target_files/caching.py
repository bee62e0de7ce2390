"""Runs a frozen role over a split and writes what it shows, shard by shard.

The index names the shards that are finished; it is written after each of them.
A process that was killed goes on after the last one: what a shard holds depends
on its examples alone, so that the files are byte for byte those of a process
that was not killed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import ConfigError, StorageError, did_you_mean
from jaxkd.method import Method
from jaxkd.parallel import Placement
from jaxkd.roles import initialise
from jaxkd.training import files
from jaxkd.training.progress import Progress
from jaxkd.training.progress import progress as make_progress
from jaxkd.training.target_files.folder import (
  FORMAT,
  INDEX,
  Targets,
  key_of,
  place_of,
  refuse_other_form,
  refuse_trained,
)
from jaxkd.training.target_files.records import Layout
from jaxkd.training.target_files.showing import Shower, Shown, Wanted
from jaxkd.training.workdir import locked

MEBI = 2**20


def cache(
  wanted: Wanted,
  method: Method,
  splits: Splits,
  folder: str | Path,
  *,
  seed: int,
  inputs: Mapping[str, Any],
  batch_size: int,
  placement: Placement,
  show: Callable[..., Progress] = make_progress,
) -> Targets:
  """Writes a role's outputs on a split; what is there already stays.

  Args:
    wanted: of whom, what.
    method: has the role, which none of its phases trains.
    splits: the data.
    folder: to which targets are written; may have others.
    seed: of the run: draws what the role's weights do not hold.
    inputs: shapes of what each role is given, from `usage`.
    batch_size: examples that the role sees at once.
    placement: on which devices.
    show: makes the progress.

  Returns:
    The targets, complete.

  Raises:
    ConfigError: the method cannot give what is wanted.
    RefusedInput: the folder has targets of another form.
    NonFinite: the role gives something that is not finite.
    StorageError: a file cannot be written, or there is no space.
    WorkdirLocked: another process is writing the same targets.
  """
  role, source = _role(method, wanted), splits.part(wanted.split)
  rng = jax.random.key(seed)
  variables = initialise(method, rng, {role: inputs[role]})
  params, collections = (trees[role] for trees in variables)
  key = key_of(method.roles[role], {"params": params, **collections}, source)
  given = dict(zip(("params", "collections"), variables, strict=True))
  run = Shower(
    wanted, method, jax.device_put(given, placement.of(given)), placement
  )
  layout = run.layout(source, batch_size)
  place = place_of(Path(folder), role, key)
  plan = _plan(wanted, key, layout, source)
  for path in sorted(Path(folder).glob(f"{role}/*/{INDEX}")):
    refuse_other_form(Targets.read(path.parent), plan["shows"])
  with files.storage("create", place):
    place.mkdir(parents=True, exist_ok=True)
  with locked(place):
    targets = Targets(place, _begun(place, plan))
    if not targets.complete:
      _require_space(targets)
      rows = functools.partial(run.batches, source, layout, batch_size)
      targets = _filled(targets, rows, show)
  return targets


def _filled(
  targets: Targets,
  rows: Callable[[range], Iterator[Shown]],
  show: Callable[..., Progress],
) -> Targets:
  """Writes the shards that are not there yet."""
  place, index = targets.place, dict(targets.index)
  first, planned = len(index["shards"]), index["shards_planned"]
  size, label = index["shard_examples"], f"{index['role']} on {index['split']}"
  with show(planned, label, start=first) as bar:
    for number in range(first, planned):
      end = min((number + 1) * size, index["examples"])
      examples = range(number * size, end)
      shard = _write(place, number, planned, rows(examples))
      index["shards"] = [*index["shards"], shard]
      if number == planned - 1:
        index |= _totals(index)
      files.write_json(place / INDEX, index)
      bar.update(number + 1, examples=len(examples))
  return Targets(place, index)


def _role(method: Method, wanted: Wanted) -> str:
  """The role, which is there and not trained."""
  if wanted.role not in method.roles:
    raise ConfigError(
      f"no role {wanted.role!r}{did_you_mean(wanted.role, method.roles)} "
      f"(has {', '.join(method.roles)})"
    )
  refuse_trained(method, wanted.role)
  return wanted.role


def _plan(
  wanted: Wanted, key: Mapping[str, str], layout: Layout, source: ArraySource
) -> dict[str, Any]:
  """The index before any shard."""
  shard_examples = max(1, int(wanted.shard_mib * MEBI // layout.record_bytes))
  return {
    "format": FORMAT,
    "role": wanted.role,
    "split": wanted.split,
    "key": dict(key),
    "shows": layout.describe(),
    "temperatures": [float(t) for t in wanted.temperatures],
    "examples": len(source),
    "augmentations": [0],
    "shard_examples": shard_examples,
    "shards_planned": -(-len(source) // shard_examples),
    "shards": [],
  }


def _begun(place: Path, plan: dict[str, Any]) -> dict[str, Any]:
  """The index as it was left, or the plan."""
  if not (place / INDEX).exists():
    files.write_json(place / INDEX, plan)
    return plan
  index = dict(Targets.read(place).index)
  fixed = ("temperatures", "shard_examples")
  names = [name for name in fixed if index[name] != plan[name]]
  if names and not Targets(place, index).complete:
    lines = ", ".join(f"{n}: {index[n]} -> {plan[n]}" for n in names)
    raise ConfigError(
      f"{place} was begun otherwise (there -> given): {lines}; ask for the "
      "same to go on, or delete it"
    )
  return index


def _require_space(targets: Targets) -> None:
  place, layout, index = targets.place, targets.layout, targets.index
  done = sum(shard["records"] for shard in index["shards"])
  needed = (index["examples"] - done) * layout.record_bytes
  free = shutil.disk_usage(place).free
  if free < needed:
    raise StorageError(
      f"not enough space for targets in {place}: {needed:,} bytes needed, "
      f"{free:,} free; make room, or keep fewer classes (--k)"
    )


def _write(
  place: Path, number: int, planned: int, batches: Iterator[Shown]
) -> dict[str, Any]:
  """Writes a shard and returns its row of the index."""
  from array_record.python import array_record_module

  name = f"targets-{number:05d}-of-{planned:05d}.array_record"
  path, temporary = place / name, place / files.TEMPORARY.format(name)
  records, length, tokens, errors = 0, 0, 0, []
  with files.storage("write", temporary):
    # Its own errors are no OSErrors.
    temporary.write_bytes(b"")
  writer = array_record_module.ArrayRecordWriter(
    str(temporary), "group_size:1,uncompressed"
  )
  try:
    for batch in batches:
      for record in batch.records:
        writer.write(record)
      records += len(batch.records)
      length += sum(map(len, batch.records))
      tokens += batch.tokens
      errors.append(batch.errors)
    writer.close()
  except RuntimeError as error:
    raise StorageError(f"cannot write {temporary}: {error}") from error
  size = files.sync(temporary)
  with files.storage("write", path):
    with open(temporary, "rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.replace(temporary, path)
  files.sync(place)
  found = np.concatenate(errors, -1)
  return {
    "file": name,
    "bytes": size,
    "sha256": digest,
    "records": records,
    "record_bytes": length,
    "tokens": tokens,
    "error_sums": found.sum(-1).tolist(),
    "error_maxima": found.max(-1, initial=0.0).tolist(),
  }


def _totals(index: Mapping[str, Any]) -> dict[str, Any]:
  """What the index says in the end: tokens, bytes of each, errors."""
  shards = index["shards"]
  tokens = sum(shard["tokens"] for shard in shards)
  sums = sum(np.asarray(shard["error_sums"]) for shard in shards)
  maxima = functools.reduce(
    np.maximum, [np.asarray(shard["error_maxima"]) for shard in shards]
  )
  return {
    "tokens": tokens,
    "bytes_per_token": sum(s["record_bytes"] for s in shards) / max(tokens, 1),
    "kl": [
      {
        "temperature": temperature,
        "mean": float(total[0]) / max(tokens, 1),
        "max": float(largest[0]),
        "rounding_mean": float(total[1]) / max(tokens, 1),
        "rounding_max": float(largest[1]),
      }
      for temperature, total, largest in zip(
        index["temperatures"], sums, maxima, strict=True
      )
    ],
  }
