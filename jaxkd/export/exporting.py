"""From a finished run to a folder that can be handed on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxkd.errors import ConfigError, RefusedInput, did_you_mean
from jaxkd.export import card, onnx, stablehlo, trees, weights
from jaxkd.export.parity import BATCHES, Difference, Parity
from jaxkd.export.trained import LABEL, PREDICTOR, Trained, restore
from jaxkd.training import files
from jaxkd.training.environment import versions
from jaxkd.training.workdir import Workdir

if TYPE_CHECKING:
  from jaxkd.experiment import Experiment

FACTS = "export.json"
VERSION = 1  # of the folder's layout
FORMATS = {
  "stablehlo": stablehlo,
  "safetensors": weights,
  "orbax": trees,
  "onnx": onnx,
}
_OF_NETWORKS = ("safetensors", "orbax")  # hold variables, not a rule


@dataclasses.dataclass(frozen=True)
class Exported:
  """An exported network.

  Attributes:
    folder: where it lies.
    facts: the content of export.json.
  """

  folder: Path
  facts: Mapping[str, Any]

  def lines(self) -> list[str]:
    """What was done, to be printed."""
    facts = self.facts
    found = facts["difference"]
    if found is None:
      check = "read back equal, bit for bit"
    else:
      check = (
        f"difference to the trained network {found['absolute']:.2e} "
        f"(relative {found['relative']:.2e}, at most {found['tolerance']:.0e};"
        f" batches of {', '.join(map(str, found['batches']))})"
      )
    return [
      f"{facts['role']} of {facts['method']} on {facts['task']}, seed "
      f"{facts['seed']}: {facts['parameters']:,} parameters",
      check,
      f"{facts['format']}: {self.folder}",
    ]


def export(
  experiment: Experiment,
  workdir: str | os.PathLike,
  *,
  format: str,
  role: str = "student",
  seed: int | None = None,
  out: str | os.PathLike | None = None,
  license: str | None = None,
  command: str = "",
) -> Exported:
  """Exports a network of a finished run, or what its method deploys.

  Args:
    experiment: what was run.
    workdir: its run directory.
    format: `stablehlo`, `safetensors`, `orbax` or `onnx`.
    role: of the network, or `predictor`.
    seed: of the run; the first if not given.
    out: the folder, absent, empty or an earlier export; in the workdir if not
      given.
    license: of the network, an id of SPDX, for the model card.
    command: the command line, for the model card.

  Returns:
    The folder and what is known of it.

  Raises:
    ConfigError: there is no such format, role or seed, they do not go
      together, or the license is no id.
    RefusedInput: the run is not finished, the folder holds something else, or
      the export computes something else than the trained network.
  """
  _check_format(format)
  card.check_license(license)
  opened, summary = _finished(workdir)
  seed = _seed(summary, seed)
  place = opened.root / "export" / format / f"{role}_seed_{seed}"
  target = Path(os.path.abspath(out or place))
  _refuse_other(target)
  sources = card.sources(experiment.method)
  _refuse_changed(opened, sources)
  trained = restore(experiment, opened, role=role, seed=seed)
  _check(trained, format)
  with _replacing(target) as building:
    facts = _facts(summary, trained, format)
    facts |= {"license": license, "sources": sources}
    facts |= write(trained, format, building)
    files.write_json(building / FACTS, facts)
    text = card.card(
      experiment,
      opened,
      summary,
      trained,
      facts,
      use=FORMATS[format].USE,
      command=command,
    )
    files.write_text(building / "README.md", text)
  return Exported(target, facts)


def _check_format(format: str) -> None:
  if format not in FORMATS:
    raise ConfigError(
      f"--format {format}: no such format{did_you_mean(format, FORMATS)} (has "
      f"{', '.join(FORMATS)})"
    )


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
  """Yields a new folder, which takes the target's place if all went well."""
  building = target.with_name(files.TEMPORARY.format(target.name))
  with files.storage("write", target):
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
      yield building
      shutil.rmtree(target, ignore_errors=True)
      os.rename(building, target)
    except BaseException:
      shutil.rmtree(building, ignore_errors=True)
      raise


def _finished(path: str | os.PathLike) -> tuple[Workdir, dict[str, Any]]:
  opened = Workdir.read(path)
  if not opened.summary.exists():
    raise RefusedInput(f"{opened.root} has no summary.json yet: finish the run")
  return opened, files.read_json(opened.summary)


def _seed(summary: Mapping[str, Any], seed: int | None) -> int:
  seeds = summary["seeds"]
  if seed is not None and seed not in seeds:
    raise ConfigError(
      f"--seed {seed}: the run has {', '.join(map(str, seeds))}"
    )
  return seeds[0] if seed is None else seed


def _refuse_other(target: Path) -> None:
  """Refuses a folder that is neither absent, empty nor an export."""
  if not target.exists() or (target / FACTS).is_file():
    return
  if not target.is_dir() or any(target.iterdir()):
    raise RefusedInput(
      f"{target} is there and is no export: name an empty or a new folder. "
      "Nothing was written"
    )


def _refuse_changed(
  workdir: Workdir, sources: Mapping[str, Mapping[str, str]]
) -> None:
  """Refuses weights from elsewhere that are not those of the run."""
  described = workdir.identity["describe"].get("weights", {})
  for role, found in sources.items():
    before = described.get(f"{LABEL}/{role}")
    if before != found["fingerprint"]:
      raise RefusedInput(
        f"the weights of role {role!r}, {found['source']}, have changed since "
        f"the run: {before} -> {found['fingerprint']}"
      )


def _check(trained: Trained, format: str) -> None:
  """Refuses formats that cannot hold what was trained."""
  if trained.role == PREDICTOR and format in _OF_NETWORKS:
    raise ConfigError(
      f"--role {PREDICTOR} is a rule over networks, {format} holds the "
      "variables of one: expected --format stablehlo or onnx, or a role"
    )
  if not trained.examples and format != "orbax":
    inputs = trained.network.inputs if trained.network else ()
    reads = ", ".join(inputs) or "nothing"
    raise ConfigError(
      f"--role {trained.role} reads {reads}, which is no entry of the data, "
      "so that it cannot be run alone: expected --format orbax, or --role "
      f"{PREDICTOR}"
    )


def _facts(
  summary: Mapping[str, Any], trained: Trained, format: str
) -> dict[str, Any]:
  return {
    "version": VERSION,
    "format": format,
    "role": trained.role,
    "seed": trained.seed,
    "method": summary["method"],
    "task": summary["task"],
    "parameters": sum(
      leaf.size for leaf in jax.tree.leaves(trained.variables["params"])
    ),
    "inputs": {name: _shape(x) for name, x in trained.examples.items()},
    "fingerprints": card.fingerprints(trained),
    "versions": versions(),
    "difference": None,
  }


def write(trained: Trained, format: str, folder: Path) -> dict[str, Any]:
  """Writes the files and compares what they compute.

  Args:
    trained: what is exported.
    format: one of `FORMATS`.
    folder: where to; absolute.

  Returns:
    Facts for export.json.

  Raises:
    ConfigError: the format cannot hold it.
    RefusedInput: the files compute something else.
  """
  facts = FORMATS[format].write(trained, folder)
  if format == "orbax":
    return facts
  run = jax.jit(trained.apply)
  parity = Parity.of(
    lambda batch: run(trained.variables, batch), trained.examples
  )
  function = FORMATS[format].read(folder)
  sizes = sorted({*BATCHES, len(parity)})
  found = [parity.difference(function, size) for size in sizes]
  worst = Difference(
    absolute=float(np.max([one.absolute for one in found])),
    relative=float(np.max([one.relative for one in found])),
  )
  if not all(one.within(parity.tolerance) for one in found):
    raise RefusedInput(
      f"{format} computes something else than the trained {trained.role}: a "
      f"difference of {worst.absolute:.2e}, {worst.relative:.2e} of the "
      f"outputs' scale; allowed are {parity.tolerance:.0e}. Nothing was written"
    )
  parity.save(folder)
  return {
    **facts,
    "outputs": {name: _shape(x) for name, x in parity.outputs.items()},
    "difference": {
      **dataclasses.asdict(worst),
      "tolerance": parity.tolerance,
      "batches": sizes,
      "platform": jax.default_backend(),
    },
  }


def _shape(array: Any) -> dict[str, Any]:
  return {"dtype": str(array.dtype), "shape": ["batch", *array.shape[1:]]}
