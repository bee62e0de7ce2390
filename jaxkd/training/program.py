"""The compiled functions of one phase: step, validation and targets."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from jaxkd.data.source import Splits
from jaxkd.method import Method, Phase
from jaxkd.parallel import Placement, arrays
from jaxkd.roles import Nets, Usage, usage
from jaxkd.targets import Served
from jaxkd.training.feeds import examples
from jaxkd.training.proofs import Watch
from jaxkd.training.state import Best, State
from jaxkd.training.step import Metrics, first_failure, make_step
from jaxkd.training.targets import make_targets

if TYPE_CHECKING:
  from jaxkd.training.target_files.folder import TargetFolder

Array = jax.Array
Tree = Any


def merged(trained: Tree, frozen: Tree) -> dict[str, Tree]:
  """Parameters and collections of trained and frozen roles together."""
  return {
    kind: {**frozen[kind], **getattr(trained, kind)}
    for kind in ("params", "collections")
  }


def make_validation(
  method: Method, phase: Phase
) -> Callable[[State, Tree, Tree], Metrics]:
  """Builds the function that sums the validation loss over one batch.

  Args:
    method: the method.
    phase: one of its phases, with `validate`.

  Returns:
    `(state, frozen, batch) -> metrics`, (sum, weight) pairs, the validation
    loss under the name `loss`.
  """

  def validate(state: State, frozen: Tree, batch: Tree) -> Metrics:
    variables = merged(state, frozen)
    nets = Nets(
      method.roles,
      variables["params"],
      variables["collections"],
      memory=state.memory,
    )
    loss = phase.validate(nets, batch)
    return {"loss": (loss.total, loss.weight), **loss.metrics}

  return validate


def keep_best(best: Best, state: State, loss: tuple[Array, Array]) -> Best:
  """The better of the best so far and the state; ties keep the older.

  Args:
    best: the best so far.
    state: the present state.
    loss: its validation loss, (sum, weight).

  Returns:
    The best, `epoch` counting validations from 0.
  """
  value = loss[0] / loss[1]
  better = value < best.loss
  seen = best.seen + 1

  def choose(old, new):
    return jnp.where(better, new, old)

  return Best(
    loss=choose(best.loss, value),
    epoch=choose(best.epoch, best.seen),
    seen=seen,
    params=jax.tree.map(choose, best.params, state.params),
    collections=jax.tree.map(choose, best.collections, state.collections),
    memory=jax.tree.map(choose, best.memory, state.memory),
  )


@dataclasses.dataclass(frozen=True)
class Footprint:
  """Bytes of a compiled function on one device, as the compiler reports them.

  Attributes:
    arguments: what it is given and reads.
    outputs: what it returns.
    aliased: outputs that lie where donated arguments lay.
    temporaries: all that it needs in between.
    code: the program, where that lies on the device.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  code: int

  @property
  def peak(self) -> int:
    """All of it, what is aliased once."""
    kept = self.arguments + self.outputs - self.aliased
    return kept + self.temporaries + self.code


@dataclasses.dataclass
class Compiled:
  """A lowered function, compiled at its first call.

  Attributes:
    lowered: what `jax.jit(f).lower(...)` returned.
    seconds: time that the compilation took; 0 before it.
  """

  lowered: Any
  seconds: float = 0.0
  _executable: Any = None

  @property
  def executable(self) -> Any:
    """The compiled function."""
    if self._executable is None:
      start = time.monotonic()
      self._executable = self.lowered.compile()
      self.seconds = time.monotonic() - start
    return self._executable

  @property
  def compiled(self) -> bool:
    """Whether it has been compiled."""
    return self._executable is not None

  @property
  def footprint(self) -> Footprint | None:
    """Its bytes on one device; None where the backend does not say."""
    found = self.executable.memory_analysis()
    return found and Footprint(
      arguments=found.argument_size_in_bytes,
      outputs=found.output_size_in_bytes,
      aliased=found.alias_size_in_bytes,
      temporaries=found.temp_size_in_bytes,
      code=found.generated_code_size_in_bytes,
    )

  @property
  def flops(self) -> float:
    """FLOPs of one device; what a loop runs is counted once. 0 if unknown."""
    return (self.executable.cost_analysis() or {}).get("flops", 0.0)

  def __call__(self, *arguments: Any) -> Any:
    """Calls the compiled function."""
    return self.executable(*arguments)


@dataclasses.dataclass(frozen=True)
class Program:
  """A phase's compiled functions; those it does not need are None.

  Attributes:
    step: `(state, frozen, batch) -> (state, metrics)`, state donated.
    look: `(state) -> failed`, before parameters are kept.
    validate: `(state, frozen, batch) -> metrics`.
    keep_best: `(best, state, loss) -> best`, best donated.
  """

  step: Compiled
  look: Compiled
  validate: Compiled | None
  keep_best: Compiled | None

  @property
  def seconds(self) -> float:
    """Time spent in compiling."""
    parts = (self.step, self.look, self.validate, self.keep_best)
    return sum(part.seconds for part in parts if part)

  def compile(self) -> None:
    """Compiles everything that is not compiled yet."""
    for part in (self.step, self.look, self.validate, self.keep_best):
      if part:
        _ = part.executable

  @property
  def fingerprint(self) -> str:
    """Digest of the lowered programs, stable between processes."""
    digest = hashlib.sha256()
    for part in (self.step, self.validate):
      if part:
        digest.update(part.lowered.as_text().encode())
    return digest.hexdigest()


@dataclasses.dataclass
class Programs:
  """What the seeds of a method share: it is traced and compiled once.

  Attributes:
    method: the method.
    served: the roles whose outputs lie in a folder.
    phases: programs by phase.
    targets: functions of targets by phase, jitted.
    host: compiled functions of host functions.
    watches: what tracing showed, by phase.
  """

  method: Method
  served: Mapping[str, Served] = dataclasses.field(default_factory=dict)
  phases: dict[str, Program] = dataclasses.field(default_factory=dict)
  targets: dict[str, Callable[..., Any]] = dataclasses.field(
    default_factory=dict
  )
  host: dict[Any, Callable[..., Any]] = dataclasses.field(default_factory=dict)
  watches: dict[str, Watch] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(Watch)
  )
  _usage: Usage | None = None

  @classmethod
  def answered(cls, method: Method, targets: TargetFolder | None) -> Programs:
    """Those of a method of which some roles' outputs lie in a folder."""
    return cls(method, targets.served(method) if targets else {})

  def compute_targets(
    self, phase: Phase, placement: Placement
  ) -> Callable[..., Any]:
    """The function of a phase's targets, one for all seeds."""
    if phase.name not in self.targets:
      made = make_targets(self.method, phase, self.watches[phase.name])
      self.targets[phase.name] = jax.jit(
        lambda frozen, batch: made(placement.fetched(frozen), batch)
      )
    return self.targets[phase.name]

  def usage(self, splits: Splits, batch_size: int) -> Usage:
    """How the method uses its roles, traced at the first call."""
    if self._usage is None:
      seen = examples(self.method, splits, batch_size)
      self._usage = usage(self.method, *seen, self.served)
    return self._usage


def _fetching(
  function: Callable[[State, Tree, Tree], Tree], placement: Placement
) -> Callable[[State, Tree, Tree], Tree]:
  """The function on frozen roles that may be kept on the host."""

  @functools.wraps(function)  # programs are told apart by their text
  def fetching(state, frozen, batch):
    return function(state, placement.fetched(frozen), batch)

  return fetching


def _aligned(phase: Phase, placement: Placement) -> Phase:
  """The phase, its optimizers given gradients where the parameters lie.

  Left alone, the compiler may compute moments and parameters in other parts
  and put all of them together again, where gradients alone are enough.
  """

  def align(optimizer):
    def update(gradients, state, params):
      where = placement.of({"params": gradients})["params"]
      gradients = jax.lax.with_sharding_constraint(gradients, where)
      return optimizer.update(gradients, state, params)

    return optax.GradientTransformation(optimizer.init, update)

  updates = tuple(
    dataclasses.replace(update, optimizer=align(update.optimizer))
    for update in phase.updates
  )
  return dataclasses.replace(phase, updates=updates)


def build(
  method: Method,
  phase: Phase,
  *,
  state: State,
  best: Best | None,
  frozen: Tree,
  batch: Mapping[str, Array],
  validation_batch: Mapping[str, Array],
  steps_per_epoch: int,
  placement: Placement,
  watch: Watch,
  served: Mapping[str, Served] | None = None,
) -> Program:
  """Lowers the functions of a phase; they compile when first called.

  Args:
    method: the method.
    phase: one of its phases.
    state: the phase's state, placed.
    best: the best snapshot, placed; None without validation.
    frozen: trees of the frozen roles, as they are kept.
    batch: a training batch, placed.
    validation_batch: a validation batch, placed.
    steps_per_epoch: how many steps make an epoch.
    placement: where results are placed.
    watch: notes what tracing the step shows.
    served: roles whose outputs the training batch holds.

  Returns:
    The program.
  """
  stepping = make_step(
    method,
    _aligned(phase, placement),
    steps_per_epoch=steps_per_epoch,
    watch=watch,
    served=served,
  )
  everywhere = placement.replicated
  step = _lowered(
    _fetching(stepping, placement),
    (state, frozen, batch),
    (placement.of(state), everywhere),
    donate_argnums=0,
  )
  look = functools.partial(first_failure, phase)
  look = _lowered(look, (state,), everywhere)
  if best is None:
    return Program(step=step, look=look, validate=None, keep_best=None)
  validate = _lowered(
    _fetching(make_validation(method, phase), placement),
    (state, frozen, validation_batch),
    everywhere,
  )
  loss = arrays.put((jnp.float32(0), jnp.float32(1)), everywhere)
  keep = _lowered(
    keep_best, (best, state, loss), placement.of(best), donate_argnums=0
  )
  return Program(step=step, look=look, validate=validate, keep_best=keep)


def _lowered(
  function: Callable[..., Tree],
  arguments: tuple[Tree, ...],
  where: Tree,
  **options: Any,
) -> Compiled:
  """The function of such arguments, its results placed."""
  made = jax.jit(function, out_shardings=where, **options)
  return Compiled(made.lower(*arguments))
