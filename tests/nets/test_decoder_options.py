"""Options of the decoder: windows, caps, masks, caches, scans, remat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.nets import attention
from jaxkd.network import Network
from tests.nets import filling

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9), np.int32)
NET = nets.CausalDecoder(
  vocabulary_size=11, width=16, depth=2, heads=4, key_value_heads=2, window=4
)
INPUTS = ("tokens", "token_mask", "positions")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def filled(net):
  """Variables of a net, none of them at a special value."""
  return filling.random_variables(net, TOKENS)


def stacked(variables, depth=2):
  """The variables of the same net with its layers scanned."""
  params = dict(variables["params"])
  blocks = [params.pop(f"block{n}") for n in range(1, depth + 1)]
  params["blocks"] = jax.tree.map(lambda *x: np.stack(x), *blocks)
  return {"params": params}


def read(net, variables, cache, *inputs):
  """Logits and the changed cache."""

  @jax.jit
  def reading(variables, cache, *inputs):
    given = {**variables, "cache": cache}
    return net.apply(given, *inputs, mutable=["cache"])

  logits, changed = reading(variables, cache, *inputs)
  return logits, changed["cache"]


def run(net, variables, *inputs, **options):
  """Compiled outputs of a net."""

  @jax.jit
  def outputs(variables, *inputs):
    batch = dict(zip(INPUTS, inputs, strict=False))
    network = Network(net, INPUTS[: len(inputs)])
    return network.apply(variables, batch, **options)[0]

  return outputs(variables, *inputs)


# Attention.


def test_shared_keys_and_values_are_those_of_repeated_heads():
  net = attention.Attention(heads=4, key_value_heads=2, head_size=6, bias=True)
  x = np.random.default_rng(1).normal(size=(2, 7, 16)).astype(np.float32)
  variables = filling.random_variables(net, x)
  params = dict(variables["params"])
  for name in ("key", "value"):
    layer = {
      kind: leaf.reshape(*leaf.shape[:-1], 2, 6).repeat(2, axis=-2)
      for kind, leaf in params[name].items()
    }
    params[name] = {k: v.reshape(*v.shape[:-2], 24) for k, v in layer.items()}
  repeated = net.clone(key_value_heads=4)
  np.testing.assert_allclose(
    jax.jit(net.apply)(variables, x),
    jax.jit(repeated.apply)({"params": params}, x),
    **CLOSE,
  )


def test_a_window_sees_itself_and_those_shortly_before():
  net = NET.clone(depth=1)
  logits = jax.jit(lambda t: net.apply(filled(net), t))
  plain = np.asarray(logits(TOKENS))
  for place in range(9):
    changed = TOKENS.copy()
    changed[:, place] = (changed[:, place] + 1) % 11
    gap = np.abs(np.asarray(logits(changed)) - plain).max((0, 2))
    seen = (np.arange(9) >= place) & (np.arange(9) < place + 4)
    assert (gap[seen] > 0).all()
    np.testing.assert_array_equal(gap[~seen], 0)


def test_caps_bound_scores_and_logits_by_their_formula():
  net = attention.Attention(heads=1, cap=0.7)
  x = np.random.default_rng(2).normal(size=(1, 5, 8)).astype(np.float32)
  variables = filling.random_variables(net, x)
  query, key, value = (
    x[0] @ variables["params"][name]["kernel"]
    for name in ("query", "key", "value")
  )
  # Without positions: of the first two, the second sees both.
  turned = [attention.rotary(v[None, :, None])[0, :, 0] for v in (query, key)]
  scores = np.float64(turned[0] @ turned[1].T) / np.sqrt(8)
  weights = np.tril(np.exp(0.7 * np.tanh(scores / 0.7)))
  weights /= weights.sum(-1, keepdims=True)
  expected = weights @ value @ variables["params"]["out"]["kernel"]
  np.testing.assert_allclose(
    jax.jit(net.apply)(variables, x)[0], expected, **CLOSE
  )
  logits, capped = (
    run(n, filled(NET), TOKENS).logits for n in (NET, NET.clone(logit_cap=0.5))
  )
  np.testing.assert_allclose(capped, 0.5 * np.tanh(logits / 0.5), **CLOSE)


def test_heads_of_any_even_size_may_be_given_and_odd_ones_not():
  net = NET.clone(heads=2, head_size=6)
  kernel = filled(net)["params"]["block1"]["attention"]["query"]["kernel"]
  assert kernel.shape == (16, 12)
  with pytest.raises(ConfigError, match="heads of an even size, got 5"):
    jax.eval_shape(NET.clone(head_size=5).init, jax.random.key(0), TOKENS)


def test_key_value_heads_that_do_not_divide_the_heads_are_refused():
  net = NET.clone(key_value_heads=3)
  with pytest.raises(ConfigError, match="=3: expected a divisor of heads=4"):
    jax.eval_shape(net.init, jax.random.key(0), TOKENS)


@pytest.mark.parametrize(
  "scaling",
  [
    nets.LinearScaling,
    nets.DynamicScaling,
    nets.LlamaScaling,
    nets.YarnScaling,
  ],
)
def test_scalings_that_shorten_are_refused(scaling):
  trained = {} if scaling is nets.LinearScaling else {"trained_length": 8}
  with pytest.raises(ConfigError, match=r"Scaling.factor=0.5: expected at le"):
    scaling(factor=0.5, **trained)


# Masks.


def test_padding_anywhere_changes_nothing_at_the_tokens():
  padded = np.zeros((2, 13), np.int32)
  mask = np.ones((2, 13), np.float32)
  for row, gaps in enumerate(((0, 1, 2, 3), (0, 5, 6, 12))):
    mask[row, list(gaps)] = 0
  padded[mask == 1] = TOKENS.reshape(-1)
  plain = run(NET, filled(NET), TOKENS).logits
  found = run(NET, filled(NET), padded, mask).logits
  np.testing.assert_allclose(
    found[mask == 1], plain.reshape(-1, 11), rtol=1e-4, atol=1e-5
  )
  assert np.isfinite(found).all()


def test_positions_that_are_given_are_used():
  positions = np.arange(9)[None].repeat(2, 0)
  mask = np.ones((2, 9), np.float32)
  plain, shifted, spread = (
    run(NET.clone(window=None), filled(NET), TOKENS, mask, given).logits
    for given in (positions, positions + 5, 2 * positions)
  )
  np.testing.assert_allclose(shifted, plain, rtol=1e-4, atol=1e-4)
  assert np.abs(spread - plain).max() > 0.01


# The cache.


@pytest.mark.parametrize("scanned", [False, True])
def test_pieces_read_with_a_cache_give_the_logits_of_the_whole(scanned):
  net = NET.clone(scan_layers=scanned)
  variables = stacked(filled(NET)) if scanned else filled(NET)
  mask = np.ones((2, 9), np.int32)
  mask[1, :3] = 0  # padded at the start
  whole = run(net, variables, TOKENS, mask).logits
  places = np.maximum(np.cumsum(mask, 1) - 1, 0)
  cache, pieces = net.empty_cache(2, 10), []
  kinds = jax.tree.map(lambda x: (x.shape, x.dtype), cache)
  for start, stop in ((0, 5), (5, 7), (7, 9)):
    piece = (slice(None), slice(start, stop))
    inputs = (TOKENS[piece], mask[piece], places[piece])
    logits, cache = read(net, variables, cache, *inputs)
    pieces.append(logits)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), cache) == kinds
  np.testing.assert_allclose(
    np.concatenate(pieces, 1)[mask == 1], whole[mask == 1], **CLOSE
  )


def test_without_a_cache_none_is_made():
  assert set(filled(NET)) == {"params"}
  _, changed = jax.eval_shape(
    lambda: NET.apply(filled(NET), TOKENS, mutable=["cache"])
  )
  assert not changed.get("cache")


# Scans and remat.


def test_scanned_blocks_are_the_blocks_one_after_the_other():
  scanned = NET.clone(scan_layers=True)
  shapes = jax.eval_shape(scanned.init, jax.random.key(0), TOKENS)
  variables = stacked(filled(NET))
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
    jnp.shape, dict(shapes)
  )
  np.testing.assert_allclose(
    run(scanned, variables, TOKENS).logits,
    run(NET, filled(NET), TOKENS).logits,
    **CLOSE,
  )


def test_fresh_scanned_blocks_differ_from_each_other():
  net = NET.clone(scan_layers=True)
  key = jax.random.key(0, impl="unsafe_rbg")
  params = jax.jit(net.init)(key, TOKENS)["params"]
  kernel = params["blocks"]["mlp"]["up"]["kernel"]
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01


@pytest.mark.parametrize("remat", [False, True])
def test_taps_inside_scanned_blocks_are_stacked_and_edits_are_in_all(remat):
  scanned = NET.clone(scan_layers=True, remat=remat)
  variables, path = stacked(filled(NET)), "attention/query"
  taps = (f"blocks/{path}", "blocks")
  found = run(scanned, variables, TOKENS, taps=taps).taps
  expected = run(
    NET, filled(NET), TOKENS, taps=(f"block2/{path}", "block1")
  ).taps
  np.testing.assert_allclose(
    found[taps[0]][1], expected[f"block2/{path}"], **CLOSE
  )
  np.testing.assert_allclose(found["blocks"][0], expected["block1"], **CLOSE)
  edits = {f"blocks/{path}": lambda x: 2 * x}
  both = {f"block{n}/{path}": edits[f"blocks/{path}"] for n in (1, 2)}
  np.testing.assert_allclose(
    run(scanned, variables, TOKENS, edits=edits).logits,
    run(NET, filled(NET), TOKENS, edits=both).logits,
    **CLOSE,
  )


@pytest.mark.slow  # compiles every gradient twice
def test_recomputed_blocks_have_the_taps_and_gradients_of_kept_ones():
  remat = NET.clone(remat=True)
  path = "block2/mlp/gate"
  kept, again = (
    run(net, filled(NET), TOKENS, taps=(path,)) for net in (NET, remat)
  )
  np.testing.assert_allclose(kept.taps[path], again.taps[path], **CLOSE)

  def gradient(net, variables):
    loss = lambda v: jnp.sum(net.apply(v, TOKENS) ** 2)
    return jax.jit(jax.grad(loss))(variables)

  expected = gradient(NET, filled(NET))
  scanned = remat.clone(scan_layers=True)
  for net, variables, aim in (
    (remat, filled(NET), expected),
    (scanned, stacked(filled(NET)), stacked(expected)),
  ):
    found = gradient(net, variables)
    for x, y in zip(*map(jax.tree.leaves, (found, aim)), strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # compiles every gradient twice
def test_remat_keeps_less_for_the_gradient():
  net = NET.clone(scan_layers=True, depth=6)
  variables, tokens = filled(net), np.zeros((8, 64), np.int32)

  def size(net):
    loss = lambda v: jnp.sum(net.apply(v, tokens) ** 2)
    compiled = jax.jit(jax.grad(loss)).lower(variables).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert size(net.clone(remat=True)) < 0.4 * size(net)


@pytest.mark.parametrize("remat", [False, True])
def test_dropout_differs_between_scanned_blocks(remat):
  net = NET.clone(scan_layers=True, remat=remat, dropout=0.5)
  rngs = {"dropout": jax.random.key(0, impl="unsafe_rbg")}
  path = "blocks/attention_dropout"
  taps = run(
    net, stacked(filled(NET)), TOKENS, train=True, rngs=rngs, taps=(path,)
  ).taps[path]
  assert ((taps[0] == 0) != (taps[1] == 0)).mean() > 0.2


def test_half_precision_reaches_the_cache_and_the_scan():
  net = NET.clone(scan_layers=True, dtype=jnp.bfloat16)
  cache = net.empty_cache(2, 9)
  assert {x.dtype for x in jax.tree.leaves(cache)} == {jnp.dtype("bfloat16")}
  logits, _ = read(net, stacked(filled(NET)), cache, TOKENS)
  exact = run(NET, filled(NET), TOKENS).logits
  assert logits.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    logits.astype(jnp.float32), exact, atol=0.05 * float(jnp.abs(exact).max())
  )
