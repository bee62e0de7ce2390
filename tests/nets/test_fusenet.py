"""FuseNet: decoder positions, dropout, fusion and sizes, on a small copy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import errors
from jaxkd.nets import fusenet
from tests.nets import filling

WIDTHS = ((4, 4), (6, 6), (8, 8, 8))
SMALL = {"num_classes": 5, "widths": WIDTHS, "xavier_gain": None}


@functools.cache
def _branch():
  net = fusenet.FuseNetBranch(**SMALL)
  image = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
  return net, image, filling.random_variables(net, image)


def test_every_pixel_gets_logits():
  net, image, variables = _branch()
  logits = jax.eval_shape(net.apply, variables, image)
  assert logits.shape == (2, 16, 24, 5)


def test_the_decoder_mirrors_the_widths_of_the_encoder():
  _, _, variables = _branch()
  kernels = {
    f"{block}/{layer}": leaves["kernel"].shape[2:]
    for block, inside in variables["params"].items()
    for layer, leaves in inside.items()
    if block.startswith("decoder") and "kernel" in leaves
  }
  assert kernels == {
    "decoder3/conv1": (8, 8),
    "decoder3/conv2": (8, 8),
    "decoder3/conv3": (8, 6),
    "decoder2/conv1": (6, 6),
    "decoder2/conv2": (6, 4),
    "decoder1/conv1": (4, 4),
    "decoder1/conv2": (4, 5),
  }


def test_dropout_and_batch_statistics_act_in_training_only():
  net, image, variables = _branch()

  @functools.partial(jax.jit, static_argnames="train")
  def run(key, train):
    output, state = net.apply(
      variables,
      image,
      train=train,
      rngs={"dropout": key},
      mutable=["batch_stats"],
    )
    return output, state["batch_stats"]["encoder1"]["bn1"]["mean"]

  before = variables["batch_stats"]["encoder1"]["bn1"]["mean"]
  keys = jax.random.split(jax.random.key(0))
  (first, mean), (second, _) = (run(key, train=True) for key in keys)
  assert float(jnp.abs(first - second).max()) > 1e-3
  assert float(jnp.abs(mean - before).max()) > 1e-3
  (first, mean), (second, _) = (run(key, train=False) for key in keys)
  np.testing.assert_array_equal(first, second)
  np.testing.assert_array_equal(mean, before)


def test_the_fused_net_uses_both_inputs():
  net = fusenet.FuseNet(num_classes=5, widths=((4,), (6,), (8,)))
  image = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
  depth = jax.random.normal(jax.random.key(1), (1, 16, 16, 1))
  variables = filling.random_variables(net, image, depth)

  @jax.jit
  def jacobian(image, depth):
    def logit(image, depth):
      return net.apply(variables, image, depth)[0, 5, 5, 0]

    return jax.grad(logit, argnums=(0, 1))(image, depth)

  for gradient in jacobian(image, depth):
    assert gradient.any()


@pytest.mark.parametrize("shape", [(1, 24, 20, 3), (1, 16, 3)])
def test_a_size_that_cannot_be_halved_is_refused(shape):
  net = fusenet.FuseNetBranch(**SMALL)
  with pytest.raises(errors.ConfigError, match="multiples of 8"):
    net.init(jax.random.key(0), jnp.ones(shape))
