"""Reads golden files and turns PyTorch weights into Flax variables.

A name map is a sequence of `Rule`s, tried on every PyTorch name: exactly one
must match. It is data, so that a test of a network is a table, a shape and a
tolerance.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"

Arrays = dict[str, np.ndarray]
Converted = np.ndarray | Mapping[str, np.ndarray]


def load(name: str) -> Arrays:
  """Returns all arrays of `tests/golden/<name>.npz`."""
  with np.load(GOLDEN / f"{name}.npz") as file:
    return {key: file[key] for key in file.files}


def section(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
  """Returns the entries whose name starts with `prefix`, without it."""
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


def cases(name: str) -> dict[str, Arrays]:
  """Returns `{"case0": {...}, "case1": {...}}` of a golden file."""
  arrays = load(name)
  found = sorted(
    {key.split("_")[0] for key in arrays if key.startswith("case")}
  )
  return {case: section(arrays, f"{case}_") for case in found}


def double_precision() -> contextlib.AbstractContextManager:
  """Returns a context in which JAX computes in float64 where it is given."""
  if hasattr(jax, "enable_x64"):
    return jax.enable_x64(True)
  from jax.experimental import enable_x64  # jax < 0.8

  return enable_x64()


# Layouts: one function per kind of PyTorch weight.


def vector(weight: np.ndarray) -> np.ndarray:
  """Biases, batch-norm weights and statistics: as they are."""
  return weight


def linear(weight: np.ndarray) -> np.ndarray:
  """`(out, in)` -> `(in, out)`."""
  return weight.T


def conv(weight: np.ndarray) -> np.ndarray:
  """`(out, in, *sizes)` -> `(*sizes, in, out)`, one to three axes."""
  return np.moveaxis(weight, (1, 0), (-2, -1))


def conv_transpose(weight: np.ndarray) -> np.ndarray:
  """`(in, out, *sizes)` -> `(*sizes, in, out)` with the sizes reversed.

  PyTorch's layer is the gradient of a convolution, so its kernel is mirrored
  in comparison with `flax.linen.ConvTranspose(transpose_kernel=False)`.
  """
  kernel = np.moveaxis(weight, (0, 1), (-2, -1))
  return np.flip(kernel, axis=tuple(range(kernel.ndim - 2)))


def flatten_order(*shapes: Sequence[int]) -> np.ndarray:
  """Returns the PyTorch position of each of our flattened features.

  Args:
    *shapes: channels-first shapes without batch, one per concatenated part.

  Returns:
    Indices such that `torch_features[:, indices]` are ours.
  """
  parts, offset = [], 0
  for shape in shapes:
    size = math.prod(shape)
    index = offset + np.arange(size).reshape(shape)
    parts.append(np.moveaxis(index, 0, -1).reshape(-1))
    offset += size
  return np.concatenate(parts)


def linear_after_flatten(
  *shapes: Sequence[int],
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns `linear` for inputs that are flattened maps of these shapes."""
  order = flatten_order(*shapes)
  return lambda weight: weight.T[order]


def attention_kernels(heads: int) -> Callable[[np.ndarray], Converted]:
  """`in_proj_weight (3 E, E)` -> query, key, value `(E, heads, E / heads)`."""

  def split(weight: np.ndarray) -> Converted:
    names = ("query/kernel", "key/kernel", "value/kernel")
    parts = np.split(weight, 3)
    return {
      name: part.T.reshape(part.shape[1], heads, -1)
      for name, part in zip(names, parts, strict=True)
    }

  return split


def attention_biases(heads: int) -> Callable[[np.ndarray], Converted]:
  """`in_proj_bias (3 E,)` -> query, key, value `(heads, E / heads)`."""

  def split(weight: np.ndarray) -> Converted:
    names = ("query/bias", "key/bias", "value/bias")
    parts = np.split(weight, 3)
    return {
      name: part.reshape(heads, -1)
      for name, part in zip(names, parts, strict=True)
    }

  return split


def attention_out(heads: int) -> Callable[[np.ndarray], np.ndarray]:
  """`out_proj.weight (E, E)` -> `(heads, E / heads, E)`."""
  return lambda weight: weight.T.reshape(heads, -1, weight.shape[0])


# Name maps.


@dataclasses.dataclass(frozen=True)
class Rule:
  """One line of a name map.

  Attributes:
    pattern: regular expression for the whole PyTorch name.
    path: where it goes, `params/...` or `batch_stats/...`; may use groups.
    convert: change of layout; may give several arrays by sub-path.
  """

  pattern: str
  path: str
  convert: Callable[[np.ndarray], Converted] = vector


def layer(
  pattern: str, path: str, kernel: Callable[[np.ndarray], np.ndarray]
) -> tuple[Rule, ...]:
  """Returns the rules of a layer with a weight and perhaps a bias."""
  return (
    Rule(rf"{pattern}\.weight", f"params/{path}/kernel", kernel),
    Rule(rf"{pattern}\.bias", f"params/{path}/bias"),
  )


def batch_norm(pattern: str, path: str) -> tuple[Rule, ...]:
  """Returns the rules of a batch norm."""
  return (
    Rule(rf"{pattern}\.weight", f"params/{path}/scale"),
    Rule(rf"{pattern}\.bias", f"params/{path}/bias"),
    Rule(rf"{pattern}\.running_mean", f"batch_stats/{path}/mean"),
    Rule(rf"{pattern}\.running_var", f"batch_stats/{path}/var"),
  )


def convert(
  weights: Mapping[str, np.ndarray], rules: Sequence[Rule]
) -> dict[str, dict]:
  """Returns Flax variables from PyTorch weights.

  Args:
    weights: arrays by PyTorch name.
    rules: the name map; exactly one rule must match each name.

  Returns:
    `{"params": ..., "batch_stats": ...}`, nested dicts of float arrays.

  Raises:
    KeyError: no rule or several rules match a name.
  """
  tree: dict[str, dict] = {}
  for name, weight in weights.items():
    found = [
      (rule, match)
      for rule in rules
      if (match := re.fullmatch(rule.pattern, name))
    ]
    if len(found) != 1:
      raise KeyError(f"{name}: {len(found)} rules match, expected 1")
    rule, match = found[0]
    path, converted = match.expand(rule.path), rule.convert(weight)
    if not isinstance(converted, Mapping):
      converted = {"": converted}
    for suffix, array in converted.items():
      _put(tree, f"{path}/{suffix}".rstrip("/"), array)
  return tree


def _put(tree: dict, path: str, array: np.ndarray) -> None:
  """Sets the leaf at `path`, which must be new."""
  *folders, leaf = path.split("/")
  for folder in folders:
    tree = tree.setdefault(folder, {})
  if leaf in tree:
    raise KeyError(f"{path}: set twice")
  tree[leaf] = np.ascontiguousarray(array)


# Weights and inputs given by a formula instead of stored.


def formula(size: int, index: int, phase: float) -> np.ndarray:
  """Returns `frac(43758.5453 sin(12.9898 i + 78.233 index + phase))`.

  Args:
    size: number of values, `i = 0 ... size - 1`.
    index: number of the array.
    phase: seed of the set.

  Returns:
    float64 `[size]` in [0, 1).
  """
  angle = 12.9898 * np.arange(size) + 78.233 * index + phase
  values = np.sin(angle) * 43758.5453
  return values - np.floor(values)


def formula_weights(names_shapes: str, phase: float) -> Arrays:
  """Returns the weights that a list of names and shapes stands for.

  Args:
    names_shapes: JSON list of `[name, PyTorch shape]` in their order.
    phase: seed of the set.

  Returns:
    float32 arrays by PyTorch name.
  """
  entries = json.loads(names_shapes)
  shapes = dict(entries)
  weights = {}
  for index, (name, shape) in enumerate(entries):
    signed = 2 * formula(math.prod(shape), index, phase) - 1
    stem, kind = name.rsplit(".", 1)
    if kind == "running_var":
      values = 1 + 0.5 * signed**2
    elif kind in ("running_mean", "bias"):
      values = 0.05 * signed
    elif f"{stem}.running_var" in shapes:
      values = 1 + 0.1 * signed
    else:
      values = math.sqrt(6 / math.prod(shape[1:])) * signed
    weights[name] = values.reshape(shape).astype(np.float32)
  return weights
