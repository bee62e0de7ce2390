"""A role of a finished run, as the weights of a network."""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd.errors import RefusedInput, StorageError, did_you_mean
from jaxkd.teachers.files import Tensor, Tensors
from jaxkd.teachers.load import OwnNames, fingerprint, load
from jaxkd.training import treefile
from jaxkd.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class OrbaxRun:
  """A role of a finished run of ours, as the weights of a network.

    Network(net, ("image",), weights=OrbaxRun("runs/kd", "teacher"))

  The role is as the last phase that trained it left it.

  Attributes:
    workdir: the run's.
    role: whose variables.
    seed: of the run; the first seed's if not given.
    label: `main`, or that of a control.
    dtype: in which floating-point leaves are kept; by default the network's.
  """

  workdir: str
  role: str
  seed: int | None = None
  label: str = "main"
  dtype: str | None = None

  def tensors(self) -> Tensors:
    """Opens the role's leaves, each read and verified by itself.

    Raises:
      RefusedInput: there is no such run, it is not finished, or none of its
        phases trained the role.
      StorageError: it is damaged.
    """
    stages = self._stages()
    source = f"role {self.role!r} of {self.workdir}"
    trained = set()
    for stage in stages:
      try:
        rows = treefile.manifest(stage)["leaves"]
      except treefile.Damaged as error:
        raise StorageError(f"{source}: {error}") from error
      names = {name: _place(name) for name in rows}
      trained |= {place[0] for place in names.values() if place}
      found = {
        name: place[1]
        for name, place in names.items()
        if place and place[0] == self.role
      }
      if found:
        read = treefile.reader(stage, rows)
        return Tensors(
          source,
          {
            path: _tensor(rows[name], name, read)
            for name, path in found.items()
            if "key" not in rows[name]
          },
        )
    raise RefusedInput(
      f"no phase of {self.workdir} trained a role {self.role!r}"
      + did_you_mean(self.role, trained)
      + f" (trained: {', '.join(sorted(trained))})"
    )

  def _stages(self) -> list[Path]:
    """The finished phases, last first."""
    workdir = Workdir.read(self.workdir)
    if not workdir.summary.is_file():
      raise RefusedInput(f"{self.workdir} is not finished: it has no summary")
    folder = workdir.root / "runs" / self.label
    seeds = {
      int(entry.name.removeprefix("seed_")): entry
      for entry in folder.glob("seed_*")
    }
    seed = min(seeds, default=0) if self.seed is None else self.seed
    if seed not in seeds:
      raise RefusedInput(
        f"{self.workdir} has no run {self.label!r} of seed {seed}; seeds are "
        + (", ".join(map(str, sorted(seeds))) or "none")
      )
    stages = list(workdir.run(self.label, seed).stages.iterdir())
    return sorted(
      stages, key=lambda stage: int(stage.name.split("_")[0]), reverse=True
    )

  def load(self, like: Mapping[str, Any]) -> dict[str, Any]:
    """Loads variables; see `teachers.load`."""
    return load(self.tensors(), OwnNames(), like, dtype=self.dtype)

  def fingerprint(self) -> str:
    """The digest of the role's variables; see `teachers.load`."""
    return fingerprint(self.tensors())


def _place(name: str) -> tuple[str, str] | None:
  """The role of a leaf, and collection and path in it; None if of neither."""
  kind, *parts = map(urllib.parse.unquote, name.split("/"))
  if kind == "params":
    return parts[0], "/".join(("params", *parts[1:]))
  return (parts[0], "/".join(parts[1:])) if kind == "collections" else None


def _tensor(row: Mapping[str, Any], name: str, read: Any) -> Tensor:
  def read_leaf() -> np.ndarray:
    try:
      return read(name).value
    except treefile.Damaged as error:
      raise StorageError(str(error)) from error

  return Tensor(tuple(row["shape"]), jnp.dtype(row["dtype"]), read_leaf)
