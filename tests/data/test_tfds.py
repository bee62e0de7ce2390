"""TFDS without TensorFlow: a dataset prepared here is read back exactly."""

import sys

import numpy as np
import pytest

from jaxkd.data import pipeline, tfds
from jaxkd.data.pipeline import Feed
from jaxkd.errors import RefusedInput

library = pytest.importorskip("tensorflow_datasets")


class TinyPairs(library.core.GeneratorBasedBuilder):
  """Seven examples of plain features."""

  VERSION = library.core.Version("1.0.0")

  def _info(self):
    tensor = library.features.Tensor
    features = {
      "image": tensor(shape=(4, 4), dtype=np.uint8),
      "feature": tensor(shape=(3,), dtype=np.float32),
      "label": library.features.ClassLabel(num_classes=3),
    }
    return library.core.DatasetInfo(
      builder=self, features=library.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(7):
      yield i, example(i)


class TinyRagged(TinyPairs):
  """The same with one entry of a different length in every example."""

  def _info(self):
    tensor = library.features.Tensor(shape=(None,), dtype=np.int64)
    return library.core.DatasetInfo(
      builder=self,
      features=library.features.FeaturesDict({"audio": tensor}),
    )

  def _generate_examples(self):
    for i in range(7):
      yield i, {"audio": np.arange(i + 1)}


def example(i: int) -> dict:
  return {
    "image": np.full((4, 4), i, np.uint8),
    "feature": np.arange(3, dtype=np.float32) * i,
    "label": i % 3,
  }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  for builder in (TinyPairs, TinyRagged):
    builder(data_dir=path, file_format="array_record").download_and_prepare()
  return path


def test_a_prepared_dataset_is_read_back_exactly(folder):
  source = tfds.load("tiny_pairs", "train", folder=folder)
  assert len(source) == 7
  assert sorted(source.arrays["image"][:, 0, 0]) == list(range(7))
  for row in range(7):
    found = source[row]
    for name, value in example(int(found["image"][0, 0])).items():
      np.testing.assert_array_equal(found[name], value)
  assert source.arrays["label"].dtype == np.int32


def test_a_read_dataset_streams_in_batches(folder):
  source = tfds.load("tiny_pairs", "train", folder=folder)
  iterator = pipeline.stream(Feed(source, 4, 0))
  epoch = [next(iterator) for _ in range(2)]
  seen = np.concatenate([b["image"][b["mask"] == 1][:, 0, 0] for b in epoch])
  assert sorted(seen) == list(range(7))


def test_nothing_of_tensorflow_is_imported(folder):
  tfds.load("tiny_pairs", "train", folder=folder)
  assert "tensorflow" not in sys.modules


def test_ragged_entries_are_read_as_lists_and_refused_as_an_array(folder):
  lengths = [
    len(a) for a in tfds.read("tiny_ragged", "train", folder=folder)["audio"]
  ]
  assert sorted(lengths) == list(range(1, 8))
  with pytest.raises(RefusedInput, match="'audio' has 7 shapes"):
    tfds.load("tiny_ragged", "train", folder=folder)


@pytest.mark.parametrize(
  ("name", "split", "message"),
  [
    ("mnist", "train", "'mnist'.*prepared as ArrayRecord"),
    ("tiny_pears", "train", "'tiny_pears'.*not found"),
    ("tiny_pairs", "tset", "'tset'"),
  ],
)
def test_what_is_not_there_is_refused_by_name(folder, name, split, message):
  with pytest.raises(RefusedInput, match=f"(?s){message}"):
    tfds.load(name, split, folder=folder)


@pytest.mark.filterwarnings("ignore")
def test_audio_needs_tensorflow_and_the_error_says_so(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  with pytest.raises(RefusedInput, match="Audio.*pip install tensorflow"):
    tfds.load("spoken_digit", "train", folder=folder)


@pytest.mark.parametrize(
  "missing", ["tensorflow_datasets", "importlib_resources"]
)
def test_a_missing_package_is_answered_by_the_pip_line(monkeypatch, missing):
  monkeypatch.setitem(sys.modules, missing, None)
  message = r"pip install .*importlib_resources.*protobuf>=6\.31\.1"
  with pytest.raises(ImportError, match=message):
    tfds.load("mnist", "train")
