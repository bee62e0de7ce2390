"""Encoders of texts and images: what they read, what they leave out, taps."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.nets import encoder
from jaxkd.network import Network
from tests.nets import filling

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(1, 13, (3, 6)).astype(np.int32)
MASK = np.array([[1] * 6, [1] * 3 + [0] * 3, [1] * 5 + [0]])
IMAGES = RANDOM.normal(size=(2, 8, 8, 3)).astype(np.float32)
SIZES = {"width": 8, "depth": 2, "heads": 2, "hidden": 12}
BERT = nets.BERT(vocabulary_size=13, length=6, **SIZES)
VIT = nets.VisionTransformer(image_size=8, patch=4, num_classes=5, **SIZES)
IMAGE_TOWER = nets.CLIPImageTower(features=4, image_size=8, patch=4, **SIZES)
TEXT_TOWER = nets.CLIPTextTower(
  features=4, vocabulary_size=13, length=6, **SIZES
)
INPUTS = {
  nets.BERT: {"tokens": TOKENS, "token_mask": MASK},
  nets.VisionTransformer: {"image": IMAGES},
  nets.CLIPImageTower: {"image": IMAGES},
  nets.CLIPTextTower: {"tokens": TOKENS},
}
ALL = pytest.mark.parametrize(
  "net",
  [BERT, VIT, IMAGE_TOWER, TEXT_TOWER],
  ids=lambda net: type(net).__name__,
)


@functools.cache
def filled(net):
  """Variables of a net, none of them at a special value."""
  return filling.random_variables(net, *INPUTS[type(net)].values())


def key(number):
  """A key whose draws compile in no time."""
  return jax.random.key(number, impl="unsafe_rbg")


def network(net):
  return Network(net, tuple(INPUTS[type(net)]))


@functools.cache
def compiled(net, taps):
  """The outputs of a net as a compiled function, with the same tracing."""
  apply = network(net).apply
  return jax.jit(lambda variables, batch: apply(variables, batch, taps=taps)[0])


def run(net, variables=None, inputs=None, taps=()):
  """Outputs of a net, with its filled variables if none are given."""
  inputs = {**INPUTS[type(net)], **(inputs or {})}
  variables = filled(net) if variables is None else variables
  return compiled(net, taps)(variables, inputs)


def stacked(variables):
  """The variables of blocks in one stack."""
  params = dict(variables["params"])
  names = sorted(name for name in params if name.startswith("block"))
  blocks = [params.pop(name) for name in names]
  params["blocks"] = jax.tree.map(lambda *x: np.stack(x), *blocks)
  return {"params": params}


# Taps.


def blocks_of(*names):
  inside = (
    *("attention", "attention_dropout", "attention_norm"),
    *("mlp", "mlp_dropout", "mlp_norm", "mlp/fc1", "mlp/fc2"),
    *(
      f"attention/{part}"
      for part in ("query", "key", "value", "weights", "dropout", "out")
    ),
  )
  return set(names) | {f"{name}/{part}" for name in names for part in inside}


TAPS = {
  nets.BERT: {
    *("words", "positions", "types", "embedding_norm", "embedding_dropout"),
  },
  nets.VisionTransformer: {
    *("stem", "stem/patches", "stem_dropout", "norm", "pooled", "head"),
  },
  nets.CLIPImageTower: {
    *("stem", "stem/patches", "stem_norm", "norm", "projection"),
  },
  nets.CLIPTextTower: {"words", "positions", "norm", "projection"},
}


@ALL
def test_tap_paths_are_exactly_the_documented_ones(net):
  paths = network(net).paths(INPUTS[type(net)])
  assert set(paths) == TAPS[type(net)] | blocks_of("block1", "block2")
  scanned = network(net.clone(scan_layers=True)).paths(INPUTS[type(net)])
  assert set(scanned) == TAPS[type(net)] | blocks_of("blocks")


@pytest.mark.parametrize(
  ("net", "taps"),
  [
    (BERT.clone(pooling="mean"), {"pooled"}),
    (BERT.clone(pooler=True), {"pooler", "pooler/fc"}),
    (
      BERT.clone(pooling="pooler", head="classes"),
      {"pooler", "pooler/fc", "head_dropout", "head"},
    ),
    (BERT.clone(head="masked_lm"), {"head", "head/fc", "head/norm"}),
  ],
  ids=["mean", "pooler", "classes", "masked_lm"],
)
def test_tap_paths_of_what_reads_the_text_are_the_documented_ones(net, taps):
  paths = network(net).paths(INPUTS[nets.BERT])
  assert set(paths) - TAPS[nets.BERT] - blocks_of("block1", "block2") == taps


def test_distilled_heads_are_tapped_by_name_and_their_mean_is_the_output():
  net = VIT.clone(taught=True, head="distilled", pooling="none")
  found = run(net, taps=("class_head", "taught_head", "norm"))
  first, second = found.taps["class_head"], found.taps["taught_head"]
  np.testing.assert_allclose(found.logits, (first + second) / 2, rtol=1e-6)
  np.testing.assert_array_equal(found.value["taught_logits"], second)
  assert found.taps["norm"].shape == (2, 2 + 4, 8)


# One computation in three forms.


@pytest.mark.slow  # compiles every gradient twice
def test_a_scan_over_layers_with_remat_changes_no_gradient():
  def gradients(net, variables):
    def loss(params):
      value, _ = network(net).apply({"params": params}, INPUTS[type(net)])
      return jnp.mean(jnp.sin(value.value))

    return {"params": jax.jit(jax.grad(loss))(variables["params"])}

  plain = stacked(gradients(BERT, filled(BERT)))
  net = BERT.clone(scan_layers=True, remat=True)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, gradients(net, stacked(filled(BERT))), plain)


def test_taps_inside_a_scan_have_a_leading_axis_of_layers():
  net = BERT.clone(scan_layers=True, remat=True)
  path = "attention/weights"
  found = run(net, stacked(filled(BERT)), taps=(f"blocks/{path}", "blocks"))
  plain = run(BERT, taps=(f"block2/{path}", "block1"))
  np.testing.assert_allclose(
    found.taps[f"blocks/{path}"][1], plain.taps[f"block2/{path}"], rtol=1e-5
  )
  np.testing.assert_allclose(
    found.taps["blocks"][0], plain.taps["block1"], rtol=1e-5, atol=1e-6
  )


def test_fresh_layers_of_a_scan_differ():
  net = BERT.clone(scan_layers=True)
  drawn = jax.jit(net.init)(key(0), TOKENS)
  kernel = drawn["params"]["blocks"]["mlp"]["fc1"]["kernel"]
  assert kernel.shape == (2, 8, 12)
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01


@ALL
def test_in_bfloat16_parameters_stay_float32_and_outputs_do_not(net):
  coarse = net.clone(dtype=jnp.bfloat16)
  given = INPUTS[type(net)].values()
  value, variables = jax.eval_shape(coarse.init_with_output, key(0), *given)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert value.dtype == jnp.bfloat16


def test_in_bfloat16_outputs_are_near():
  fine = run(VIT).value
  found = run(VIT.clone(dtype=jnp.bfloat16), filled(VIT)).value
  spread = 0.05 * np.abs(fine).max()
  np.testing.assert_allclose(found.astype(np.float32), fine, atol=spread)


@ALL
def test_a_batch_of_unknown_size_can_be_exported(net):
  (b,) = jax.export.symbolic_shape("b")
  given = [
    jax.ShapeDtypeStruct((b, *x.shape[1:]), jnp.asarray(x).dtype)
    for x in INPUTS[type(net)].values()
  ]
  made = jax.export.export(jax.jit(functools.partial(net.apply, filled(net))))
  assert made(*given).out_avals[0].shape[0] == b


@pytest.mark.parametrize("field", ["dropout", "attention_dropout"])
def test_dropout_drops_in_training_alone(field):
  net = network(BERT.clone(**{field: 0.5}, pooling="first"))
  batch = INPUTS[nets.BERT]

  @jax.jit
  def outputs(variables, first, second):
    trained = [
      net.apply(variables, batch, train=True, rngs={"dropout": rng})[0].value
      for rng in (first, first, second)
    ]
    return net.apply(variables, batch)[0].value, *trained

  still, first, again, other = outputs(filled(BERT), key(0), key(1))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3
  plain = run(BERT.clone(pooling="first")).value
  np.testing.assert_allclose(still, plain, rtol=1e-5)


# Texts.


def test_attention_is_on_tokens_that_are_there_and_sums_to_one():
  found = run(BERT, taps=("block1/attention/weights",))
  weights = found.taps["block1/attention/weights"]
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  assert not weights[1, :, :, 3:].any()
  assert (weights[1, :, :, :3] > 0).all()


def test_tokens_in_the_padding_change_nothing():
  other = np.where(MASK, TOKENS, 12 - TOKENS % 5).astype(np.int32)
  assert (other != TOKENS).any()
  for net in (BERT.clone(pooling="mean"), BERT.clone(pooling="first")):
    first = run(net).value
    second = run(net, inputs={"tokens": other}).value
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_without_a_mask_or_types_all_tokens_count_and_are_of_type_zero():
  net = BERT.clone(pooling="mean")
  apply = jax.jit(net.apply)
  plain = apply(filled(net), TOKENS)
  ones = np.ones_like(TOKENS)
  full = apply(filled(net), TOKENS, ones, 0 * ones)
  np.testing.assert_allclose(plain, full, rtol=1e-5)
  other = apply(filled(net), TOKENS, ones, ones)
  assert np.abs(plain - other).max() > 1e-3


def test_pooled_vectors_are_the_mean_of_tokens_the_first_and_of_length_one():
  states = np.asarray(run(BERT).value)
  mean = run(BERT.clone(pooling="mean")).value
  expected = (states * MASK[..., None]).sum(1) / MASK.sum(1)[:, None]
  np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)
  first = run(BERT.clone(pooling="first")).value
  np.testing.assert_array_equal(first, states[:, 0])
  unit = run(BERT.clone(pooling="mean", normalised=True)).value
  length = np.linalg.norm(mean, axis=-1, keepdims=True)
  np.testing.assert_allclose(unit, mean / length, rtol=1e-5)


def test_a_row_of_padding_alone_has_finite_values_and_gradients():
  net = BERT.clone(pooling="mean", normalised=True)

  def loss(params):
    return net.apply({"params": params}, TOKENS, np.zeros_like(MASK)).sum()

  value, gradient = jax.jit(jax.value_and_grad(loss))(filled(net)["params"])
  assert np.isfinite(value)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_logits_of_masked_tokens_use_the_table_of_words():
  net = BERT.clone(head="masked_lm")
  variables = filled(net)
  assert "kernel" not in variables["params"]["head"]
  table = variables["params"]["words"]["embedding"]
  found = run(net, taps=("head/norm",))
  expected = found.taps["head/norm"] @ table.T
  expected += variables["params"]["head"]["word_bias"][None, None]
  np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-5)


def test_the_text_tower_reads_the_end_token_and_nothing_behind_it():
  rows = np.array([[1, 5, 12, 3, 4, 2]], np.int32)
  behind = np.array([[1, 5, 12, 7, 7, 7]], np.int32)
  before = np.array([[1, 6, 12, 3, 4, 2]], np.int32)
  values = {
    name: run(TEXT_TOWER, inputs={"tokens": x}).value
    for name, x in (("rows", rows), ("behind", behind), ("before", before))
  }
  np.testing.assert_allclose(values["rows"], values["behind"], rtol=1e-5)
  assert np.abs(values["rows"] - values["before"]).max() > 1e-3


def test_an_end_token_of_its_own_number_is_read_at_its_first_place():
  net = TEXT_TOWER.clone(end_token=3)
  rows = np.array([[1, 12, 3, 5, 3, 2]], np.int32)
  found = run(net, filled(TEXT_TOWER), {"tokens": rows}, taps=("norm",))
  kernel = filled(TEXT_TOWER)["params"]["projection"]["kernel"]
  np.testing.assert_allclose(
    found.value, found.taps["norm"][:, 2] @ kernel, rtol=1e-5
  )


def test_several_captions_of_an_image_are_rows_of_their_own():
  captions = TOKENS.reshape(1, 3, 6)
  np.testing.assert_allclose(
    run(TEXT_TOWER, inputs={"tokens": captions}).value[0],
    run(TEXT_TOWER).value,
    rtol=1e-5,
  )


def test_two_towers_of_clip_give_both_embeddings_and_scaled_cosines():
  net = Network(
    nets.TwoTowers(image=IMAGE_TOWER, text=TEXT_TOWER), ("image", "tokens")
  )
  batch = {"image": IMAGES, "tokens": TOKENS}
  paths = net.paths(batch)
  assert "image/block1/attention/weights" in paths
  assert paths["text/projection"].shape == (3, 4)
  variables = filling.random_variables(net.module, IMAGES, TOKENS)
  found = net.apply(variables, batch)[0]
  assert set(found.value) == {"image", "text", "logits"}
  assert found.logits.shape == (2, 3)
  np.testing.assert_allclose(
    jnp.linalg.norm(found.value["text"], axis=-1), 1, rtol=1e-5
  )


# Activations and errors.


def test_activations_are_their_formulas():
  x = np.linspace(-3, 3, 13)
  expected = {
    "gelu": [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x],
    "quick_gelu": x / (1 + np.exp(-1.702 * x)),
    "relu": np.maximum(x, 0),
    "silu": x / (1 + np.exp(-x)),
    "gelu_tanh": x
    * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    / 2,
  }
  assert set(expected) == set(encoder.ACTIVATIONS)
  for name, values in expected.items():
    found = encoder.activation(name)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ("net", "message"),
  [
    (BERT.clone(activation="gelo"), "did you mean 'gelu'"),
    (BERT.clone(heads=3), "3 heads on a width of 8"),
    (BERT.clone(head="classes"), "expected a pooling for 'classes'"),
    (BERT.clone(head="masked_lm", pooling="mean"), "'none' for 'masked_lm'"),
    (BERT.clone(pooling="men"), "BERT.pooling='men'.*did you mean 'mean'"),
    (BERT.clone(length=5), "6 tokens in a row; expected at most length=5"),
    (VIT.clone(head="distilled"), "expected the second token"),
    (VIT.clone(pooling="none"), "expected a pooling"),
    (VIT.clone(patch=3), "patch=3 does not divide image_size=8"),
    (VIT.clone(image_size=12), r"expected \[B, 12, 12, 3\]"),
    (TEXT_TOWER.clone(length=5), "L at most 5"),
  ],
)
def test_what_does_not_fit_is_named(net, message):
  with pytest.raises(ConfigError, match=message):
    jax.eval_shape(net.init, jax.random.key(0), *INPUTS[type(net)].values())


def test_tokens_that_are_no_integers_are_refused():
  with pytest.raises(ConfigError, match="float32.*expected integers"):
    jax.eval_shape(BERT.init, jax.random.key(0), TOKENS.astype(np.float32))
