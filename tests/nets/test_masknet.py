"""Mask nets equal the official ones in value, gradient and statistics.

Golden file: Gray-OREO/MST-Distill@093b2fe, float32; tolerance rtol 5e-5, atol
2e-6, for two implementations of float32 attention.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import errors
from jaxkd.nets import masknet
from tests import golden_tools
from tests.nets import name_maps

CASES = golden_tools.cases("mst_distill__masknet")
VECTOR_CASES = ("case0", "case1", "case2")
MAP_CASES = ("case3", "case4")
TOLERANCE = {"rtol": 5e-5, "atol": 2e-6}


def _case(name):
  """Returns the arrays of a case, its net, name map and variables."""
  case = CASES[name]
  heads = int(case["param_num_heads"])
  factor = int(case.get("param_hidden_dim_factor", 2))
  is_map = case["in_features"].ndim == 4
  net_class = masknet.MaskNet2d if is_map else masknet.MaskNet1d
  rules = (name_maps.mask_net_2d if is_map else name_maps.mask_net_1d)(heads)
  net = net_class(heads=heads, hidden_dim_factor=factor)
  variables = golden_tools.convert(golden_tools.section(case, "w_"), rules)
  return case, net, rules, variables


def _channels_last(array):
  return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


@functools.cache
def _mask_and_gradients(name):
  """Returns mask, new statistics and gradients of `sum(mask * cotangent)`."""
  case, net, _, variables = _case(name)
  options = {}
  if "batch_stats" in variables:
    options = {
      "train": bool(case["param_train_mode"]),
      "mutable": ["batch_stats"],
    }

  def objective(params, features):
    inputs = variables | {"params": params}
    mask = net.apply(inputs, features, **options)
    mask, updates = mask if options else (mask, {})
    return jnp.sum(mask * case["in_cotangent"]), (mask, updates)

  gradients, (mask, updates) = jax.jit(
    jax.grad(objective, argnums=(0, 1), has_aux=True)
  )(variables["params"], _channels_last(case["in_features"]))
  return mask, updates, gradients


@pytest.mark.parametrize("name", VECTOR_CASES + MAP_CASES)
def test_mask_equals_the_reference(name):
  mask, _, _ = _mask_and_gradients(name)
  np.testing.assert_allclose(mask, CASES[name]["out_mask"], **TOLERANCE)


@pytest.mark.parametrize("name", VECTOR_CASES + MAP_CASES)
def test_gradient_of_the_features_equals_the_reference(name):
  _, _, (_, gradient) = _mask_and_gradients(name)
  expected = _channels_last(CASES[name]["grad_features"])
  np.testing.assert_allclose(gradient, expected, **TOLERANCE)


@pytest.mark.parametrize("name", VECTOR_CASES + MAP_CASES)
def test_gradient_of_every_weight_equals_the_reference(name):
  case, _, rules, _ = _case(name)
  _, _, (gradients, _) = _mask_and_gradients(name)
  expected = golden_tools.convert(golden_tools.section(case, "gradw_"), rules)
  chex.assert_trees_all_close(gradients, expected["params"], **TOLERANCE)


@pytest.mark.parametrize("name", MAP_CASES)
def test_batch_statistics_after_the_call_equal_the_reference(name):
  _, updates, _ = _mask_and_gradients(name)
  stats = updates["batch_stats"]["spatial_reduce"]["bn"]
  case = CASES[name]
  np.testing.assert_allclose(
    stats["mean"], case["out_running_mean_after"], **TOLERANCE
  )
  np.testing.assert_allclose(
    stats["var"], case["out_running_var_after"], **TOLERANCE
  )


def test_masked_features_equal_the_reference():
  case = CASES["case4"]
  mask, _, _ = _mask_and_gradients("case4")
  masked = masknet.apply_mask(_channels_last(case["in_features"]), mask)
  expected = _channels_last(case["out_masked_features"])
  np.testing.assert_allclose(masked, expected, **TOLERANCE)


def test_a_one_by_one_map_is_masked_as_a_vector():
  case, net, _, variables = _case("case0")
  features = case["in_features"]
  tall = features[:, None, None, :]
  np.testing.assert_array_equal(
    net.apply(variables, tall), net.apply(variables, features)
  )
  mask = case["out_mask"]
  squeezed = masknet.apply_mask(tall, mask)
  np.testing.assert_array_equal(squeezed, features * mask)


def test_a_mask_is_the_same_at_all_places_of_a_volume():
  feature = np.ones((2, 3, 4, 5, 6), np.float32)
  mask = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 6)
  masked = masknet.apply_mask(feature, mask)
  expected = np.broadcast_to(mask[:, None, None, None], feature.shape)
  np.testing.assert_array_equal(masked, expected)


def test_a_mask_of_another_width_is_refused():
  with pytest.raises(errors.ConfigError, match=r"expected a mask of shape"):
    masknet.apply_mask(jnp.ones((2, 4, 4, 6)), jnp.ones((2, 5)))


@pytest.mark.parametrize("shape", [(2, 5), (2, 4, 4, 12)])
def test_features_without_a_hidden_size_are_refused(shape):
  net = masknet.MaskNet1d()
  with pytest.raises(errors.ConfigError, match=r"hidden_dim_factor \* heads"):
    net.init(jax.random.key(0), jnp.ones(shape))


def test_the_embedding_has_one_token_per_dimension():
  shapes = jax.eval_shape(
    masknet.MaskNet1d().init, jax.random.key(0), jnp.ones((2, 298))
  )["params"]
  assert shapes["embed"]["kernel"].shape == (298, 298 * 147)
  assert shapes["attention"]["query"]["kernel"].shape == (147, 3, 49)
