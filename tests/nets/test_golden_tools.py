"""The conversion of PyTorch layouts, against loops that define the layers."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests import golden_tools as tools


def _random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_transposed_convolution_equals_pytorchs_definition():
  x, weight = _random(1, 2, 4, 3), _random(2, 5, 3, 2)  # NCHW, (in, out, k, k)
  expected = np.zeros((1, 5, 6, 4), np.float32)
  for row, column in np.ndindex(4, 3):
    patch = np.einsum("bi,iokl->bokl", x[:, :, row, column], weight)
    expected[:, :, row : row + 3, column : column + 2] += patch
  layer = nn.ConvTranspose(5, (3, 2), padding="VALID", use_bias=False)
  variables = {"params": {"kernel": tools.conv_transpose(weight)}}
  ours = layer.apply(variables, np.moveaxis(x, 1, -1))
  np.testing.assert_allclose(np.moveaxis(ours, -1, 1), expected, atol=1e-5)


def test_a_linear_layer_after_a_flatten_sees_the_same_features():
  shapes = ((2, 3, 4), (5, 2))
  parts = [_random(3, *shape) for shape in shapes]
  weight = _random(7, 2 * 3 * 4 + 5 * 2)
  theirs = np.concatenate([part.reshape(3, -1) for part in parts], 1)
  ours = np.concatenate(
    [np.moveaxis(part, 1, -1).reshape(3, -1) for part in parts], 1
  )
  np.testing.assert_array_equal(ours, theirs[:, tools.flatten_order(*shapes)])
  kernel = tools.linear_after_flatten(*shapes)(weight)
  np.testing.assert_allclose(ours @ kernel, theirs @ weight.T, atol=1e-4)


def test_a_name_without_a_rule_is_an_error():
  rules = tools.layer("fc1", "fc1", tools.linear)
  with pytest.raises(KeyError, match="fc2.weight: 0 rules"):
    tools.convert({"fc2.weight": _random(2, 2)}, rules)


def test_a_name_with_two_rules_is_an_error():
  rules = 2 * tools.layer("fc1", "fc1", tools.linear)
  with pytest.raises(KeyError, match="fc1.weight: 2 rules"):
    tools.convert({"fc1.weight": _random(2, 2)}, rules)


def test_two_names_for_one_place_are_an_error():
  rules = tools.layer(r"fc\d", "fc", tools.linear)
  weights = {"fc1.bias": _random(2), "fc2.bias": _random(2)}
  with pytest.raises(KeyError, match="params/fc/bias: set twice"):
    tools.convert(weights, rules)


def test_double_precision_lasts_as_long_as_its_context():
  with tools.double_precision():
    assert jnp.asarray(np.ones(2)).dtype == jnp.float64
  assert jnp.asarray(np.ones(2)).dtype == jnp.float32
