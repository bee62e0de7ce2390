"""Methods: roles, phases, updates and losses.

A paper is a `Method`: named networks (roles), phases that train some of them
by losses, and a rule for prediction. A loss is a function
`loss(nets, batch, step) -> Loss` that runs roles through `nets` and returns a
sum and a weight, so that it is exact under gradient accumulation, padding and
any number of devices.
"""

from __future__ import annotations

import abc
import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp
import optax

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.network import Network, Outputs

if TYPE_CHECKING:
  import numpy as np

  from jaxkd.roles import Nets
  from jaxkd.training.host import Host

Array = jax.Array
Batch = Mapping[str, Any]
Tree = Any


@flax.struct.dataclass
class Step:
  """Where training stands inside a phase.

  Attributes:
    index: updates made in this phase so far, int32.
    epoch: full passes over the data made in this phase so far, int32.
  """

  index: Array
  epoch: Array


@flax.struct.dataclass
class Loss:
  """A loss as (sum, weight); the value that is minimised is sum / weight.

  Attributes:
    total: sum over examples.
    weight: number of examples (or tokens) that count.
    metrics: (sum, weight) pairs by name.
    memory: new values of what the method keeps between steps, by name.
  """

  total: Array
  weight: Array
  metrics: Mapping[str, tuple[Array, Array]]
  memory: Mapping[str, Tree]

  @classmethod
  def mean(
    cls,
    values: Array,
    *,
    where: Array | None = None,
    metrics: Mapping[str, Array] | None = None,
    memory: Mapping[str, Tree] | None = None,
  ) -> Loss:
    """The mean over the examples that count.

    Args:
      values: per-example losses, [B, ...], or a batch-level scalar.
      where: [B] or the shape of `values`; examples at 0 are left out, and
        NaN in them does not reach the sum or its gradient.
      metrics: values of the same kinds, averaged in the same way.
      memory: new values of `nets.memory` entries.

    Returns:
      The loss.
    """
    total, weight = _sum_and_weight(values, where)
    pairs = {
      name: _sum_and_weight(value, where)
      for name, value in (metrics or {}).items()
    }
    return cls(
      total=total,
      weight=weight,
      metrics=jax.lax.stop_gradient(pairs),
      memory=jax.lax.stop_gradient(dict(memory or {})),
    )


def _sum_and_weight(values: Array, where: Array | None) -> tuple[Array, Array]:
  values = jnp.asarray(values, jnp.float32)
  if values.ndim == 0:
    weight = 1.0 if where is None else jnp.sum(where.astype(jnp.float32))
    weight = jnp.asarray(weight, jnp.float32)
    return values * weight, weight
  if where is None:
    return jnp.sum(values), jnp.asarray(values.size, jnp.float32)
  where = where.astype(jnp.float32)
  where = where.reshape(where.shape + (1,) * (values.ndim - where.ndim))
  where = jnp.broadcast_to(where, values.shape)
  return jnp.sum(jnp.where(where > 0, values, 0.0) * where), jnp.sum(where)


def counted(batch: Batch) -> Array:
  """Which labels of a batch count.

  Args:
    batch: has `mask`, [B], and where every token has a label `token_mask`,
      [B, L].

  Returns:
    [B], or [B, L] where every token has a label.
  """
  if "token_mask" not in batch or batch["label"].ndim == 1:
    return batch["mask"]
  return batch["mask"][:, None] * batch["token_mask"]


def label_loss(logits: Array, batch: Batch, label: str = "label") -> Loss:
  """Mean cross entropy of the batch's labels, with accuracy beside it.

  Args:
    logits: [B, ..., C].
    batch: has `label`, integers [B, ...], and what `counted` reads.
    label: the entry that is learned, if another one; the accuracy is always
      that of `label`.

  Returns:
    The loss, in nats, with metrics `task` and `accuracy`.
  """
  task = losses.cross_entropy(logits, batch[label])
  return Loss.mean(
    task,
    where=counted(batch),
    metrics={"task": task, "accuracy": hits(logits, batch)},
  )


def hits(logits: Array, batch: Batch) -> Array:
  """Whether the most probable class, the first of equals, is the label.

  Args:
    logits: [B, ..., C].
    batch: has `label`, integers [B, ...].

  Returns:
    bool [B, ...]; false where a logit is NaN.
  """
  # An argmax is slow on a CPU.
  top = jnp.max(logits, axis=-1, keepdims=True)
  classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  first = jnp.min(jnp.where(logits == top, classes, logits.shape[-1]), axis=-1)
  return first == batch["label"]


LossFn = Callable[["Nets", Batch, Step], Loss]
EvaluationFn = Callable[["Nets", Batch], Loss]
TargetFn = Callable[["Nets", Batch], Array]
RememberFn = Callable[
  [Mapping[str, Tree], Mapping[str, Array], Step], Mapping[str, Tree]
]
HostFn = Callable[["Host"], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
  """What is trained, by which loss, with which optimizer.

  Attributes:
    trainable: roles (`"student"`) or path patterns inside them
      (`"student/lora/**"`, `"teacher/head"`).
    loss: `loss(nets, batch, step) -> Loss`.
    optimizer: an optax transformation, or a function that makes one for the
      number of its updates in the phase, as a learning rate that ends low
      needs to know it; its state is fresh in every phase.
    name: names the optimizer state and the update's loss metric.
    every: the update is made at steps divisible by this.
    accumulate: micro-batches whose sums are added before one update; exact
      for losses that are means over examples.
    remember: `remember(memory, means, step) -> changed entries of memory`,
      called once an update with the means of its loss and metrics over all
      micro-batches and devices.
  """

  trainable: tuple[str, ...]
  loss: LossFn
  optimizer: (
    optax.GradientTransformation | Callable[[int], optax.GradientTransformation]
  )
  name: str = "loss"
  every: int = 1
  accumulate: int = 1
  remember: RememberFn | None = None

  def __post_init__(self):
    """Checks the numbers."""
    for field in ("every", "accumulate"):
      if getattr(self, field) < 1:
        raise ConfigError(
          f"Update.{field}={getattr(self, field)}: expected at least 1"
        )
    if not self.trainable or isinstance(self.trainable, str):
      raise ConfigError(
        f"Update.trainable={self.trainable!r}: expected a tuple of roles or "
        "path patterns"
      )

  def trains(self, roles: Sequence[str]) -> tuple[str, ...]:
    """Those of `roles` in which the update trains at least one parameter."""
    heads = [pattern.split("/")[0] for pattern in self.trainable]
    return tuple(
      role
      for role in roles
      if any(h == "**" or fnmatch.fnmatchcase(role, h) for h in heads)
    )


@dataclasses.dataclass(frozen=True)
class Stream:
  """Examples that feed a phase.

  Attributes:
    split: the split that they come from.
    rows: picks their numbers [n] from the split, from what the method
      remembers when the phase begins; all if not given.
    batch_size: examples in a step; the task's if not given.
    replace: drawn with replacement: every batch is full, however few examples
      there are, and an epoch is only a number of steps.
  """

  split: str
  rows: Callable[[Mapping[str, Tree]], np.ndarray] | None = None
  batch_size: int | None = None
  replace: bool = False


def part(batch: Batch, stream: str) -> Batch:
  """What a batch holds of a stream beside the main one.

  Args:
    batch: has entries `<stream>/<entry>`.
    stream: the stream's name in `Phase.beside`.

  Returns:
    These entries by their own names, `mask` among them.
  """
  start = f"{stream}/"
  return {
    name.removeprefix(start): value
    for name, value in batch.items()
    if name.startswith(start)
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
  """A list of updates, streams of data and a length.

  Attributes:
    name: unique within the method; part of every random key of the phase.
    updates: made in order within one compiled step.
    epochs: length in passes over the data; or
    steps: length in steps. Exactly one of the two is given; a phase of length
      0 is left out, as that of a teacher that is given ready.
    stream: the split, or `Stream`, that feeds the updates and counts epochs;
      None where a method needs no data: batches then hold `index` and `mask`.
    beside: further streams by name, a batch of each in every step; its
      entries are called `<name>/<entry>`, see `part`.
    validate: if given, measured on the validation split after every epoch;
      the trained roles and the memory end the phase as they were where it was
      lowest.
    targets: values that only depend on the example and on roles frozen in
      this phase, by name, [B, ...] each. The losses read them as entries of
      every stream's batch, whether they were computed live or once and cached.
    memory: the entries of memory that the phase reads or changes; all if not
      given.
    begin: called before the phase's first step, outside of any jit: it may
      change parameters and memory, see `training.host`.
    after_epoch: likewise after every epoch, before it is validated; it may
      change memory.
  """

  name: str
  updates: tuple[Update, ...]
  epochs: int | None = None
  steps: int | None = None
  stream: str | Stream | None = "train"
  beside: Mapping[str, Stream] = dataclasses.field(default_factory=dict)
  validate: EvaluationFn | None = None
  targets: Mapping[str, TargetFn] = dataclasses.field(default_factory=dict)
  memory: tuple[str, ...] | None = None
  begin: HostFn | None = None
  after_epoch: HostFn | None = None

  def __post_init__(self):
    """Checks the length and the names."""
    if isinstance(self.stream, str):
      object.__setattr__(self, "stream", Stream(self.stream))
    if self.stream is None and (
      self.steps is None or self.validate or self.after_epoch or self.targets
    ):
      raise ConfigError(
        f"phase {self.name!r}: without data there are no epochs and no "
        "examples; expected steps, and neither validate, after_epoch nor "
        "targets"
      )
    if (self.epochs is None) == (self.steps is None):
      raise ConfigError(
        f"phase {self.name!r}: give either epochs or steps "
        f"(epochs={self.epochs}, steps={self.steps})"
      )
    if (self.epochs if self.steps is None else self.steps) < 0:
      raise ConfigError(f"phase {self.name!r}: its length is below 0")
    names = [update.name for update in self.updates]
    if len(set(names)) != len(names) or not names:
      raise ConfigError(
        f"phase {self.name!r}: updates need names of their own, got {names}"
      )

  def trains(self, roles: Sequence[str]) -> tuple[str, ...]:
    """Those of `roles` in which the phase trains at least one parameter."""
    trained = {role for update in self.updates for role in update.trains(roles)}
    return tuple(role for role in roles if role in trained)

  def remembers(self, memory: Mapping[str, Tree]) -> dict[str, Tree]:
    """The entries of memory that the phase carries."""
    names = memory if self.memory is None else self.memory
    return {name: memory[name] for name in names}

  def length(self, steps_per_epoch: int) -> int:
    """The number of steps."""
    return self.steps or self.epochs * steps_per_epoch

  def planned(self, steps_per_epoch: int) -> Phase:
    """The phase with optimizers made for its length."""
    steps = self.length(steps_per_epoch)
    updates = [
      dataclasses.replace(
        update, optimizer=update.optimizer(-(-steps // update.every))
      )
      if callable(update.optimizer)
      else update
      for update in self.updates
    ]
    return dataclasses.replace(self, updates=tuple(updates))


class Method(abc.ABC):
  """One paper: roles, phases and the rule for prediction."""

  @property
  @abc.abstractmethod
  def roles(self) -> Mapping[str, Network]:
    """The networks by role."""

  @property
  @abc.abstractmethod
  def phases(self) -> Sequence[Phase]:
    """What is trained, in order; a phase of length 0 is left out."""

  @property
  def lasting_phases(self) -> tuple[Phase, ...]:
    """The phases that have a length."""
    return tuple(phase for phase in self.phases if phase.epochs or phase.steps)

  @abc.abstractmethod
  def predict(self, nets: Nets, batch: Batch) -> Outputs:
    """What is deployed."""

  @property
  def memory(self) -> Mapping[str, Tree]:
    """First values of what the method keeps between steps."""
    return {}

  def outputs(self, nets: Nets, batch: Batch) -> Mapping[str, Outputs]:
    """The predictors that are evaluated, by name; the deployed one first."""
    return {"student": self.predict(nets, batch)}

  def measure(
    self, nets: Nets, batch: Batch
  ) -> Mapping[str, Array | tuple[Array, Array]]:
    """Further numbers that are averaged over the test split.

    Returns:
      By name [B], or a pair of [B] and which examples count, [B].
    """
    del nets, batch
    return {}
