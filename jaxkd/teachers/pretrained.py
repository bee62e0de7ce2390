"""Networks with weights from elsewhere."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.adapters import nnx_variables
from jaxkd.errors import ConfigError, RefusedInput, did_you_mean
from jaxkd.network import Network
from jaxkd.teachers import families
from jaxkd.teachers.base import Config, Family
from jaxkd.teachers.files import Tensor, Tensors, open_tensors
from jaxkd.teachers.hub import folder_of
from jaxkd.teachers.load import OwnNames, fingerprint, load, random_streams
from jaxkd.teachers.names import NameMap
from jaxkd.teachers.tensors import read_json

# Parts that nets can be built without, by an option.
_PARTS = ("head", "class_head", "taught_head", "pooler", "fc")


def Pretrained(
  source: str | os.PathLike,
  *,
  family: str | None = None,
  config: Config | str | os.PathLike | None = None,
  revision: str | None = None,
  params_dtype: Any = None,
  ignored: Sequence[str] = (),
  drawn: Sequence[str] = (),
  interpolated: Sequence[str] = (),
  inputs: Sequence[str] | None = None,
  **options: Any,
) -> Network:
  """A model from elsewhere, with its weights.

  Args:
    source: a folder with `config.json` and weights in safetensors or torch's
      zip, in one file or several; the id of such a folder on the Hugging Face
      Hub (extra `hub`); or one file of tensors (npz too), with `config`.
    family: what the model is; by default what the config's `model_type` says.
    config: theirs, or its file; by default the `config.json` of the folder.
    revision: branch, tag or commit on the Hub.
    params_dtype: in which the weights are kept; float32 if not given.
    ignored: regular expressions of names of further tensors not to be loaded.
    drawn: parts that are not loaded but drawn: a `head` for other classes.
    interpolated: positions, such as `stem/positions`, to be interpolated for
      another `image_size`.
    inputs: batch entries that the net reads; the family's if not given.
    **options: what the family builds its net with: `dtype` (of computation),
      `head`, `remat`, `scan_layers`, ... A head or pooler that the net is built
      without is not loaded.

  Returns:
    The network; its weights are loaded when a run starts.

  Raises:
    ConfigError: the config, an option or the family is not supported.
    RefusedInput: there is no such model, or the Hub cannot be reached.
  """
  here = Path(source).exists()
  folder = Path(source) if here else folder_of(os.fspath(source), revision)
  found, config = _family(family, _config(config, folder))
  try:
    module, usual = found.build(config, **options)
  except TypeError as error:
    raise ConfigError(f"family {found.name}: {error}") from error
  names = found.names
  if options.get("scan_layers"):
    names = names.stacked("block{i+1}", "blocks")
  weights = Checkpoint(
    os.fspath(source),
    names=dataclasses.replace(names, ignored=(*names.ignored, *ignored)),
    # The commit, so that what is loaded later is what was read now.
    revision=None if here else folder.name,
    dtype=None if params_dtype is None else str(jnp.dtype(params_dtype)),
    without=_PARTS if options else (),
    drawn=tuple(drawn),
    interpolated=tuple(interpolated),
  )
  return Network(module, usual if inputs is None else inputs, weights)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A file, folder or Hub id of tensors, as the weights of a network.

  Any network can have it, those of NNX modules too:
  `Network(NNX(make), ("image",), weights=Checkpoint("teacher.npz"))`.

  Attributes:
    source: where it lies.
    names: what its tensors are called; None if as here, collection and path,
      `params/fc1/kernel`.
    revision: branch, tag or commit on the Hub.
    dtype: in which floating-point leaves are kept; by default the network's.
    without: parts of the net that may be absent though the file has them.
    drawn: parts of the net that are not loaded but drawn, such as `head`.
    interpolated: positions of the net that are interpolated if the file has
      those of images of another size, such as `stem/positions`.
  """

  source: str
  names: NameMap | None = None
  revision: str | None = None
  dtype: str | None = None
  without: tuple[str, ...] = ()
  drawn: tuple[str, ...] = ()
  interpolated: tuple[str, ...] = ()

  def tensors(self) -> Tensors:
    """Opens it."""
    if Path(self.source).exists():
      return open_tensors(self.source)
    return open_tensors(folder_of(self.source, self.revision))

  def load(self, like: Mapping[str, Any]) -> dict[str, Any]:
    """Loads variables; see `load`."""
    tensors = self.tensors()
    names = self.names or OwnNames()
    try:
      return load(
        tensors,
        names,
        like,
        dtype=self.dtype,
        without=self.without,
        drawn=self.drawn,
        interpolated=self.interpolated,
      )
    except RefusedInput as error:
      other = _likelier(tensors, names)
      if other is None:
        raise
      raise RefusedInput(
        f"{self.source} looks like a {other}: {error}"
      ) from error

  def fingerprint(self) -> str:
    """The digest of its tensors; see `fingerprint`."""
    return fingerprint(self.tensors())


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
  """Variables that are there already, as the weights of a network.

  Attributes:
    variables: by collection, or an NNX module that has them. Its random
      streams are not kept.
  """

  variables: Mapping[str, Any] | nnx.Module

  def __post_init__(self):
    """Takes the module's variables."""
    variables = self.variables
    if isinstance(variables, nnx.Module):
      variables = nnx_variables(variables)
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    streams = random_streams(flat)
    flat = {path: x for path, x in flat.items() if path not in streams}
    variables = flax.traverse_util.unflatten_dict(flat, sep="/")
    object.__setattr__(self, "variables", variables)

  def load(self, like: Mapping[str, Any]) -> dict[str, Any]:
    """Puts them where the leaves of `like` are; see `load`."""
    flat = flax.traverse_util.flatten_dict(self.variables, sep="/")
    tensors = {
      path: Tensor(x.shape, x.dtype, lambda x=x: np.asarray(x))
      for path, x in flat.items()
    }
    return load(Tensors("the variables", tensors), OwnNames(), like)

  def fingerprint(self) -> str:
    """Their digest; see `fingerprint`."""
    return fingerprint(self.variables)


def _config(given: Config | str | os.PathLike | None, folder: Path) -> Config:
  """The config that is given, in a file that is given, or in the folder."""
  if isinstance(given, Mapping):
    return given
  if given is None and not folder.is_dir():
    raise ConfigError(f"{folder} is a file; it needs a family and a config")
  path = Path(given or folder / "config.json")
  config = read_json(path)
  if not isinstance(config, Mapping):
    raise RefusedInput(f"{path} holds no config but {str(config)[:40]!r}")
  return config


def _family(name: str | None, config: Config) -> tuple[Family, Config]:
  """The family, and the config with its `model_type`."""
  if name is None:
    return families.family_of(config), config
  known = {family.name: family for family in families.FAMILIES}
  if name not in known:
    raise ConfigError(
      f"family {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})"
    )
  kinds = known[name].model_types
  if "model_type" not in config and len(kinds) == 1:
    config = {**config, "model_type": kinds[0]}
  if config.get("model_type") not in kinds:
    raise ConfigError(
      f"the config is of model_type {config.get('model_type')!r}; expected "
      f"{' or '.join(kinds)} for the family {name!r}"
    )
  return known[name], config


def _likelier(tensors: Tensors, names: Any) -> str | None:
  """The family whose names fit more of the tensors than these do."""

  def fitting(table):
    return sum(table.ours(name) is not None for name in tensors)

  best = max(families.FAMILIES, key=lambda family: fitting(family.names))
  return best.name if fitting(best.names) > fitting(names) else None
