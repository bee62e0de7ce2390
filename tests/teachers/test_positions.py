"""Positions for images of another size are those of transformers."""

import functools
import json
import logging

import numpy as np
import pytest

from jaxkd.errors import RefusedInput
from jaxkd.teachers import Pretrained
from jaxkd.teachers.positions import cubic, resized
from jaxkd.teachers.tensors import Tensor
from tests import golden_tools
from tests.teachers import file_tools, reference

CLOSE = {"rtol": 0, "atol": 1e-5}
POSITIONS = ("stem/positions",)
KINDS = pytest.mark.parametrize("kind", ["vit_classes", "deit_distilled"])
SIDES = pytest.mark.parametrize("side", [8, 20])
golden = functools.cache(lambda: golden_tools.load("transformers__positions"))


def teacher(folder, kind, **options):
  model = reference.read(kind)
  (folder / "config.json").write_text(json.dumps(model.config))
  file_tools.write(folder / "model.safetensors", model.weights)
  return Pretrained(folder, **options)


def load(network, image):
  like = reference.shapes(network, {"image": image})
  return network.weights.load(like)


@KINDS
@SIDES
def test_logits_are_those_of_transformers(tmp_path, kind, side, caplog):
  caplog.set_level(logging.INFO, "jaxkd")
  net = teacher(tmp_path, kind, image_size=side, interpolated=POSITIONS)
  image = golden()[f"image{side}"]
  variables = load(net, image)
  found = reference.run(net, variables, {"image": image}).logits
  np.testing.assert_allclose(found, golden()[f"{kind}{side}"], **CLOSE)
  tokens = 1 if kind == "vit_classes" else 2
  assert (
    f"{kind.split('_')[0]}.embeddings.position_embeddings [1, {9 + tokens}, 12]"
    f" -> [1, {(side // 4) ** 2 + tokens}, 12], for params/stem/positions"
  ) in caplog.messages[0].partition("interpolated: ")[2]


def test_images_of_the_checkpoints_size_read_its_positions(tmp_path, caplog):
  caplog.set_level(logging.INFO, "jaxkd")
  net = teacher(tmp_path, "vit_classes", interpolated=POSITIONS)
  found = load(net, np.zeros((1, 12, 12, 3), np.float32))
  theirs = reference.read("vit_classes").weights
  np.testing.assert_array_equal(
    found["params"]["stem"]["positions"],
    theirs["vit.embeddings.position_embeddings"],
  )
  assert not caplog.messages


def test_nothing_is_interpolated_that_nobody_asked_for(tmp_path):
  net = teacher(tmp_path, "vit_classes", image_size=20)
  with pytest.raises(
    RefusedInput,
    match=r"mis-shaped: vit\.embeddings\.position_embeddings is \[1, 10, 12\], "
    r"expected \[1, 26, 12\] for params/stem/positions \(it can be `interpo",
  ):
    load(net, golden()["image20"])


def test_what_else_does_not_fit_is_told_beside_it(tmp_path):
  options = {"image_size": 20, "num_classes": 7, "interpolated": POSITIONS}
  net = teacher(tmp_path, "vit_classes", **options)
  with pytest.raises(
    RefusedInput,
    match=r"(?s)mis-shaped: classifier.*interpolated: vit\.embeddings\.pos",
  ):
    load(net, golden()["image20"])


def test_a_leaf_that_is_not_there_cannot_be_interpolated(tmp_path):
  net = teacher(tmp_path, "vit_classes", interpolated=("stem/position",))
  with pytest.raises(
    RefusedInput, match="no 'stem/position', did you mean 'stem/positions'"
  ):
    load(net, np.zeros((1, 12, 12, 3), np.float32))


@pytest.mark.parametrize(
  "shape",
  [(1, 9, 4), (1, 11, 4), (2, 10, 4), (1, 10, 5), (10, 4), (1, 10, 4)],
)
def test_other_tables_are_not_resized(shape):
  tensor = Tensor((1, 10, 4), np.dtype(np.float32), np.zeros)
  assert resized(tensor, shape) is None


@pytest.mark.parametrize(("size", "other"), [(3, 5), (7, 4), (1, 3), (4, 4)])
def test_weights_keep_a_constant_and_mirror_themselves(size, other):
  weights = cubic(size, other)
  np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
  np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)
  if size == other:
    np.testing.assert_array_equal(weights, np.eye(size))


def test_half_precision_is_interpolated_in_single():
  value = np.arange(20, dtype=np.float16).reshape(1, 5, 4)
  tensor = Tensor(value.shape, value.dtype, lambda: value)
  found = resized(tensor, (1, 10, 4))
  assert found.dtype == found.read().dtype == np.float32
  np.testing.assert_array_equal(found.read()[:, 0], value[:, 0])


@pytest.mark.slow  # imports torch and transformers
def test_transformers_gives_the_golden_file_now():
  pytest.importorskip("transformers", reason="it made the golden file")
  from tests.golden.make import transformers_positions

  now = transformers_positions.arrays()
  assert set(now) == set(golden())
  for name, array in golden().items():
    np.testing.assert_allclose(now[name], array, **CLOSE)


@pytest.mark.slow  # imports torch
@pytest.mark.parametrize(("side", "other"), [(14, 24), (14, 10), (3, 4)])
def test_torch_interpolates_in_the_same_way(side, other):
  torch = pytest.importorskip("torch")
  grid = np.random.default_rng(0).normal(size=(1, side, side, 5))
  theirs = torch.nn.functional.interpolate(
    torch.tensor(grid).permute(0, 3, 1, 2),
    size=(other, other),
    mode="bicubic",
    align_corners=False,
  )
  weights = cubic(side, other)
  ours = np.einsum("ai,bj,nijd->ndab", weights, weights, grid)
  np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-6)
