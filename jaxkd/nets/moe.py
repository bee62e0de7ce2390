"""Mixtures of experts: every token is mapped by the few that its router picks.

All experts run on all tokens and the gates of those that were not picked are
0, so that shapes do not depend on the choices.

Reference: Riquelme et al. (V-MoE), https://arxiv.org/abs/2106.05974, Sec. 2;
the softmax is over the scores that were picked.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd import errors
from jaxkd.nets import layers

Array = jax.Array


class FeedForward(nn.Module, kw_only=True):
  """Two linear layers with an exact GELU between them.

  Shapes: `[..., D]` -> `[..., D]`.

  Taps:
    fc1: `[..., hidden]`, before its activation.
    fc2: `[..., D]`.

  Attributes:
    hidden: size of the layer between.
    dtype: computation type; None: float32.
  """

  hidden: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the map of `inputs`."""
    x = layers.Linear(self.hidden, dtype=self.dtype, name="fc1")(inputs)
    x = nn.gelu(x, approximate=False)
    return layers.Linear(inputs.shape[-1], dtype=self.dtype, name="fc2")(x)


class ExpertBalance(nn.Module):
  """How unevenly tokens are spread over E experts: 1 if evenly, up to E if not.

    E sum_e f_e P_e, f_e = share of the tokens whose largest score is that of e,
    P_e = mean of softmax(scores)_e over the tokens

  Gradient flows through P alone.

  Shapes: scores `[..., E]` -> `[]`, float32.

  Reference: Fedus et al., https://arxiv.org/abs/2101.03961, Eq. 4.
  """

  @nn.compact
  def __call__(self, scores: Array) -> Array:
    """Returns the value for all tokens together."""
    count = scores.shape[-1]
    rows = scores.reshape(-1, count).astype(jnp.float32)
    first = jax.nn.one_hot(jnp.argmax(rows, axis=-1), count)
    probabilities = jax.nn.softmax(rows, axis=-1)
    return count * jnp.sum(first.mean(0) * probabilities.mean(0))


class TopKRouter(nn.Module, kw_only=True):
  """Shares of the experts in the output of each token.

  A softmax over the largest scores; the other experts have a share of 0 and
  get no gradient. Of equal scores the expert with the lower number is picked.

  Shapes: `[..., D]` -> gates `[..., experts]`, which sum to 1.

  Taps:
    scores: `[..., experts]`.
    balance: `[]`, see `ExpertBalance`; what nobody taps is not computed.

  Attributes:
    experts: how many there are.
    chosen: how many of them a token is given.
    dtype: computation type; None: float32.
  """

  experts: int = 8
  chosen: int = 2
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the gates of `inputs`."""
    if not 1 <= self.chosen <= self.experts:
      raise errors.ConfigError(
        f"TopKRouter.chosen = {self.chosen}: expected 1 to {self.experts}, "
        "the number of experts"
      )
    linear = layers.Linear(self.experts, dtype=self.dtype, name="scores")
    scores = linear(inputs)
    ExpertBalance(name="balance")(scores)
    _, best = jax.lax.top_k(scores, self.chosen)
    picked = jax.nn.one_hot(best, self.experts, dtype=bool).any(-2)
    exact = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    gates = jax.nn.softmax(jnp.where(picked, exact, -jnp.inf), axis=-1)
    return gates.astype(scores.dtype)


class MixtureOfExperts(nn.Module, kw_only=True):
  """The experts of V-MoE, in the place of a transformer block's MLP.

  Shapes: `[..., D]` -> `[..., D]`.

  Taps:
    router: gates `[..., experts]`; inside: `scores`, `balance`.
    expert1, expert2, ...: `[..., D]`, before their gates; inside: `fc1`, `fc2`.

  Attributes:
    hidden: size of the layer inside each expert.
    experts: how many there are.
    chosen: how many of them a token is given.
    dtype: computation type; None: float32.
  """

  hidden: int
  experts: int = 8
  chosen: int = 2
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the mixture for each token of `inputs`."""
    router = TopKRouter(
      experts=self.experts, chosen=self.chosen, dtype=self.dtype, name="router"
    )
    gates = router(inputs)
    experts = [
      FeedForward(hidden=self.hidden, dtype=self.dtype, name=f"expert{i}")
      for i in range(1, self.experts + 1)
    ]
    outputs = jnp.stack([expert(inputs) for expert in experts], axis=-2)
    return jnp.einsum("...e,...ed->...d", gates, outputs)
