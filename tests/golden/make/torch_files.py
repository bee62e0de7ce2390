"""Makes `torch__files.npz`: files that torch writes, and what they hold.

    python tests/golden/make/torch_files.py

`file:<name>` are the bytes of a file, `value:<name>` the values of the state
dict that `plain` and most others hold, as float32 where NumPy lacks the dtype.
"""

import io
import pathlib

import numpy as np
import torch

GOLDEN = pathlib.Path(__file__).parents[1]


def state_dict():
  """Tensors of every layout and of every dtype that is read."""
  torch.manual_seed(0)
  base = torch.randn(6, 4)
  shared = torch.randn(5, 3)
  return {
    "weight": base,
    "transposed": base.t(),
    "part": base[1:4, 1:3],
    "tied": shared,
    "tied_too": shared,
    "channels_last": torch.randn(2, 3, 4, 5).contiguous(
      memory_format=torch.channels_last
    ),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
    "half": torch.randn(3).half(),
    "bfloat16": torch.randn(3).bfloat16(),
    "double": torch.randn(3).double(),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "int32": torch.arange(-2, 3, dtype=torch.int32),
    "flags": torch.tensor([True, False, True]),
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
  }


def saved(value, **options):
  stream = io.BytesIO()
  torch.save(value, stream, **options)
  return np.frombuffer(stream.getvalue(), np.uint8)


def main():
  state = state_dict()
  module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  trained = {"model": module.state_dict(), "epoch": 3, "loss": [0.5, None]}
  files = {
    "plain": saved(state),
    **{f"protocol_{n}": saved(state, pickle_protocol=n) for n in (3, 4, 5)},
    "module": saved(module.state_dict()),
    "trained": saved(trained),
    "two": saved({"model": state, "average": state}),
    "whole_module": saved(module),
    "legacy": saved(state, _use_new_zipfile_serialization=False),
  }
  values = {
    name: (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy()
    for name, x in state.items()
  }
  values |= {f"module/{k}": x.numpy() for k, x in module.state_dict().items()}
  np.savez_compressed(
    GOLDEN / "torch__files.npz",
    **{f"file:{name}": content for name, content in files.items()},
    **{f"value:{name}": np.asarray(x, order="C") for name, x in values.items()},
  )


if __name__ == "__main__":
  main()
