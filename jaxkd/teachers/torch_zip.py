"""The zip that `torch.save` writes, read as data.

    <top>/data.pkl     a pickle of the state dict, without the numbers
    <top>/data/<key>   the bytes of a storage, stored as they are
    <top>/byteorder    little, or not there

Nothing is unpickled: `state_dict` follows the pickle by a machine that knows
dicts, lists, numbers, strings and tensors, and refuses all else by name.
Storages are checked against their checksums and tensors against their
storages before a byte of a tensor is taken.
"""

from __future__ import annotations

import dataclasses
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.teachers import state_dict
from jaxkd.teachers.state_dict import Refused, Storage, Strided
from jaxkd.teachers.tensors import MOST_AXES, Tensor, read_range

_DTYPES = {
  "BoolStorage": np.bool_,
  "ByteStorage": np.uint8,
  "CharStorage": np.int8,
  "ShortStorage": np.int16,
  "IntStorage": np.int32,
  "LongStorage": np.int64,
  "HalfStorage": np.float16,
  "BFloat16Storage": jnp.bfloat16,
  "FloatStorage": np.float32,
  "DoubleStorage": np.float64,
}
_CHUNK = 1 << 20
_LOCAL_HEADER = 30  # bytes of it before the name


def open_torch(
  path: Path, entries: Sequence[zipfile.ZipInfo]
) -> dict[str, Tensor]:
  """Reads what the pickle says of the tensors.

  Args:
    path: the file.
    entries: of the zip that it is.

  Returns:
    Its tensors by name.

  Raises:
    RefusedInput: the file is damaged, or its pickle asks for anything but
      tensors in plain containers.
  """
  archive = _Archive(path, {entry.filename: entry for entry in entries})
  pickles = [name for name in archive.entries if name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise RefusedInput(f"{path} has {len(pickles)} pickles; expected one")
  top = pickles[0].removesuffix("data.pkl")
  order = top + "byteorder"
  if order in archive.entries and archive.content(order) != b"little":
    raise RefusedInput(f"{path} is big-endian; expected little-endian")
  try:
    found = state_dict.tensors(state_dict.follow(archive.content(pickles[0])))
    return {
      name: tensor_of(archive, f"{top}data/{tensor.storage.key}", name, tensor)
      for name, tensor in found.items()
    }
  except Refused as error:
    raise RefusedInput(f"{path}: {error}") from error


class Storages(Protocol):
  """A file that holds storages."""

  path: Path

  def size(self, name: str) -> int:
    """Bytes of a storage."""

  def part(self, name: str, start: int, size: int) -> np.ndarray:
    """Some bytes of a storage."""


@dataclasses.dataclass(frozen=True)
class _Archive:
  """A zip whose entries are checked before they are used."""

  path: Path
  entries: dict[str, zipfile.ZipInfo]
  intact: set[str] = dataclasses.field(default_factory=set)

  def entry(self, name: str) -> zipfile.ZipInfo:
    if name not in self.entries:
      raise RefusedInput(f"{self.path} has no entry {name!r}")
    entry = self.entries[name]
    if entry.compress_type != zipfile.ZIP_STORED:
      raise RefusedInput(
        f"{self.path}: entry {name!r} is compressed; torch.save stores it"
      )
    if entry.compress_size != entry.file_size:
      raise RefusedInput(f"{self.path}: entry {name!r} has two sizes")
    return entry

  def size(self, name: str) -> int:
    """Bytes of an entry."""
    return self.entry(name).file_size

  def content(self, name: str) -> bytes:
    """All of a small entry."""
    self.check(name)
    entry = self.entry(name)
    return read_range(
      self.path, self._start(entry), entry.file_size, name
    ).tobytes()

  def check(self, name: str) -> None:
    """Compares an entry with its checksum, once."""
    if name in self.intact:
      return
    try:
      with (
        zipfile.ZipFile(self.path) as archive,
        archive.open(self.entry(name)) as file,
      ):
        while file.read(_CHUNK):
          pass
    except (
      zipfile.BadZipFile,
      zlib.error,
      ValueError,
      EOFError,
      OSError,
      NotImplementedError,
      RuntimeError,
    ) as error:
      raise RefusedInput(
        f"{self.path}: entry {name!r} is damaged: {error}"
      ) from error
    self.intact.add(name)

  def part(self, name: str, start: int, size: int) -> np.ndarray:
    """Some bytes of an entry."""
    self.check(name)
    return read_range(
      self.path, self._start(self.entry(name)) + start, size, name
    )

  def _start(self, entry: zipfile.ZipInfo) -> int:
    header = read_range(
      self.path, entry.header_offset, _LOCAL_HEADER, entry.filename
    ).tobytes()
    lengths = header[26:28], header[28:30]  # of the name and the extra field
    return (
      entry.header_offset
      + _LOCAL_HEADER
      + sum(int.from_bytes(length, "little") for length in lengths)
    )


def dtype_of(storage: Storage) -> np.dtype:
  """The dtype of a storage's numbers."""
  if storage.kind not in _DTYPES:
    raise Refused(
      f"storage {storage.key!r} is a {storage.kind}; known are "
      + ", ".join(_DTYPES)
    )
  return np.dtype(_DTYPES[storage.kind])


def tensor_of(
  archive: Storages, entry: str, name: str, tensor: Strided
) -> Tensor:
  """A tensor as a file's, if it lies within its storage.

  Args:
    archive: holds the storages.
    entry: its name for the tensor's storage.
    name: of the tensor.
    tensor: what the pickle says of it.

  Raises:
    Refused: it does not.
  """
  storage = tensor.storage
  dtype = dtype_of(storage)
  size = archive.size(entry)
  if size != storage.count * dtype.itemsize:
    raise Refused(
      f"storage {storage.key!r} has {size:,} bytes, expected {storage.count:,} "
      f"times {dtype.itemsize}"
    )
  shape, strides = tensor.shape, tensor.strides
  if len(shape) > MOST_AXES:
    raise Refused(f"tensor {name!r} has {len(shape)} axes")
  count = math.prod(shape)
  reach = count and 1 + sum(
    (length - 1) * stride for length, stride in zip(shape, strides, strict=True)
  )
  # More elements than the storage has would be a small file of huge tensors.
  if tensor.offset + reach > storage.count or count > storage.count:
    raise Refused(
      f"tensor {name!r} of shape {list(shape)}, strides {list(strides)} and "
      f"offset {tensor.offset} does not lie within its storage of "
      f"{storage.count:,}"
    )

  def read():
    content = archive.part(
      entry, tensor.offset * dtype.itemsize, reach * dtype.itemsize
    )
    steps = [stride * dtype.itemsize for stride in strides]
    return np.ndarray(shape, dtype, content, strides=steps if count else None)

  where = (storage.key, tensor.offset, shape, strides)
  return Tensor(shape, dtype, read, storage=(str(archive.path), *where))
