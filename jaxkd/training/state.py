"""The training state: one pytree, all that a checkpoint of a phase holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp

from jaxkd.method import Method, Phase
from jaxkd.parallel import Placement
from jaxkd.params import split_params
from jaxkd.roles import key_of

Array = jax.Array
Tree = Any


@flax.struct.dataclass
class State:
  """What a phase's step changes.

  Attributes:
    step: steps made in this phase, int32.
    failed: the first step of this phase at which a loss, gradient or statistic
      was not finite, int32; -1 if there was none. From then on a step changes
      nothing else. What the parameters tell is in `step.first_failure`.
    rng: the phase's typed key; every draw folds in step and names.
    params: parameters by role, of the roles that this phase trains.
    collections: other variables (batch statistics) of these roles.
    optimizer: optax states by update.
    memory: what the method keeps between steps, by name.
  """

  step: Array
  failed: Array
  rng: Array
  params: Mapping[str, Tree]
  collections: Mapping[str, Tree]
  optimizer: Mapping[str, Tree]
  memory: Mapping[str, Tree]


@dataclasses.dataclass(frozen=True)
class Fitted:
  """What training left.

  Attributes:
    params: parameters by role.
    collections: other variables by role.
    memory: what the method kept between steps, by name.
    timing: by phase; a phase that was not trained here says why.
  """

  params: Mapping[str, Tree]
  collections: Mapping[str, Tree]
  memory: Mapping[str, Tree]
  timing: Mapping[str, Mapping[str, Any]]


@flax.struct.dataclass
class Best:
  """The trained roles and the memory where the validation loss was lowest.

  Attributes:
    loss: that loss, float32; inf before the first validation.
    epoch: the 0-based validation at which it was measured, int32.
    seen: validations made so far, int32.
    params: parameters by role.
    collections: collections by role.
    memory: what the method keeps between steps, by name.
  """

  loss: Array
  epoch: Array
  seen: Array
  params: Mapping[str, Tree]
  collections: Mapping[str, Tree]
  memory: Mapping[str, Tree]

  @classmethod
  def of(cls, state: State) -> Best:
    """The snapshot before any validation."""
    return cls(
      loss=jnp.float32(jnp.inf),
      epoch=jnp.int32(-1),
      seen=jnp.int32(0),
      params=jax.tree.map(jnp.copy, state.params),
      collections=jax.tree.map(jnp.copy, state.collections),
      memory=jax.tree.map(jnp.copy, state.memory),
    )


def create(
  method: Method,
  phase: Phase,
  variables: tuple[Mapping[str, Tree], Mapping[str, Tree]],
  *,
  rng: Array,
  memory: Mapping[str, Tree],
) -> State:
  """Builds the state of a phase.

  Args:
    method: the method.
    phase: one of its phases.
    variables: parameters and collections by role.
    rng: the run's typed key; the phase's name is folded in.
    memory: what the method kept from the phase before.

  Returns:
    The state.
  """
  params, collections = variables
  trained = phase.trains(tuple(method.roles))
  optimizer = {}
  for update in phase.updates:
    chosen, _ = split_params(params, update.trainable)
    optimizer[update.name] = update.optimizer.init(chosen)
  return State(
    step=jnp.int32(0),
    failed=jnp.int32(-1),
    rng=key_of(rng, f"phase/{phase.name}"),
    params={role: params[role] for role in trained},
    collections={role: collections[role] for role in trained},
    optimizer=optimizer,
    memory=dict(memory),
  )


def first(
  method: Method,
  phase: Phase,
  variables: tuple[Mapping[str, Tree], Mapping[str, Tree]],
  *,
  rng: Array,
  memory: Mapping[str, Tree],
) -> tuple[State, Best | None]:
  """What a phase starts from.

  Args:
    method: the method.
    phase: one of its phases.
    variables: parameters and collections by role.
    rng: the run's typed key; the phase's name is folded in.
    memory: what the method kept from the phase before.

  Returns:
    The state, and the best snapshot if the phase is validated.
  """
  carried = phase.remembers(memory)
  state = create(method, phase, variables, rng=rng, memory=carried)
  return state, Best.of(state) if phase.validate else None


def frozen(
  method: Method,
  phase: Phase,
  variables: tuple[Mapping[str, Tree], Mapping[str, Tree]],
  *,
  used: tuple[str, ...],
) -> dict[str, dict[str, Tree]]:
  """The variables that a phase reads and does not train.

  Args:
    method: the method.
    phase: one of its phases.
    variables: parameters and collections by role.
    used: the roles that the phase runs.

  Returns:
    `{"params", "collections"}` by role.
  """
  trained = phase.trains(tuple(method.roles))
  return {
    kind: {role: trees[role] for role in used if role not in trained}
    for kind, trees in zip(("params", "collections"), variables, strict=True)
  }


def settled(
  method: Method,
  index: int,
  variables: tuple[Mapping[str, Tree], Mapping[str, Tree]],
  placement: Placement,
) -> tuple[dict[str, Tree], dict[str, Tree]]:
  """Variables of which those that nothing trains any more are kept so.

  Args:
    method: the method.
    index: of the first phase that is still to come.
    variables: parameters and collections by role.
    placement: says how frozen roles are kept.

  Returns:
    Parameters and collections by role.
  """
  roles = tuple(method.roles)
  coming = method.lasting_phases[index:]
  trained = {role for phase in coming for role in phase.trains(roles)}
  params, collections = (
    {role: tree for role, tree in trees.items() if role not in trained}
    for trees in variables
  )
  kept = placement.keep({"params": params, "collections": collections})
  return (
    {**variables[0], **kept["params"]},
    {**variables[1], **kept["collections"]},
  )
