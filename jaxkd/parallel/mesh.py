"""A device mesh and the rules that place arrays on it.

One device is the trivial mesh: there is one code path. Axes are Auto, so that
the compiler propagates shardings from the arguments of the step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxkd.errors import ConfigError
from jaxkd.parallel import arrays, processes

AXES = ("data", "fsdp", "tensor")

Rules = tuple[tuple[str, tuple[str | None, ...] | str], ...]

REPLICATED: Rules = ()
# Largest dimension that divides, over the fsdp axis.
FSDP: Rules = ((".*", "largest"),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """Sizes of the mesh axes; their product is the number of devices used.

  Attributes:
    data: copies of the parameters; the batch is split over data and fsdp.
    fsdp: parts that parameters are split into by `FSDP` rules.
    tensor: parts for rules that name the axis.
  """

  data: int = 1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    """Checks the sizes."""
    for axis in AXES:
      if getattr(self, axis) < 1:
        raise ConfigError(
          f"Mesh.{axis}={getattr(self, axis)}: expected at least 1"
        )

  @property
  def size(self) -> int:
    """The number of devices."""
    return self.data * self.fsdp * self.tensor

  @functools.cached_property
  def devices(self) -> jax.sharding.Mesh:
    """The mesh over the first devices of this backend, or over all processes.

    Raises:
      ConfigError: if there are fewer devices than the sizes ask for, or, with
        several processes, more.
    """
    sizes = tuple(getattr(self, axis) for axis in AXES)
    needed = self.size
    if needed > jax.device_count():
      raise ConfigError(
        f"mesh data={self.data}, fsdp={self.fsdp}, tensor={self.tensor} "
        f"needs {needed} devices, there are {jax.device_count()}"
      )
    if jax.process_count() > 1:
      return self._of_processes(sizes)
    return jax.make_mesh(
      sizes,
      AXES,
      axis_types=(AxisType.Auto,) * len(AXES),
      devices=jax.devices()[:needed],
    )

  def _of_processes(self, sizes: tuple[int, ...]) -> jax.sharding.Mesh:
    """All devices, those of a process side by side.

    So each process feeds consecutive rows of a batch.
    """
    if processes.count() != jax.process_count():
      raise ConfigError(
        f"JAX runs on {jax.process_count()} processes that jaxkd was not told "
        "of; start them with jaxkd run --coordinator or with "
        "jaxkd.parallel.processes.start"
      )
    if self.size != jax.device_count():
      raise ConfigError(
        f"mesh data={self.data}, fsdp={self.fsdp}, tensor={self.tensor} has "
        f"{self.size} of {jax.device_count()} devices; several processes "
        "use all: expected sizes with that product, such as --set "
        f"Mesh.data={jax.device_count() // (self.fsdp * self.tensor) or 1}"
      )
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    return jax.sharding.Mesh(
      np.array(devices).reshape(sizes),
      AXES,
      axis_types=(AxisType.Auto,) * len(AXES),
    )

  def check_batch(self, batch_size: int) -> None:
    """Raises `ConfigError` if a batch cannot be split evenly."""
    parts = self.data * self.fsdp
    if batch_size % parts:
      raise ConfigError(
        f"batch_size={batch_size} cannot be split over data={self.data} x "
        f"fsdp={self.fsdp}: expected a multiple of {parts}"
      )


@dataclasses.dataclass(frozen=True)
class Placement:
  """Shardings of batches and of every role's parameters on a mesh.

  Attributes:
    mesh: the mesh.
    rules: rules by role, (regular expression on the path, partition spec)
      pairs of which the first match counts; roles without rules use `FSDP`,
      parameters without a match are replicated.
  """

  mesh: Mesh
  rules: Mapping[str, Rules] = dataclasses.field(default_factory=dict)

  @property
  def replicated(self) -> NamedSharding:
    """The sharding that keeps a copy on every device."""
    return NamedSharding(self.mesh.devices, PartitionSpec())

  @property
  def batch(self) -> NamedSharding:
    """The sharding of a batch's leading axis."""
    return NamedSharding(self.mesh.devices, PartitionSpec(("data", "fsdp")))

  @property
  def part(self) -> tuple[int, int]:
    """Which of how many equal parts of a batch this process feeds, from 0.

    Processes that share an axis `tensor` feed the same part.

    Raises:
      ConfigError: the devices of a process have no equal part of a batch.
    """
    if processes.count() == 1:
      return 0, 1
    blocks = self.mesh.data * self.mesh.fsdp
    rows = self.batch.addressable_devices_indices_map((blocks,)).values()
    own = sorted({index[0].indices(blocks)[0] for index in rows})
    first, size = own[0], len(own)
    if own != [*range(first, first + size)] or first % size or blocks % size:
      raise ConfigError(
        f"mesh data={self.mesh.data}, fsdp={self.mesh.fsdp}, tensor="
        f"{self.mesh.tensor}: the {jax.local_device_count()} devices of "
        f"process {processes.rank()} have rows {own} of {blocks}; expected "
        "tensor to divide the devices of a process or to be a multiple"
      )
    return first // size, blocks // size

  def put_batch(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Moves one host batch, or this process's `part` of it, to the devices.

    Shapes are told their place.
    """
    if processes.count() == 1:
      return _put(dict(batch), {name: self.batch for name in batch})
    return {
      name: jax.make_array_from_process_local_data(self.batch, rows)
      for name, rows in batch.items()
    }

  def put(self, tree: Any) -> Any:
    """Moves a state-like tree to the devices; shapes are told their place.

    Values must be equal on all processes.
    """
    return _put(tree, self.of(tree))

  def of(self, tree: Any) -> Any:
    """Shardings of a state-like tree.

    A leaf is placed by the rules of the first role named on its path; what
    belongs to no role is replicated.

    Args:
      tree: arrays or shapes; parameters sit below their role's name.

    Returns:
      The tree with a `NamedSharding` for every leaf.
    """
    return jax.tree_util.tree_map_with_path(self._leaf, tree)

  def _leaf(self, path, leaf) -> NamedSharding:
    parts = [str(getattr(p, "key", getattr(p, "name", p))) for p in path]
    rules = next((self.rules[p] for p in parts if p in self.rules), FSDP)
    for pattern, spec in rules:
      if re.search(pattern, "/".join(parts)):
        return NamedSharding(self.mesh.devices, self._spec(spec, leaf.shape))
    return self.replicated

  def _spec(self, spec, shape) -> PartitionSpec:
    if spec != "largest":
      return PartitionSpec(*spec)
    size = self.mesh.fsdp
    fits = [n for n, s in enumerate(shape) if s % size == 0 and s > size]
    if size == 1 or not fits:
      return PartitionSpec()
    best = max(fits, key=lambda n: shape[n])
    return PartitionSpec(
      *["fsdp" if n == best else None for n in range(best + 1)]
    )


def held(tree: Any) -> int:
  """Bytes of a tree on one device.

  Args:
    tree: arrays, or `jax.ShapeDtypeStruct`s, with shardings.
  """
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _put(tree: Any, shardings: Any) -> Any:
  leaves = jax.tree.leaves(tree)
  if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
    return arrays.put(tree, shardings)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type
    ),
    tree,
    shardings,
  )
