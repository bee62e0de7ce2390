"""Adapters: how a module of each library is run with taps and edits.

An adapter has `init(rng, inputs) -> variables` and `apply(variables, inputs,
train, rngs, probe, method) -> (value, changed collections)`, and lets a `Probe`
see the output of every submodule under its path.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen, nnx

from jaxkd.errors import ConfigError, did_you_mean

Array = jax.Array
Variables = Mapping[str, Any]
Edit = Callable[[Any], Any]


class Probe:
  """Applies edits and records what a forward pass went through."""

  def __init__(self, taps: Sequence[str], edits: Mapping[str, Edit]):
    self.taps = tuple(taps)
    self.edits = dict(edits)
    self.seen: dict[str, Any] = {}  # path -> shapes of its (edited) output
    self.taken: dict[str, list[Any]] = {}

  def visit(self, path: str, output: Any, keep: bool = True) -> Any:
    """Passes one submodule's output through its edit; keeps a tapped one."""
    if path in self.edits:
      output = self.edits[path](output)
    self.seen[path] = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), output
    )
    if keep and path in self.taps:
      self.taken.setdefault(path, []).append(output)
    return output

  def check(self) -> None:
    """Raises `ConfigError` for a tap or edit that cannot be served."""
    for kind, paths in (("tap", self.taps), ("edit", self.edits)):
      for path in paths:
        if path not in self.seen:
          raise ConfigError(
            f"{kind} path {path!r}: no such submodule"
            + did_you_mean(path, self.seen)
            + f" (has {', '.join(sorted(self.seen))})"
          )
    for path in self.taps:
      if path not in self.taken:
        raise ConfigError(
          f"tap path {path!r}: the output does not leave the loop that it is "
          "in; give nn.scan variable_axes={'intermediates': 0, ...}"
        )

  def outputs(self) -> dict[str, Any]:
    """Tapped outputs; a submodule called several times gives a tuple."""
    return {
      path: values[0] if len(values) == 1 else tuple(values)
      for path, values in self.taken.items()
    }


_probes: list[Probe] = []


@contextlib.contextmanager
def _probing(probe: Probe) -> Iterator[Probe]:
  _probes.append(probe)
  try:
    yield probe
  finally:
    _probes.pop()


def tap(path: str, output: Any) -> Any:
  """Names a value inside a plain `apply` function, so that it has a path.

  Args:
    path: the name, unique within the function.
    output: the value.

  Returns:
    The value, edited if the caller of the network asked for an edit.
  """
  return _probes[-1].visit(path, output) if _probes else output


class Adapter(abc.ABC):
  """Runs the modules of one library; hashed, as compiled functions keep it."""

  @abc.abstractmethod
  def init(self, rng: Array, inputs: Sequence[Any]) -> Variables:
    """Returns fresh variables by collection."""

  @abc.abstractmethod
  def apply(
    self,
    variables: Variables,
    inputs: Sequence[Any],
    *,
    train: bool,
    rngs: Mapping[str, Array],
    probe: Probe,
    method: str | None,
  ) -> tuple[Any, Variables]:
    """Returns the value and the collections that the pass changed."""


@dataclasses.dataclass(frozen=True)
class Linen(Adapter):
  """Runs a `flax.linen` module."""

  module: linen.Module

  def init(self, rng: Array, inputs: Sequence[Any]) -> Variables:
    """Returns fresh variables by collection."""
    variables = self.module.init({"params": rng, "dropout": rng}, *inputs)
    return {k: v for k, v in variables.items() if k != "intermediates"}

  def apply(
    self,
    variables: Variables,
    inputs: Sequence[Any],
    *,
    train: bool,
    rngs: Mapping[str, Array],
    probe: Probe,
    method: str | None,
  ) -> tuple[Any, Variables]:
    """Returns the value and the collections that the pass changed."""

    def intercept(call, args, kwargs, context):
      output = call(*args, **kwargs)
      if context.method_name != "__call__" or not context.module.path:
        return output
      return probe.visit("/".join(context.module.path), output, keep=False)

    def tapped(module, method_name):
      path = "/".join(module.path)
      return method_name == "__call__" and path in probe.taps

    mutable = [c for c in variables if c != "params"] if train else []
    if probe.taps:
      mutable = [*mutable, "intermediates"]
    with linen.intercept_methods(intercept):
      value = self.module.apply(
        variables,
        *inputs,
        **_train_argument(getattr(self.module, method or "__call__"), train),
        rngs=rngs,
        method=method,
        mutable=mutable or False,
        capture_intermediates=tapped if probe.taps else False,
      )
    value, changed = value if mutable else (value, {})
    changed = dict(changed)
    # Sown values leave lifted transforms (remat, scan) as proper outputs,
    # which a recorder in Python could not do.
    sown = changed.pop("intermediates", {})
    for path in probe.taps:
      node = sown
      for part in path.split("/"):
        node = node.get(part, {})
      if "__call__" in node:
        probe.taken[path] = list(node["__call__"])
    return value, changed


@dataclasses.dataclass(frozen=True)
class NNX(Adapter):
  """Runs a `flax.nnx` module.

  Attributes:
    factory: builds the module from `nnx.Rngs`.
  """

  factory: Callable[[nnx.Rngs], nnx.Module]

  def init(self, rng: Array, inputs: Sequence[Any]) -> Variables:
    """Returns `params` (`nnx.Param`) and `state` (all other variables)."""
    del inputs
    return nnx_variables(self.factory(_nnx_rngs(rng)))

  def apply(
    self,
    variables: Variables,
    inputs: Sequence[Any],
    *,
    train: bool,
    rngs: Mapping[str, Array],
    probe: Probe,
    method: str | None,
  ) -> tuple[Any, Variables]:
    """Returns the value and the new `state` collection when training."""
    graph, params, state = _nnx_skeleton(self.factory)
    model = nnx.merge(
      graph,
      _filled(params, variables["params"]),
      _filled(state, variables["state"], rngs),
    )
    if train:
      model.train()
    else:
      model.eval()
    call = getattr(model, method) if method else model
    arguments = _train_argument(getattr(model, method or "__call__"), train)
    with _nnx_probed(model, probe):
      value = call(*inputs, **arguments)
    if not train:
      return value, {}
    _, _, state = nnx.split(model, nnx.Param, ...)
    return value, {"state": flax.traverse_util.unflatten_dict(_by_name(state))}


def nnx_variables(module: nnx.Module) -> Variables:
  """The variables of an NNX module, as `NNX` draws and takes them."""
  _, params, state = nnx.split(module, nnx.Param, ...)
  return {
    name: flax.traverse_util.unflatten_dict(_by_name(tree))
    for name, tree in (("params", params), ("state", state))
  }


def _by_name(state: nnx.State) -> dict[tuple[str, ...], Any]:
  flat = nnx.to_flat_state(state)
  return {tuple(str(part) for part in path): leaf[...] for path, leaf in flat}


def _filled(
  skeleton: nnx.State,
  values: Mapping[str, Any],
  rngs: Mapping[str, Array] | None = None,
) -> nnx.State:
  """The skeleton with these values, its random streams begun anew by name."""
  flat = flax.traverse_util.flatten_dict(values)
  rngs = rngs or {}

  def value(path, leaf):
    old = flat[tuple(str(part) for part in path)]
    if getattr(leaf, "tag", None) not in rngs:
      return old
    if isinstance(leaf, nnx.RngKey):
      return rngs[leaf.tag]
    return jnp.zeros_like(old) if isinstance(leaf, nnx.RngCount) else old

  return nnx.from_flat_state(
    [
      # New variables, so that they belong to the present trace.
      (path, leaf.from_metadata(value(path, leaf), dict(leaf.get_metadata())))
      for path, leaf in nnx.to_flat_state(skeleton)
    ]
  )


@functools.lru_cache(maxsize=64)
def _nnx_skeleton(factory):
  abstract = nnx.eval_shape(lambda: factory(_nnx_rngs(jax.random.key(0))))
  return nnx.split(abstract, nnx.Param, ...)


def _nnx_rngs(rng: Array) -> nnx.Rngs:
  """Streams of which `dropout` can be reseeded by its name."""
  return nnx.Rngs(rng, dropout=rng)


@contextlib.contextmanager
def _nnx_probed(model: nnx.Module, probe: Probe) -> Iterator[None]:
  """Puts a recording call in front of every submodule, then takes it out."""
  holders: list[tuple[Any, Any, Any]] = []

  def replace(container, key, module, path):
    def probed(*args, **kwargs):
      return probe.visit(path, module(*args, **kwargs))

    holders.append((container, key, module))
    container[key] = probed

  def walk(module, prefix):
    for name, child in list(vars(module).items()):
      place(vars(module), name, child, f"{prefix}{name}")

  def place(container, key, child, path):
    if isinstance(child, Sequence) and not isinstance(child, str):
      for index, item in enumerate(child):
        place(child, index, item, f"{path}/{index}")
    elif isinstance(child, nnx.Module):
      walk(child, f"{path}/")
      if callable(child):
        replace(container, key, child, path)

  walk(model, "")
  try:
    yield
  finally:
    for container, key, module in reversed(holders):
      container[key] = module


@dataclasses.dataclass(frozen=True)
class Pure(Adapter):
  """Runs a pair of plain functions.

  Attributes:
    init_fn: `(rng, *inputs) -> variables`, a dict with a `params` entry.
    apply_fn: `(variables, *inputs) -> value`; a `train` keyword is passed if
      the function takes one, and then it returns `(value, collections)`.
      Values named with `tap` can be tapped and edited.
  """

  init_fn: Callable[..., Variables]
  apply_fn: Callable[..., Any]

  def init(self, rng: Array, inputs: Sequence[Any]) -> Variables:
    """Returns fresh variables by collection."""
    return self.init_fn(rng, *inputs)

  def apply(
    self,
    variables: Variables,
    inputs: Sequence[Any],
    *,
    train: bool,
    rngs: Mapping[str, Array],
    probe: Probe,
    method: str | None,
  ) -> tuple[Any, Variables]:
    """Returns the value and the collections that the pass changed."""
    del rngs
    if method is not None:
      raise ConfigError(f"method={method!r}: a plain function has no methods")
    arguments = _train_argument(self.apply_fn, train)
    with _probing(probe):
      result = self.apply_fn(variables, *inputs, **arguments)
    if not arguments:
      return result, {}
    value, changed = result
    return value, changed if train else {}


def _train_argument(function: Callable[..., Any], train: bool) -> dict:
  takes = "train" in inspect.signature(function).parameters
  return {"train": train} if takes else {}
