"""Writes small idx files in the layout of MNIST's."""

import gzip
import pathlib
import struct

import numpy as np

NAMES = (
  "train-images-idx3-ubyte",
  "train-labels-idx1-ubyte",
  "t10k-images-idx3-ubyte",
  "t10k-labels-idx1-ubyte",
)


def packed(array: np.ndarray) -> bytes:
  magic = 0x800 + array.ndim
  header = struct.pack(f">{1 + array.ndim}I", magic, *array.shape)
  return header + array.astype(np.uint8).tobytes()


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns images [count, 28, 28] that tell their label, and labels."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % 10
  images = rng.integers(0, 60, (count, 28, 28))
  for image, label in zip(images, labels, strict=True):
    image[2 * label : 2 * label + 4, 4:24] += 150
  return images.astype(np.uint8), labels.astype(np.uint8)


def write(
  folder: pathlib.Path, *, train: int = 200, test: int = 50, gz: bool = False
):
  """Writes the four files and returns the folder."""
  arrays = (*digits(train, 0), *digits(test, 1))
  for name, array in zip(NAMES, arrays, strict=True):
    data = packed(array)
    if gz:
      (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    else:
      (folder / name).write_bytes(data)
  return folder
