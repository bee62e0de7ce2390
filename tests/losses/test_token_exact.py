"""A token-level loss does not see how its tokens were packed.

Micro-batches, padding sequences, padding positions and devices: the loss and
the gradient of a real training step are the same to 1e-6 of their scale, with
masks so uneven that some micro-batches and devices have no token at all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkd.method import Loss
from jaxkd.network import Network
from jaxkd.parallel import Mesh, Placement
from jaxkd.training.step import make_step
from tests.losses.compiled import losses
from tests.methods import toys

LENGTHS = (5, 1, 0, 6, 0, 0, 2, 3)
WIDTH, VOCABULARY = 6, 11


class Decoder(nn.Module):
  """Hidden states, an output head, and their logits."""

  @nn.compact
  def __call__(self, x, *, train=False):
    del train
    hidden = nn.tanh(nn.Dense(7, name="fc")(x))
    head = self.param("head", nn.initializers.lecun_normal(), (7, VOCABULARY))
    return {"hidden": hidden, "head": head, "logits": hidden @ head}


def dense(view, batch, step):
  """KL of logits."""
  del step
  values = losses.kl(
    view.student(batch).logits,
    view.teacher(batch).logits,
    temperature=2.0,
    where=batch["tokens"],
  )
  return Loss.mean(values, where=batch["tokens"])


def linear(view, batch, step):
  """KL of hidden states and heads, in tiles of five tokens."""
  del step
  student, teacher = (view[r](batch).value for r in ("student", "teacher"))
  total = losses.linear_divergence(
    losses.kl,
    student["hidden"],
    student["head"],
    teacher["hidden"],
    teacher["head"],
    temperature=2.0,
    where=batch["tokens"],
    token_chunk=5,
  )
  weight = jnp.sum(batch["tokens"])
  return Loss(total=total, weight=weight, metrics={}, memory={})


def _batch(rows, columns):
  """The tokens at the front, padding of large numbers behind them."""
  random = np.random.default_rng(5)
  image = np.full((rows, columns, WIDTH), 30.0, np.float32)
  tokens = np.zeros((rows, columns), np.float32)
  for row, length in enumerate(LENGTHS):
    image[row, :length] = random.normal(size=(length, WIDTH))
    tokens[row, :length] = 1
  mask = (np.arange(rows) < len(LENGTHS)).astype(np.float32)
  return {"image": image, "tokens": tokens, "mask": mask}


@functools.cache
def _step(loss, parts=1, rows=8, columns=6, mesh=None):
  """Mean loss, number of tokens, and gradients of one training step."""
  network = Network(Decoder(), inputs=("image",))
  update = toys.update(
    loss=loss, accumulate=parts, optimizer=optax.sgd(0.1, momentum=0.9)
  )
  method = toys.Toy(
    networks={"teacher": network, "student": network}, updates=(update,)
  )
  batch = _batch(rows, columns)
  state, frozen = toys.begin(method, batch)
  if mesh is not None:
    placement = Placement(mesh)
    state, frozen = (
      jax.device_put(tree, placement.of(tree)) for tree in (state, frozen)
    )
    batch = placement.put_batch(batch)
  step = make_step(method, method.phases[0], steps_per_epoch=1)
  state, metrics = jax.jit(step)(state, frozen, batch)
  assert metrics["finite"]
  total, weight = metrics["loss"]
  gradients = state.optimizer["loss"][0].trace  # the first momentum
  return (
    float(total / weight),
    float(weight),
    jax.tree.map(np.asarray, gradients),
  )


@pytest.mark.parametrize("loss", [dense, linear])
@pytest.mark.parametrize(
  "packing",
  [
    {"parts": 2},
    {"parts": 4},
    {"parts": 8},
    {"rows": 24},
    {"columns": 17},
    {"mesh": Mesh(data=8)},
    {"mesh": Mesh(data=2, fsdp=4), "rows": 16, "columns": 9, "parts": 2},
  ],
  ids=lambda packing: "-".join(packing),
)
def test_packing_changes_neither_loss_nor_gradient(loss, packing):
  mean, weight, gradients = _step(loss, **packing)
  expected, tokens, slopes = _step(loss)
  assert weight == tokens == sum(LENGTHS)
  np.testing.assert_allclose(mean, expected, rtol=1e-6)
  for ours, theirs in zip(
    jax.tree.leaves(gradients), jax.tree.leaves(slopes), strict=True
  ):
    scale = np.abs(theirs).max()
    assert scale > 1e-4
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * scale)


def test_the_linear_form_makes_the_step_of_the_dense_one():
  (mean, _, gradients), (expected, _, slopes) = _step(linear), _step(dense)
  np.testing.assert_allclose(mean, expected, rtol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
    gradients,
    slopes,
  )
