"""Decoders: causal, equal to their formulas, with the documented taps."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.nets import attention, decoder, recurrent, rotary
from jaxkd.network import Network
from tests.nets import filling

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9)).astype(np.int32)
DECODER = nets.CausalDecoder(vocabulary_size=11, width=16, depth=2, heads=2)
GRU = nets.GRUDecoder(vocabulary_size=11, width=12, depth=2)
BOTH = pytest.mark.parametrize(
  "net", [DECODER, GRU], ids=["transformer", "recurrent"]
)
PARTS = (
  "attention_norm",
  *(f"attention/{name}" for name in ("query", "key", "value", "out")),
  "attention",
  "attention_dropout",
  "mlp_norm",
  *(f"mlp/{name}" for name in ("gate", "up", "down")),
  "mlp",
  "mlp_dropout",
)


@functools.cache
def filled(net):
  """Variables of a net, none of them at a special value."""
  return filling.random_variables(net, TOKENS)


def key(number):
  """A key whose draws compile in no time."""
  return jax.random.key(number, impl="unsafe_rbg")


@functools.cache
def fresh(net):
  """Variables as the net's initialisers draw them."""
  return jax.jit(net.init)(key(0), TOKENS)


def network(net):
  return Network(net, inputs=("tokens",))


def run(net, tokens=TOKENS, **options):
  """Outputs of a net with its filled variables, compiled."""

  @jax.jit
  def outputs(variables, tokens):
    return network(net).apply(variables, {"tokens": tokens}, **options)[0]

  return outputs(filled(net), tokens)


# Shapes and taps.


def test_tap_paths_of_the_transformer_are_exactly_the_documented_ones():
  paths = network(DECODER).paths({"tokens": TOKENS})
  blocks = [
    f"{block}{part}"
    for block in ("block1", "block2")
    for part in ("", *(f"/{part}" for part in PARTS))
  ]
  assert set(paths) == {"embedding", "dropout", *blocks, "norm", "head"}
  assert paths["block1/mlp/gate"].shape == (2, 9, round(16 * 8 / 3))
  assert paths["block2"].shape == paths["norm"].shape == (2, 9, 16)
  assert paths["head"].shape == (2, 9, 11)


def test_tap_paths_of_the_recurrent_net_are_exactly_the_documented_ones():
  paths = network(GRU).paths({"tokens": TOKENS})
  layers = [
    f"{name}{number}" for name in ("gru", "dropout") for number in (1, 2)
  ]
  inside = ["gru1/input", "gru2/input"]
  assert set(paths) == {"embedding", "dropout", *layers, *inside, "head"}
  assert paths["gru1"].shape == (2, 9, 12)
  assert paths["gru1/input"].shape == (2, 9, 36)


@BOTH
def test_a_tap_is_what_the_head_reads(net):
  last = "norm" if net is DECODER else "dropout2"
  outputs = run(net, taps=(last, "head"))
  kernel = filled(net)["params"]["head"]["kernel"]
  np.testing.assert_allclose(
    outputs.taps[last] @ kernel, outputs.logits, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_array_equal(outputs.taps["head"], outputs.logits)


# Causality.


@BOTH
def test_a_token_changes_no_logits_before_it_and_those_at_it(net):
  logits = jax.jit(lambda tokens: run(net, tokens).logits)
  plain = np.asarray(logits(TOKENS))
  for place in range(TOKENS.shape[1]):
    changed = TOKENS.copy()
    changed[:, place] = (changed[:, place] + 1) % 11
    gap = np.abs(np.asarray(logits(changed)) - plain).max((0, 2))
    np.testing.assert_array_equal(gap[:place], 0)
    assert (gap[place:] > 0).all()


@BOTH
def test_logits_have_gradients_of_the_embeddings_up_to_their_place(net):
  shape = run(net, taps=("embedding",)).taps["embedding"].shape

  @jax.jit
  @jax.jacobian
  def jacobian(shift):
    edits = {"embedding": lambda x: x + shift}
    return run(net, edits=edits).logits[0].sum(-1)

  size = np.abs(jacobian(jnp.zeros(shape))[:, 0]).max(-1)  # [place, place]
  np.testing.assert_array_equal(size[np.triu_indices(len(size), 1)], 0)
  assert (size[np.tril_indices(len(size))] > 0).all()


@BOTH
def test_a_sequence_does_not_depend_on_the_others(net):
  np.testing.assert_allclose(
    run(net, TOKENS[:1]).logits, run(net).logits[:1], rtol=1e-5, atol=1e-6
  )


# Heads.


@BOTH
def test_a_tied_head_has_the_parameters_of_the_embedding(net):
  tied = net.clone(tied=True)
  params = filled(tied)["params"]
  assert "head" not in params
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  own = sum(leaf.size for leaf in jax.tree.leaves(filled(net)["params"]))
  assert own - count == 11 * net.width
  last = "norm" if net is DECODER else "dropout2"
  outputs = run(tied, taps=(last,))
  np.testing.assert_allclose(
    outputs.taps[last] @ params["embedding"]["embedding"].T,
    outputs.logits,
    rtol=1e-5,
    atol=1e-5,
  )


@BOTH
def test_a_tied_table_learns_from_tokens_that_are_only_predicted(net):
  tied, tokens = net.clone(tied=True), np.zeros((1, 4), np.int32)

  def total(params):
    batch = {"tokens": tokens}
    logits = network(tied).apply({"params": params}, batch)[0].logits
    return jax.nn.log_softmax(logits)[..., 7].sum()

  table = jax.jit(jax.grad(total))(filled(tied)["params"])["embedding"][
    "embedding"
  ]
  assert np.abs(table[0]).max() > 1e-3
  assert np.abs(table[7]).max() > 1e-3


# Formulas.


def _softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def _turned(x):
  """Rotary positions by complex numbers, [L, heads, D]."""
  length, _, size = x.shape
  pairs = x[..., : size // 2] + 1j * x[..., size // 2 :]
  rates = 10_000.0 ** (-2 * np.arange(size // 2) / size)
  pairs = pairs * np.exp(1j * np.arange(length)[:, None, None] * rates)
  return np.concatenate([pairs.real, pairs.imag], -1)


def test_attention_equals_the_formula_in_float64():
  net = attention.Attention(heads=3)
  x = np.random.default_rng(1).normal(size=(2, 7, 12)).astype(np.float32)
  variables = filling.random_variables(net, x)
  kernels = {
    name: leaf["kernel"].astype(np.float64)
    for name, leaf in variables["params"].items()
  }
  found = jax.jit(net.apply)(variables, x)
  for example, ours in zip(x.astype(np.float64), found, strict=True):
    query, key, value = (
      (example @ kernels[name]).reshape(7, 3, 4)
      for name in ("query", "key", "value")
    )
    query, key = _turned(query), _turned(key)
    expected = np.zeros((7, 3, 4))
    for head in range(3):
      for place in range(7):
        seen = slice(0, place + 1)
        scores = key[seen, head] @ query[place, head] / math.sqrt(4)
        expected[place, head] = _softmax(scores) @ value[seen, head]
    expected = expected.reshape(7, 12) @ kernels["out"]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_rotary_products_depend_on_the_distance_alone():
  rng = np.random.default_rng(2)
  query, key = (
    np.broadcast_to(rng.normal(size=(1, 1, 2, 8)), (1, 20, 2, 8))
    for _ in range(2)
  )
  query, key = map(jax.jit(rotary.rotary), (np.float32(query), np.float32(key)))
  scores = np.einsum("bmhd,bnhd->hmn", query, key)
  for distance in range(-19, 20):
    line = np.diagonal(scores, distance, 1, 2)
    np.testing.assert_allclose(
      line, line[:, :1].repeat(line.shape[1], 1), atol=1e-4
    )
  assert np.abs(scores[:, 0, 0] - scores[:, 0, 5]).min() > 1e-2


def test_rotary_keeps_lengths_and_the_first_position():
  x = np.random.default_rng(4).normal(size=(2, 6, 3, 8)).astype(np.float32)
  turned = jax.jit(rotary.rotary)(x)
  np.testing.assert_array_equal(turned[:, 0], x[:, 0])
  np.testing.assert_allclose(
    jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
  )
  assert rotary.rotary(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_block_adds_what_its_parts_make_of_the_normalised():
  x = np.random.default_rng(5).normal(size=(2, 5, 16)).astype(np.float32)
  given = filled(DECODER)["params"]["block1"]
  params = jax.tree.map(np.float64, given)

  def normed(x, name):
    size = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x / size * params[name]["scale"]

  first = normed(np.float64(x), "attention_norm")
  gathered = jax.jit(attention.Attention(heads=2).apply)(
    {"params": given["attention"]}, np.float32(first)
  )
  middle = np.float64(x) + np.float64(gathered)
  second = normed(middle, "mlp_norm")
  mlp = {name: leaf["kernel"] for name, leaf in params["mlp"].items()}
  gate, up = second @ mlp["gate"], second @ mlp["up"]
  expected = middle + (gate / (1 + np.exp(-gate)) * up) @ mlp["down"]
  block = decoder.DecoderBlock(
    attention=functools.partial(attention.Attention, heads=2),
    mlp=functools.partial(decoder.GatedMLP, hidden=43),
  )
  found = jax.jit(functools.partial(block.apply, train=False))(
    {"params": given}, x
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_recurrent_unit_equals_the_formula_in_float64():
  net = recurrent.GRU(features=5)
  x = np.random.default_rng(3).normal(size=(2, 6, 4)).astype(np.float32)
  variables = filling.random_variables(net, x)
  params = jax.tree.map(np.float64, variables["params"])
  read = x @ params["input"]["kernel"] + params["input"]["bias"]
  state, expected = np.zeros((2, 5)), []

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  for place in range(6):
    kept = state @ params["kernel"] + params["bias"]
    r, z, n = np.split(read[:, place], 3, -1)
    r_kept, z_kept, n_kept = np.split(kept, 3, -1)
    z = sigmoid(z + z_kept)
    state = (1 - z) * np.tanh(n + sigmoid(r + r_kept) * n_kept) + z * state
    expected.append(state)
  found = jax.jit(net.apply)(variables, x)
  np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-5, atol=1e-6)


# Dropout.


@BOTH
def test_dropout_is_in_training_alone(net):
  dropping = net.clone(dropout=0.5)

  def logits(net, **options):
    return run(net, **options).logits

  np.testing.assert_array_equal(logits(dropping), logits(net))
  keys = [{"dropout": key(n)} for n in (0, 0, 1)]
  first, again, other = (logits(dropping, train=True, rngs=k) for k in keys)
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3
  assert np.abs(first - logits(net)).max() > 1e-3


@BOTH
def test_without_dropout_training_needs_no_key(net):
  trained = run(net, train=True).logits
  np.testing.assert_array_equal(trained, run(net).logits)


# Precision and initialisation.


@BOTH
def test_half_precision_keeps_float32_weights(net):
  half = net.clone(dtype=jnp.bfloat16)
  variables = jax.eval_shape(half.init, jax.random.key(0), TOKENS)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  paths = network(half).paths({"tokens": TOKENS})
  assert {path.dtype for path in paths.values()} == {jnp.dtype("bfloat16")}
  rough, exact = (run(n).logits for n in (half, net))
  scale = float(jnp.abs(exact).max())
  np.testing.assert_allclose(
    rough.astype(jnp.float32), exact, atol=0.05 * scale
  )


@BOTH
@pytest.mark.parametrize("tied", [False, True])
def test_a_fresh_net_is_nearly_uniform_but_not_the_same_everywhere(net, tied):
  logits = jax.jit(net.clone(tied=tied).apply)(fresh(net), TOKENS)
  gap = jax.nn.log_softmax(logits) + math.log(11)
  assert 1e-4 < float(jnp.abs(gap).mean()) < 0.5


def test_fresh_weights_of_what_is_added_are_smaller():
  params = fresh(DECODER)["params"]["block2"]
  added = [params["attention"]["out"], params["mlp"]["down"]]
  others = [params["attention"]["query"], params["mlp"]["up"]]
  for layers, expected in ((added, 0.02 / math.sqrt(2 * 2)), (others, 0.02)):
    for layer in layers:
      assert np.std(layer["kernel"]) == pytest.approx(expected, rel=0.15)


# What is refused.


@pytest.mark.parametrize("width", [15, 6])
def test_heads_of_an_odd_or_broken_size_are_refused(width):
  net = nets.CausalDecoder(vocabulary_size=11, width=width, heads=2)
  with pytest.raises(
    ConfigError, match=f"2 heads on a width of {width}; expec"
  ):
    jax.eval_shape(net.init, jax.random.key(0), TOKENS)


@BOTH
@pytest.mark.parametrize("tokens", [TOKENS[0], TOKENS.astype(np.float32)])
def test_tokens_of_another_shape_or_type_are_refused(net, tokens):
  message = rf"{type(net).__name__}: tokens are .*; expected integers \[B, L\]"
  with pytest.raises(ConfigError, match=message):
    jax.eval_shape(net.init, jax.random.key(0), tokens)
