"""BERT, ViT, DeiT and CLIP compute here what they compute elsewhere."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.teachers import Pretrained
from jaxkd.teachers.families import bert, clip, deit, family_of, vit
from jaxkd.teachers.load import load
from tests.teachers import reference

CLOSE = {"rtol": 0, "atol": 1e-4}
FORMS = {
  "plain": {},
  "scanned": {"remat": True, "scan_layers": True},
}
KINDS = {  # the family, and our names of their outputs
  "bert": (bert.FAMILY, {"last_hidden_state": ""}),
  "bert_masked_lm": (bert.FAMILY, {"logits": ""}),
  "bert_classes": (bert.FAMILY, {"logits": ""}),
  "vit": (vit.FAMILY, {"last_hidden_state": ""}),
  "vit_classes": (vit.FAMILY, {"logits": ""}),
  "deit_classes": (deit.FAMILY, {"logits": ""}),
  "deit_distilled": (
    deit.FAMILY,
    {
      "logits": "logits",
      "cls_logits": "class_logits",
      "distillation_logits": "taught_logits",
    },
  ),
  "clip": (
    clip.FAMILY,
    {
      "image_embeds": "image",
      "text_embeds": "text",
      "logits_per_image": "logits",
    },
  ),
}
KINDS["clip_end"] = KINDS["clip"]
ALL = pytest.mark.parametrize("kind", KINDS)
read = functools.cache(reference.read)


def options_of(kind):
  """What the golden file's inputs need of `build`."""
  return {"token_types": True} if kind.startswith("bert") else {}


def check(kind, found, value):
  """Compares a net's value with the golden outputs."""
  for theirs, ours in KINDS[kind][1].items():
    own = np.asarray(value[ours] if ours else value)
    expected = found.outputs[theirs]
    if theirs == "last_hidden_state" and "token_mask" in found.inputs:
      there = found.inputs["token_mask"] > 0
      own, expected = own[there], expected[there]
    np.testing.assert_allclose(own, expected, **CLOSE)


# Outputs.


@ALL
@pytest.mark.parametrize("form", FORMS)
def test_outputs_are_those_of_transformers(kind, form):
  found = read(kind)
  options = options_of(kind) | FORMS[form]
  net, variables = reference.loaded(KINDS[kind][0], found, **options)
  check(kind, found, reference.run(net, variables, found.inputs).value)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_the_pooler_gives_the_pooled_output_of_transformers(kind):
  found = read(kind)
  options = options_of(kind) | {"pooling": "pooler"}
  net, variables = reference.loaded(KINDS[kind][0], found, **options)
  value = reference.run(net, variables, found.inputs).value
  np.testing.assert_allclose(value, found.outputs["pooler_output"], **CLOSE)


# Configs.


@ALL
def test_the_family_is_found_and_a_config_of_ours_builds_the_same_net(kind):
  found = read(kind)
  family = KINDS[kind][0]
  assert family_of(found.config) is family
  net, inputs = family.build(found.config)
  config = json.loads(json.dumps(family.describe(net)))
  assert family.build(config) == (net, inputs)
  for key, value in config.items():
    theirs = found.config.get(key, value)
    if not isinstance(value, dict) and key != "logit_scale_init_value":
      assert value == theirs, key


@pytest.mark.parametrize(
  ("kind", "changed", "message"),
  [
    ("bert", {"position_embedding_type": "relative_key"}, "'absolute'"),
    ("bert", {"is_decoder": True}, "is_decoder=True.*supported: False"),
    ("bert", {"hidden_act": "gelu_newer"}, "did you mean 'gelu_new'"),
    ("bert", {"hidden_size": "8"}, "hidden_size='8'; expected a positive"),
    ("bert", {"architectures": ["BertForMasked"]}, "did you mean 'BertForM"),
    ("bert_masked_lm", {"tie_word_embeddings": False}, "supported: True"),
    ("vit", {"image_size": [12, 8]}, r"image_size=\[12, 8\]"),
    ("vit", {"num_channels": 0}, "num_channels=0; expected a positive"),
    ("vit", {"pooler_act": "relu"}, "pooler_act='relu'.*'tanh'"),
    ("vit", {"pooler_output_size": 4}, "pooler_output_size=4.*supported: 12"),
    (
      "clip",
      {"text_config": {"hidden_act": "gelo"}},
      "clip_text_model: h.*'gelu'",
    ),
  ],
)
def test_a_config_that_is_not_supported_is_refused_by_name(
  kind, changed, message
):
  with pytest.raises(ConfigError, match=message):
    KINDS[kind][0].build(read(kind).config | changed)


def test_a_net_that_transformers_lacks_is_not_described():
  net = bert.build(read("bert_classes").config, pooling="mean")[0]
  with pytest.raises(ConfigError, match="pooling='mean'.*'pooler'"):
    bert.describe(net)
  net = deit.build(read("deit_distilled").config)[0]
  with pytest.raises(ConfigError, match="head='distilled'"):
    vit.describe(net)


def test_square_sizes_may_be_given_as_two_numbers():
  config = read("vit").config
  pair = config | {"image_size": [12, 12], "patch_size": [4, 4]}
  assert vit.build(pair) == vit.build(config)


def test_clip_is_built_of_towers_that_say_nothing():
  net, _ = clip.build({"model_type": "clip"})
  assert (net.text.width, net.image.width) == (512, 768)
  assert net.text.end_token == 49407


# Names.


@ALL
def test_every_tensor_goes_back_under_its_name(kind):
  family, found = KINDS[kind][0], read(kind)
  for names, index in (
    (family.names, None),
    (family.names.stacked("block{i+1}", "blocks"), 1),
  ):
    for name in found.weights:
      place = names.ours(name)
      back = names.theirs(place.name, place.index)
      assert back.name.removeprefix(f"{family.name}.") == name.removeprefix(
        f"{family.name}."
      )
      in_block = ".1." in name
      assert not in_block or place.index == index


def test_old_names_of_norms_are_read_and_new_ones_written():
  found = read("bert")
  renamed = {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): weight
    for name, weight in found.weights.items()
  }
  assert "embeddings.LayerNorm.gamma" in renamed
  net, variables = reference.loaded(bert.FAMILY, found)
  like = reference.shapes(net, found.inputs)
  old = load(reference.tensors(renamed), bert.FAMILY.names, like)
  jax.tree.map(np.testing.assert_array_equal, old, variables)
  path = "params/embedding_norm/scale"
  written = "bert.embeddings.LayerNorm.weight"
  assert bert.FAMILY.names.theirs(path).name == written


def test_a_checkpoint_without_the_head_says_which_tensors_are_missing():
  found = read("bert")
  net = reference.network(bert.FAMILY, found.config, head="classes")
  like = reference.shapes(net, found.inputs)
  with pytest.raises(RefusedInput, match=r"missing: classifier\.weight"):
    load(reference.tensors(found.weights), bert.FAMILY.names, like)


def folder_of(found, folder, weights=None):
  """Writes a reference as config and npz."""
  path = pathlib.Path(folder)
  (path / "config.json").write_text(json.dumps(found.config))
  np.savez(
    path / "model.npz", **(found.weights if weights is None else weights)
  )
  return {"source": path / "model.npz", "config": path / "config.json"}


@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("bert_classes", {"head": "none", "pooling": "mean", "pooler": False}),
    ("bert_masked_lm", {"head": "none"}),
    ("vit_classes", {"head": "none", "scan_layers": True}),
    ("deit_distilled", {"head": "none", "pooling": "first"}),
  ],
)
def test_a_net_without_the_checkpoints_head_is_loaded(kind, options, tmp_path):
  found = read(kind)
  given = folder_of(found, tmp_path)
  net = Pretrained(family=KINDS[kind][0].name, **given, **options)
  variables = net.weights.load(reference.shapes(net, found.inputs))
  assert "head" not in variables["params"]
  kernels = {"bert": "words", "deit": "stem", "vit": "stem"}
  assert kernels[kind.split("_")[0]] in variables["params"]


# Live.


@pytest.mark.slow  # imports torch and transformers
@ALL
def test_golden_files_are_what_transformers_computes_now(kind):
  pytest.importorskip("transformers", reason="it made the golden files")
  from tests.golden.make import transformers_encoders

  inputs, outputs, weights, config = transformers_encoders.run(kind)
  found = reference.Reference(config, weights, inputs, outputs)
  net, variables = reference.loaded(KINDS[kind][0], found, **options_of(kind))
  check(kind, found, reference.run(net, variables, inputs).value)
  for name, output in read(kind).outputs.items():
    np.testing.assert_allclose(outputs[name], output, **CLOSE)


@pytest.mark.slow  # imports torch and transformers
@ALL
def test_transformers_loads_what_the_tables_write(kind, tmp_path):
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  from safetensors import numpy as safetensors

  from tests.golden.make import transformers_encoders

  family, found = KINDS[kind][0], read(kind)
  net, variables = reference.loaded(family, found, **options_of(kind))
  config = family.describe(net.module)
  tensors = {}
  for path, leaf in reference.flat(variables).items():
    place = family.names.theirs(path)
    leaf = np.asarray(leaf)
    leaf = leaf if place.axes is None else leaf.transpose(place.axes)
    tensors[place.name] = np.ascontiguousarray(leaf).reshape(leaf.shape)
  safetensors.save_file(
    tensors, tmp_path / "model.safetensors", metadata={"format": "pt"}
  )
  (tmp_path / "config.json").write_text(json.dumps(config))
  kind_of_model = getattr(transformers, config["architectures"][0])
  model, report = kind_of_model.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(map(len, (report["missing_keys"], report["unexpected_keys"])))
  with torch.no_grad():
    outputs = model.eval()(**transformers_encoders.given(found.inputs))
  for name, output in found.outputs.items():
    np.testing.assert_allclose(outputs[name].numpy(), output, **CLOSE)
