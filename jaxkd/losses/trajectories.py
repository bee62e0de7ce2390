"""Training data are learned whose training leads where an expert's data led.

Notation: theta_0 the parameters from which student and expert both start,
theta_K the student's after K steps of gradient descent on the learned data,
theta* the expert's some epochs later; eta the learning rate, g_k the gradient
of step k. `gradient_descent` gives theta_K from the data, `trajectory_matching`
the loss that the data are trained by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import rows
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array
Tree = Any


def trajectory_matching(student: Tree, teacher: Tree, *, start: Tree) -> Array:
  """Squared distance to the expert's end, relative to the expert's own way.

    |theta_K - theta*|^2 / |theta_0 - theta*|^2

  over all numbers of the trees at once: networks that share a tree are matched
  as one. The sum of a call for each matches them apart, so that none counts
  less because its expert moved far.

  Args:
    student: theta_K, a tree of arrays.
    teacher: theta*, a tree of the same arrays.
    start: theta_0, a tree of the same arrays.

  Returns:
    Scalar, without unit; 0 where the expert did not move.

  Raises:
    ValueError: if the trees or the shapes in them differ.

  Needs: parameters; access white; batch level.
  Checked: zhangxin-xd/RepBlend@4724e63.
  Reference: Cazenavette et al. (MTT), https://arxiv.org/abs/2203.11932.
  """
  _same("trajectory_matching", student=student, teacher=teacher, start=start)
  left, whole = (
    sum(jax.tree.leaves(jax.tree.map(_squared_distance, tree, teacher)))
    for tree in (student, start)
  )
  return rows.over(left, whole)


def gradient_descent(
  loss: Callable[[Tree, Tree, Tree], Array],
  start: Tree,
  data: Tree,
  steps: Tree,
  *,
  learning_rates: Tree,
  through_parameters: bool = False,
  retaken: Tree | None = None,
) -> Tree:
  """Parameters after K steps of plain gradient descent on learned data.

    theta_K = theta_0 - eta sum_k g_k,
    g_k = d loss(theta_k, data, step k) / d theta

  The data get TESLA's gradient: in every g_k the parameters theta_k are
  constants, through which no earlier step is reached; the rates get theirs with
  all g_k constant. With `through_parameters` all of the unrolled training is
  differentiated, as MTT does. Both keep K copies of the parameters and redo a
  step when it is differentiated, so that no activations are kept.

  Args:
    loss: of parameters, data and one entry of `steps`, to a scalar.
    start: theta_0, a tree of arrays.
    data: a tree of arrays that the loss reads, such as all synthetic examples.
    steps: a tree of arrays [K, ...], what differs from step to step: the
      examples of a mini-batch, a key.
    learning_rates: eta, a number or a tree of them whose leaves stand for
      branches of `start`.
    through_parameters: whether a step's gradient reaches those before it.
    retaken: as `steps`, at which g_k is taken once more for the data's
      gradient, at the same theta_k: what a second pass with other dropout does.

  Returns:
    theta_K, a tree like `start`.

  Reference: Cui et al. (TESLA), https://arxiv.org/abs/2211.10586; with
    `through_parameters` Cazenavette et al., https://arxiv.org/abs/2203.11932.
  """

  def descended(parameters: Tree, gradients: Tree) -> Tree:
    move = lambda rate, p, g: jax.tree.map(lambda x, y: x - rate * y, p, g)
    return jax.tree.map(move, learning_rates, parameters, gradients)

  def step(carried: tuple[Tree, Tree], given: Tree) -> tuple[Any, None]:
    parameters, total = carried
    given, again = given
    if not through_parameters:
      parameters = stop_gradient(parameters)
    gradients = jax.grad(loss)(parameters, data, given)
    if again is not None:
      gradients = jax.tree.map(
        lambda x, y: stop_gradient(x) + (y - stop_gradient(y)),
        gradients,
        jax.grad(loss)(parameters, data, again),
      )
    total = jax.tree.map(jnp.add, total, gradients)
    return (descended(parameters, gradients), total), None

  start = jax.tree.map(at_least_float32, start)
  carried = start, jax.tree.map(jnp.zeros_like, start)
  redone = jax.checkpoint(step, prevent_cse=False)
  (parameters, total), _ = jax.lax.scan(redone, carried, (steps, retaken))
  return parameters if through_parameters else descended(start, total)


def blend(examples: Tree, *, order: Array, share: float | Array) -> Tree:
  """Every example and another one of the batch, in one proportion.

    share x_i + (1 - share) x_order(i)

  Args:
    examples: x, arrays [B, ...] in a tree, such as one of each modality: all
      are blended with the same partners and the same share.
    order: partner of every example, integers [B].
    share: lambda, 0 to 1, a scalar; 1 leaves the examples as they are.

  Returns:
    A tree like `examples`, float32 at least.

  Raises:
    ValueError: if an array has another number of examples than `order`.

  Reference: Zhang et al. (RepBlend), https://arxiv.org/abs/2505.14705; Zhang et
    al. (mixup), https://arxiv.org/abs/1710.09412.
  """

  def blended(x: Array) -> Array:
    if x.shape[:1] != order.shape:
      raise ValueError(
        f"blend: examples {x.shape}, order {order.shape}; expected [B, ...] "
        "and [B]"
      )
    x = at_least_float32(x)
    return share * x + (1 - share) * x[order]

  return jax.tree.map(blended, examples)


def _squared_distance(a: Array, b: Array) -> Array:
  return jnp.sum((at_least_float32(a) - at_least_float32(b)) ** 2)


def _same(loss: str, **trees: Tree) -> None:
  """All trees have the same structure and shapes."""
  shapes = {name: jax.tree.map(jnp.shape, tree) for name, tree in trees.items()}
  (first, expected), *others = shapes.items()
  for name, found in others:
    if found != expected:
      raise ValueError(
        f"{loss}: {first} has arrays {expected}, {name} {found}; expected the "
        "same"
      )
