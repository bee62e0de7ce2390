"""A device mesh and the rules that place arrays on it.

One device is the trivial mesh: there is one code path. Axes are Auto, so that
the compiler propagates shardings from the arguments of the step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.parallel import arrays, processes
from jaxkd.parallel.frozen import Frozen, check_memory, kept, on_device
from jaxkd.parallel.rules import (
  AXES,
  FSDPRules,
  Rules,
  check_form,
  check_matches,
  spec_of,
)

_ROLES = ("params", "collections")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """Sizes of the mesh axes; their product is the number of devices used.

  Attributes:
    data: copies of the parameters; the batch is split over data and fsdp.
    fsdp: parts that parameters are split into by `FSDPRules`.
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

  @property
  def sizes(self) -> dict[str, int]:
    """Devices along every axis."""
    return {axis: getattr(self, axis) for axis in AXES}

  @functools.cached_property
  def devices(self) -> jax.sharding.Mesh:
    """The mesh over the first devices of this backend, or over all processes.

    Raises:
      ConfigError: if there are fewer devices than the sizes ask for, or, with
        several processes, more.
    """
    sizes = tuple(self.sizes.values())
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
  """Shardings of batches and of every role's arrays on a mesh.

  Attributes:
    mesh: the mesh.
    rules: how a role's parameters and collections are split, by role, see
      `parallel.rules`; roles that are not there have `FSDPRules`.
    frozen: how a role is kept while it is not trained, by role.
  """

  mesh: Mesh
  rules: Mapping[str, Rules] = dataclasses.field(default_factory=dict)
  frozen: Mapping[str, Frozen] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Checks the form of the rules."""
    for role, rules in self.rules.items():
      check_form(role, rules)

  def check_roles(self, roles: Iterable[str]) -> None:
    """Raises `ConfigError` if there are options of a role that is not there.

    Args:
      roles: all roles, those of controls too.
    """
    roles = list(roles)
    for field in ("rules", "frozen"):
      for role in getattr(self, field):
        if role not in roles:
          raise ConfigError(
            f"{field}: no role {role!r}{did_you_mean(role, roles)} (has "
            f"{', '.join(roles)})"
          )

  def check(self, params: Mapping[str, Any]) -> None:
    """Checks rules and memory against roles, before anything is placed.

    Args:
      params: arrays or shapes of parameters, by role.

    Raises:
      ConfigError: an axis does not divide a dimension, a rule matches no
        parameter, or these devices do not have the memory.
    """
    self.of({"params": dict(params)})
    for role in self.rules.keys() & params.keys():
      leaves = jax.tree_util.tree_leaves_with_path(params[role])
      paths = ["/".join(_parts(path)) for path, _ in leaves]
      check_matches(role, self.rules[role], paths)
    for role in self.frozen.keys() & params.keys():
      check_memory(role, self.frozen[role], self.replicated)

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
    """Shardings of a state-like tree, on the devices.

    Parameters and collections are placed by the rules of their role. What is
    kept for a parameter, such as a moment of an optimizer or an average in
    memory, lies as it does: its path ends with role and path of the parameter,
    and its shape is the same. All else is replicated.

    Args:
      tree: arrays or shapes; parameters and collections sit below `params` or
        `collections` and their role's name.

    Returns:
      The tree with a `NamedSharding` for every leaf.

    Raises:
      ConfigError: an axis does not divide a dimension.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    parts = [_parts(path) for path, _ in leaves]
    specs: dict[tuple[str, ...], PartitionSpec] = {}
    shapes: dict[tuple[str, ...], tuple[int, ...]] = {}
    for path, (_, leaf) in zip(parts, leaves, strict=True):
      root = _root(path)
      if root is not None:
        specs[path] = self._spec(path[root + 1], path[root + 2 :], leaf.shape)
        if path[root] == "params":
          specs[path[root + 1 :]] = specs[path]
          shapes[path[root + 1 :]] = leaf.shape
    for path, (_, leaf) in zip(parts, leaves, strict=True):
      if path not in specs:
        ends = (path[n:] for n in range(len(path)))
        own = next((end for end in ends if end in shapes), None)
        same = own is not None and shapes[own] == leaf.shape
        specs[path] = specs[own] if same else PartitionSpec()
    devices = self.mesh.devices
    shardings = [NamedSharding(devices, specs[path]) for path in parts]
    return jax.tree.unflatten(structure, shardings)

  def of_role(self, role: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Shardings of all variables of a role, by collection."""
    others = {kind: x for kind, x in variables.items() if kind != "params"}
    placed = self.of(
      {"params": {role: variables["params"]}, "collections": {role: others}}
    )
    return {"params": placed["params"][role], **placed["collections"][role]}

  def keep(self, frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Frozen roles in the type and the memory in which they are kept.

    Args:
      frozen: `params` and `collections` by role.
    """
    shardings, usual = self.of(frozen), Frozen()
    return {
      kind: {
        role: kept(
          self.frozen.get(role, usual),
          tree,
          shardings[kind][role],
          cast=kind == "params",
        )
        for role, tree in trees.items()
      }
      for kind, trees in frozen.items()
    }

  def fetched(self, frozen: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept on the host, on the devices; to be called inside a step.

    Args:
      frozen: what `keep` returned.
    """
    away = {role for role, how in self.frozen.items() if how.memory != "device"}
    shardings = jax.tree.map(on_device, self.of(frozen))
    return {
      kind: {
        role: jax.device_put(tree, shardings[kind][role])
        if role in away
        else tree
        for role, tree in trees.items()
      }
      for kind, trees in frozen.items()
    }

  def _spec(self, role, path, shape) -> PartitionSpec:
    rules = self.rules.get(role, FSDPRules())
    sizes = self.mesh.sizes
    return spec_of(role, rules, "/".join(path), tuple(shape), sizes)


def _parts(path: Any) -> tuple[str, ...]:
  return tuple(str(getattr(p, "key", getattr(p, "name", p))) for p in path)


def _root(path: tuple[str, ...]) -> int | None:
  """Where `params` or `collections` stands; None if the leaf is of no role."""
  for number, part in enumerate(path):
    if part in ("optimizer", "memory"):
      return None
    if part in _ROLES:
      return number
  return None


def held(tree: Any) -> int:
  """Bytes of a tree on one device; what the host keeps has none.

  Args:
    tree: arrays, or `jax.ShapeDtypeStruct`s, with shardings.
  """
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if leaf.sharding.memory_kind != "pinned_host"
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
