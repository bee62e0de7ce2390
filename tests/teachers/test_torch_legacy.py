"""Files that torch.save wrote before 1.6 are read, and never run.

One of torch's own is among those of `test_torch_zip.py`.
"""

import numpy as np
import pytest

from jaxkd.errors import RefusedInput
from jaxkd.teachers.files import open_tensors
from jaxkd.teachers.torch_legacy import MAGIC
from tests.teachers import file_tools

NUMBERS = np.arange(6, dtype=np.float32)
MACHINE = b"\x80\x02}(" + file_tools.text("little_endian") + b"\x88u."
KEYS = b"\x80\x02](" + file_tools.text("0") + b"e."


def pushed(value):
  """A pickle of an integer."""
  return b"\x80\x02" + file_tools.number(value) + b"."


def content(
  state=None, version=1001, machine=MACHINE, keys=KEYS, count=6, end=b""
):
  """The bytes of a file with one storage of six numbers."""
  # As torch did: a storage is never a view of another one.
  state = state or file_tools.state(weight=file_tools.tensor())
  state = state.replace(b"tQ", b"NtQ")
  numbers = count.to_bytes(8, "little") + NUMBERS.tobytes()
  return MAGIC + pushed(version) + machine + state + keys + numbers + end


def opened(folder, data):
  path = folder / "model.pth"
  path.write_bytes(data)
  return open_tensors(path)


def test_tensors_are_views_of_their_storages(tmp_path):
  state = file_tools.state(
    whole=file_tools.tensor(),
    turned=file_tools.tensor(shape=(3, 2), strides=(1, 3)),
    end=file_tools.tensor(offset=4, shape=(2,), strides=(1,)),
  )
  tensors = opened(tmp_path, content(state))
  whole = NUMBERS.reshape(2, 3)
  for name, expected in (
    ("whole", whole),
    ("turned", whole.T),
    ("end", NUMBERS[4:]),
  ):
    np.testing.assert_array_equal(tensors[name].read(), expected)
    assert tensors[name].dtype == np.float32


@pytest.mark.parametrize("cut", [1, 20, 40, 200])
def test_a_truncated_file_is_refused(tmp_path, cut):
  with pytest.raises(
    RefusedInput, match=r"ends within|damaged|list of storage"
  ):
    opened(tmp_path, content()[:-cut])


def test_a_call_is_refused_by_its_name(tmp_path):
  state = b"\x80\x02cos\nsystem\n(" + file_tools.text("true") + b"tR."
  with pytest.raises(RefusedInput, match=r"refers to 'os.system'"):
    opened(tmp_path, content(state))


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"version": 1002}, "version 1002, expected 1001"),
    ({"machine": MACHINE.replace(b"\x88u", b"\x89u")}, "big-endian"),
    ({"keys": b"\x80\x02]."}, "list of storages"),
    ({"keys": KEYS.replace(b"0e", b"1e")}, "list of storages"),
    (
      {"keys": b"\x80\x02](" + file_tools.number(0) + b"e."},
      "list of storages",
    ),
    ({"count": 7}, "has 7 numbers, expected 6"),
    ({"end": b"\x00" * 3}, "goes on for 3 bytes"),
    (
      {"state": file_tools.state(a=file_tools.tensor(kind="Quint8"))},
      "Quint8Storage",
    ),
    (
      {"state": file_tools.state(a=file_tools.tensor(offset=1))},
      "does not lie within its storage",
    ),
  ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, changed, message):
  with pytest.raises(RefusedInput, match=message):
    opened(tmp_path, content(**changed))


def test_a_storage_within_another_one_is_refused(tmp_path):
  data = content().replace(b"NtQ", b"\x88tQ")
  with pytest.raises(RefusedInput, match="a storage within another one"):
    opened(tmp_path, data)
