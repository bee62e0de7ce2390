"""Mixtures of experts: what is picked, what is mixed, what learns."""

import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import errors, nets
from jaxkd.nets import moe
from tests import golden_tools
from tests.nets import filling

NET = nets.MixtureOfExperts(hidden=6, experts=5, chosen=2)
TOKENS = jax.random.normal(jax.random.key(0), (3, 4, 8))
VARIABLES = filling.random_variables(NET, TOKENS)
INSIDE = {"mutable": ["intermediates"], "capture_intermediates": True}


@functools.cache
def _taps(net=NET):
  _, state = net.apply(VARIABLES, TOKENS, **INSIDE)
  flat = flax.traverse_util.flatten_dict(state["intermediates"], sep="/")
  return {path.removesuffix("/__call__"): x[0] for path, x in flat.items()}


def _by_hand(tokens, params, chosen):
  """A loop over tokens and their experts, in float64."""
  p = jax.tree.map(np.float64, params)
  linear = lambda x, layer: x @ layer["kernel"] + layer["bias"]
  gelu = np.vectorize(lambda x: x * (1 + math.erf(x / 2**0.5)) / 2)
  outputs = np.zeros(tokens.shape)
  for place in np.ndindex(tokens.shape[:-1]):
    x = np.float64(tokens[place])
    scores = linear(x, p["router"]["scores"])
    best = np.argsort(-scores, kind="stable")[:chosen]
    shares = np.exp(scores[best] - scores[best].max())
    for expert, share in zip(best, shares / shares.sum(), strict=True):
      layer = p[f"expert{expert + 1}"]
      hidden = gelu(linear(x, layer["fc1"]))
      outputs[place] += share * linear(hidden, layer["fc2"])
  return outputs


@pytest.mark.parametrize("chosen", [1, 2, 5])
def test_the_mixture_is_a_loop_over_tokens_and_their_experts(chosen):
  net = NET.clone(chosen=chosen)
  expected = _by_hand(TOKENS, VARIABLES["params"], chosen)
  ours = jax.jit(net.apply)(VARIABLES, TOKENS)
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_gates_sum_to_one_and_are_zero_but_for_the_picked():
  gates = _taps()["router"]
  assert gates.shape == (3, 4, 5)
  np.testing.assert_allclose(gates.sum(-1), 1, rtol=1e-6)
  np.testing.assert_array_equal((gates > 0).sum(-1), 2)
  best = np.argsort(-_taps()["router/scores"], axis=-1)[..., :2]
  assert (np.take_along_axis(np.asarray(gates), best, -1) > 0).all()


def test_gradient_reaches_the_picked_experts_and_the_router_alone():
  token = TOKENS[0, :1]
  gates = NET.apply(VARIABLES, token, **INSIDE)[1]["intermediates"]["router"]
  picked = np.asarray(gates["__call__"][0][0]) > 0
  total = lambda params: jnp.sum(NET.apply({"params": params}, token) ** 2)
  slopes = jax.jit(jax.grad(total))(VARIABLES["params"])
  for i, here in enumerate(picked, start=1):
    leaves = jax.tree.leaves(slopes[f"expert{i}"])
    sizes = [float(jnp.abs(x).max()) for x in leaves]
    assert (min(sizes) > 0) if here else (max(sizes) == 0)
  scores = slopes["router"]["scores"]["bias"]
  np.testing.assert_array_equal(np.asarray(scores) != 0, picked)


def test_all_experts_make_a_plain_soft_mixture():
  net = NET.clone(chosen=5)
  taps = {path: x for path, x in _taps(net).items() if path.count("/") == 0}
  experts = jnp.stack([taps[f"expert{i}"] for i in range(1, 6)], axis=-2)
  gates = jax.nn.softmax(_taps(net)["router/scores"])
  expected = jnp.sum(gates[..., None] * experts, axis=-2)
  ours = net.apply(VARIABLES, TOKENS)
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_of_equal_scores_the_first_experts_are_picked():
  params = dict(VARIABLES["params"])
  params["router"] = jax.tree.map(jnp.zeros_like, params["router"])
  run = functools.partial(NET.apply, **INSIDE)
  for call in (run, jax.jit(run)):
    _, state = call({"params": params}, TOKENS)
    gates = state["intermediates"]["router"]["__call__"][0]
    expected = jnp.broadcast_to(jnp.array([0.5, 0.5, 0, 0, 0]), gates.shape)
    np.testing.assert_array_equal(gates, expected)


def test_balance_equals_the_reference():
  for a in golden_tools.cases("llava_mod__moe").values():
    value = moe.ExpertBalance().apply({}, a["out_router_logits"])
    np.testing.assert_allclose(value, a["out_aux_loss"], rtol=1e-5, atol=1e-6)


def test_balance_is_one_where_spread_evenly_and_largest_for_one_expert():
  even = 50 * jnp.eye(4)
  value = lambda scores: float(moe.ExpertBalance().apply({}, scores))
  assert value(even) == pytest.approx(1)
  assert value(jnp.tile(even[:1], (7, 1))) == pytest.approx(4)


def test_tap_paths_are_exactly_the_documented_ones():
  experts = [
    f"expert{i}{inside}" for i in range(1, 6) for inside in ("", "/fc1", "/fc2")
  ]
  router = ["router", "router/scores", "router/balance"]
  assert sorted(_taps()) == sorted(["__call__", *experts, *router])


def test_half_precision_keeps_float32_weights_and_sums_to_one():
  net = NET.clone(dtype=jnp.bfloat16)
  variables = jax.eval_shape(net.init, jax.random.key(0), TOKENS)
  assert {x.dtype.name for x in jax.tree.leaves(variables)} == {"float32"}
  half = net.apply(VARIABLES, TOKENS)
  assert half.dtype == jnp.bfloat16
  exact = NET.apply(VARIABLES, TOKENS)
  scale = float(jnp.abs(exact).max())
  np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.05 * scale)


@pytest.mark.parametrize("chosen", [0, 6])
def test_more_or_fewer_experts_than_there_are_is_refused(chosen):
  message = f"TopKRouter.chosen = {chosen}: expected 1 to 5"
  with pytest.raises(errors.ConfigError, match=message):
    NET.clone(chosen=chosen).init(jax.random.key(0), TOKENS)
