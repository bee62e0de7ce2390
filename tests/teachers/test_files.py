"""Files of tensors are read as written, and broken ones refused."""

import io
import json
import os
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import RefusedInput
from jaxkd.teachers.files import open_tensors
from tests.teachers import file_tools

RNG = np.random.default_rng(0)
ARRAYS = {
  "a.weight": RNG.standard_normal((3, 4)).astype(np.float32),
  "b": RNG.standard_normal((2, 2, 2)).astype(np.float16),
  "c": RNG.standard_normal(5),
  "d": np.array(3, np.int64),
  "e": np.zeros((0, 3), np.float32),
  "f": np.array([True, False]),
  "g": RNG.standard_normal(4).astype(jnp.bfloat16),
  "h": RNG.standard_normal(4).astype(jnp.float8_e4m3fn),
}
PLAIN = {name: ARRAYS[name] for name in "bcdef"}


def check(tensors, arrays):
  assert set(tensors) == set(arrays)
  for name, array in arrays.items():
    tensor = tensors[name]
    value = tensor.read()
    assert tensor.shape == value.shape == array.shape
    assert tensor.dtype == value.dtype == array.dtype
    assert tensor.nbytes == array.nbytes
    np.testing.assert_array_equal(
      value.view(np.uint8) if value.ndim else value,
      array.view(np.uint8) if value.ndim else array,
    )


def refused(path, *parts):
  with pytest.raises(RefusedInput) as caught:
    [tensor.read() for tensor in open_tensors(path).values()]
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message, message


def test_safetensors_are_read_as_written(tmp_path):
  path = file_tools.write(tmp_path / "x.safetensors", ARRAYS)
  check(open_tensors(path), ARRAYS)
  path.rename(tmp_path / "model.safetensors")
  check(open_tensors(tmp_path), ARRAYS)


def test_what_the_safetensors_package_writes_is_read(tmp_path):
  package = pytest.importorskip("safetensors.numpy")
  plain = {name: array for name, array in ARRAYS.items() if name not in "gh"}
  package.save_file(plain, tmp_path / "x")
  check(open_tensors(tmp_path / "x"), plain)


def test_a_folder_of_several_files_is_read_as_one(tmp_path):
  check(open_tensors(file_tools.write_sharded(tmp_path, ARRAYS, 3)), ARRAYS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_as_written(tmp_path, save):
  save(tmp_path / "x.npz", **PLAIN, big=ARRAYS["c"].astype(">f8"))
  check(open_tensors(tmp_path / "x.npz"), {**PLAIN, "big": ARRAYS["c"]})


def test_arrays_in_columns_are_read_as_written(tmp_path):
  column = np.asfortranarray(ARRAYS["a.weight"])
  np.savez(tmp_path / "x.npz", column=column)
  value = open_tensors(tmp_path / "x.npz")["column"].read()
  np.testing.assert_array_equal(value, column)


def test_nearly_equal_entries_of_an_npz_are_kept_apart(tmp_path):
  np.savez(tmp_path / "x.npz", **{"a": np.zeros(2), "a.npy": np.ones(2)})
  tensors = open_tensors(tmp_path / "x.npz")
  assert tensors["a"].read()[0] == 0
  assert tensors["a.npy"].read()[0] == 1


def test_a_name_that_is_not_there_is_answered_with_the_nearest(tmp_path):
  tensors = open_tensors(file_tools.write(tmp_path / "x", ARRAYS))
  with pytest.raises(RefusedInput, match=r"did you mean 'a\.weight'"):
    tensors["a.wieght"]
  assert tensors.get("d") is not None


@pytest.mark.parametrize("cut", [1, 7, 30, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, cut):
  path = file_tools.write(tmp_path / "x", ARRAYS)
  path.write_bytes(path.read_bytes()[:cut])
  refused(path, str(path))


def test_a_truncated_file_says_how_much_is_missing(tmp_path):
  path = file_tools.write(tmp_path / "x", {"a": ARRAYS["c"]})
  size = path.stat().st_size
  path.write_bytes(path.read_bytes()[:-8])
  refused(path, "truncated", f"{size:,}", f"{size - 8:,}")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
  path = file_tools.write(tmp_path / "x", {"a": ARRAYS["c"]})
  tensors = open_tensors(path)
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(RefusedInput, match="ended within tensor 'a'"):
    tensors["a"].read()


HEADERS = {
  "a hole": ({"data_offsets": [4, 12]}, "begins at 4"),
  "below zero": ({"data_offsets": [-8, 0]}, "damaged header"),
  "backwards": ({"data_offsets": [8, 0]}, "do not hold"),
  "another size": ({"shape": [3]}, "do not hold"),
  "a negative shape": ({"shape": [-1, -2]}, "damaged header"),
  "a boolean shape": ({"shape": [True, 2]}, "damaged header"),
  "a huge shape": ({"shape": [2**62, 2**62, 0]}, "do not hold"),
  "many axes": ({"shape": [1] * 40 + [2]}, "41 axes"),
  "no dtype": ({"dtype": None}, "known are"),
  "an unknown dtype": ({"dtype": "C64"}, "'C64'"),
  "a dtype that is a list": ({"dtype": ["F32"]}, "known are"),
  "no offsets": ({"data_offsets": None}, "damaged header"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_header_is_refused(tmp_path, name):
  change, part = HEADERS[name]
  row = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}
  path = file_tools.write_rows(tmp_path / "x", {"t": row}, bytes(8))
  refused(path, "'t'", part)


@pytest.mark.parametrize(
  ("text", "part"),
  [
    (b'{"a":' * 100_000, "too deeply"),
    (b'{"a": {}, "a": {}}', "'a' is there twice"),
    (b'{"a": 1}', "'a' has a damaged header"),
    (b"{]", "damaged header"),
    (b'{"\xff": 1}', "damaged header"),
  ],
)
def test_a_header_that_is_no_json_is_refused(tmp_path, text, part):
  refused(file_tools.write_rows(tmp_path / "x", text, b""), part)


def test_a_header_as_long_as_no_file_is_refused(tmp_path):
  (tmp_path / "x").write_bytes((2**63).to_bytes(8, "little") + b"{}")
  refused(tmp_path / "x", "9,223,372,036,854,775,808 bytes")


def test_two_tensors_in_one_place_are_refused(tmp_path):
  rows = file_tools.header({"a": ARRAYS["c"]})
  rows["b"] = rows["a"]
  path = file_tools.write_rows(tmp_path / "x", rows, bytes(40))
  refused(path, "'b' begins at 0")


@pytest.mark.parametrize(
  ("content", "part"),
  [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    (b"\x93NUMPY\x01\x00", "single array"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"GGUF\x03", "GGUF"),
    (b"hello world, this is text", "none of safetensors"),
    (b"\x80\x02}q\x00.", "bare pickle"),
    (b"PK\x05\x06" + bytes(18), "neither npy arrays nor"),
    (b"PK\x03\x04 and nothing", "damaged zip"),
  ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, content, part):
  (tmp_path / "x").write_bytes(content)
  refused(tmp_path / "x", part)


def test_places_without_weights_are_refused(tmp_path):
  refused(tmp_path / "nothing", "No such file")
  refused(tmp_path, "holds no weights", "it has nothing")
  (tmp_path / "config.json").write_text("{}")
  refused(tmp_path, "model.safetensors", "it has config.json")
  os.mkfifo(tmp_path / "pipe")
  refused(tmp_path / "pipe", "special file")


def changed_index(folder, change):
  path = folder / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  change(index)
  path.write_text(json.dumps(index))


@pytest.mark.parametrize(
  "file",
  ["../x.safetensors", "/etc/passwd", "a/b", "..", "", None, ["x"], "a\0b"],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, file):
  file_tools.write_sharded(tmp_path, ARRAYS)
  changed_index(tmp_path, lambda index: index["weight_map"].update(b=file))
  refused(tmp_path, "expected one beside it")


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path):
  folder = file_tools.write_sharded(tmp_path, ARRAYS)
  changed_index(folder, lambda index: index["weight_map"].pop("d"))
  refused(folder, "holds the tensor 'd'")
  first = "model-00001-of-00002.safetensors"
  changed_index(folder, lambda i: i["weight_map"].update(d=first))
  refused(folder, "'d'", "unlike")
  (folder / first).unlink()
  refused(folder, f"lacks {first}")
  changed_index(folder, lambda index: index.pop("weight_map"))
  refused(folder, "no 'weight_map'")
  (folder / "model.safetensors.index.json").write_text("{")
  refused(folder, "is not JSON")


def test_objects_in_an_npz_are_refused_unread(tmp_path):
  canary = tmp_path / "canary"

  class Payload:
    def __reduce__(self):
      return os.mkdir, (str(canary),)

  np.savez(tmp_path / "x.npz", a=np.array([Payload()], object))
  refused(tmp_path / "x.npz", "'a.npy'", "object", "expected numbers")
  assert not canary.exists()


@pytest.mark.parametrize("dtype", ["U3", "S3", "M8[s]", "c8", "V2", "f4,i4"])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, dtype):
  np.savez(tmp_path / "x.npz", a=np.zeros(2, dtype))
  refused(tmp_path / "x.npz", "expected numbers")


def test_a_damaged_npz_is_refused(tmp_path):
  path = tmp_path / "x.npz"
  np.savez(path, a=ARRAYS["c"])
  content = path.read_bytes()
  place = content.index(ARRAYS["c"].tobytes())
  path.write_bytes(
    content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
  )
  refused(path, "'a.npy' is damaged", "CRC")
  path.write_bytes(content[:-30])
  refused(path, "damaged zip")


def test_an_npz_that_promises_more_than_it_has_is_refused(tmp_path):
  path = tmp_path / "x.npz"
  np.savez(path, a=np.zeros(8))
  content = path.read_bytes()
  with np.load(path) as arrays:
    assert arrays["a"].shape == (8,)
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    array = archive.read("a.npy")
  huge = array.replace(b"'shape': (8,), }        ", b"'shape': (8000000000,),}")
  assert huge != array
  path.write_bytes(file_tools.rezipped(content, {"a.npy": huge}))
  refused(path, "do not hold float64[8000000000]")


def test_a_zip_with_an_entry_twice_is_refused(tmp_path):
  np.savez(tmp_path / "x.npz", a=np.zeros(2))
  with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
    content = archive.read("a.npy")
    with pytest.warns(UserWarning, match="Duplicate"):
      archive.writestr("a.npy", content)
  refused(tmp_path / "x.npz", "'a.npy' twice")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, None])
def test_any_damage_to_a_file_is_refused_or_harmless(tmp_path, save):
  path = tmp_path / "x.npz"
  if save:
    save(path, **PLAIN)
  else:
    file_tools.write(path, ARRAYS)
  file_tools.damage(path, open_tensors)
