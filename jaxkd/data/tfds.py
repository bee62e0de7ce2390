"""TensorFlow Datasets, read through Grain and without TensorFlow.

Works for datasets prepared as ArrayRecord whose features need no TensorFlow
to decode: labels, scalars, tensors, text, boxes and, with Pillow, images; not
Audio and Video.
"""

import importlib
import pathlib
from types import ModuleType

import numpy as np

from jaxkd.data.source import ArraySource
from jaxkd.errors import RefusedInput

_INSTALL = (
  'pip install "tensorflow-datasets>=4.9.10" importlib_resources pillow '
  '"protobuf>=6.31.1"'
)


def _tensorflow_datasets() -> ModuleType:
  try:
    importlib.import_module("importlib_resources")  # TFDS does not declare it
    import tensorflow_datasets
  except Exception as error:  # an old protobuf raises an error of its own
    raise ImportError(
      f"TensorFlow Datasets cannot be imported ({error}): {_INSTALL}"
    ) from error
  return tensorflow_datasets


def read(
  name: str, split: str, *, folder: str | pathlib.Path | None = None
) -> dict[str, list]:
  """Returns entry name to the values of all examples, in the stored order.

  Args:
    name: Dataset name, e.g. `"mnist"`.
    split: Split name or slice, e.g. `"train"` or `"train[:10%]"`.
    folder: TFDS data folder; None for its own default.

  Raises:
    ImportError: TFDS or a part of it is missing; says the pip line.
    RefusedInput: The dataset is unknown, not prepared as ArrayRecord, or has
      features that only TensorFlow decodes.
  """
  import grain

  library = _tensorflow_datasets()
  try:
    records = library.data_source(
      name, split=split, data_dir=folder, download=False
    )
    examples = list(grain.MapDataset.source(records))
  except ImportError as error:
    raise RefusedInput(
      f"TFDS dataset {name!r}: {error}; it has features, such as Audio and "
      "Video, that need TensorFlow: pip install tensorflow, or use other data"
    ) from error
  except (
    NotImplementedError,
    AssertionError,
    ValueError,
    OSError,
    RuntimeError,
  ) as error:
    reason = (str(error) or type(error).__name__).partition(".")[0]
    raise RefusedInput(
      f"TFDS dataset {name!r}, split {split!r}, folder {folder}: {reason}; "
      "expected a dataset prepared as ArrayRecord; where TensorFlow is "
      'installed, run `python -c "import tensorflow_datasets; '
      f"tensorflow_datasets.data_source('{name}')\"`"
    ) from error
  return {key: [example[key] for example in examples] for key in examples[0]}


def load(
  name: str, split: str, *, folder: str | pathlib.Path | None = None
) -> ArraySource:
  """Returns a whole split in memory; `label` becomes int32.

  Args:
    name: Dataset name, e.g. `"mnist"`.
    split: Split name or slice, e.g. `"train"` or `"train[:10%]"`.
    folder: TFDS data folder; None for its own default.

  Raises:
    ImportError: TFDS or a part of it is missing; says the pip line.
    RefusedInput: As `read`, or the shapes of an entry differ.
  """
  arrays = {}
  for key, values in read(name, split, folder=folder).items():
    shapes = {np.shape(value) for value in values}
    if len(shapes) > 1:
      raise RefusedInput(
        f"TFDS dataset {name!r}, entry {key!r} has {len(shapes)} shapes; "
        "expected one, an array holds no ragged entries"
      )
    arrays[key] = np.stack([np.asarray(value) for value in values])
  if "label" in arrays:
    arrays["label"] = arrays["label"].astype(np.int32)
  return ArraySource(arrays)
