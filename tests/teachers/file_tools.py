"""Writes files of tensors, and breaks them."""

import io
import json
import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np

from jaxkd.errors import RefusedInput

KINDS = {
  "float32": "F32",
  "float64": "F64",
  "float16": "F16",
  "bfloat16": "BF16",
  "int64": "I64",
  "int32": "I32",
  "uint8": "U8",
  "bool": "BOOL",
  "float8_e4m3fn": "F8_E4M3",
}


def header(arrays):
  """The header that safetensors has for arrays."""
  rows, end = {}, 0
  for name, array in arrays.items():
    rows[name] = {
      "dtype": KINDS[str(array.dtype)],
      "shape": list(array.shape),
      "data_offsets": [end, end + array.nbytes],
    }
    end += array.nbytes
  return rows


def write_rows(path, rows, content):
  """Writes a safetensors file with any header."""
  text = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + content)
  return path


def write(path, arrays):
  """Writes a safetensors file."""
  content = b"".join(np.ascontiguousarray(x).tobytes() for x in arrays.values())
  rows = {"__metadata__": {"format": "pt"}, **header(arrays)}
  return write_rows(path, rows, content)


def write_sharded(folder, arrays, files=2):
  """Writes a folder of safetensors files and their index."""
  folder.mkdir(parents=True, exist_ok=True)
  places = {}
  for number in range(files):
    file = f"model-{number + 1:05}-of-{files:05}.safetensors"
    part = dict(list(arrays.items())[number::files])
    write(folder / file, part)
    places |= dict.fromkeys(part, file)
  index = {"metadata": {"total_size": 0}, "weight_map": places}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return folder


def rezipped(content, changed=None, *, compression=zipfile.ZIP_STORED):
  """The bytes of a zip with some entries' content changed, or left out."""
  changed = changed or {}
  out = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(content)) as old,
    zipfile.ZipFile(out, "w", compression) as new,
  ):
    for entry in old.infolist():
      data = changed.get(entry.filename, old.read(entry))
      if data is not None:
        new.writestr(entry.filename, data)
    for name in changed.keys() - set(old.namelist()):
      new.writestr(name, changed[name])
  return out.getvalue()


def torch_file(path, pickle, storages=None, top="archive"):
  """Writes a torch zip with any pickle."""
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr(f"{top}/data.pkl", pickle)
    archive.writestr(f"{top}/byteorder", b"little")
    for key, content in (storages or {}).items():
      archive.writestr(f"{top}/data/{key}", content)
  return pathlib.Path(path)


def text(value):
  """The instruction of a pickle that pushes a string."""
  content = value.encode()
  return b"X" + len(content).to_bytes(4, "little") + content


def number(value):
  """The instruction of a pickle that pushes an integer."""
  size = (value.bit_length() + 8) // 8
  return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def numbers(values):
  """The instructions of a pickle that push a tuple of integers."""
  return b"(" + b"".join(map(number, values)) + b"t"


def tensor(offset=0, shape=(2, 3), strides=(3, 1), count=6, kind="Float"):
  """The instructions of a pickle that push a tensor in the storage `0`."""
  storage = (
    b"("
    + text("storage")
    + f"ctorch\n{kind}Storage\n".encode()
    + text("0")
    + text("cpu")
    + number(count)
    + b"tQ"
  )
  return (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + storage
    + number(offset)
    + numbers(shape)
    + numbers(strides)
    + b"\x89ccollections\nOrderedDict\n)RtR"
  )


def state(**entries):
  """A pickle of a dict of what these instructions push."""
  parts = b"".join(text(name) + code for name, code in entries.items())
  return b"\x80\x02}(" + parts + b"u."


def shown(array):
  """An array in a dtype of NumPy's own."""
  return np.asarray(array, np.float32) if array.dtype == jnp.bfloat16 else array


def damage(path, open_file, times=100):
  """Damages a file in many ways, of which most have to be refused."""
  whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
  for _ in range(times):
    content = bytearray(whole)
    for place in rng.integers(min(len(whole), 1000), size=3):
      content[place] = rng.integers(256)
    if rng.integers(2):
      content = content[: rng.integers(len(content))]
    path.write_bytes(content)
    try:
      [tensor.read() for tensor in open_file(path).values()]
    except RefusedInput:
      refused += 1
  assert times / 2 < refused
