"""A record is its example's, whole, or refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource
from jaxkd.errors import RefusedInput, StorageError
from jaxkd.training.target_files import reading
from jaxkd.training.target_files.codec import Rows, TopKCodec
from jaxkd.training.target_files.reading import Reader
from jaxkd.training.target_files.records import Layout
from tests.training.target_files.test_codec import peaked, top

ALL = Layout(classes=6, positions=(), dtype="float32", codec=None, taps={})


def text_layout(**options):
  codec = TopKCodec(classes=50, k=4, bits=12)
  options = {"positions": (3,), "codec": codec, **options}
  return dataclasses.replace(ALL, classes=50, **options)


def text_rows(layout, size=2, seed=0):
  rows = top(peaked(3 * size, 50, seed), 4)
  shaped = Rows(*(x.reshape(size, 3, *x.shape[1:]) for x in rows))
  return shaped, layout.rows(shaped)


def records(layout, rows, *, augmentation=0, taps=None, stored=None):
  size = len(rows)
  stored = np.ones((size, layout.count), bool) if stored is None else stored
  return layout.encode(range(size), augmentation, rows, taps or {}, stored)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_logits_come_back_bit_by_bit(dtype):
  layout = dataclasses.replace(ALL, dtype=dtype)
  logits = np.asarray(jnp.asarray(peaked(5, 6), dtype))
  made = records(layout, layout.rows(logits))
  assert {len(record) for record in made} == {layout.record_bytes}
  found, taps = layout.decode(made, range(5), [0] * 5)
  assert found.dtype == logits.dtype
  assert not taps
  np.testing.assert_array_equal(found.view(np.uint8), logits.view(np.uint8))


def test_taps_lie_behind_the_logits():
  shapes = {"block/fc1": ((2, 3), "float32"), "norm": ((4,), "bfloat16")}
  layout = text_layout(taps=shapes)
  random = np.random.default_rng(0)
  taps = {
    path: np.asarray(jnp.asarray(random.normal(size=(2, *shape)), dtype))
    for path, (shape, dtype) in shapes.items()
  }
  rows, data = text_rows(layout)
  found, seen = layout.decode(records(layout, data, taps=taps), [0, 1], [0, 0])
  np.testing.assert_array_equal(np.sort(found.ids, -1), np.sort(rows.ids, -1))
  for path, tap in taps.items():
    np.testing.assert_array_equal(seen[path], tap)


@pytest.mark.parametrize("topk", [True, False])
def test_positions_left_out_are_read_as_nan(topk):
  layout = text_layout(where="token_mask")
  if topk:
    _, data = text_rows(layout)
  else:
    layout = dataclasses.replace(layout, codec=None)
    data = layout.rows(peaked(6, 50).astype(np.float32).reshape(2, 3, 50))
  stored = np.array([[True, False, True], [False, False, True]])
  made = records(layout, data, stored=stored)
  assert len(made[0]) - len(made[1]) == layout.row_bytes
  found, _ = layout.decode(made, [0, 1], [0, 0])
  whole, _ = layout.decode(records(layout, data), [0, 1], [0, 0])
  values, expected = (x.log_probs if topk else x for x in (found, whole))
  np.testing.assert_array_equal(values[stored], expected[stored])
  assert np.isnan(values[~stored]).all()


@pytest.mark.parametrize("length", [0, 3, 19, -1])
def test_a_record_cut_short_is_refused(length):
  (record,) = records(ALL, ALL.rows(np.ones((1, 6), np.float32)))
  with pytest.raises(StorageError, match="damaged"):
    ALL.decode([record[:length]], [0], [0])


def test_the_record_of_another_example_is_refused():
  made = records(ALL, ALL.rows(np.ones((2, 6), np.float32)), augmentation=7)
  with pytest.raises(StorageError, match=r"example 1, .* is that of example 0"):
    ALL.decode(made[:1], [1], [7])
  with pytest.raises(StorageError, match="augmentation 8, is that of .* 7"):
    ALL.decode(made[:1], [0], [8])


def test_a_layout_is_what_it_describes():
  for layout in (ALL, text_layout(taps={"a": ((2,), "float32")}, where="w")):
    assert Layout.read(layout.describe()) == layout


# Readers, of two augmentations of five examples in files of four records.


@pytest.fixture
def reader(tmp_path):
  from array_record.python import array_record_module as arrays

  logits = np.arange(60, dtype=np.float32).reshape(2, 5, 6)
  made = []
  for key, part in zip((11, -3), logits, strict=True):
    made += records(ALL, ALL.rows(part), augmentation=key)
  paths = []
  for number in range(3):
    paths.append(tmp_path / f"{number}.array_record")
    writer = arrays.ArrayRecordWriter(
      str(paths[-1]), "group_size:1,uncompressed"
    )
    for record in made[4 * number : 4 * number + 4]:
      writer.write(record)
    writer.close()
  return Reader(
    role="teacher",
    layout=ALL,
    shards=tuple(paths),
    shard_examples=4,
    examples=5,
    augmentations=(11, -3),
    fingerprint="f",
  ), logits


@pytest.mark.parametrize("at_once", [1, 90, 2**21])
def test_an_example_has_a_target_for_every_augmentation(
  reader, at_once, monkeypatch
):
  monkeypatch.setattr(reading, "AT_ONCE", at_once)
  reader, logits = reader
  examples, keys = np.array([4, 0, 3, 0]), np.array([11, -3, -3, 11])
  found = reader.take(examples, keys)["teacher@logits"]
  expected = logits[[0, 1, 1, 0], examples]
  np.testing.assert_array_equal(found, expected)
  source = ArraySource({"augmentation": np.full(5, -3)})
  beside = source.with_beside([reader])
  assert pipeline.fingerprint(beside) != pipeline.fingerprint(source)
  rows = beside.with_entry("more", np.zeros(5)).subset([2, 4]).take([1, 0])
  np.testing.assert_array_equal(rows["teacher@logits"], logits[1, [4, 2]])


def test_an_unknown_example_or_augmentation_is_refused(reader):
  reader, _ = reader
  with pytest.raises(RefusedInput, match="example 5, augmentation 11"):
    reader.take(np.array([0, 5]), np.array([11, 11]))
  with pytest.raises(RefusedInput, match="augmentation 12"):
    reader.take(np.array([0, 1]), np.array([11, 12]))
  with pytest.raises(RefusedInput, match="no entry 'augmentation'"):
    reader.take(np.array([0]))


def test_a_damaged_file_is_never_read_as_something_else(reader):
  reader, logits = reader
  path = reader.shards[0]
  intact = path.read_bytes()
  refused = 0
  for place in np.random.default_rng(0).integers(0, 1000, 60):
    damaged = bytearray(intact)
    damaged[place] ^= 0x10
    path.write_bytes(bytes(damaged))
    fresh = dataclasses.replace(reader, _open={})
    try:
      found = fresh.take(np.arange(4), np.full(4, 11))["teacher@logits"]
    except StorageError as error:
      refused += str(path.parent) in str(error)
    else:
      np.testing.assert_array_equal(found, logits[0, :4])
  assert refused > 20


def test_every_flipped_bit_of_a_record_is_found(reader):
  reader, logits = reader
  path = reader.shards[0]
  intact = path.read_bytes()
  (record,) = records(ALL, ALL.rows(logits[0, :1]), augmentation=11)
  begin = intact.index(record)
  for bit in range(8 * len(record)):
    damaged = bytearray(intact)
    damaged[begin + bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(damaged))
    fresh = dataclasses.replace(reader, _open={})
    with pytest.raises(StorageError, match=f"{path.name} is damaged"):
      fresh.take(np.array([0]), np.array([11]))
