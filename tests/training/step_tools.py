"""Steps of toy methods, as tests make them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkd import nets
from jaxkd.training.step import make_step
from tests.methods import toys


def make(method, batch, *, phase=0):
  """Returns the jitted step of a phase, its state and the frozen trees."""
  state, frozen = toys.begin(method, batch, phase=phase)
  step = make_step(method, method.phases[phase], steps_per_epoch=2)
  return jax.jit(step, donate_argnums=0), state, frozen


def run(method, batches, **options):
  """Returns the state and the metrics after steps on these batches."""
  step, state, frozen = make(method, batches[0], **options)
  record = []
  for batch in batches:
    state, metrics = step(state, frozen, batch)
    record.append(metrics)
  return state, record


def host(tree):
  """Copies arrays, keys as numbers, to the host."""

  def copy(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return np.array(leaf)

  return jax.tree.map(copy, tree)


def toy(*updates, networks=None, **options):
  networks = networks or toys.student()
  return toys.Toy(networks=networks, updates=updates, **options)


class Watched(nn.Module):
  """A net with batch statistics."""

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nets.BatchNorm(name="bn")(nn.Dense(6, name="fc")(x), train=train)
    return nn.Dense(toys.CLASSES, name="head")(x)
