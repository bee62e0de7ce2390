"""A table of names is read in both directions, and to the same end."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from jaxkd.errors import ConfigError
from jaxkd.teachers.names import (
  NameMap,
  Place,
  Rule,
  batch_norm,
  conv,
  embedding,
  linear,
  norm,
  under,
)

BLOCK = (*linear("fc", "mlp/fc1"), *norm("norm", "norm", bias=False))
TABLE = NameMap(
  (
    *embedding("words", "words"),
    *under("layers.{i}", "block{i+1}", BLOCK),
    *conv("stages.{i}.{j}.conv", "stage{i+1}/block{j+1}/conv"),
    *batch_norm("bn", "norm"),
    Rule("twice.{i}.{i}", "params/twice{i}"),
    Rule("next.{i}.{i+1}", "params/next{i+1}_{i}"),
  ),
  prefixes=("model.", "", "model.deep."),
  ignored=(r"layers\.\d+\.cache",),
)


def test_a_tensor_of_theirs_has_its_place():
  assert TABLE.ours("layers.11.fc.weight") == Place(
    "params/block12/mlp/fc1/kernel", (1, 0)
  )
  assert TABLE.ours("layers.0.norm.weight") == Place(
    "params/block1/norm/scale", None
  )
  assert TABLE.ours("bn.running_var").name == "batch_stats/norm/var"
  assert TABLE.ours("words.weight").name == "params/words/embedding"
  assert TABLE.ours("stages.1.0.conv.bias").name == (
    "params/stage2/block1/conv/bias"
  )


@pytest.mark.parametrize(
  "name",
  [
    "layers.1.norm.bias",
    "layers.x.fc.weight",
    "layers..fc.weight",
    "layers.01.fc.weight",
    "layers.-1.fc.weight",
    "layers.\u0661.fc.weight",
    "layers.1.fc.weight2",
    "2layers.1.fc.weight",
    "layersX1.fc.weight",
    "words_weight",
    "twice.1.2",
    "next.1.3",
    "",
  ],
)
def test_another_name_has_none(name):
  assert TABLE.ours(name) is None


@pytest.mark.parametrize(
  "path",
  [
    "params/block0/mlp/fc1/kernel",
    "params/block/mlp/fc1/kernel",
    "params/block1/norm/bias",
    "batch_stats/block1/norm/scale",
    "params/next3_1",
  ],
)
def test_another_path_has_no_name(path):
  assert TABLE.theirs(path) is None


@hypothesis.given(
  strategies.sampled_from(TABLE.rules),
  strategies.integers(0, 10**6),
  strategies.integers(0, 10**6),
)
def test_both_directions_agree(rule, i, j):
  name = rule.theirs.replace("{i+1}", str(i + 1)).replace("{i}", str(i))
  name = name.replace("{j}", str(j))
  place = TABLE.ours(name)
  back = TABLE.theirs(place.name, place.index)
  assert back.name == f"model.{name}"
  shape = (2, 3, 4, 5)[: len(rule.axes)] if rule.axes else (2, 3)
  array = np.arange(np.prod(shape)).reshape(shape)
  there = array if place.axes is None else array.transpose(place.axes)
  again = there if back.axes is None else there.transpose(back.axes)
  np.testing.assert_array_equal(again, array)
  stacked = TABLE.stacked("block{i+1}", "blocks")
  place = stacked.ours(name)
  assert stacked.theirs(place.name, place.index).name == f"model.{name}"


def test_layouts_are_turned_as_flax_has_them():
  ((weight, bias), (kernel, _)) = linear("a", "a"), conv("a", "a")
  assert np.zeros((5, 3)).transpose(weight.axes).shape == (3, 5)
  assert np.zeros((8, 3, 5, 7)).transpose(kernel.axes).shape == (5, 7, 3, 8)
  assert bias.axes is None
  assert [rule.theirs for rule in linear("a", "b", bias=False)] == ["a.weight"]


def test_the_longest_prefix_is_taken_off_and_the_first_is_written():
  assert TABLE.bare("model.deep.bn.weight") == "bn.weight"
  assert TABLE.ours("model.deep.bn.weight") == TABLE.ours("bn.weight")
  assert TABLE.theirs("params/norm/scale").name == "model.bn.weight"


def test_what_is_ignored_is_ignored_with_and_without_prefix():
  assert TABLE.ignores("model.layers.3.cache")
  assert TABLE.ignores("layers.3.cache")
  assert not TABLE.ignores("layers.3.cache.weight")


def test_stacked_blocks_are_entries_of_one_leaf():
  table = TABLE.stacked("block{i+1}", "blocks")
  path = "params/blocks/mlp/fc1/kernel"
  assert table.ours("layers.4.fc.weight") == Place(path, (1, 0), 4)
  back = table.theirs(path, 4)
  assert (back.name, back.axes) == ("model.layers.4.fc.weight", (1, 0))
  assert table.theirs(path) is None
  assert table.theirs("params/words/embedding", 0) is None
  assert table.theirs("params/words/embedding").name == "model.words.weight"


def test_stacks_in_parts_are_found_by_their_part():
  rules = under("text", "text", under("layers.{i}", "block{i+1}", BLOCK))
  table = NameMap(rules).stacked("block{i+1}", "blocks")
  place = table.ours("text.layers.2.fc.bias")
  assert place == Place("params/text/blocks/mlp/fc1/bias", None, 2)


def test_a_rule_must_count_the_same_on_both_sides():
  with pytest.raises(ConfigError, match="same numbers on both sides"):
    Rule("layers.{i}.weight", "params/block/kernel")
