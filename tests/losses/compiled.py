"""The losses as training runs them: every call is compiled.

JAX compiles each operation of a plain call by itself, some twenty tiny
programs in place of one, which is where the time of plain tests goes.
`test_contract.py` compares plain and compiled calls of every loss; tests that
are about plain calls import `jaxkd.losses`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxkd import losses as plain


@functools.lru_cache(maxsize=1024)
def _program(function: Callable[..., Any], tree: Any, fixed: tuple) -> Any:
  """The function of its arrays; what is no array is fixed."""

  @jax.jit
  def run(arrays):
    arrays = iter(arrays)
    leaves = [next(arrays) if x is None else x[1] for x in fixed]
    args, kwargs = jax.tree.unflatten(tree, leaves)
    return function(*args, **kwargs)

  return run


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same function; arrays among its arguments are traced, no others."""

  @functools.wraps(function, updated=())
  def call(*args, **kwargs):
    leaves, tree = jax.tree.flatten((args, kwargs))
    traced = [isinstance(x, (jax.Array, np.ndarray)) for x in leaves]
    arrays = [x for x, is_array in zip(leaves, traced, strict=True) if is_array]
    fixed = tuple(
      None if is_array else (type(x), x)  # 1, 1.0 and True are equal
      for x, is_array in zip(leaves, traced, strict=True)
    )
    return _program(function, tree, fixed)(arrays)

  return call


class _Losses:
  """`jaxkd.losses` with compiled functions."""

  def __getattr__(self, name: str) -> Any:
    value = getattr(plain, name)
    return compiled(value) if inspect.isfunction(value) else value


losses = _Losses()
