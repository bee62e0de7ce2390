"""Stochastic depth drops whole examples in training, more in later blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.nets import stochastic_depth
from jaxkd.network import Network
from tests.nets import filling

VIT = nets.VisionTransformer(
  image_size=8, patch=4, width=8, depth=3, heads=2, hidden=12, num_classes=3
)
LITE = nets.EfficientNet(
  width=0.1, stages=((1, 3, 1, 1, 8), (3, 3, 2, 2, 16)), squeeze=0.0
)
IMAGES = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
DROP = stochastic_depth.drop


def run(net, variables, rng=None, **options):
  """The net's outputs: in training mode if there is a key."""

  @jax.jit
  def call(variables, rng):
    mode = {} if rng is None else {"train": True, "rngs": {"dropout": rng}}
    return Network(net).apply(variables, {"image": IMAGES}, **mode, **options)

  return call(variables, rng)[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_quarter_of_the_examples_is_dropped_and_the_mean_stays(dtype):
  added = jnp.ones((4000, 2, 3), dtype)
  found = np.float32(DROP(jax.random.key(0), added, 0.25))
  assert {*np.unique(found)} == {0, np.float32(dtype(1) / dtype(0.75))}
  assert (found == found[:, :1, :1]).all()  # whole examples
  assert found.mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("scan", [False, True])
def test_a_part_of_a_block_is_left_out_or_scaled(scan):
  net = VIT.clone(stochastic_depth=0.5)
  variables = filling.random_variables(VIT, IMAGES)
  parts = ["attention_dropout", "mlp_dropout"]
  paths = [f"block3/{part}" for part in parts]
  names = ["block1", "block2", "block3"]
  if scan:
    net = net.clone(scan_layers=True, remat=True)
    blocks = [variables["params"].pop(name) for name in names]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
    variables["params"]["blocks"] = stack
    paths = [f"blocks/{part}" for part in parts]
    names = ["blocks"]
  taps = run(net, variables, jax.random.key(1), taps=(*names, *paths)).taps
  added = [taps[path][-1] if scan else taps[path] for path in paths]
  second, third = taps["blocks"][1:] if scan else map(taps.get, names[1:])
  # Of the last block's parts every one is there twice or not at all.
  choices = [a * added[0] + b * added[1] for a in (0, 2) for b in (0, 2)]
  misses = np.abs(np.stack(choices) - (third - second)[None]).max((2, 3))
  np.testing.assert_allclose(misses.min(0), 0, atol=1e-5)
  assert len({*misses.argmin(0)}) == 4


@pytest.mark.parametrize("net", [VIT, LITE], ids=["vit", "lite"])
def test_in_training_alone_a_key_decides(net):
  variables = filling.random_variables(net, IMAGES)
  dropping = net.clone(stochastic_depth=0.5)
  keys = [jax.random.key(seed) for seed in (1, 1, 2)]
  first, again, other = (run(dropping, variables, k).logits for k in keys)
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3
  still = run(dropping, variables).logits
  np.testing.assert_array_equal(still, run(net, variables).logits)


@pytest.mark.parametrize(
  ("net", "expected"),
  [
    (VIT, [0, 0, 0.1, 0.1, 0.2, 0.2]),  # two parts of each block
    (VIT.clone(depth=1), [0, 0]),
    # Of 16 blocks, those that add their input.
    (
      nets.efficientnet_variant("b0"),
      [0.2 * i / 16 for i in (2, 4, 6, 7, 9, 10, 12, 13, 14)],
    ),
  ],
  ids=["vit", "one block", "b0"],
)
def test_the_probability_grows_linearly(net, expected, monkeypatch):
  found = []

  def drop(key, added, probability):
    found.append(float(probability))
    return DROP(key, added, probability)

  variables = jax.eval_shape(net.init, jax.random.key(0), IMAGES)
  monkeypatch.setattr(stochastic_depth, "drop", drop)
  jax.eval_shape(
    lambda v: net.clone(stochastic_depth=0.2).apply(
      v,
      IMAGES,
      train=True,
      rngs={"dropout": jax.random.key(0)},
      mutable=["batch_stats"],
    ),
    variables,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("net", [VIT, LITE], ids=["vit", "lite"])
@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_what_is_no_probability_below_1_is_refused(net, probability):
  net = net.clone(stochastic_depth=probability)
  with pytest.raises(ConfigError, match=rf"depth={probability}: expected a"):
    jax.eval_shape(net.init, jax.random.key(0), IMAGES)
