"""Tensors in the layout of Hugging Face are what was trained."""

import json
import os
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxkd import nets
from jaxkd.export import exporting, weights
from jaxkd.teachers.pretrained import Pretrained
from tests.export import made

# A Python that has torch and transformers.
TORCH = os.environ.get("JAXKD_TORCH_PYTHON")
IMAGES = {"image_size": 32, "patch": 16}
SIZES = {"width": 16, "depth": 2, "heads": 2, "hidden": 32}
DECODERS = {
  "llama": made.decoder(tied=True, hidden=24, epsilon=1e-5),
  "mistral": made.decoder(window=3, key_value_heads=1),
  "qwen2": made.decoder(bias=True, rotary_base=1e5),
  "qwen3": made.decoder(qk_norm=True, head_size=4, scan_layers=True),
}
MODELS = {
  **{name: (module, "tokens") for name, module in DECODERS.items()},
  "bert": (
    nets.BERT(
      vocabulary_size=50, head="classes", pooling="pooler", pooler=True, **SIZES
    ),
    "tokens",
    "token_mask",
  ),
  "vit": (nets.VisionTransformer(**IMAGES, **SIZES), "picture"),
  "resnet": (
    nets.ResNet(
      depths=(1, 1), features=(8, 16), bottleneck=False, num_classes=4
    ),
    "picture",
  ),
}
# A program that runs a folder in transformers.
THEIRS = """
import json, sys, numpy, torch, transformers
folder = sys.argv[1]
with open(folder + '/config.json') as file:
  kind = json.load(file)['architectures'][0]
model, found = getattr(transformers, kind).from_pretrained(
  folder, output_loading_info=True)
found['missing_keys'] = [  # counts of batches, which decide nothing
  name for name in found['missing_keys'] if not name.endswith('_tracked')]
assert not any(found.values()), found
given = numpy.load(folder + '/given.npz')
names = {'tokens': 'input_ids', 'token_mask': 'attention_mask'}
inputs = {
  names[name]: torch.tensor(given[name]).long()
  for name in given.files if name in names
}
if 'picture' in given.files:
  inputs['pixel_values'] = torch.tensor(given['picture']).permute(0, 3, 1, 2)
with torch.no_grad():
  numpy.save(folder + '/logits.npy', model.eval()(**inputs).logits.numpy())
"""


def exported(module, folder, *names, **options):
  trained = made.trained(module, *names, **options)
  return trained, exporting.write(trained, "safetensors", folder)


def run(trained):
  return jax.jit(trained.apply)(trained.variables, trained.examples)


def test_a_net_of_no_family_keeps_its_paths(tmp_path):
  trained, facts = exported(nets.MLP(features=(8, 4)), tmp_path, "pixels")
  tensors = load_file(tmp_path / "model.safetensors")
  assert sorted(tensors) == [
    "params/fc1/bias",
    "params/fc1/kernel",
    "params/fc2/bias",
    "params/fc2/kernel",
  ]
  np.testing.assert_array_equal(
    tensors["params/fc1/kernel"], trained.variables["params"]["fc1"]["kernel"]
  )
  assert facts["config"] is None
  assert facts["layout"] == "paths in jaxkd: MLP belongs to no family"
  assert not (tmp_path / "config.json").exists()


def test_a_decoder_gets_the_names_and_the_config_of_its_family(tmp_path):
  trained, facts = exported(DECODERS["mistral"], tmp_path, "tokens")
  tensors = load_file(tmp_path / "model.safetensors")
  ours = trained.variables["params"]["block2"]["attention"]["key"]["kernel"]
  theirs = tensors["model.layers.1.self_attn.k_proj.weight"]
  assert theirs.shape == (8, 16)
  np.testing.assert_array_equal(theirs, ours.T)
  assert "lm_head.weight" in tensors
  config = json.loads((tmp_path / "config.json").read_text())
  assert config == facts["config"]
  assert config["model_type"] == "mistral"
  assert config["sliding_window"] == 3


@pytest.mark.slow  # trains and exports a decoder
def test_stacked_blocks_are_written_one_by_one(tmp_path):
  trained, _ = exported(DECODERS["qwen3"], tmp_path, "tokens")
  tensors = load_file(tmp_path / "model.safetensors")
  stack = trained.variables["params"]["blocks"]["mlp"]["up"]["kernel"]
  for index in (0, 1):
    np.testing.assert_array_equal(
      tensors[f"model.layers.{index}.mlp.up_proj.weight"], stack[index].T
    )


@pytest.mark.parametrize("name", DECODERS)
def test_variables_come_back_bit_for_bit(name):
  trained = made.trained(DECODERS[name], "tokens")
  layout = weights.layout_of(trained)
  back = layout.variables(
    layout.tensors(trained.variables),
    jax.tree.map(np.zeros_like, trained.variables),
  )
  jax.tree.map(np.testing.assert_array_equal, back, trained.variables)


@pytest.mark.slow  # trains and exports a decoder
def test_tensors_keep_their_dtype(tmp_path):
  _, facts = exported(
    made.decoder(dtype=jnp.bfloat16),
    tmp_path,
    "tokens",
    dtype=jnp.bfloat16,
  )
  tensors = load_file(tmp_path / "model.safetensors")
  assert {x.dtype for x in tensors.values()} == {np.dtype(jnp.bfloat16)}
  assert facts["difference"]["tolerance"] == jnp.finfo(jnp.bfloat16).eps


@pytest.mark.slow
def test_the_graph_beside_runs_where_there_is_no_jaxkd(tmp_path, capsys):
  trained, _ = exported(DECODERS["qwen3"], tmp_path, "tokens")
  differences = made.alone(weights.USE, tmp_path, trained)
  made.tell(capsys, f"differences {differences}")
  assert len(differences) == 2
  assert max(differences) <= 1e-5


def test_the_graph_beside_knows_no_weights(tmp_path):
  trained = made.trained(nets.MLP(features=(1000, 4)), "pixels")
  weights.write(trained, tmp_path)
  assert (tmp_path / "model.safetensors").stat().st_size > trained.size
  assert (tmp_path / "graph.stablehlo").stat().st_size < trained.size / 5


def test_what_is_exported_can_be_a_teacher(tmp_path):
  trained, _ = exported(DECODERS["qwen2"], tmp_path, "tokens")
  teacher = Pretrained(tmp_path)
  like = jax.eval_shape(
    lambda: teacher.init(jax.random.key(0), trained.examples)
  )
  value = teacher.apply(teacher.weights.load(like), trained.examples)[0].value
  np.testing.assert_allclose(value, run(trained), rtol=0, atol=1e-5)


@pytest.mark.slow  # starts torch and transformers
@pytest.mark.skipif(not TORCH, reason="JAXKD_TORCH_PYTHON names no Python")
@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_it_and_gives_the_same_logits(
  name, tmp_path, capsys
):
  trained, _ = exported(MODELS[name][0], tmp_path, *MODELS[name][1:])
  given = {
    name: np.ones_like(x) if name == "token_mask" else x
    for name, x in trained.examples.items()
  }
  np.savez(tmp_path / "given.npz", **given)
  done = subprocess.run(
    [TORCH, "-c", THEIRS, str(tmp_path)],
    capture_output=True,
    text=True,
    env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  theirs = np.load(tmp_path / "logits.npy")
  ours = np.asarray(jax.jit(trained.apply)(trained.variables, given))
  made.tell(capsys, f"{name}: {np.abs(theirs - ours).max():.1e}")
  np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
