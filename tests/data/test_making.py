"""The scripts that make the packaged files, and what importing costs."""

import subprocess
import sys
import zipfile

import numpy as np

from experiments.data import archive, make_spoken_digits
from jaxkd.data import speech


def test_an_archive_depends_on_the_arrays_alone(tmp_path):
  arrays = {"a": np.arange(5), "b": np.array(["x", "yy"])}
  for name in ("one.npz", "two.npz"):
    archive.write(tmp_path / name, arrays)
  one, two = (tmp_path / n for n in ("one.npz", "two.npz"))
  assert one.read_bytes() == two.read_bytes()
  assert zipfile.ZipFile(one).infolist()[0].date_time[0] == 1980
  with np.load(one) as file:
    for name, array in arrays.items():
      np.testing.assert_array_equal(file[name], array)


def test_the_packaged_settings_are_those_of_the_script():
  voices, speeds, pitches = zip(*make_spoken_digits.settings(), strict=True)
  with np.load(speech._FILE) as file:
    np.testing.assert_array_equal(file["settings_voice"], voices)
    np.testing.assert_array_equal(file["settings_speed"], speeds)
    np.testing.assert_array_equal(file["settings_pitch"], pitches)


def test_importing_the_room_loads_no_heavy_library():
  code = (
    "import sys, jaxkd.data; print([m for m in ('grain', 'sklearn', 'scipy', "
    "'tensorflow_datasets', 'tensorflow') if m in sys.modules])"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, check=True, text=True
  )
  assert run.stdout.strip() == "[]"
