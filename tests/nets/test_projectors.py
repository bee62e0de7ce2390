"""Modules that are trained beside a student: taps, shapes, initial values."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets

BLOCK = [
  f"{kind}{i}" for i in (1, 2) for kind in ("depthwise", "pointwise", "bn")
]
BLOCKS = ["block1", "block2"]
MAP, VECTOR = (2, 9, 6, 4), (2, 7)

# net, shape of its input, of its output, paths
NETS = {
  "SeparableBlock": (
    nets.SeparableBlock(features=8),
    MAP,
    (2, 5, 3, 8),
    BLOCK,
  ),
  "OFAProjector": (
    nets.OFAProjector(classes=3),
    MAP,
    (2, 3),
    [*BLOCKS, *(f"{b}/{name}" for b in BLOCKS for name in BLOCK), "fc"],
  ),
  "OFAProjector1d": (
    nets.OFAProjector1d(classes=3),
    VECTOR,
    (2, 3),
    ["fc1", "fc2"],
  ),
  "Proxy1d": (nets.Proxy1d(classes=3), VECTOR, (2, 3), ["fc1", "bn", "fc2"]),
  "Proxy2d": (nets.Proxy2d(classes=3), MAP, (2, 3), ["conv", "bn", "fc"]),
  "DenseProxy": (
    nets.DenseProxy(classes=3, size=(18, 12)),
    MAP,
    (2, 18, 12, 3),
    ["conv", "bn", "fc"],
  ),
  "AuxiliaryHead": (
    nets.AuxiliaryHead(classes=3, hidden=5),
    VECTOR,
    (2, 3),
    ["fc1", "dropout", "bn", "fc2"],
  ),
}
EVERY = pytest.mark.parametrize("name", NETS)


def _options(name):
  """`SeparableBlock` has to be told whether it trains."""
  return {"train": False} if name == "SeparableBlock" else {}


def _trace(name, **changed):
  net, shape, _, _ = NETS[name]
  net = net.clone(**changed)

  def run(key, x):
    variables = net.init(key, x, **_options(name))
    output, state = net.apply(
      variables, x, capture_intermediates=True, **_options(name)
    )
    return variables, output, state["intermediates"]

  feature = jax.ShapeDtypeStruct(shape, jnp.float32)
  return jax.eval_shape(run, jax.random.key(0), feature)


@EVERY
def test_tap_paths_and_shapes_are_the_documented_ones(name):
  _, _, shape, paths = NETS[name]
  _, output, taps = _trace(name)
  assert output.shape == shape
  del taps["__call__"]
  flat = flax.traverse_util.flatten_dict(taps, sep="/")
  found = [path.removesuffix("/__call__") for path in flat]
  assert sorted(found) == sorted(paths)
  documented = type(NETS[name][0]).__doc__
  assert all(path.split("/")[0] in documented for path in found)


@EVERY
def test_half_precision_keeps_float32_weights(name):
  variables, output, _ = _trace(name, dtype=jnp.bfloat16)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
  assert output.dtype == jnp.bfloat16


def test_a_dense_proxy_without_a_size_keeps_the_features():
  net = nets.DenseProxy(classes=3)
  output, _ = jax.eval_shape(
    net.init_with_output, jax.random.key(0), jnp.zeros(MAP)
  )
  assert output.shape == (2, 9, 6, 3)


def test_projectors_begin_with_small_linear_layers():
  net = nets.OFAProjector1d(classes=50)
  params = net.init(jax.random.key(0), jnp.zeros((1, 100)))["params"]
  for layer in params.values():
    np.testing.assert_array_equal(layer["bias"], 0)
    np.testing.assert_allclose(layer["kernel"].std(), 0.02, rtol=0.1)


def test_the_auxiliary_head_drops_outputs_in_training_only():
  net = nets.AuxiliaryHead(classes=3, dropout_rate=0.5)
  x = jax.random.normal(jax.random.key(1), (8, 7))
  variables = net.init(jax.random.key(0), x)
  one, other = (
    net.apply(
      variables,
      x,
      train=True,
      rngs={"dropout": jax.random.key(seed)},
      mutable=["batch_stats"],
    )[0]
    for seed in (2, 3)
  )
  assert not np.allclose(one, other)
  np.testing.assert_array_equal(
    net.apply(variables, x), net.apply(variables, x)
  )
