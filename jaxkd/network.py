"""Networks: pure `(init, apply)` pairs with taps and edits.

A `Network` runs a module of any library as a pure function of its variables
and of the batch entries that it names. Two things can be done to it from
outside, without touching the model:

* a **tap** reads the output of a submodule by its path (`"block2/fc1"`);
* an **edit** replaces the output of a submodule by a function of it. A tap on
  an edited path reads the edited output.

Paths are those of the module library: Linen submodule names, NNX attribute
paths, or the names given to `tap` inside a plain function.
"""

from __future__ import annotations

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
Batch = Mapping[str, Any]
Edit = Callable[[Any], Any]


@flax.struct.dataclass
class Outputs:
  """What a network returned.

  Attributes:
    value: the module's return value.
    taps: tapped submodule outputs by path.
  """

  value: Any
  taps: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def logits(self) -> Array:
    """The logits: `value`, or its `"logits"` entry if it is a mapping."""
    if isinstance(self.value, Mapping):
      if "logits" not in self.value:
        raise ConfigError(
          "the network returned no 'logits' but " + ", ".join(self.value)
        )
      return self.value["logits"]
    return self.value


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


@dataclasses.dataclass(frozen=True)
class Linen:
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
class NNX:
  """Runs a `flax.nnx` module.

  Attributes:
    factory: builds the module from `nnx.Rngs`.
  """

  factory: Callable[[nnx.Rngs], nnx.Module]

  def init(self, rng: Array, inputs: Sequence[Any]) -> Variables:
    """Returns `params` (`nnx.Param`) and `state` (all other variables)."""
    del inputs
    model = self.factory(_nnx_rngs(rng))
    _, params, state = nnx.split(model, nnx.Param, ...)
    return {
      name: flax.traverse_util.unflatten_dict(_by_name(tree))
      for name, tree in (("params", params), ("state", state))
    }

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
      _filled(state, variables["state"]),
    )
    if train:
      model.train()
    else:
      model.eval()
    if rngs:
      nnx.reseed(model, **rngs)
    call = getattr(model, method) if method else model
    arguments = _train_argument(getattr(model, method or "__call__"), train)
    with _nnx_probed(model, probe):
      value = call(*inputs, **arguments)
    if not train:
      return value, {}
    _, _, state = nnx.split(model, nnx.Param, ...)
    return value, {"state": flax.traverse_util.unflatten_dict(_by_name(state))}


def _by_name(state: nnx.State) -> dict[tuple[str, ...], Any]:
  flat = nnx.to_flat_state(state)
  return {tuple(str(part) for part in path): leaf[...] for path, leaf in flat}


def _filled(skeleton: nnx.State, values: Mapping[str, Any]) -> nnx.State:
  flat = flax.traverse_util.flatten_dict(values)
  return nnx.from_flat_state(
    [
      (path, leaf.replace(flat[tuple(str(part) for part in path)]))
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
class Pure:
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


@dataclasses.dataclass(frozen=True)
class Network:
  """A module and the batch entries that it consumes, as pure functions.

  Attributes:
    module: a Linen module, or an adapter (`NNX`, `Pure`).
    inputs: names of the batch entries, in the order of the module's
      positional arguments.
  """

  module: Any
  inputs: tuple[str, ...] = ("image",)

  def __post_init__(self):
    """Checks the module and normalises the inputs."""
    object.__setattr__(self, "inputs", tuple(self.inputs))
    if isinstance(self.module, nnx.Module):
      raise ConfigError(
        f"{type(self.module).__name__} is an NNX module with its own "
        "parameters; give NNX(factory), which builds it from rngs"
      )
    if not isinstance(self.module, (linen.Module, Linen, NNX, Pure)):
      raise ConfigError(
        f"module={self.module!r}: expected a Linen module, NNX(factory) or "
        "Pure(init_fn, apply_fn)"
      )

  @property
  def _adapter(self) -> Linen | NNX | Pure:
    if isinstance(self.module, linen.Module):
      return Linen(self.module)
    return self.module

  def _arguments(self, batch: Batch) -> list[Any]:
    for name in self.inputs:
      if name not in batch:
        raise ConfigError(
          f"the batch has no entry {name!r}"
          + did_you_mean(name, batch)
          + f" (has {', '.join(sorted(batch))}); it is an input of "
          + self.name
        )
    return [batch[name] for name in self.inputs]

  @property
  def name(self) -> str:
    """The name of the wrapped module's class."""
    module = self.module
    module = getattr(module, "factory", getattr(module, "apply_fn", module))
    return getattr(module, "__name__", type(module).__name__)

  def init(self, rng: Array, batch: Batch) -> Variables:
    """Draws fresh variables.

    Args:
      rng: a typed key.
      batch: arrays with a leading batch axis; only `inputs` are read.

    Returns:
      Variables by collection, `"params"` among them.

    Raises:
      ConfigError: if the batch lacks an input.
    """
    variables = self._adapter.init(rng, self._arguments(batch))
    return {"params": {}, **variables}

  def apply(
    self,
    variables: Variables,
    batch: Batch,
    *,
    train: bool = False,
    rngs: Mapping[str, Array] | None = None,
    taps: Sequence[str] = (),
    edits: Mapping[str, Edit] | None = None,
    method: str | None = None,
  ) -> tuple[Outputs, Variables]:
    """Runs the network.

    Args:
      variables: by collection, as `init` returns them.
      batch: arrays with a leading batch axis; only `inputs` are read.
      train: whether layers behave as in training (batch statistics,
        dropout).
      rngs: keys of random layers by name.
      taps: submodule paths whose outputs are returned.
      edits: functions put on submodule outputs, by path.
      method: runs this named method of the module in place of `__call__`.

    Returns:
      The outputs, and the collections that the pass changed (none in eval
      mode).

    Raises:
      ConfigError: for a missing batch entry or a path that does not exist.
    """
    probe = Probe(taps, edits or {})
    value, changed = self._adapter.apply(
      variables,
      self._arguments(batch),
      train=train,
      rngs=rngs or {},
      probe=probe,
      method=method,
    )
    probe.check()
    return Outputs(value=value, taps=probe.outputs()), changed

  def paths(self, batch: Batch) -> dict[str, Any]:
    """Returns every tap path with the shape of its output; runs nothing."""
    probe = Probe((), {})

    def trace(rng, arguments):
      variables = {"params": {}, **self._adapter.init(rng, arguments)}
      return self._adapter.apply(
        variables,
        arguments,
        train=False,
        rngs={},
        probe=probe,
        method=None,
      )[0]

    jax.eval_shape(trace, jax.random.key(0), self._arguments(batch))
    return dict(probe.seen)
