"""From tensors in files to arrays on devices, one tensor at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.teachers.tensors import Tensor

_Part = tuple[tuple[slice, ...], list[jax.Device]]
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Piece:
  """A tensor and the leaf, or entry of a leaf, that it becomes.

  Attributes:
    name: the tensor's.
    tensor: itself.
    path: of the leaf.
    axes: to transpose it by; None for as it is.
    index: of the entry; None for a whole leaf.
  """

  name: str
  tensor: Tensor
  path: str
  axes: tuple[int, ...] | None
  index: int | None


def kind_of(dtype: Any) -> str:
  """Whether numbers are floating-point, integers or truth values."""
  for kind in (jnp.floating, jnp.integer, jnp.bool_):
    if jnp.issubdtype(dtype, kind):
      return kind.__name__
  return str(dtype)


def assemble(pieces: Sequence[Piece], leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """Reads the tensors of a leaf, one after the other, onto its shards.

  Args:
    pieces: one for the whole leaf, or one for each entry.
    leaf: its shape, dtype and sharding.

  Returns:
    The leaf.

  Raises:
    RefusedInput: a tensor has numbers that the dtype cannot hold.
  """
  parts = _parts(leaf)
  if pieces and pieces[0].index is None:
    value = _values(pieces[0])
    cut = (_cast(value[index], leaf, pieces[0]) for index, _ in parts)
    # Not ascontiguousarray, which gives a scalar an axis.
    return _joined(leaf, parts, (np.asarray(x, order="C") for x in cut))
  stacks = [_empty(_shape(leaf, index), leaf.dtype) for index, _ in parts]
  for piece in pieces:
    value = _values(piece)
    for (index, _), stack in zip(parts, stacks, strict=True):
      entries = range(leaf.shape[0])[index[0]]
      if piece.index in entries:
        entry = _cast(value[index[1:]], leaf, piece)
        stack[piece.index - entries.start] = entry
  del value
  return _joined(leaf, parts, (stacks.pop(0) for _ in parts))


def _parts(leaf: jax.ShapeDtypeStruct) -> list[_Part]:
  """What the shards of a leaf are, and on which devices each lies."""
  if leaf.sharding is None:
    return [((slice(None),) * len(leaf.shape), [])]
  found: dict[str, _Part] = {}
  places = leaf.sharding.addressable_devices_indices_map(leaf.shape)
  for device, index in places.items():
    found.setdefault(str(index), (index, []))[1].append(device)
  return list(found.values())


def _shape(
  leaf: jax.ShapeDtypeStruct, index: tuple[slice, ...]
) -> tuple[int, ...]:
  return tuple(
    len(range(size)[part]) for size, part in zip(leaf.shape, index, strict=True)
  )


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """New memory, so aligned that a CPU device takes it without a copy."""
  size = math.prod(shape) * dtype.itemsize
  content = np.empty(size + _ALIGNMENT, np.uint8)
  start = -content.ctypes.data % _ALIGNMENT
  return content[start : start + size].view(dtype).reshape(shape)


def _values(piece: Piece) -> np.ndarray:
  value = piece.tensor.read()
  return value if piece.axes is None else value.transpose(piece.axes)


def _joined(
  leaf: jax.ShapeDtypeStruct,
  parts: Sequence[_Part],
  shards: Iterator[np.ndarray],
) -> jax.Array:
  """One array of its shards; the host holds one of them at a time."""
  placed = []
  for _, devices in parts:
    shard = next(shards)
    if leaf.sharding is None:
      return jnp.asarray(shard).block_until_ready()
    placed += [jax.device_put(shard, device) for device in devices]
    # Transfers run behind: the next shard is made when this one has arrived.
    jax.block_until_ready(placed)
  return jax.make_array_from_single_device_arrays(
    leaf.shape, leaf.sharding, placed, dtype=leaf.dtype
  )


def _cast(
  value: np.ndarray, leaf: jax.ShapeDtypeStruct, piece: Piece
) -> np.ndarray:
  """Casts; a number that the dtype cannot hold is refused."""
  dtype = leaf.dtype
  if value.dtype == dtype:
    return value
  with np.errstate(over="ignore", invalid="ignore"):
    cast = value.astype(dtype)
  if kind_of(dtype) == "integer":
    held = np.array_equal(cast, value)
  else:
    narrow = jnp.finfo(dtype).max < jnp.finfo(value.dtype).max
    held = not narrow or np.array_equal(np.isfinite(cast), np.isfinite(value))
  if not held:
    raise RefusedInput(
      f"tensor {piece.name} has numbers that {dtype} cannot hold; ask for "
      "another dtype"
    )
  return cast
