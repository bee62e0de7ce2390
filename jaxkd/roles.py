"""Roles: what a loss sees of them, what they are given, how they start."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import drawing
from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.method import Batch, Method, Phase, Step
from jaxkd.network import Edit, Network, Outputs
from jaxkd.targets import NO_ANSWERS, Answers, Served, with_targets

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
    runs: how: role, whether in training mode, names of its random keys, and
      names of the collections that it changed.
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
    answers: Answers = NO_ANSWERS,
  ):
    self._roles = roles
    self._answers = answers
    self._params = params
    self._training = frozenset(training)
    self._rng = rng
    self._calls: dict[str, int] = {}
    self.used: set[str] = set()
    self.runs: set[tuple[str, bool, tuple[str, ...], tuple[str, ...]]] = set()
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

  def params(self, role: str) -> Tree:
    """The parameters of a role that has been run."""
    self._answers.refuse_parameters(role)
    return self._params[role]

  def replaced(
    self, params: Mapping[str, Tree], *, rng: Array | None = None
  ) -> Nets:
    """The same roles with other parameters of some of them.

    Changes that its runs make to collections stay with it.

    Args:
      params: parameters by role.
      rng: a key for other draws than those of this step.
    """
    other = copy.copy(self)
    other._rng = self._rng if rng is None else rng
    other._params = {**self._params, **params}
    other._answers = self._answers.without(params)
    other._calls = dict(self._calls)
    other.collections = dict(self.collections)
    return other

  def descended(
    self, role: str, loss: Callable[[Nets], Array], rate: float | Array
  ) -> Nets:
    """The roles after one step of gradient descent on a loss.

      theta' = theta - rate grad loss(theta)

    Gradients of what is computed with the result flow through the step into
    everything that the loss depends on: a hypergradient.

    Args:
      role: whose parameters make the step.
      loss: a scalar of the roles.
      rate: of the step.
    """

    def objective(params):
      return loss(self.replaced({role: params}))

    gradient = jax.grad(objective)(self.params(role))
    step = jax.tree.map(lambda w, g: w - rate * g, self.params(role), gradient)
    return self.replaced({role: step})

  def transformed(self, role: str, function: Callable[[Tree], Tree]) -> Nets:
    """The same roles with a function of a role's parameters in their place.

    Args:
      role: whose parameters.
      function: of the parameters; shapes stay.
    """
    return self.replaced({role: function(self.params(role))})

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
    if role in self._answers:
      asked = {"taps": taps, "edits": edits, "method": method, "train": train}
      return self._answers.run(role, batch, **asked)
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
    self.runs.add((role, bool(train), tuple(rngs), tuple(sorted(changed))))
    if changed:
      self.collections[role] = {**self.collections.get(role, {}), **changed}
    return outputs


class _LazyNets(Nets):
  """Draws a role's variables at its first use and notes what it was given."""

  def __init__(self, roles, rng, memory):
    super().__init__(roles, {}, {}, memory=memory)
    self._rng = rng
    self.given: dict[str, Batch] = {}

  def descended(self, role, loss, rate):
    """Shapes stay; what the loss runs is drawn."""
    loss(self)
    return self

  def transformed(self, role, function):
    """Shapes stay."""
    return self

  def _run(self, role, batch, **asked):
    """What is answered is traced too, for its shapes and its inputs."""
    answers = self._answers
    if role not in answers:
      return super()._run(role, batch, **asked)
    answers.check(role, batch, **asked)
    served, used = answers.served[role], set(self.used)
    self._answers = NO_ANSWERS
    found = super()._run(role, batch, taps=served.taps)
    self._answers, self.used = answers, used
    return served.of(found)

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
    answered: whose outputs it reads instead, and of which stream (`targets`).
    outputs: shapes of what each predictor gives, by its name.
    params: shapes of the parameters of each role.
  """

  inputs: Mapping[str, Batch]
  roles: Mapping[str, tuple[str, ...]]
  answered: Mapping[str, frozenset[tuple[str, str]]]
  outputs: Mapping[str, Outputs]
  params: Mapping[str, Tree]


def usage(
  method: Method,
  batch: Batch,
  phases: Mapping[str, Batch] | None = None,
  served: Mapping[str, Served] | None = None,
) -> Usage:
  """Traces all losses to see what each role is given; runs nothing.

  Roles that read taps, logits or projections of other roles get their shapes
  from them.

  Args:
    method: the method.
    batch: what predictors and validations are given, arrays or
      `jax.ShapeDtypeStruct`s.
    phases: what updates are given, by phase; `batch` if it is not there.
    served: the roles whose outputs the batches of phases hold.

  Returns:
    Inputs and parameters by role, roles by phase, outputs by predictor.

  Raises:
    ConfigError: if a role is never used, or networks do not fit each other or
      the batch.
  """
  roles = method.roles
  inputs: dict[str, Batch] = {}
  by_phase: dict[str, tuple[str, ...]] = {}
  answered: dict[str, frozenset[tuple[str, str]]] = {}
  names: list[str] = []

  def trace(batch, phases):
    nets = _LazyNets(roles, jax.random.key(0), method.memory)
    for phase in method.lasting_phases:
      nets.used = set()
      answers = Answers(served or {}, phases.get(phase.name, batch))
      _trace_phase(phase, nets, answers, batch)
      by_phase[phase.name] = tuple(r for r in roles if r in nets.used)
      answered[phase.name] = frozenset(answers.asked)
    outputs = method.outputs(nets, batch)
    names.extend(outputs)
    method.measure(nets, batch)
    inputs.update(nets.given)
    return list(outputs.values()), {role: nets.params(role) for role in inputs}

  try:
    outputs, params = jax.eval_shape(
      trace, dict(batch), {n: dict(b) for n, b in (phases or {}).items()}
    )
  except ConfigError:
    raise
  except (TypeError, ValueError) as error:
    raise ConfigError(
      f"{type(method).__name__} cannot run on this task: {error}"
    ) from error
  unused = [role for role in roles if role not in inputs]
  if unused:
    raise ConfigError(f"role {unused[0]!r} is used by no loss or prediction")
  found = dict(zip(names, outputs, strict=True))
  return Usage(inputs, by_phase, answered, found, params)


def _trace_phase(
  phase: Phase, nets: _LazyNets, answers: Answers, validation: Batch
) -> None:
  start = Step(index=jnp.int32(0), epoch=jnp.int32(0))
  nets._answers = answers
  full = with_targets(phase, nets, answers.batch)
  for update in phase.updates:
    update.loss(nets, full, start)
  nets._answers = NO_ANSWERS
  if phase.validate:
    phase.validate(nets, validation)


def initialise(
  method: Method,
  rng: Array,
  inputs: Mapping[str, Batch],
  place: Callable[[str, Tree], Tree] | None = None,
) -> tuple[dict[str, Tree], dict[str, Tree]]:
  """Draws the variables of every role, or loads them.

  A role's key folds in its name only, so that equal roles of two methods
  start equal. Of a network with weights what they do not hold is drawn.

  Args:
    method: the method.
    rng: a typed key.
    inputs: shapes of what each role is given, from `usage`.
    place: `(role, shapes of its variables) -> shardings`: what lies in parts
      is then drawn and loaded in parts.

  Returns:
    Parameters and collections by role.
  """
  params, collections = {}, {}
  for role, given in inputs.items():
    network, key = method.roles[role], key_of(rng, f"init/{role}")
    drawn = drawing.variables(
      network, key, given, functools.partial(place, role) if place else None
    )
    params[role] = drawn.pop("params")
    collections[role] = drawn
  return params, collections


def count_params(
  roles: Mapping[str, Network], inputs: Mapping[str, Batch]
) -> dict[str, int]:
  """The number of parameters of every role; draws nothing.

  Args:
    roles: the networks.
    inputs: shapes of what each role is given, from `usage`.
  """
  counts = {}
  for role, given in inputs.items():
    drawn = jax.eval_shape(roles[role].init, jax.random.key(0), dict(given))
    counts[role] = sum(x.size for x in jax.tree.leaves(drawn["params"]))
  return counts
