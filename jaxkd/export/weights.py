"""Safetensors: the tensors, and how they become a value.

A network of a family is written as the family's own models are, with their
names and a `config.json`; any other one under its paths here, such as
`params/fc1/kernel`. Beside them lies the graph without weights, a function of
the tensors by the names that they have in the file and of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from jaxkd.errors import ConfigError
from jaxkd.export import sentences, stablehlo
from jaxkd.export.parity import Function
from jaxkd.export.trained import Trained
from jaxkd.network import Linen, Network
from jaxkd.teachers.families import FAMILIES, Family
from jaxkd.teachers.files import open_tensors
from jaxkd.teachers.load import OwnNames
from jaxkd.training import files

FILE = "model.safetensors"
CONFIG = "config.json"
GRAPH = "graph.stablehlo"
USE = """\
The tensors are in `model.safetensors`. `graph.stablehlo` is the network
without weights, for JAX, `flatbuffers` and `safetensors` alone; the batch size
is free.

```python
from jax import export
from safetensors.numpy import load_file

with open("graph.stablehlo", "rb") as file:
  graph = export.deserialize(file.read())
value = graph.call(load_file("model.safetensors"), batch)  # inputs by name
```"""
Tree = Any


@dataclasses.dataclass(frozen=True)
class Row:
  """A tensor of the file.

  Attributes:
    name: in the file.
    path: of our leaf, with its collection.
    index: entry of the leaf's leading axis; None for the whole leaf.
    axes: the tensor is the leaf, or entry, transposed by these.
  """

  name: str
  path: str
  index: int | None = None
  axes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """How variables are laid out in a file.

  Attributes:
    rows: the tensors; those of one leaf in the order of their index.
    config: the content of `config.json`; None in our own layout.
    note: why it is this layout.
  """

  rows: tuple[Row, ...]
  config: Mapping[str, Any] | None
  note: str

  def tensors(self, variables: Tree) -> dict[str, np.ndarray]:
    """The tensors of variables, by name."""
    leaves = paths(variables)
    found = {}
    for row in self.rows:
      leaf = leaves[row.path]
      leaf = leaf if row.index is None else leaf[row.index]
      leaf = leaf if row.axes is None else leaf.transpose(row.axes)
      found[row.name] = np.ascontiguousarray(leaf)
    return found

  def variables(self, tensors: Mapping[str, Any], like: Tree) -> Tree:
    """The variables that tensors stand for.

    Args:
      tensors: by name.
      like: the same tree; leaves that are in no row are taken from it.
    """
    leaves: dict[str, Any] = {}
    for row in self.rows:
      leaf = jnp.asarray(tensors[row.name])
      if row.axes is not None:
        leaf = leaf.transpose(np.argsort(row.axes))
      if row.index is None:
        leaves[row.path] = leaf
      else:
        leaves.setdefault(row.path, []).append(leaf)
    all_leaves = {
      path: jnp.stack(leaf) if isinstance(leaf, list) else leaf
      for path, leaf in {**paths(like), **leaves}.items()
    }
    return jax.tree.unflatten(jax.tree.structure(like), all_leaves.values())


def write(trained: Trained, folder: Path) -> dict[str, Any]:
  """Writes tensors, their graph, and the configs of a family's network.

  Args:
    trained: a network.
    folder: where to.

  Returns:
    Facts for export.json.
  """
  layout = layout_of(trained)
  tensors = layout.tensors(trained.variables)
  with files.storage("write", folder / FILE):
    # Transformers reads this entry, and nothing else of the metadata.
    safetensors.save_file(tensors, folder / FILE, metadata={"format": "pt"})
  if layout.config is not None:
    files.write_json(folder / CONFIG, dict(layout.config))
  sentence = _sentence(trained, layout, folder)
  shapes = {
    name: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
    for name, tensor in tensors.items()
  }
  function = jax.jit(
    lambda tensors, batch: trained.apply(
      layout.variables(tensors, trained.variables), batch
    )
  )
  graph = stablehlo.lower(function, trained, shapes)
  (folder / GRAPH).write_bytes(graph.serialize())
  return {
    "layout": layout.note,
    "config": layout.config,
    "sentences": sentence,
    "platforms": list(graph.platforms),
  }


def _sentence(trained: Trained, layout: Layout, folder: Path) -> str | None:
  """Writes what sentence-transformers reads; returns how it is read."""
  if layout.config is None:
    return None
  found = sentences.folder_of(_module(trained), trained.examples)
  if found is None:
    return None
  for path, content in found.files.items():
    (folder / path).parent.mkdir(exist_ok=True)
    files.write_json(folder / path, content)
  return found.note


def read(folder: Path) -> Function:
  """Returns the function of a batch that a folder holds."""
  graph = stablehlo.deserialized(folder / GRAPH)
  tensors = {
    name: jnp.asarray(tensor.read())
    for name, tensor in open_tensors(folder / FILE).items()
  }
  run = jax.jit(graph.call)
  return lambda batch: run(tensors, batch)


def paths(tree: Tree) -> dict[str, Any]:
  """Leaves by path, in the order of the tree."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def _module(trained: Trained) -> Any:
  module = trained.network.module
  return module.module if isinstance(module, Linen) else module


def layout_of(trained: Trained) -> Layout:
  """The layout of the family that a network belongs to, else our own."""
  module = _module(trained)
  # What is left out, keys of dropout, is a part of the graph.
  leaves = {
    path: leaf
    for path, leaf in paths(trained.variables).items()
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  }
  stacked = getattr(module, "scan_layers", False)
  for family in FAMILIES:
    config = _config(family, trained, leaves, module, stacked=stacked)
    if config is not None:
      break
  else:
    note = f"paths in jaxkd: {type(module).__name__} belongs to no family"
    return _own(leaves, note)
  try:
    rows = _rows(family, leaves, stacked=stacked)
  except ConfigError as error:
    return _own(leaves, f"paths in jaxkd: {error}")
  return Layout(rows, config, f"that of {family.name}, {config['model_type']}")


def _own(leaves: Mapping[str, np.ndarray], note: str) -> Layout:
  own = OwnNames()
  return Layout(
    tuple(Row(own.theirs(path).name, path) for path in leaves), None, note
  )


def _config(
  family: Family,
  trained: Trained,
  leaves: Mapping[str, np.ndarray],
  module: Any,
  *,
  stacked: bool,
) -> dict[str, Any] | None:
  """A family's config that stands for a module; None if none does."""
  try:
    config = family.describe(module)
    options = {"scan_layers": True} if stacked else {}
    rebuilt, _ = family.build(config, **options)
  except (AttributeError, ConfigError, KeyError, TypeError):
    return None  # a net of another kind
  if type(rebuilt) is not type(module):
    return None
  network = Network(rebuilt, trained.network.inputs)
  like = paths(
    jax.eval_shape(lambda: network.init(jax.random.key(0), trained.examples))
  )
  # A head that only theirs has is theirs to draw.
  same = all(
    path in like and like[path].shape == leaf.shape
    for path, leaf in leaves.items()
  )
  return config if same else None


def _rows(
  family: Family, leaves: Mapping[str, np.ndarray], *, stacked: bool
) -> tuple[Row, ...]:
  names = family.names
  if stacked:
    names = names.stacked("block{i+1}", "blocks")
  rows = []
  for path, leaf in leaves.items():
    places = [names.theirs(path)]
    if places[0] is None and stacked and leaf.ndim:
      places = [names.theirs(path, index) for index in range(len(leaf))]
    if not places or None in places:
      raise ConfigError(f"family {family.name} has no name for {path}")
    rows += [Row(p.name, path, p.index, p.axes) for p in places]
  if len({row.name for row in rows}) != len(rows):
    raise ConfigError(f"family {family.name} calls two leaves by one name")
  return tuple(rows)
