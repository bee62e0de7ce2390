"""Variables for a test that needs some numbers, not an initialisation.

Compiling an initialisation takes seconds for a deep net; this takes none.
"""

import jax
import numpy as np
from flax import linen as nn


def random_variables(net: nn.Module, *inputs: jax.Array) -> dict:
  """Returns float32 variables of `net`: vectors near 1, kernels of any sign."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)
  random = np.random.default_rng(0)

  def fill(leaf):
    signs = random.choice([-1.0, 1.0], leaf.shape) if leaf.ndim > 1 else 1.0
    fan_in = max(1, int(np.prod(leaf.shape[:-1])))
    values = signs * random.uniform(0.5, 1.5, leaf.shape) / np.sqrt(fan_in)
    return values.astype(np.float32)

  return jax.tree.map(fill, shapes)
