"""Layers and initialisers: PyTorch's defaults, and Flax's arithmetic."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd import nets
from jaxkd.nets import fusenet, initializers, layers
from tests.nets import filling


def _assert_uniform(values, bound):
  """Asserts that `values` look drawn from `U(-bound, bound)`."""
  values = np.asarray(values).reshape(-1)
  assert np.abs(values).max() <= bound
  assert np.abs(values).max() > 0.95 * bound
  error = 5 * bound / math.sqrt(values.size)
  assert abs(values.mean()) < error
  assert abs(values.std() - bound / math.sqrt(3)) < error


@pytest.mark.parametrize(
  ("layer", "shape", "fan_in"),
  [
    (layers.Linear(400), (2, 50), 50),
    (layers.Conv(400, 3), (2, 9, 8), 24),
    (layers.Conv(400, 5), (2, 9, 9, 6), 150),
    (layers.Conv(400, 3), (2, 5, 5, 5, 2), 54),
    (layers.Conv(400, 3, groups=400), (2, 5, 5, 400), 9),
  ],
)
def test_kernel_and_bias_are_uniform_in_one_over_root_fan_in(
  layer, shape, fan_in
):
  params = jax.jit(layer.init)(jax.random.key(0), jnp.ones(shape))["params"]
  assert math.prod(params["kernel"].shape[:-1]) == fan_in
  _assert_uniform(params["kernel"], 1 / math.sqrt(fan_in))
  _assert_uniform(params["bias"], 1 / math.sqrt(fan_in))


@pytest.mark.parametrize(
  ("size", "options", "shape"),
  [
    *((3, {"strides": 2, "padding": 1}, (7, 6, 5)[:n]) for n in (1, 2, 3)),
    (3, {"strides": 2, "padding": 1, "groups": 3}, (7, 6)),
    (1, {}, (4, 5)),
    (1, {"strides": 2}, (7, 4, 5)),
    (1, {"padding": 1}, (4, 5)),
    (2, {"strides": 2}, (6,)),
    (2, {"strides": 2}, (6, 4, 8)),
    (3, {"strides": 3}, (6, 9)),
    (3, {"strides": 3}, (7, 9)),  # a row that no window sees
    (2, {"strides": 2, "groups": 2}, (6, 4)),
    (4, {"strides": 2}, (4, 4)),  # one place
  ],
)
@pytest.mark.parametrize("features", [12, 48])  # 48: windows are few
def test_convolution_and_gradients_equal_those_of_flax(
  features, size, options, shape
):
  ours = layers.Conv(features, size, **options)
  renamed = {k: v for k, v in options.items() if k != "groups"}
  theirs = nn.Conv(
    features,
    (size,) * len(shape),
    feature_group_count=options.get("groups", 1),
    **{"padding": 0, **renamed},
  )
  x = np.random.default_rng(0).normal(size=(2, *shape, 6)).astype(np.float32)
  variables = filling.random_variables(ours, x)

  @functools.partial(jax.jit, static_argnums=0)
  def found(net, variables, x):
    def energy(variables, x):
      outputs = net.apply(variables, x)
      return (outputs**2).mean(), outputs

    return jax.grad(energy, (0, 1), has_aux=True)(variables, x)

  for one, other in zip(
    jax.tree.leaves(found(ours, variables, x)),
    jax.tree.leaves(found(theirs, variables, x)),
    strict=True,
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_linear_equals_that_of_flax():
  x = np.random.default_rng(0).normal(size=(2, 3, 6))
  variables = filling.random_variables(layers.Linear(5), x)
  np.testing.assert_allclose(
    layers.Linear(5).apply(variables, x),
    nn.Dense(5).apply(variables, x),
    rtol=1e-6,
    atol=1e-6,
  )


def test_attention_of_a_mask_net_starts_as_that_of_pytorch():
  net = nets.MaskNet1d()
  x = jnp.ones((1, 60))  # hidden size 30
  variables = jax.jit(net.init)(jax.random.key(0), x)
  attention = variables["params"]["attention"]
  for name in ("query", "key", "value"):
    _assert_uniform(attention[name]["kernel"], math.sqrt(6 / (30 + 90)))
    np.testing.assert_array_equal(attention[name]["bias"], np.zeros((3, 10)))
  _assert_uniform(attention["out"]["kernel"], 1 / math.sqrt(30))
  np.testing.assert_array_equal(attention["out"]["bias"], np.zeros(30))


def test_xavier_normal_has_the_reference_deviation_and_tails():
  init = initializers.xavier_normal(0.02)
  values = np.asarray(init(jax.random.key(0), (3, 3, 64, 128)))
  stddev = 0.02 * math.sqrt(2 / (9 * 64 + 9 * 128))
  np.testing.assert_allclose(values.std(), stddev, rtol=0.02)
  assert np.abs(values).max() > 3 * stddev  # not truncated at two


def _fusenet_block(xavier_gain):
  block = fusenet.ConvBlock(widths=(512,), xavier_gain=xavier_gain)
  x = jnp.ones((1, 4, 4, 16))
  init = jax.jit(functools.partial(block.init, train=False))
  return init(jax.random.key(0), x)["params"]


def test_fusenet_starts_with_the_official_reinitialisation():
  params = _fusenet_block(0.02)
  stddev = 0.02 * math.sqrt(2 / (9 * 16 + 9 * 512))
  kernel, scale = params["conv1"]["kernel"], params["bn1"]["scale"]
  np.testing.assert_allclose(np.std(kernel), stddev, rtol=0.05)
  np.testing.assert_array_equal(params["conv1"]["bias"], np.zeros(512))
  np.testing.assert_allclose(np.mean(scale), 1, atol=0.005)
  np.testing.assert_allclose(np.std(scale), 0.02, rtol=0.15)


def test_fusenet_without_a_gain_starts_with_the_defaults():
  params = _fusenet_block(None)
  _assert_uniform(params["conv1"]["kernel"], 1 / math.sqrt(9 * 16))
  _assert_uniform(params["conv1"]["bias"], 1 / math.sqrt(9 * 16))
  np.testing.assert_array_equal(params["bn1"]["scale"], np.ones(512))
