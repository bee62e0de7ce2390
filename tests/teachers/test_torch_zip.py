"""Files of torch are read as torch reads them, and never run."""

import argparse
import contextlib
import functools
import io
import os
import pickle
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest

from jaxkd.errors import RefusedInput
from jaxkd.teachers.files import open_tensors
from jaxkd.teachers.state_dict import Refused, follow
from jaxkd.teachers.torch_legacy import MAGIC
from tests import golden_tools
from tests.teachers import file_tools
from tests.teachers.file_tools import number, state, tensor, text

BYTES = np.arange(6, dtype=np.float32).tobytes()


@functools.cache
def golden():
  return golden_tools.load("torch__files")


def saved(path, name):
  path.write_bytes(golden()[f"file:{name}"].tobytes())
  return path


def refused(path, *parts):
  with pytest.raises(RefusedInput) as caught:
    [one.read() for one in open_tensors(path).values()]
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message, message
  return message


def check(tensors, values):
  assert set(tensors) == set(values)
  for name, value in values.items():
    found = tensors[name].read()
    assert tensors[name].shape == value.shape
    assert tensors[name].dtype == found.dtype
    np.testing.assert_array_equal(file_tools.shown(found), value)


@pytest.mark.parametrize(
  "name", ["plain", "protocol_3", "protocol_4", "protocol_5", "legacy"]
)
def test_a_state_dict_is_read_as_torch_reads_it(tmp_path, name):
  values = golden_tools.section(golden(), "value:")
  values = {k: v for k, v in values.items() if not k.startswith("module/")}
  tensors = open_tensors(saved(tmp_path / "x.pt", name))
  check(tensors, values)
  assert str(tensors["bfloat16"].dtype) == "bfloat16"
  assert tensors["weight"].dtype == np.float32


@pytest.mark.parametrize("name", ["module", "trained"])
def test_the_one_state_dict_in_a_file_is_found(tmp_path, name):
  values = golden_tools.section(golden(), "value:module/")
  (tmp_path / "model").mkdir()
  saved(tmp_path / "model" / "pytorch_model.bin", name)
  check(open_tensors(tmp_path / "model"), values)


def test_tied_tensors_are_known_as_such(tmp_path):
  tensors = open_tensors(saved(tmp_path / "x", "plain"))
  assert tensors["tied"].storage == tensors["tied_too"].storage
  others = {x.storage for name, x in tensors.items() if "tied" not in name}
  assert tensors["tied"].storage not in others


@pytest.mark.parametrize(
  ("name", "part"),
  [
    ("two", "2 state dicts ('model', 'average')"),
    ("whole_module", "'torch.nn.modules.container.Sequential'"),
  ],
)
def test_other_files_of_torch_are_refused(tmp_path, name, part):
  refused(saved(tmp_path / "x", name), part)


class Calls:
  """Pickles as a call of a function."""

  def __init__(self, *call):
    self.call = call

  def __reduce_ex__(self, protocol):
    return self.call


def by_instructions(canary):
  """Pickles written by hand, each of which would make a folder."""
  folder = text(str(canary))
  text_line = f"V{canary}\n".encode()
  return {
    "a global": b"\x80\x02cposix\nmkdir\n" + folder + b"\x85R.",
    "a global on the stack": b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93"
    + folder
    + b"\x85R.",
    "an instance": b"(" + text_line + b"iposix\nmkdir\n.",
    "an object": b"(cposix\nmkdir\n" + text_line + b"o.",
    "a new object": b"\x80\x02cposix\nmkdir\n" + folder + b"\x85\x81.",
    "a new object with keywords": b"\x80\x04cposix\nmkdir\n"
    + folder
    + b"\x85}\x92.",
    "an extension": b"\x80\x02\x82\x01" + folder + b"\x85R.",
    "behind a dict": state(w=tensor())[:-1]
    + b"0cposix\nmkdir\n"
    + folder
    # after the state dict the stack still holds a call
    + b"\x85R.",
    "in a value": state(w=b"cposix\nmkdir\n" + folder + b"\x85R"),
    "in a build": state(w=tensor())[:-1]
    + b"cposix\nmkdir\n"
    + folder
    + b"\x85Rb.",
    "in a persistent id": b"\x80\x02cposix\nmkdir\n" + folder + b"\x85RQ.",
    "in hooks": b"\x80\x02}"
    + text("w")
    + tensor()[:-2].replace(b"ccollections\nOrderedDict\n)R", b"")
    + b"cposix\nmkdir\n"
    + folder
    + b"\x85RtRs.",
    "dotted": b"\x80\x04\x8c\x02os\x8c\x0aos.mkdir.x\x93.",
    "getattr": b"\x80\x02c__builtin__\ngetattr\n.",
    "a function of torch": b"\x80\x02ctorch.serialization\nload\n"
    + folder
    + b"\x85R.",
    "a name in torch": b"\x80\x02ctorch\nload\n" + folder + b"\x85R.",
    "a storage that is called": b"\x80\x02ctorch\nFloatStorage\n"
    + folder
    + b"\x85R.",
    "a hidden storage": b"\x80\x02ctorch\n_C.FloatStorage\n.",
  }


CALLS = {
  "os.mkdir": lambda path: Calls(os.mkdir, (path,)),
  "os.system": lambda path: Calls(os.system, (f"mkdir {path}",)),
  "eval": lambda path: Calls(eval, (f"__import__('os').mkdir({path!r})",)),
  "exec": lambda path: Calls(exec, (f"import os; os.mkdir({path!r})",)),
  "subprocess": lambda path: Calls(subprocess.call, (["mkdir", path],)),
  "partial": lambda path: Calls(functools.partial(os.mkdir, path), ()),
  "state": lambda path: Calls(os.mkdir, (path,), {"a": 1}),
  "items": lambda path: Calls(
    dict, (), None, None, iter([(1, Calls(os.mkdir, (path,)))])
  ),
  "nested": lambda path: {"model": {"w": [Calls(os.mkdir, (path,))]}},
  "a namespace": lambda path: {"args": argparse.Namespace(lr=1)},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", CALLS)
def test_a_pickle_that_calls_is_refused_and_not_run(tmp_path, name, protocol):
  canary = tmp_path / "canary"
  content = pickle.dumps(CALLS[name](str(canary)), protocol)
  message = refused(file_tools.torch_file(tmp_path / "x.pt", content), "pickle")
  # Protocol 0 has other instructions for the containers around the call.
  assert "nothing was run" in message or "which no state dict needs" in message
  # Bare, it is no file that is read at all.
  (tmp_path / "bare").write_bytes(content)
  refused(tmp_path / "bare", "bare pickle")
  (tmp_path / "old").write_bytes(MAGIC + b"\x80\x02M\xe9\x03.}." + content)
  refused(tmp_path / "old", "pickle")
  assert not canary.exists()


@pytest.mark.parametrize("name", by_instructions(""))
def test_instructions_that_call_are_refused_and_not_run(tmp_path, name):
  canary = tmp_path / "canary"
  content = by_instructions(canary)[name]
  path = file_tools.torch_file(tmp_path / "x.pt", content, {"0": BYTES})
  refused(path, "pickle")
  assert not canary.exists()


def test_the_payloads_would_run_elsewhere(tmp_path):
  # Else the tests above could not fail.
  calls = [
    pickle.dumps(CALLS[name](str(tmp_path / name)), 2)
    for name in list(CALLS)[:7]
  ]
  calls += list(by_instructions(tmp_path / "by hand").values())[:1]
  for content in calls:
    with contextlib.suppress(AttributeError, TypeError):
      pickle.loads(content)
  ran = len(list(tmp_path.iterdir()))
  assert ran == 8


def test_a_folder_with_a_malicious_file_is_refused(tmp_path):
  canary = tmp_path / "canary"
  content = pickle.dumps(Calls(os.mkdir, (str(canary),)))
  file_tools.torch_file(tmp_path / "pytorch_model.bin", content)
  refused(tmp_path, "mkdir'")
  assert not canary.exists()


def test_the_oldest_format_a_tar_is_refused(tmp_path):
  content = pickle.dumps(Calls(os.mkdir, (str(tmp_path / "canary"),)))
  with tarfile.open(tmp_path / "x.pt", "w") as archive:
    for name in ("sys_info", "pickle", "storages", "tensors"):
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  refused(tmp_path / "x.pt", "none of safetensors")
  assert not (tmp_path / "canary").exists()


def read(tmp_path, code, storage=BYTES):
  path = file_tools.torch_file(tmp_path / "x.pt", code, {"0": storage})
  return open_tensors(path)


def test_a_pickle_by_hand_is_read(tmp_path):
  tensors = read(tmp_path, state(w=tensor(1, (2, 2), (1, 2))))
  np.testing.assert_array_equal(tensors["w"].read(), [[1, 3], [2, 4]])


VIEWS = {
  "beyond the end": {"offset": 1},
  "a huge offset": {"offset": 2**62},
  "a negative offset": {"offset": -1},
  "an offset of many digits": {"offset": 10**300},
  "a huge stride": {"strides": (2**62, 1)},
  "a stride just too long": {"strides": (4, 1)},
  "a negative stride": {"strides": (-3, 1)},
  "a huge shape": {"shape": (2**40, 2**40)},
  "much of little": {"shape": (10**6, 10**6), "strides": (0, 0)},
  "a negative shape": {"shape": (-2, -3)},
  "more axes than strides": {"shape": (2, 3, 1)},
  "more axes than any array": {"shape": (1,) * 40, "strides": (1,) * 40},
  "another count": {"count": 7},
  "a huge count": {"count": 2**62},
  "a negative count": {"count": -6},
  "another dtype": {"kind": "Double"},
  "an unknown dtype": {"kind": "QInt8"},
  "no dtype": {"kind": ""},
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, name):
  path = file_tools.torch_file(
    tmp_path / "x.pt", state(w=tensor(**VIEWS[name])), {"0": BYTES}
  )
  refused(path, str(path))


PICKLES = {
  "no end": b"\x80\x02}",
  "nothing": b"",
  "an empty stack": b"\x80\x02.",
  "a pop of nothing": b"\x80\x020.",
  "no mark": b"\x80\x02}u.",
  "a memo that is not there": b"\x80\x02h\x05.",
  "a cut string": b"\x80\x02X\xff\xff\xff\x7fabc.",
  "a cut long string": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
  "a cut integer": b"\x80\x02\x8b\xff\xff\xff\x7f.",
  "text that is none": b"\x80\x02X\x01\x00\x00\x00\xff.",
  "an unknown instruction": b"\x80\x02\xff.",
  "a list as a key": b"\x80\x02}](NNu.",
  "a dict as a key": b"\x80\x02}}Ns.",
  "a key without value": b"\x80\x02}(" + text("a") + b"u.",
  "items of a number": b"\x80\x02K\x01" + text("a") + b"Ns.",
  "a list": b"\x80\x02].",
  "a number": b"\x80\x02K\x01.",
  "a mark": b"\x80\x02(.",
  "a dict of numbers": state(a=number(1)),
  "a tensor and a number": state(w=tensor(), a=number(1)),
  "a number as a name": b"\x80\x02}K\x01" + tensor() + b"s.",
  "an ordered dict of something": b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
  "a tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
  "a storage by itself": b"\x80\x02}" + text("w") + b"ctorch\nFloatStorage\ns.",
  "a persistent id that is a string": b"\x80\x02" + text("0") + b"Q.",
  "a persistent id in words": b"P0\n.",
  "a persistent id of a tensor": b"\x80\x02("
  + text("storage")
  + b"ctorch._utils\n_rebuild_tensor_v2\n"
  + text("0")
  + text("cpu")
  + number(6)
  + b"tQ.",
  "a storage that is not there": state(w=tensor()).replace(
    text("0"), text("1")
  ),
  "a storage elsewhere": state(w=tensor()).replace(
    text("0"), text("../data.pkl")
  ),
  "attributes of a list": b"\x80\x02]}b.",
  "a parameter of a number": b"\x80\x02ctorch._utils\n_rebuild_parameter\n"
  b"K\x01\x88N\x87R.",
  "deep": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
  "deep as a size": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
  + b"N" * 2
  + b")"
  + b"\x85" * 200_000
  + b"NNNtR.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_damaged_pickle_is_refused(tmp_path, name):
  path = file_tools.torch_file(tmp_path / "x.pt", PICKLES[name], {"0": BYTES})
  message = refused(path, str(path))
  assert len(message) < 600


def test_doubling_lists_take_no_time_and_no_memory():
  # 2**60 numbers if they were written out.
  double = b"\x80\x02]q\x00"
  for index in range(60):
    memo = bytes([index])
    double += b"](h" + memo + b"h" + memo + b"eq" + bytes([index + 1])
  code = (
    double + b"ctorch._utils\n_rebuild_tensor_v2\n(N" + b"h\x3c" * 5 + b"tR."
  )
  with pytest.raises(Refused, match="a list in the place of a tuple"):
    follow(code)


def test_any_damage_to_a_pickle_is_refused_or_harmless():
  content = golden()["file:plain"].tobytes()
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    whole = archive.read("archive/data.pkl")
  rng, seen = np.random.default_rng(0), 0
  for _ in range(500):
    code = bytearray(whole)
    for place in rng.integers(len(code), size=rng.integers(1, 4)):
      code[place] = rng.integers(256)
    try:
      follow(bytes(code))
    except Refused:
      seen += 1
  assert 100 < seen < 500


@pytest.mark.parametrize("name", ["plain", "protocol_4", "legacy"])
def test_any_damage_to_a_file_is_refused_or_harmless(tmp_path, name):
  file_tools.damage(saved(tmp_path / "x", name), open_tensors)


def test_damage_to_the_numbers_is_seen(tmp_path):
  path = saved(tmp_path / "x.pt", "plain")
  content = bytearray(path.read_bytes())
  place = bytes(content).index(golden()["value:weight"].tobytes())
  content[place + 5] ^= 1
  path.write_bytes(content)
  tensors = open_tensors(path)
  tensors["half"].read()
  with pytest.raises(RefusedInput, match="entry 'archive/data/0' is damaged"):
    tensors["part"].read()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_zip_is_refused(tmp_path, share):
  path = saved(tmp_path / "x.pt", "plain")
  content = path.read_bytes()
  path.write_bytes(content[: int(share * len(content))])
  refused(path, "damaged zip")


def rezipped(path, changed=None, **options):
  content = golden()["file:plain"].tobytes()
  path.write_bytes(file_tools.rezipped(content, changed, **options))
  return path


def test_zips_that_torch_does_not_write_are_refused(tmp_path):
  path = tmp_path / "x.pt"
  refused(rezipped(path, compression=zipfile.ZIP_DEFLATED), "is compressed")
  refused(rezipped(path, {"archive/byteorder": b"big"}), "is big-endian")
  refused(rezipped(path, {"b/data.pkl": b"\x80\x02}."}), "2 pickles")
  refused(rezipped(path, {"archive/data/0": None}), "no entry 'archive/data/0'")
  refused(rezipped(path, {"archive/data/0": b"1"}), "has 1 bytes, expected 24")
  refused(rezipped(path, {"archive/data.pkl": None}), "neither")


@pytest.mark.slow  # imports torch
def test_torch_writes_what_the_golden_file_holds(tmp_path):
  torch = pytest.importorskip("torch")
  module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
  torch.save(module.state_dict(), tmp_path / "x.pt")
  values = {name: x.numpy() for name, x in module.state_dict().items()}
  check(open_tensors(tmp_path / "x.pt"), values)
