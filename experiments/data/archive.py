"""Writes an .npz whose bytes depend on the arrays alone."""

import io
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a compressed archive with fixed time stamps.

  Args:
    path: The .npz file.
    arrays: Name to array of numbers or plain strings.
  """
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, array in arrays.items():
      member = io.BytesIO()
      np.lib.format.write_array(member, array, allow_pickle=False)
      info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
      info.compress_type = zipfile.ZIP_DEFLATED
      archive.writestr(info, member.getvalue(), compresslevel=9)
  path.write_bytes(buffer.getvalue())
  print(f"{path}: {len(buffer.getvalue()) / 1e6:.2f} MB")
