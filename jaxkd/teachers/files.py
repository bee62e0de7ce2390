"""Files of tensors: their names, shapes and dtypes, and each read by itself.

Five formats, told apart by their first bytes: safetensors, npz, the zip of
`torch.save` and what it wrote before, and a folder with one of them or with an
index of several. A file is data from elsewhere: nothing in it is run, and what
it says of itself is checked against its size before any memory is asked for.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from jaxkd.errors import RefusedInput
from jaxkd.teachers import npz, safetensors, torch_legacy, torch_zip
from jaxkd.teachers.tensors import Tensor, Tensors, read_json, twin

__all__ = ["Tensor", "Tensors", "open_tensors"]

# What a folder may hold, the first that is there counts.
_IN_FOLDER = (
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)
_OTHERS = {
  b"version https://git-lfs": "is a Git LFS pointer, not the file it names",
  b"\x93NUMPY": "is a single array (.npy); expected an npz with named arrays",
  b"\x89HDF": "is HDF5, which is not read; save it as safetensors or npz",
  b"GGUF": "is GGUF, which is not read; get the safetensors of the model",
}


def open_tensors(path: str | os.PathLike) -> Tensors:
  """Opens a file of tensors, or a folder that holds a model's.

  Args:
    path: safetensors, npz, what `torch.save` writes; the index of several of
      them; a folder with `model.safetensors`, `pytorch_model.bin` or the index
      of either.

  Returns:
    Its tensors; only names, shapes and dtypes were read.

  Raises:
    RefusedInput: it is none of these, damaged, or would run code.
  """
  path = Path(path)
  try:
    if path.is_dir():
      path = _in_folder(path)
    if path.name.endswith(".index.json"):
      return _open_sharded(path)
    return Tensors(str(path), _open_file(path))
  except OSError as error:
    raise RefusedInput(
      f"cannot read {path}: {error.strerror or error}"
    ) from error


def _in_folder(folder: Path) -> Path:
  for name in _IN_FOLDER:
    if (folder / name).is_file():
      return folder / name
  found = sorted(entry.name for entry in folder.iterdir())[:8]
  raise RefusedInput(
    f"{folder} holds no weights: expected {', '.join(_IN_FOLDER)}; it has "
    + (", ".join(found) or "nothing")
  )


def _open_sharded(path: Path) -> Tensors:
  """Opens all files of an index, which must agree with it."""
  index = read_json(path)
  files = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(files, dict) or not files:
    raise RefusedInput(f"{path} has no 'weight_map' from tensor to file")
  for file in files.values():
    if not _is_plain(file):
      raise RefusedInput(
        f"{path} names the file {file!r}; expected one beside it"
      )
  tensors = {}
  for file in dict.fromkeys(files.values()):
    if not (path.parent / file).is_file():
      raise RefusedInput(f"{path.parent} lacks {file}, which {path.name} names")
    held = _open_file(path.parent / file)
    wanted = {name for name, place in files.items() if place == file}
    for name in sorted(wanted ^ set(held)):
      there = "holds" if name in held else "does not hold"
      raise RefusedInput(
        f"{path.parent / file} {there} the tensor {name!r}, unlike what "
        f"{path.name} says"
      )
    tensors.update(held)
  return Tensors(str(path.parent), tensors)


def _is_plain(file: object) -> bool:
  """Whether a file's name leads nowhere else."""
  if not isinstance(file, str) or file in ("", ".", ".."):
    return False
  return not set(file) & set("/\\\0")


def _open_file(path: Path) -> dict[str, Tensor]:
  if path.exists() and not path.is_file():
    raise RefusedInput(f"{path} is a special file; expected a plain one")
  with path.open("rb") as file:
    start = file.read(32)
  if not start:
    raise RefusedInput(f"{path} is empty")
  if start.startswith(b"PK"):
    return _open_zip(path)
  if start[8:9] == b"{":
    return safetensors.open_safetensors(path)
  if start.startswith(torch_legacy.MAGIC):
    return torch_legacy.open_legacy(path)
  for magic, what in _OTHERS.items():
    if start.startswith(magic):
      raise RefusedInput(f"{path} {what}")
  raise RefusedInput(
    f"{path} is none of safetensors, npz and what torch.save writes; a bare "
    "pickle is not read"
  )


def _open_zip(path: Path) -> dict[str, Tensor]:
  try:
    with zipfile.ZipFile(path) as archive:
      entries = archive.infolist()
  except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
    raise RefusedInput(f"{path} is a damaged zip: {error}") from error
  names = [entry.filename for entry in entries]
  repeated = twin(names)
  if repeated is not None:
    raise RefusedInput(f"{path} has the entry {repeated!r} twice")
  if any(name.endswith("/data.pkl") for name in names):
    return torch_zip.open_torch(path, entries)
  if names and all(name.endswith(".npy") for name in names):
    return npz.open_npz(path, entries)
  raise RefusedInput(
    f"{path} is a zip of neither npy arrays nor torch's data.pkl; it has "
    + (", ".join(names[:5]) or "nothing")
  )
