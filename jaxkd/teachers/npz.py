"""The npz format: a zip of NumPy arrays."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.teachers.tensors import Tensor

# What reading a damaged entry raises.
_DAMAGE = (
  zipfile.BadZipFile,
  zlib.error,
  ValueError,
  EOFError,
  OSError,
  NotImplementedError,
  RuntimeError,
)


def open_npz(
  path: Path, entries: Sequence[zipfile.ZipInfo]
) -> dict[str, Tensor]:
  """Reads the headers of the arrays.

  Args:
    path: the file.
    entries: of the zip that it is.

  Returns:
    Its arrays by name.

  Raises:
    RefusedInput: an entry is damaged, or holds objects.
  """
  return {
    entry.filename.removesuffix(".npy"): _npy(path, entry) for entry in entries
  }


def _npy(path: Path, entry: zipfile.ZipInfo) -> Tensor:
  """An array of an npz; its header is read now, its values later."""
  with _reading(path, entry) as file:
    shape, dtype = _header(file)
    start = file.tell()
  if dtype.hasobject or dtype.kind not in "biuf":
    raise RefusedInput(
      f"{path}: array {entry.filename!r} is of {dtype}; expected numbers"
    )
  if start + math.prod(shape) * dtype.itemsize != entry.file_size:
    raise RefusedInput(
      f"{path}: entry {entry.filename!r} has {entry.file_size:,} bytes, which "
      f"do not hold {dtype}{list(shape)}"
    )

  def read():
    with _reading(path, entry) as file:
      value = np.lib.format.read_array(file, allow_pickle=False)
      file.read(1)  # at the end the checksum is compared
    return value.astype(dtype.newbyteorder("="), copy=False)

  return Tensor(shape, dtype.newbyteorder("="), read)


@contextlib.contextmanager
def _reading(path: Path, entry: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
  try:
    with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
      yield file
  except _DAMAGE as error:
    raise RefusedInput(
      f"{path}: entry {entry.filename!r} is damaged: {error}"
    ) from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
  version = np.lib.format.read_magic(file)
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if version not in readers:
    raise ValueError(f"npy version {version}")
  shape, _, dtype = readers[version](file)
  return shape, dtype
