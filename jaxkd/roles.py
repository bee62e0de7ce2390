"""Roles: what a loss sees of them, what they are given, how they start."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.method import Batch, Method, Phase, Step
from jaxkd.network import Edit, Network, Outputs

Array = jax.Array
Tree = Any


def key_of(rng: Array, name: str) -> Array:
  """Folds a stable hash of a name into a key."""
  digest = hashlib.sha256(name.encode()).digest()
  return jax.random.fold_in(rng, int.from_bytes(digest[:4], "big"))


class Nets:
  """The roles of a method, as a loss sees them.

  `nets.student(batch)` runs the role `student`. Roles that the current update
  trains run in training mode, all others in evaluation mode. No gradient
  reaches a frozen role's parameters, but gradients do flow through it.

  Attributes:
    memory: what the method keeps between steps, by name.
    collections: the collections of every role, as changed so far.
    used: the roles that have been run.
  """

  def __init__(
    self,
    roles: Mapping[str, Network],
    params: Mapping[str, Tree],
    collections: Mapping[str, Tree] | None = None,
    *,
    training: Sequence[str] = (),
    rng: Array | None = None,
    memory: Mapping[str, Tree] | None = None,
  ):
    self._roles = roles
    self._params = params
    self._training = frozenset(training)
    self._rng = rng
    self._calls: dict[str, int] = {}
    self.used: set[str] = set()
    self.collections = dict(collections or {})
    self.memory = dict(memory or {})

  def __getattr__(self, role: str) -> Callable[..., Outputs]:
    if role.startswith("__"):
      raise AttributeError(role)
    return self[role]

  def __getitem__(self, role: str) -> Callable[..., Outputs]:
    if role not in self._roles:
      raise ConfigError(
        f"no role {role!r}"
        + did_you_mean(role, self._roles)
        + f" (has {', '.join(self._roles)})"
      )
    return functools.partial(self._run, role)

  def key(self, name: str) -> Array:
    """A random key for the method's own draws at this step."""
    if self._rng is None:
      raise ConfigError(f"no random key {name!r} outside of training steps")
    return key_of(self._rng, name)

  def _variables(self, role: str, batch: Batch) -> Mapping[str, Tree]:
    del batch
    return {"params": self._params[role], **self.collections.get(role, {})}

  def _run(
    self,
    role: str,
    batch: Batch,
    *,
    taps: Sequence[str] = (),
    edits: Mapping[str, Edit] | None = None,
    method: str | None = None,
    train: bool | None = None,
  ) -> Outputs:
    """Runs a role; see `Network.apply` for the arguments."""
    train = role in self._training if train is None else train
    self.used.add(role)
    rngs = {}
    if train and self._rng is not None:
      call = self._calls[role] = self._calls.get(role, -1) + 1
      rngs = {
        "dropout": jax.random.fold_in(key_of(self._rng, f"run/{role}"), call)
      }
    try:
      outputs, changed = self._roles[role].apply(
        self._variables(role, batch),
        batch,
        train=train,
        rngs=rngs,
        taps=taps,
        edits=edits,
        method=method,
      )
    except ConfigError as error:
      if str(error).startswith("role "):
        raise
      raise ConfigError(f"role {role!r}: {error}") from error
    if changed:
      self.collections[role] = {**self.collections.get(role, {}), **changed}
    return outputs


class _LazyNets(Nets):
  """Draws a role's variables at its first use and notes what it was given."""

  def __init__(self, roles, rng, memory):
    super().__init__(roles, {}, {}, memory=memory)
    self._rng = rng
    self.given: dict[str, Batch] = {}

  def _variables(self, role, batch):
    if role not in self._params:
      network = self._roles[role]
      self.given[role] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        {name: batch[name] for name in network.inputs if name in batch},
      )
      drawn = dict(network.init(jax.random.key(0), batch))
      self._params = {**self._params, role: drawn.pop("params")}
      self.collections[role] = drawn
    return super()._variables(role, batch)


@dataclasses.dataclass(frozen=True)
class Usage:
  """How a method uses its roles.

  Attributes:
    inputs: shapes of the batch entries that each role is given.
    roles: the roles that each phase runs, by its name.
    logits: shapes of the logits that each predictor gives, by its name.
  """

  inputs: Mapping[str, Batch]
  roles: Mapping[str, tuple[str, ...]]
  logits: Mapping[str, tuple[int, ...]]


def usage(method: Method, batch: Batch) -> Usage:
  """Traces all losses to see what each role is given; runs nothing.

  Roles that read taps, logits or projections of other roles get their shapes
  from them.

  Args:
    method: the method.
    batch: one batch, arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    Inputs by role, roles by phase, logits by predictor.

  Raises:
    ConfigError: if a role is never used, or networks do not fit each other or
      the batch.
  """
  roles = method.roles
  inputs: dict[str, Batch] = {}
  by_phase: dict[str, tuple[str, ...]] = {}
  logits: dict[str, tuple[int, ...]] = {}

  def trace(batch):
    nets = _LazyNets(roles, jax.random.key(0), method.memory)
    for phase in method.phases:
      nets.used = set()
      _trace_phase(phase, nets, batch)
      by_phase[phase.name] = tuple(r for r in roles if r in nets.used)
    outputs = method.outputs(nets, batch)
    logits.update({n: tuple(o.logits.shape) for n, o in outputs.items()})
    method.measure(nets, batch)
    inputs.update(nets.given)
    return 0

  try:
    jax.eval_shape(trace, dict(batch))
  except ConfigError:
    raise
  except (TypeError, ValueError) as error:
    raise ConfigError(
      f"{type(method).__name__} cannot run on this task: {error}"
    ) from error
  unused = [role for role in roles if role not in inputs]
  if unused:
    raise ConfigError(f"role {unused[0]!r} is used by no loss or prediction")
  return Usage(inputs=inputs, roles=by_phase, logits=logits)


def _trace_phase(phase: Phase, nets: Nets, batch: Batch) -> None:
  start = Step(index=jnp.int32(0), epoch=jnp.int32(0))
  full = dict(batch)
  for name, target in phase.targets.items():
    full[name] = target(nets, full)
  for update in phase.updates:
    update.loss(nets, full, start)
  if phase.validate:
    phase.validate(nets, batch)


def initialise(
  method: Method, rng: Array, inputs: Mapping[str, Batch]
) -> tuple[dict[str, Tree], dict[str, Tree]]:
  """Draws the variables of every role.

  A role's key folds in its name only, so that equal roles of two methods
  start equal.

  Args:
    method: the method.
    rng: a typed key.
    inputs: shapes of what each role is given, from `usage`.

  Returns:
    Parameters and collections by role.
  """
  params, collections = {}, {}
  for role, given in inputs.items():
    leaves, structure = jax.tree.flatten(dict(given))
    shapes = tuple((tuple(x.shape), x.dtype) for x in leaves)
    draw = _initialiser(method.roles[role], structure, shapes)
    drawn = dict(draw(key_of(rng, f"init/{role}")))
    params[role] = drawn.pop("params")
    collections[role] = drawn
  return params, collections


@functools.lru_cache(maxsize=256)
def _initialiser(
  network: Network, structure: Any, shapes: tuple
) -> Callable[[Array], Tree]:
  """Equal networks on equal inputs share one compiled initialiser."""

  @jax.jit
  def draw(rng):
    zeros = [jnp.zeros(shape, dtype) for shape, dtype in shapes]
    return network.init(rng, jax.tree.unflatten(structure, zeros))

  return draw
