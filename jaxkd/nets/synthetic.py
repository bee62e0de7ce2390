"""Examples as parameters, for methods whose result is data."""

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array


class SyntheticPairs(nn.Module, kw_only=True):
  """Learned image-text pairs, their similarities and rates to train on them.

  Shapes: no input -> a dict of `image` `[pairs, *image]`, `text`
  `[pairs, text]`, `diagonal` `[pairs]`, `left` and `right` `[pairs, rank]` of
  `losses.low_rank_similarity`, `rate_image` and `rate_text`, scalars.

  Images and texts start as standard normal noise, similarities as the identity.

  Taps: none.

  Attributes:
    pairs: number of pairs.
    image: shape of an image.
    text: size of the embedding of a text.
    rank: of the similarities beside the diagonal.
    rate: first learning rate of both sides.

  Reference: Xu et al. (LoRS), https://arxiv.org/abs/2406.03793.
  """

  pairs: int
  image: tuple[int, ...]
  text: int
  rank: int = 10
  rate: float = 0.1

  @nn.compact
  def __call__(self) -> dict[str, Array]:
    """Returns all of them."""
    normal, ones = jax.nn.initializers.normal(1.0), jax.nn.initializers.ones
    rate = jax.nn.initializers.constant(self.rate)
    rows = (self.pairs, self.rank)
    return {
      name: self.param(name, start, shape, jnp.float32)
      for name, start, shape in (
        ("image", normal, (self.pairs, *self.image)),
        ("text", normal, (self.pairs, self.text)),
        ("diagonal", ones, (self.pairs,)),
        ("left", normal, rows),
        ("right", jax.nn.initializers.zeros, rows),
        ("rate_image", rate, ()),
        ("rate_text", rate, ()),
      )
    }
