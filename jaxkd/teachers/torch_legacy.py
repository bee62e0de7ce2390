"""The file that `torch.save` wrote before 1.6, read as data.

Five pickles, then the numbers:

    a magic number, a version, facts of the machine that wrote the file
    the state dict, without the numbers
    the keys of its storages, in the order of what follows
    for each: how many numbers it has (8 bytes), and their bytes

As with the zip that replaced it, nothing is unpickled: `state_dict` follows
the pickles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.teachers import state_dict, torch_zip
from jaxkd.teachers.state_dict import Refused, Storage, Strided
from jaxkd.teachers.tensors import Tensor, read_range

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_VERSION = 1001
_COUNT = 8  # bytes of a storage's count


def open_legacy(path: Path) -> dict[str, Tensor]:
  """Reads what the pickles say of the tensors.

  Args:
    path: a file that begins with `MAGIC`.

  Returns:
    Its tensors by name.

  Raises:
    RefusedInput: the file is damaged, or its pickles ask for anything but
      tensors in plain containers.
  """
  try:
    with path.open("rb") as file:
      file.seek(len(MAGIC))
      version, machine, value, keys = (
        state_dict.follow(file) for _ in range(4)
      )
      start = file.tell()
    if version != _VERSION or not isinstance(machine, dict):
      raise Refused(f"it is of version {version!r}, expected {_VERSION}")
    if machine.get("little_endian") is not True:
      raise Refused("it is big-endian; expected little-endian")
    found = state_dict.tensors(value)
    file = _File(path, _places(path, start, keys, dict(_storages(value))))
    return {
      name: torch_zip.tensor_of(file, tensor.storage.key, name, tensor)
      for name, tensor in found.items()
    }
  except Refused as error:
    raise RefusedInput(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _File:
  """Storages that lie one after the other.

  Attributes:
    path: of the file.
    places: start and size in bytes of every storage.
  """

  path: Path
  places: Mapping[str, tuple[int, int]]

  def size(self, key: str) -> int:
    return self.places[key][1]

  def part(self, key: str, start: int, size: int) -> np.ndarray:
    return read_range(self.path, self.places[key][0] + start, size, key)


def _storages(value: Any) -> Iterator[tuple[str, Storage]]:
  """All storages that a value refers to, by key."""
  seen, left = set(), [value]
  while left:
    part = left.pop()
    if isinstance(part, Strided):
      yield part.storage.key, part.storage
    elif isinstance(part, dict | list | tuple) and id(part) not in seen:
      seen.add(id(part))
      left += part.values() if isinstance(part, dict) else part


def _places(
  path: Path, start: int, keys: Any, storages: Mapping[str, Storage]
) -> dict[str, tuple[int, int]]:
  """Where the storages lie, which must fill the file to its end."""
  known = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
  if not known or sorted(keys) != sorted(storages):
    raise Refused("its list of storages is not that of its tensors")
  places, size = {}, path.stat().st_size
  for key in keys:
    storage = storages[key]
    content = storage.count * torch_zip.dtype_of(storage).itemsize
    if start + _COUNT + content > size:
      raise Refused(
        f"it has {size:,} bytes and ends within its storages; a download may "
        "have been cut off"
      )
    count = read_range(path, start, _COUNT, key).tobytes()
    if int.from_bytes(count, "little") != storage.count:
      raise Refused(
        f"storage {key!r} has {int.from_bytes(count, 'little'):,} numbers, "
        f"expected {storage.count:,}"
      )
    places[key] = (start + _COUNT, content)
    start += _COUNT + content
  if start != size:
    raise Refused(f"it goes on for {size - start:,} bytes behind its storages")
  return places
