"""The first variables of a network: loaded, drawn, or some of both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.network import Network

Array = jax.Array
Tree = Any


def variables(
  network: Network,
  key: Array,
  given: Mapping[str, Any],
  place: Callable[[Tree], Tree] | None = None,
) -> dict[str, Tree]:
  """Loads what the network has weights for and draws the rest.

  Args:
    network: the network.
    key: a typed key.
    given: shapes of the batch entries that it is given.
    place: shardings of a tree of shapes; what lies in parts is then drawn and
      loaded in parts.

  Returns:
    Variables by collection.
  """
  leaves, structure = jax.tree.flatten(dict(given))
  inputs = (structure, tuple((tuple(x.shape), x.dtype) for x in leaves))
  wanted = _shapes(network, inputs)
  places, ready = {}, {}
  if place is not None:
    shardings = place(wanted)
    places = flatten_dict(shardings, keep_empty_nodes=True)
    wanted = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      wanted,
      shardings,
    )
  if network.weights is not None:
    loaded = network.weights.load(wanted)
    ready = flatten_dict(loaded, keep_empty_nodes=True)
  left = tuple((path, s) for path, s in places.items() if path not in ready)
  draw = _initialiser(network, inputs, frozenset(ready), left)
  drawn = flatten_dict(draw(key), keep_empty_nodes=True)
  return unflatten_dict(drawn | ready)


@functools.lru_cache(maxsize=256)
def _shapes(network: Network, inputs: tuple) -> Tree:
  draw = _initialiser(network, inputs, frozenset(), ())
  return dict(jax.eval_shape(draw, jax.random.key(0)))


@functools.lru_cache(maxsize=256)
def _initialiser(
  network: Network, inputs: tuple, ready: frozenset, places: tuple
) -> Callable[[Array], Tree]:
  """Equal networks on equal inputs share one compiled initialiser.

  Leaves whose paths are ready are left out: nobody computes them. The others
  are put where the pairs of path and sharding say, if there are any.
  """
  structure, shapes = inputs

  def draw(rng):
    zeros = [jnp.zeros(shape, dtype) for shape, dtype in shapes]
    drawn = dict(network.init(rng, jax.tree.unflatten(structure, zeros)))
    if not ready:
      return drawn
    flat = flatten_dict(drawn, keep_empty_nodes=True)
    return unflatten_dict({p: x for p, x in flat.items() if p not in ready})

  if not places:
    return jax.jit(draw)
  return jax.jit(draw, out_shardings=unflatten_dict(dict(places)))
