"""The least that a step could cost: its networks, each compiled alone.

A frozen role is run forward once, a role that is trained forward and backward
once, on what the step gives them. What the step takes beyond that is losses,
optimizers, networks that it runs more than once, and waste.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.method import Method
from jaxkd.parallel import Placement
from jaxkd.params import merge_params, split_params
from jaxkd.training.outline import Outline
from jaxkd.training.program import Compiled

Tree = Any


@dataclasses.dataclass(frozen=True)
class Ideal:
  """What the networks of a step take alone, on one device.

  Attributes:
    flops: of all of them together.
    temporaries: bytes of the one that needs most; None if the backend does
      not say.
  """

  flops: float
  temporaries: int | None


def ideal(method: Method, outline: Outline, placement: Placement) -> Ideal:
  """Compiles the networks that a step runs, one by one; runs nothing.

  Args:
    method: the method.
    outline: one of its phases.
    placement: on which devices.
  """
  state, frozen = outline.state, placement.put(outline.frozen)
  patterns = [p for update in outline.phase.updates for p in update.trainable]
  trained, rest = split_params(state.params, patterns)
  rest = merge_params(rest, frozen["params"])
  collections = {**frozen["collections"], **state.collections}
  alone = [
    _alone(
      method.roles[role],
      (trained.get(role, {}), rest.get(role, {}), collections[role]),
      _placed(outline.inputs[role], placement),
      placement,
      train=role in trained,
    )
    for role in sorted({run[0] for run in outline.watch.runs})
  ]
  sizes = [one.footprint.temporaries for one in alone if one.footprint]
  return Ideal(
    flops=sum(one.flops for one in alone),
    temporaries=max(sizes) if sizes else None,
  )


def _alone(
  network: Any,
  variables: tuple[Tree, Tree, Tree],
  batch: Tree,
  placement: Placement,
  *,
  train: bool,
) -> Compiled:
  """A network forward, or forward and backward, as a program of its own."""

  def run(trained, rest, collections, batch):
    outputs, changed = network.apply(
      {"params": merge_params(trained, rest), **collections},
      batch,
      train=train,
      rngs={"dropout": jax.random.key(0)} if train else {},
    )
    leaves = [
      leaf
      for leaf in jax.tree.leaves(outputs.value)
      if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return leaves, changed

  def back(cotangents, trained, *others):
    def forward(trained):
      return run(trained, *others)

    _, pull, changed = jax.vjp(forward, trained, has_aux=True)
    return pull(cotangents), changed

  if not train:
    return Compiled(jax.jit(run).lower(*variables, batch))
  leaves, _ = jax.eval_shape(run, *variables, batch)
  cotangents = _placed(leaves, placement)
  return Compiled(jax.jit(back).lower(cotangents, *variables, batch))


def _placed(tree: Tree, placement: Placement) -> Tree:
  """Shapes, split like a batch where their first axis can be."""
  mesh = placement.mesh
  parts = mesh.data * mesh.fsdp

  def place(leaf):
    split = leaf.ndim and leaf.shape[0] % parts == 0
    sharding = placement.batch if split else placement.replicated
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(place, dict(tree) if isinstance(tree, Mapping) else tree)
