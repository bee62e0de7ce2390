"""Llama, Mistral, Qwen2 and Qwen3 say here what they say in transformers."""

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.nets import CausalDecoder, LlamaScaling, YarnScaling
from jaxkd.network import Network
from jaxkd.teachers.families import llama
from tests import golden_tools
from tests.teachers import reference

KINDS = ("llama", "mistral", "qwen2", "qwen3")
SCALINGS = ("linear", "dynamic", "yarn", "yarn_scaled")
CLOSE = {"rtol": 0, "atol": 1e-4}
FAMILY = llama.FAMILY
TINY = {
  "model_type": "llama",
  "vocab_size": 11,
  "hidden_size": 8,
  "intermediate_size": 12,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}
read = functools.cache(reference.read)


def logits(network, variables, **batch):
  return reference.run(network, variables, batch).logits


# Outputs.


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_the_first_block_are_those_of_transformers(kind):
  found = read(kind)
  net, variables = reference.loaded(FAMILY, found)
  outputs = reference.run(net, variables, found.inputs, taps=("block1",))
  np.testing.assert_allclose(outputs.logits, found.outputs["logits"], **CLOSE)
  np.testing.assert_allclose(
    outputs.taps["block1"], found.outputs["block1"], **CLOSE
  )


@pytest.mark.parametrize("kind", KINDS)
def test_rows_padded_at_the_start_are_those_of_transformers(kind):
  found = read(kind)
  net, variables = reference.loaded(FAMILY, found)
  masked = Network(net.module, ("tokens", "token_mask"))
  ours = logits(masked, variables, **found.inputs)
  real = found.inputs["token_mask"] == 1
  theirs = found.outputs["padded_logits"][real]
  np.testing.assert_allclose(ours[real], theirs, **CLOSE)
  assert np.abs(found.outputs["logits"][real] - theirs).max() > 0.1


@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("llama", {"scan_layers": True}),
    ("llama", {"remat": True}),
    *((kind, {"scan_layers": True, "remat": True}) for kind in KINDS),
  ],
)
def test_scanned_and_recomputed_layers_change_nothing(kind, options):
  found = read(kind)
  net, variables = reference.loaded(FAMILY, found, **options)
  ours = logits(net, variables, **found.inputs)
  np.testing.assert_allclose(ours, found.outputs["logits"], **CLOSE)


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_positions_are_those_of_transformers(name):
  arrays = golden_tools.load("transformers__rotary")
  found = reference.Reference(
    config=json.loads(arrays[f"config:{name}"].tobytes()),
    weights=golden_tools.section(arrays, "weight:"),
    inputs=golden_tools.section(arrays, "input:"),
    outputs={},
  )
  net, variables = reference.loaded(FAMILY, found)
  ours = logits(net, variables, **found.inputs)
  np.testing.assert_allclose(ours, arrays[f"output:{name}"], **CLOSE)
  plain = dataclasses.replace(net, module=net.module.clone(rotary_scaling=None))
  gap = np.abs(logits(plain, variables, **found.inputs) - ours).max()
  assert gap > 0.01


@pytest.mark.slow  # builds the models anew with torch
@pytest.mark.parametrize("kind", KINDS)
def test_models_made_now_are_those_of_the_golden_files(kind):
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"{package} is not there")
  from tests.golden.make import transformers_decoders

  arrays = transformers_decoders.arrays(kind)
  live = reference.Reference(
    config=json.loads(arrays["config"].tobytes()),
    **{
      f"{part}s": golden_tools.section(arrays, f"{part}:")
      for part in ("weight", "input", "output")
    },
  )
  net, variables = reference.loaded(FAMILY, live)
  ours = logits(net, variables, **live.inputs)
  np.testing.assert_allclose(ours, live.outputs["logits"], **CLOSE)
  kept = read(kind).outputs["logits"]
  np.testing.assert_allclose(live.outputs["logits"], kept, **CLOSE)


@pytest.mark.slow  # imports torch
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_we_describe(kind):
  if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not there")
  import transformers

  module = FAMILY.build(read(kind).config)[0]
  config = FAMILY.describe(module)
  theirs = transformers.AutoConfig.for_model(**config)
  again = FAMILY.build(json.loads(theirs.to_json_string()))[0]
  assert again == module


# Configs.


@pytest.mark.parametrize("kind", KINDS)
def test_a_described_net_is_built_the_same(kind):
  module, inputs = FAMILY.build(read(kind).config)
  assert inputs == ("tokens",)
  described = json.loads(json.dumps(FAMILY.describe(module)))
  assert described["model_type"] == kind
  assert FAMILY.build(described)[0] == module


@pytest.mark.parametrize("name", SCALINGS)
def test_a_described_scaling_is_built_the_same(name):
  arrays = golden_tools.load("transformers__rotary")
  module = FAMILY.build(json.loads(arrays[f"config:{name}"].tobytes()))[0]
  assert FAMILY.build(FAMILY.describe(module))[0] == module
  assert module.rotary_scaling is not None


def test_older_names_of_the_rotary_entries_are_read():
  scaling = {"type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}
  module, _ = FAMILY.build(
    {
      **TINY,
      "rope_theta": 5e5,
      "rope_scaling": scaling,
      "max_position_embeddings": 99,
    }
  )
  assert module.rotary_base == 5e5
  assert module.rotary_scaling == LlamaScaling(
    factor=8.0, trained_length=99, slow=2.0
  )


@pytest.mark.parametrize(
  ("config", "window"),
  [
    ({"model_type": "llama"}, None),
    ({"model_type": "mistral"}, 4096),
    ({"model_type": "mistral", "sliding_window": None}, None),
    ({"model_type": "qwen2", "sliding_window": 5}, None),
    ({"use_sliding_window": True, "max_window_layers": 0}, 4096),
    ({"use_sliding_window": True, "max_window_layers": 2}, None),
    ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 3}, 3),
    ({"layer_types": ["full_attention"] * 2, "sliding_window": 3}, None),
  ],
)
def test_the_window_is_the_configs(config, window):
  module, _ = FAMILY.build({**TINY, "model_type": "qwen3", **config})
  assert module.window == window


@pytest.mark.parametrize(
  ("head", "shape"), [(None, 8), ("none", 8), ("next_token", 11)]
)
def test_the_head_is_that_of_the_class_or_the_one_asked_for(head, shape):
  config = {**TINY, "architectures": ["LlamaModel"]}
  module, _ = FAMILY.build(config, head=head)
  tokens = np.zeros((2, 3), np.int32)
  outputs = jax.eval_shape(
    lambda: module.init_with_output(jax.random.key(0), tokens)[0]
  )
  assert outputs.shape == (2, 3, shape)
  described = FAMILY.describe(module)["architectures"]
  assert described == [f"Llama{'ForCausalLM' if shape == 11 else 'Model'}"]


def test_files_of_the_trunk_alone_have_the_same_places():
  names = FAMILY.names
  for bare in ("layers.1.mlp.up_proj.weight", "norm.weight"):
    assert names.ours(bare) == names.ours(f"model.{bare}")
    path = names.ours(bare).name
    assert names.theirs(path).name == f"model.{bare}"
  assert names.ignores("model.layers.3.self_attn.rotary_emb.inv_freq")
  assert names.ignores("model.rotary_emb.inv_freq")


def test_options_reach_the_net():
  module, _ = FAMILY.build(TINY, dtype=jnp.bfloat16, remat=True, dropout=0.1)
  assert (module.dtype, module.remat, module.dropout) == (
    jnp.bfloat16,
    True,
    0.1,
  )


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported.*'silu'"),
    ({"mlp_bias": True}, "mlp_bias=True is not supported"),
    ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"quantization_config": {"bits": 4}}, "quantization_config=.*supported"),
    ({"rope_scaling": {"type": "lama3"}}, "did you mean 'llama3'"),
    ({"rope_scaling": {"type": "linear"}}, "needs 'factor'"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "original_max_pos"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor=0.5: expe"),
    ({"architectures": ["LlamaForTokens"]}, "did you mean 'LlamaForCausalLM'"),
    ({"hidden_size": 0}, "hidden_size=0; expected a positive"),
    (
      {"model_type": "qwen2", "layer_types": ["a_attention", "b_attention"]},
      "layer_types are a_attention, b_attention; expected one",
    ),
    (
      {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "max_window_layers": 1,
      },
      "max_window_layers=1; expected 0 or the number of layers, 2",
    ),
  ],
)
def test_what_is_not_supported_is_named(config, message):
  with pytest.raises(ConfigError, match=message):
    FAMILY.build({**TINY, **config})


def test_missing_sizes_are_all_named():
  config = {"model_type": "llama", "hidden_size": 8, "vocab_size": 11}
  message = "expected also num_hidden_layers, num_attention_heads, intermedia"
  with pytest.raises(ConfigError, match=message):
    FAMILY.build(config)


@pytest.mark.parametrize(
  "options",
  [
    {"logit_cap": 30.0},
    {"qk_norm": True, "bias": True},
    {"out_bias": True},
    {"window": 4, "bias": True, "out_bias": True},
  ],
)
def test_nets_that_no_model_is_are_not_described(options):
  net = CausalDecoder(vocabulary_size=11, **options)
  with pytest.raises(ConfigError, match="no Llama, Mistral, Qwen2 or Qwen3"):
    FAMILY.describe(net)


@pytest.mark.parametrize(
  ("options", "kind"),
  [
    ({}, "llama"),
    ({"bias": True, "out_bias": True}, "llama"),
    ({"window": 4}, "mistral"),
    ({"bias": True}, "qwen2"),
    ({"bias": True, "window": 4}, "qwen2"),
    ({"qk_norm": True, "window": 4}, "qwen3"),
    ({"qk_norm": True, "bias": True, "out_bias": True}, "qwen3"),
    (
      {"rotary_scaling": YarnScaling(factor=2.0, trained_length=7, fast=9.0)},
      "llama",
    ),
  ],
)
def test_our_nets_are_described_as_the_model_that_they_are(options, kind):
  net = CausalDecoder(
    vocabulary_size=11,
    hidden=12,
    key_value_heads=2,
    head_size=6,
    **options,
  )
  described = FAMILY.describe(net)
  assert described["model_type"] == kind
  assert FAMILY.build(described)[0] == net
