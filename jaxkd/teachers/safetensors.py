"""The safetensors format: a JSON header, then bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.teachers.tensors import MOST_AXES, Tensor, parse_json, read_range

# The largest header that the format allows.
_HEADER_BYTES = 100_000_000
_DTYPES = {
  "BOOL": np.bool_,
  "U8": np.uint8,
  "I8": np.int8,
  "U16": np.uint16,
  "I16": np.int16,
  "U32": np.uint32,
  "I32": np.int32,
  "U64": np.uint64,
  "I64": np.int64,
  "F8_E4M3": jnp.float8_e4m3fn,
  "F8_E5M2": jnp.float8_e5m2,
  "F16": np.float16,
  "BF16": jnp.bfloat16,
  "F32": np.float32,
  "F64": np.float64,
}


def open_safetensors(path: Path) -> dict[str, Tensor]:
  """Reads the header, which must account for every byte of the file.

  Args:
    path: the file.

  Returns:
    Its tensors by name.

  Raises:
    RefusedInput: the file is damaged.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if length > min(_HEADER_BYTES, size - 8):
      raise RefusedInput(
        f"{path} is damaged: its header would have {length:,} bytes, the file "
        f"has {size:,}"
      )
    content = file.read(length)
  try:
    header = parse_json(content)
  except ValueError as error:
    raise RefusedInput(f"{path} has a damaged header: {error}") from error
  if not isinstance(header, dict):
    raise RefusedInput(f"{path} has a damaged header: {type(header).__name__}")
  header.pop("__metadata__", None)
  rows = {name: _row(path, name, row) for name, row in header.items()}
  end = 0
  for name, (_, _, first, last) in sorted(
    rows.items(), key=lambda item: item[1][2:]
  ):
    if first != end:
      raise RefusedInput(
        f"{path} is damaged: tensor {name!r} begins at {first:,}, expected "
        f"{end:,}"
      )
    end = last
  if 8 + length + end != size:
    state = "truncated" if 8 + length + end > size else "damaged"
    raise RefusedInput(
      f"{path} is {state}: its header speaks of {8 + length + end:,} bytes, "
      f"the file has {size:,}"
    )
  return {
    name: Tensor(
      shape, dtype, _reader(path, name, 8 + length + first, shape, dtype)
    )
    for name, (dtype, shape, first, _) in rows.items()
  }


def _row(path: Path, name: str, row: Any) -> tuple:
  """A header's dtype, shape and offsets of a tensor, checked."""
  fields = row if isinstance(row, dict) else {}
  kind, shape = fields.get("dtype"), fields.get("shape")
  offsets = fields.get("data_offsets")
  if not (_is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2):
    raise RefusedInput(f"{path}: tensor {name!r} has a damaged header: {row!r}")
  if not isinstance(kind, str) or kind not in _DTYPES:
    raise RefusedInput(
      f"{path}: tensor {name!r} is of {kind!r}; known are " + ", ".join(_DTYPES)
    )
  dtype = np.dtype(_DTYPES[kind])
  if len(shape) > MOST_AXES:
    raise RefusedInput(f"{path}: tensor {name!r} has {len(shape)} axes")
  if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
    raise RefusedInput(
      f"{path}: tensor {name!r} has {offsets[1] - offsets[0]:,} bytes, which "
      f"do not hold {kind}{shape}"
    )
  return dtype, tuple(shape), *offsets


def _is_sizes(value: Any) -> bool:
  return isinstance(value, list) and all(
    type(number) is int and number >= 0 for number in value
  )


def _reader(
  path: Path, name: str, start: int, shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[], np.ndarray]:
  def read():
    content = read_range(path, start, math.prod(shape) * dtype.itemsize, name)
    return content.view(dtype).reshape(shape)

  return read
