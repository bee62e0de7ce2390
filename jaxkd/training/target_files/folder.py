"""The folder of targets: of what they are, what they show, who reads them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd import identity
from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import ConfigError, RefusedInput, StorageError
from jaxkd.method import Method
from jaxkd.network import Network
from jaxkd.roles import initialise
from jaxkd.targets import Served
from jaxkd.training import files, trees
from jaxkd.training.program import Programs
from jaxkd.training.target_files.reading import Reader
from jaxkd.training.target_files.records import Layout

FORMAT = 2
INDEX = "index.json"
SAMPLE = 64  # examples whose decoded values are part of the key
# What a key consists of, and how a difference is told.
KEY = {
  "network": "another network (its module or its inputs)",
  "weights": "other weights of the network",
  "data": "other examples",
  "transform": "examples that are decoded otherwise",
}


def key_of(
  network: Network, variables: Mapping[str, Any], source: ArraySource
) -> dict[str, str]:
  """Of what a role's outputs are: digests of everything that decides them.

  Args:
    network: the role's.
    variables: its variables by collection.
    source: a whole split.

  Raises:
    ConfigError: the network reads something that is no entry of the split.
  """
  inputs = network.inputs
  absent = [name for name in inputs if name not in source.arrays]
  if absent:
    raise ConfigError(
      f"{network.name} reads {absent[0]!r}, which is no entry of the split "
      f"(has {', '.join(sorted(source.arrays))}); expected a role that reads "
      "the data alone"
    )
  stored = ArraySource(
    {name: source.arrays[name] for name in inputs},
    tables={n: t for n, t in source.tables.items() if n in inputs},
  )
  count = min(SAMPLE, len(source))
  decoded = source.take(np.linspace(0, len(source) - 1, count).astype(int))
  decoded = ArraySource({name: decoded[name] for name in inputs})
  described = identity.describe((network.module, inputs))
  return {
    "network": hashlib.sha256(trees.canonical(described)).hexdigest(),
    "weights": trees.tree_digest(variables),
    "data": pipeline.fingerprint(stored),
    "transform": pipeline.fingerprint(decoded),
  }


def place_of(folder: Path, role: str, key: Mapping[str, str]) -> Path:
  """Where the outputs of a key lie."""
  digest = hashlib.sha256(trees.canonical(dict(key))).hexdigest()
  return folder / role / digest[:16]


@dataclasses.dataclass(frozen=True)
class Targets:
  """The outputs of one role on one split.

  Attributes:
    place: their folder.
    index: the content of index.json.
  """

  place: Path
  index: Mapping[str, Any]

  @classmethod
  def read(cls, place: Path) -> Targets:
    """Opens them.

    Raises:
      RefusedInput: they are of another format.
      StorageError: the index cannot be read.
    """
    index = files.read_json(place / INDEX)
    if index.get("format") != FORMAT:
      raise RefusedInput(
        f"{place} has targets of format {index.get('format')!r}; expected "
        f"{FORMAT}: cache them again"
      )
    return cls(place, index)

  @property
  def layout(self) -> Layout:
    """What the records hold."""
    return Layout.read(self.index["shows"])

  @property
  def complete(self) -> bool:
    """Whether all shards are there."""
    return "tokens" in self.index

  @property
  def fingerprint(self) -> str:
    """A digest of every bit of them."""
    return hashlib.sha256(trees.canonical(dict(self.index))).hexdigest()

  def lines(self) -> list[str]:
    """What there is, and what of the teacher is lost, for a terminal."""
    index, codec = self.index, self.layout.codec
    form = f"{index['shows']['classes']} logits as they are"
    if codec is not None:
      form = f"top {codec.k} of {codec.classes} classes, {codec.bits} bits each"
    lines = [
      f"{index['role']} on {index['split']}: {index['examples']} examples, "
      f"{index['tokens']} positions, {form}",
      f"{index['bytes_per_token']:.1f} bytes a position, "
      f"{sum(shard['bytes'] for shard in index['shards']):,} in "
      f"{len(index['shards'])} file(s): {self.place}",
    ]
    if codec is None:
      return [*lines, "KL(teacher || cached) = 0: nothing is rounded"]
    return lines + [
      f"KL(teacher || cached) at temperature {e['temperature']:g}: mean "
      f"{e['mean']:.3g}, max {e['max']:.3g} nats; of the k classes and the sum "
      f"of the others: mean {e['rounding_mean']:.3g}, max "
      f"{e['rounding_max']:.3g}"
      for e in index["kl"]
    ]

  def reader(self, role: str) -> Reader:
    """Gives batches the role's entries.

    Raises:
      StorageError: a shard is not there, or not as long as it was.
    """
    for shard in self.index["shards"]:
      path = self.place / shard["file"]
      size = path.stat().st_size if path.is_file() else None
      if size != shard["bytes"]:
        found = "missing" if size is None else f"{size:,} bytes long"
        raise StorageError(
          f"{path} is {found}; expected {shard['bytes']:,} bytes: delete "
          f"{self.place} and cache the targets again"
        )
    return Reader(
      role=role,
      layout=self.layout,
      shards=tuple(self.place / s["file"] for s in self.index["shards"]),
      shard_examples=self.index["shard_examples"],
      examples=self.index["examples"],
      augmentations=tuple(self.index["augmentations"]),
      fingerprint=self.fingerprint,
    )


class TargetFolder:
  """All targets below a folder.

  Attributes:
    folder: where they lie.
    targets: by role.
  """

  def __init__(self, folder: str | Path):
    """Reads the indices.

    Args:
      folder: what targets were cached to.

    Raises:
      RefusedInput: there are none, some are not complete, or those of a role
        are of several forms.
      StorageError: an index cannot be read.
    """
    self.folder = Path(folder)
    self.targets: dict[str, list[Targets]] = {}
    for path in sorted(self.folder.glob(f"*/*/{INDEX}")):
      found = Targets.read(path.parent)
      if not found.complete:
        raise RefusedInput(
          f"{path.parent} has {len(found.index['shards'])} shards of "
          f"{found.index['shards_planned']}: run the same jaxkd cache-targets "
          "again, which makes the others"
        )
      others = self.targets.setdefault(path.parent.parent.name, [])
      others.append(found)
      refuse_other_form(others[0], found.index["shows"])
    if not self.targets:
      raise RefusedInput(
        f"{self.folder} has no targets; expected a folder that jaxkd "
        "cache-targets wrote to"
      )

  @property
  def shows(self) -> dict[str, Any]:
    """What is shown of every role."""
    return {
      role: found[0].index["shows"] for role, found in self.targets.items()
    }

  def served(self, method: Method) -> dict[str, Served]:
    """The roles of a method whose outputs are here.

    Raises:
      ConfigError: a phase trains one of them.
    """
    roles = method.roles
    served = {}
    for role in self.targets:
      if role in roles:
        refuse_trained(method, role)
        layout = self.targets[role][0].layout
        served[role] = Served(
          role=role,
          inputs=roles[role].inputs,
          k=layout.codec and layout.codec.k,
          mapping=layout.mapping,
          taps=tuple(layout.taps),
          folder=str(self.folder),
        )
    return served

  def readers(
    self,
    method: Method,
    answered: Mapping[str, Collection[tuple[str, str]]],
    variables: tuple[Mapping, Mapping],
    splits: Splits,
  ) -> dict[str, dict[int, list[Reader]]]:
    """Readers by phase and by the id of the source that they read beside.

    Args:
      method: the method.
      answered: by phase, which roles are read on which streams.
      variables: parameters and collections by role.
      splits: the data.

    Raises:
      RefusedInput: there are no targets of these variables and examples.
    """
    params, collections = variables
    opened: dict[tuple[str, str], Reader] = {}
    found: dict[str, dict[int, list[Reader]]] = {}
    for phase in method.lasting_phases:
      streams = {"": phase.stream, **phase.beside}
      readers = found[phase.name] = {}
      for role, start in sorted(answered[phase.name]):
        split = streams[start.removesuffix("/")].split
        source = splits.part(split)
        if (role, split) not in opened:
          tree = {"params": params[role], **collections.get(role, {})}
          key = key_of(method.roles[role], tree, source)
          opened[role, split] = self.find(role, key, split).reader(role)
        beside = readers.setdefault(id(source), [])
        if opened[role, split] not in beside:
          beside.append(opened[role, split])
    return found

  def check(
    self,
    programs: Iterable[Programs],
    splits: Mapping[int, Splits],
    batch_size: int,
  ) -> None:
    """Refuses before anything is trained what a run would refuse.

    Args:
      programs: of all methods of an experiment.
      splits: the data by seed.
      batch_size: the task's.

    Raises:
      ConfigError: no phase of any method reads a role whose targets are here.
      RefusedInput: see `readers`.
    """
    read = set()
    for each in programs:
      method = each.method
      for seed, data in splits.items():
        usage = each.usage(data, batch_size)
        roles = {r for runs in usage.answered.values() for r, _ in runs}
        inputs = {role: usage.inputs[role] for role in sorted(roles)}
        variables = initialise(method, jax.random.key(seed), inputs)
        self.readers(method, usage.answered, variables, data)
        read |= roles
    if not read:
      raise ConfigError(
        f"Settings.targets={str(self.folder)!r}: has targets of "
        f"{', '.join(self.targets)}, which no phase reads; expected a role of "
        "the method, or None"
      )

  def find(self, role: str, key: Mapping[str, str], split: str) -> Targets:
    """The targets of a key.

    Args:
      role: whose.
      key: from `key_of`.
      split: the split's name, for the message.

    Raises:
      RefusedInput: there are none; names what the nearest ones differ in.
    """

    def differing(targets):
      old = targets.index["key"]
      return [name for name in KEY if old[name] != key[name]]

    nearest = min(self.targets[role], key=lambda t: len(differing(t)))
    names = differing(nearest)
    if not names:
      return nearest
    old, examples = nearest.index["key"], nearest.index["examples"]
    lines = "\n  ".join(
      f"{KEY[name]}: {old[name][:12]} -> {key[name][:12]}" for name in names
    )
    raise RefusedInput(
      f"the targets of role {role!r} in {self.folder} are not those of this "
      f"run's split {split!r}; of split {nearest.index['split']!r} "
      f"({examples} examples) there are some of (cached -> given)\n  {lines}\n"
      "undo the change, or run jaxkd cache-targets again"
    )


def open_targets(folder: str | None) -> TargetFolder | None:
  """The folder of `Settings.targets`, if there is one."""
  return TargetFolder(folder) if folder else None


def refuse_other_form(targets: Targets, shows: Mapping[str, Any]) -> None:
  """Targets of a role show the same, whatever the split and seed.

  Args:
    targets: some that are there.
    shows: what others show.

  Raises:
    RefusedInput: they differ; names in what.
  """
  old = targets.index["shows"]
  # Splits may have examples of other lengths.
  names = [n for n in shows if n != "positions" and old[n] != shows[n]]
  if names:
    lines = ", ".join(f"{n}: {old[n]!r} -> {shows[n]!r}" for n in names)
    raise RefusedInput(
      f"{targets.place} has targets of another form (there -> given): {lines}; "
      "expected one form for all targets of a role: ask for the same, or use "
      "another folder"
    )


def refuse_trained(method: Method, role: str) -> None:
  """Only what no phase trains can be cached before a run.

  Args:
    method: the method.
    role: one of its roles.

  Raises:
    ConfigError: a phase trains it.
  """
  for phase in method.lasting_phases:
    if role in phase.trains(tuple(method.roles)):
      raise ConfigError(
        f"role {role!r} is trained by phase {phase.name!r}, so what it shows "
        "is not known before; expected a network with weights (such as "
        "OrbaxRun, of a finished run) and a phase of length 0"
      )
