"""How roles are kept while no update trains them.

A frozen role has no optimizer and no gradient, so that it may be kept in fewer
bits than it was trained in, and in the memory of the host.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxkd.errors import ConfigError, did_you_mean

DType = Literal["float32", "bfloat16", "float16"]
Memory = Literal["device", "pinned_host"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
  """How a role is kept in the phases that do not train it.

  Attributes:
    dtype: of its floating-point parameters; as they are if not given. The
      computation is in the network's own `dtype`.
    memory: `pinned_host` keeps it on the host, in the parts that the rules
      say; every step brings them to the devices.
  """

  dtype: DType | None = None
  memory: Memory = "device"

  def __post_init__(self):
    """Checks the choices."""
    for field, choices in (("dtype", DType), ("memory", Memory)):
      value, known = getattr(self, field), get_args(choices)
      if value not in (*known, getattr(type(self), field)):
        raise ConfigError(
          f"Frozen.{field}={value!r}: expected one of {', '.join(known)}"
          + did_you_mean(str(value), known)
        )


def check_memory(role: str, frozen: Frozen, sharding: NamedSharding) -> None:
  """Brings one number from the memory to the devices, as steps do.

  Args:
    role: whose memory it is.
    frozen: how the role is kept.
    sharding: on the devices.

  Raises:
    ConfigError: these devices cannot.
  """
  if frozen.memory == "device":
    return
  try:
    away = sharding.with_memory_kind(frozen.memory)
    number = jax.device_put(jnp.float32(1), away)
    fetch = jax.jit(lambda x: jax.device_put(x, on_device(sharding)) + 1)
    fetch(number).block_until_ready()
  except Exception as error:  # of the backend's own kinds
    device = jax.devices()[0]
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    raise ConfigError(
      f"frozen role {role!r}: memory={frozen.memory!r} does not work on "
      f"{device.platform} devices with jax {jax.__version__} (memories: "
      f"{', '.join(kinds)}); expected memory='device'"
    ) from error


def on_device(sharding: NamedSharding) -> NamedSharding:
  """The sharding in the memory that the devices compute in, said by name."""
  device = next(iter(sharding.device_set))
  return sharding.with_memory_kind(device.default_memory().kind)


def kept(how: Frozen, tree: Any, shardings: Any, *, cast: bool) -> Any:
  """A role's tree in the type and memory in which it is kept.

  Args:
    how: it is kept.
    tree: arrays or shapes.
    shardings: on the devices, of every array.
    cast: whether the type is changed; not that of statistics.
  """

  def keep(leaf, sharding):
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    dtype = how.dtype if cast and how.dtype and floating else leaf.dtype
    place = sharding
    if how.memory != "device":
      place = sharding.with_memory_kind(how.memory)
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf.update(dtype=jnp.dtype(dtype), sharding=place)
    if leaf.dtype != dtype:
      leaf = jax.device_put(leaf, sharding).astype(dtype)
    return jax.device_put(leaf, place)

  return jax.tree.map(keep, tree, shardings)
