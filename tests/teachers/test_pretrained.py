"""Models from elsewhere become networks with weights."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxkd import identity, roles
from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.extras import MissingExtra
from jaxkd.network import NNX, Network
from jaxkd.teachers import Checkpoint, InMemory, Pretrained, fingerprint, hub
from jaxkd.teachers.files import open_tensors
from tests.teachers import file_tools, reference

BERT = reference.read("bert_classes")


def folder(path, name="bert_classes", *, sharded=False):
  """A folder as transformers saves a model."""
  model = reference.read(name)
  path.mkdir(exist_ok=True)
  (path / "config.json").write_text(json.dumps(model.config))
  if sharded:
    return file_tools.write_sharded(path, model.weights)
  file_tools.write(path / "model.safetensors", model.weights)
  return path


def loaded(network, inputs=BERT.inputs):
  like = reference.shapes(network, inputs)
  return network.weights.load(like)


def logits(network, inputs=BERT.inputs):
  return reference.run(network, loaded(network, inputs), inputs).logits


def check(network, atol=1e-5):
  np.testing.assert_allclose(logits(network), BERT.outputs["logits"], atol=atol)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_gives_the_outputs_of_transformers(tmp_path, sharded):
  network = Pretrained(
    folder(tmp_path, sharded=sharded), token_types="token_types" in BERT.inputs
  )
  assert isinstance(network, Network)
  check(network)


def test_a_stack_of_blocks_gives_the_same(tmp_path):
  network = Pretrained(folder(tmp_path), scan_layers=True, token_types=True)
  assert "blocks" in loaded(network)["params"]
  check(network)


def test_a_single_file_with_its_config_gives_the_same(tmp_path):
  file = folder(tmp_path) / "model.safetensors"
  np.savez(tmp_path / "x.npz", **BERT.weights)
  config = {k: v for k, v in BERT.config.items() if k != "model_type"}
  options = {"family": "bert", "token_types": True}
  check(Pretrained(file, config=config, **options))
  check(Pretrained(file, config=tmp_path / "config.json", **options))
  check(Pretrained(tmp_path / "x.npz", config=config, **options))


def test_a_file_of_torch_gives_the_same(tmp_path):
  storages, entries = {}, {}
  for number, (name, weight) in enumerate(BERT.weights.items()):
    strides = np.array(weight.strides) // weight.itemsize
    code = file_tools.tensor(0, weight.shape, map(int, strides), weight.size)
    key = str(number)
    entries[name] = code.replace(file_tools.text("0"), file_tools.text(key))
    storages[key] = weight.tobytes()
  file_tools.torch_file(
    tmp_path / "pytorch_model.bin", file_tools.state(**entries), storages
  )
  (tmp_path / "config.json").write_text(json.dumps(BERT.config))
  check(Pretrained(tmp_path, token_types=True))


def test_weights_are_kept_in_the_dtype_asked_for(tmp_path):
  network = Pretrained(folder(tmp_path), params_dtype=jnp.bfloat16)
  leaves = jax.tree.leaves(loaded(network))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def test_a_head_is_left_out_on_request_alone(tmp_path):
  network = Pretrained(folder(tmp_path), head="none", token_types=True)
  assert "head" not in loaded(network)["params"]
  plain = dict(BERT.config, architectures=["BertModel"])
  (tmp_path / "config.json").write_text(json.dumps(plain))
  with pytest.raises(RefusedInput, match=r"unused: classifier\.bias"):
    loaded(Pretrained(tmp_path))
  ignored = Pretrained(tmp_path, ignored=(r"classifier\..*",))
  assert "head" not in loaded(ignored)["params"]


def test_a_head_for_other_classes_is_drawn(tmp_path):
  network = Pretrained(
    folder(tmp_path), num_classes=7, drawn=("head",), token_types=True
  )
  found = loaded(network)
  assert "head" not in found["params"]
  assert found["params"].keys() | {"head"} == set(
    reference.shapes(network, BERT.inputs)["params"]
  )
  with pytest.raises(RefusedInput, match=r"mis-shaped: classifier\.bias"):
    loaded(Pretrained(folder(tmp_path), num_classes=7))


def test_a_checkpoint_of_another_family_is_refused_by_name(tmp_path):
  other = folder(tmp_path / "vit", "vit_classes")
  with pytest.raises(ConfigError, match=r"model_type 'vit'; expected bert"):
    Pretrained(other, family="bert")
  file = other / "model.safetensors"
  network = Pretrained(file, family="bert", config=BERT.config)
  with pytest.raises(RefusedInput) as caught:
    loaded(network)
  text = str(caught.value)
  assert text.startswith(f"{file} looks like a vit: {file} does not fit")
  vit = reference.read("vit_classes")
  for name in vit.weights.keys() - BERT.weights.keys():
    assert f"unused: {name} " in text
  for name in BERT.weights.keys() - vit.weights.keys():
    assert f"missing: {name}, for " in text


def test_a_config_of_another_size_is_refused_by_shapes(tmp_path):
  folder(tmp_path)
  config = dict(BERT.config, intermediate_size=7)
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(RefusedInput) as caught:
    loaded(Pretrained(tmp_path))
  lines = str(caught.value).split("\n  ")[1:]
  # Two matrices and a bias in every block.
  assert len(lines) == 3 * BERT.config["num_hidden_layers"]
  assert all(line.startswith("mis-shaped: ") for line in lines)


@pytest.mark.parametrize(
  ("config", "options", "part"),
  [
    ({"model_type": "bret"}, {}, "'bret' belongs to no family, did you mean"),
    ({}, {}, "no 'model_type'"),
    ({"model_type": "bert"}, {"family": "brt"}, "did you mean 'bert'"),
    (BERT.config, {"scan": True}, r"family bert: .*'scan'"),
    (BERT.config, {"family": "vit"}, "model_type 'bert'; expected vit"),
  ],
)
def test_what_cannot_be_built_is_refused(tmp_path, config, options, part):
  folder(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ConfigError, match=part):
    Pretrained(tmp_path, **options)


def test_a_folder_without_config_is_refused(tmp_path):
  with pytest.raises(
    RefusedInput, match=r"cannot read .*config\.json: No such"
  ):
    Pretrained(tmp_path)
  (tmp_path / "config.json").write_text("[1]")
  with pytest.raises(RefusedInput, match="holds no config"):
    Pretrained(tmp_path)
  with pytest.raises(ConfigError, match="needs a family and a config"):
    Pretrained(tmp_path / "config.json")


class Hub(types.ModuleType):
  """A Hub whose cache is a folder."""

  def __init__(self, cache):
    super().__init__("huggingface_hub")
    self.cache, self.asked = cache, []

  def snapshot_download(self, repo_id, *, revision, allow_patterns):
    self.asked.append((repo_id, revision, allow_patterns))
    found = self.cache / (revision or "0123abc")
    if not found.exists():
      raise FileNotFoundError(f"no snapshot of {repo_id}\nin the cache")
    return str(found)


@pytest.fixture
def cached(tmp_path, monkeypatch):
  module = Hub(tmp_path)
  monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", module)
  return module


def test_a_model_of_the_hub_is_read_from_its_cache(cached):
  folder(cached.cache / "0123abc")
  network = Pretrained("owner/name", token_types=True)
  assert network.weights.revision == "0123abc"
  check(network)
  # What is loaded is the commit whose config was read.
  assert [revision for _, revision, _ in cached.asked] == [None, "0123abc"]
  assert all("config.json" in patterns for *_, patterns in cached.asked)
  assert not any("*.bin" in str(patterns) for *_, patterns in cached.asked)


def test_files_of_torch_are_asked_for_last(cached):
  (cached.cache / "v1").mkdir()
  (cached.cache / "v1" / "pytorch_model.bin").write_bytes(b"")
  hub.folder_of("owner/name", "v1")
  assert ["safetensors" in str(patterns) for *_, patterns in cached.asked] == [
    True,
    False,
  ]


def test_a_model_that_cannot_be_had_is_refused(cached, tmp_path):
  with pytest.raises(RefusedInput) as caught:
    Pretrained("owner/name", revision="v2")
  assert str(caught.value) == (
    "cannot get 'owner/name' (revision v2) from the Hub or its cache: no "
    "snapshot of owner/name in the cache"
  )
  with pytest.raises(RefusedInput, match="no file or folder 'no/such/place'"):
    Pretrained("no/such/place")


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
  with pytest.raises(MissingExtra, match=r"jaxkd\[hub\]"):
    Pretrained("owner/name")


def test_a_fingerprint_is_of_the_tensors_not_of_the_file(tmp_path):
  one = Pretrained(folder(tmp_path / "one"))
  many = Pretrained(folder(tmp_path / "many", sharded=True), head="none")
  assert one.weights.fingerprint() == many.weights.fingerprint()
  weights = dict(BERT.weights)
  weights["classifier.bias"] = weights["classifier.bias"] + 1
  file_tools.write(tmp_path / "one" / "model.safetensors", weights)
  assert one.weights.fingerprint() != many.weights.fingerprint()
  assert many.weights.fingerprint() == fingerprint(
    open_tensors(tmp_path / "many")
  )


def test_pretrained_networks_are_equal_hashed_and_described(tmp_path):
  folder(tmp_path)
  first, second = Pretrained(tmp_path), Pretrained(tmp_path)
  assert first == second
  assert hash(first) == hash(second)
  assert identity.digest(first) == identity.digest(second)
  assert identity.digest(first) != identity.digest(
    Pretrained(tmp_path, params_dtype="bfloat16")
  )


def test_any_network_takes_a_file_under_its_own_names(tmp_path):
  net = linen.Dense(3)
  batch = {"image": jnp.ones((2, 4))}
  drawn = Network(net).init(jax.random.key(0), batch)
  flat = {f"params/{k}": np.asarray(x) for k, x in drawn["params"].items()}
  np.savez(tmp_path / "x.npz", **flat)
  network = Network(net, weights=Checkpoint(str(tmp_path / "x.npz")))
  found = network.weights.load(reference.shapes(network, batch))
  assert jax.tree.all(jax.tree.map(np.array_equal, found, drawn))


class Model(nnx.Module):
  def __init__(self, rngs):
    self.fc = nnx.Linear(4, 3, rngs=rngs)
    self.norm = nnx.BatchNorm(3, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)

  def __call__(self, x):
    return self.dropout(self.norm(self.fc(x)))


def test_a_module_in_memory_gives_its_weights():
  module = Model(nnx.Rngs(3))
  module.norm.mean[...] = jnp.arange(3.0)
  network = Network(NNX(Model), weights=InMemory(module))
  batch = {"image": jnp.ones((2, 4))}
  found = network.weights.load(reference.shapes(network, batch))
  module.eval()
  np.testing.assert_allclose(
    network.apply(found, batch)[0].value, module(batch["image"]), atol=1e-6
  )
  again = InMemory(Model(nnx.Rngs(3)))
  assert network.weights.fingerprint() != again.fingerprint()
  assert again.fingerprint() == InMemory(again.variables).fingerprint()
  identity.digest(network)
  with pytest.raises(RefusedInput, match="the variables does not fit"):
    Network(NNX(Model)).weights or InMemory({"params": {}}).load(
      reference.shapes(network, batch)
    )


def test_roles_start_from_their_weights(tmp_path):
  network = Pretrained(folder(tmp_path), token_types=True)
  shapes = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype)
    for name, x in BERT.inputs.items()
  }
  method = types.SimpleNamespace(roles={"teacher": network})
  params, _ = roles.initialise(method, jax.random.key(0), {"teacher": shapes})
  found = loaded(network)["params"]
  assert jax.tree.all(jax.tree.map(np.array_equal, params["teacher"], found))
