"""Rules of the roles: what named sets split, and what is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.parallel import (
  FSDPRules,
  Mesh,
  MLPRules,
  Placement,
  ReplicatedRules,
  TransformerRules,
)
from jaxkd.parallel.rules import check_matches, spec_of

SIZES = {"data": 1, "fsdp": 4, "tensor": 2}
BLOCKS = {"width": 16, "depth": 2, "heads": 2, "hidden": 32}
IMAGE = jnp.zeros((1, 4, 4, 3))
TOKENS = jnp.zeros((1, 6), jnp.int32)
MODULES = {
  "vit": (nets.VisionTransformer(image_size=4, patch=2, **BLOCKS), IMAGE),
  "deit": (
    nets.VisionTransformer(
      image_size=4, patch=2, taught=True, head="distilled", **BLOCKS
    ),
    IMAGE,
  ),
  "bert": (
    nets.BERT(vocabulary_size=24, length=6, head="masked_lm", **BLOCKS),
    TOKENS,
  ),
  "decoder": (nets.CausalDecoder(vocabulary_size=24, **BLOCKS), TOKENS),
  "clip_image": (
    nets.CLIPImageTower(features=8, image_size=4, patch=2, **BLOCKS),
    IMAGE,
  ),
  "clip_text": (
    nets.CLIPTextTower(vocabulary_size=24, length=6, **BLOCKS),
    TOKENS,
  ),
}
NONE, FIRST, LAST = (), ("tensor",), (None, "tensor")
ENDS = {  # all that is split in the blocks, and how
  r"(query|key|value|fc1|gate|up)/kernel": LAST,
  r"(query|key|value|fc1)/bias": FIRST,
  r"(attention/out|fc2|down)/kernel": ("tensor", None),
}
VOCABULARY = {
  "vit": {"head/kernel": LAST, "head/bias": FIRST},
  "deit": {
    "class_head/kernel": LAST,
    "class_head/bias": FIRST,
    "taught_head/kernel": LAST,
    "taught_head/bias": FIRST,
  },
  "bert": {"words/embedding": ("tensor", None), "head/word_bias": FIRST},
  "decoder": {"embedding/embedding": ("tensor", None), "head/kernel": LAST},
  "clip_image": {},
  "clip_text": {"words/embedding": ("tensor", None)},
}


@functools.cache
def _shapes(name, scan):
  module, given = MODULES[name]
  module = module.clone(scan_layers=scan)
  drawn = jax.eval_shape(module.init, jax.random.key(0), given)
  return flatten_dict(drawn["params"], sep="/")


def _specs(rules, name, scan=False):
  return {
    path: tuple(spec_of("net", rules, path, leaf.shape, SIZES))
    for path, leaf in _shapes(name, scan).items()
  }


def _expected(path, name):
  if path in VOCABULARY[name]:
    return VOCABULARY[name][path]
  ends = [spec for end, spec in ENDS.items() if re.search(end + "$", path)]
  return ends[0] if path.startswith("block") and ends else NONE


@pytest.mark.parametrize("scan", [False, True], ids=["apart", "stacked"])
@pytest.mark.parametrize("name", MODULES)
def test_a_transformer_is_split_over_tensor_as_by_megatron(name, scan):
  split = 0
  for path, spec in _specs(TransformerRules(), name, scan).items():
    expected = _expected(path, name)
    if path.startswith("blocks/") and expected:
      expected = (None, *expected)
    assert spec == expected, path
    split += bool(spec)
  parts = {"decoder": 7}.get(name, 10)
  assert split == parts * (1 if scan else 2) + len(VOCABULARY[name])


@pytest.mark.parametrize("name", MODULES)
def test_both_dimensions_of_a_matrix_can_be_split(name):
  alone = _specs(TransformerRules(), name)
  for path, spec in _specs(TransformerRules(fsdp=True), name).items():
    leaf = _shapes(name, False)[path]
    if leaf.ndim == 2 and alone[path]:
      assert set(spec) == {"fsdp", "tensor"}, path
      assert spec.index("tensor") == alone[path].index("tensor")
    elif "norm/" in path:
      assert spec == (), path
    elif not alone[path]:
      assert "tensor" not in spec, path
      divides = any(n % 4 == 0 and n > 4 for n in leaf.shape)
      assert ("fsdp" in spec) == divides, path


def test_words_and_heads_can_be_left_whole():
  for name, vocabulary in VOCABULARY.items():
    specs = _specs(TransformerRules(vocabulary=False), name)
    assert all(specs[path] == () for path in vocabulary)


def test_layers_of_a_perceptron_are_split_in_pairs():
  module = nets.MLP(features=(16, 8, 6))
  drawn = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 12)))
  specs = {
    path: tuple(spec_of("net", MLPRules(fsdp=True), path, leaf.shape, SIZES))
    for path, leaf in flatten_dict(drawn["params"], sep="/").items()
  }
  assert specs == {
    "fc1/kernel": ("fsdp", "tensor"),
    "fc1/bias": ("tensor",),
    "fc2/kernel": ("tensor", "fsdp"),
    "fc2/bias": ("fsdp",),
    "fc3/kernel": ("fsdp", "tensor"),
    "fc3/bias": ("tensor",),
  }


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((12, 16), (None, "fsdp")),
    ((16, 12), ("fsdp",)),
    ((12, 6), ("fsdp",)),
    ((4, 6), ()),  # parts of one row are not worth it
    ((7, 9), ()),
    ((), ()),
    ((3, 3, 8, 16), (None, None, None, "fsdp")),
  ],
)
def test_fsdp_parts_the_largest_dimension_that_divides(shape, spec):
  found = spec_of("net", FSDPRules(), "fc1/kernel", shape, SIZES)
  assert found == PartitionSpec(*spec)
  assert spec_of("net", ReplicatedRules(), "fc1/kernel", shape, SIZES) == (
    PartitionSpec()
  )


def test_the_first_rule_that_matches_counts():
  rules = ((r"fc1/kernel$", (("data", "tensor"),)), (r"kernel$", "largest"))
  assert spec_of("net", rules, "fc1/kernel", (8, 16), SIZES) == (
    PartitionSpec(("data", "tensor"))
  )
  assert spec_of("net", rules, "fc2/kernel", (8, 16), SIZES) == (
    PartitionSpec(None, "fsdp")
  )
  assert spec_of("net", rules, "fc2/bias", (16,), SIZES) == PartitionSpec()


def test_an_axis_that_does_not_divide_is_refused():
  message = (
    "rules of role 'teacher', ('head/kernel$', (None, 'fsdp')): head/kernel "
    "of shape [16, 10]: fsdp=4 does not divide dimension 1; the nearest number "
    "of parts that does is 5"
  )
  rules = (("head/kernel$", (None, "fsdp")),)
  with pytest.raises(ConfigError, match=re.escape(message)):
    spec_of("teacher", rules, "head/kernel", (16, 10), SIZES)


@pytest.mark.parametrize(
  "spec", [(None, None, "tensor"), ("...", "data", None)]
)
def test_more_dimensions_than_there_are_are_refused(spec):
  message = r"\('bias', .*\): fc1/bias of shape \[16\] has 1 dimensions"
  with pytest.raises(ConfigError, match=message):
    spec_of("teacher", (("bias", spec),), "fc1/bias", (16,), SIZES)


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    (("kernel", (None, "tensr")), "no axis 'tensr', did you mean 'tensor'?"),
    (("kernel", ("tensor", "tensor")), "splits two dimensions over 'tensor'"),
    (("kernel", "larges"), "expected a tuple of axes, or 'largest'"),
    (("kernel", (None, "...")), "expected '...' in front only"),
    (("kernel(", ()), "no regular expression: "),
    (("kernel",), "expected a pair (pattern, dimensions)"),
  ],
)
def test_a_rule_that_is_none_is_refused(rule, message):
  start = f"rules of role 'teacher', {rule!r}: {message}"
  with pytest.raises(ConfigError, match=re.escape(start)):
    Placement(Mesh(), {"teacher": (rule,)})


def test_a_pattern_that_matches_nothing_is_refused():
  paths = ["block1/mlp/fc1/kernel", "block1/mlp/fc1/bias", "head/kernel"]
  rules = (("head/kernel$", ()), (r"^blok1/mlp/fc1/kernel$", ()))
  message = (
    r"rules of role 'net', \('\^blok1.*: matches none of the 3 parameters, "
    "did you mean 'block1/mlp/fc1/kernel'?"
  )
  with pytest.raises(ConfigError, match=message):
    check_matches("net", rules, paths)
  check_matches("net", rules[:1], paths)


def test_a_named_set_must_fit_the_net():
  check_matches("net", TransformerRules(), _shapes("vit", True))
  message = "rules of role 'net': TransformerRules matches none of its param"
  with pytest.raises(ConfigError, match=message):
    check_matches("net", TransformerRules(), ["conv1/kernel", "conv1/bias"])
