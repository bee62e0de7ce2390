"""What frozen roles show of an example: computed at a step, or read.

A phase names its targets, functions of frozen roles and the example. One level
below, the outputs of a frozen role may lie in a folder: then its run is
answered from entries of the batch, and neither losses nor targets can tell,
but for two things. Of a folder with top-k the logits are `losses.TopK`, access
`topk`, so that a loss that needs more refuses by name. And a call that the
folder cannot answer is refused: other inputs than the stream's own, other taps,
edits, methods, training mode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.losses import TopK
from jaxkd.method import Batch, Phase, part
from jaxkd.network import Outputs

if TYPE_CHECKING:
  from jaxkd.roles import Nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
  """A role whose outputs lie in a folder.

  Attributes:
    role: its name.
    inputs: batch entries of which the outputs are.
    k: classes of top-k; None where all logits are there.
    mapping: whether the network returned a mapping that has `logits`.
    taps: paths of the submodule outputs that are there.
    folder: where, for messages.
  """

  role: str
  inputs: tuple[str, ...]
  k: int | None
  mapping: bool
  taps: tuple[str, ...]
  folder: str

  @property
  def entries(self) -> tuple[str, ...]:
    """Names of the batch entries that hold the outputs."""
    what = ("logits",) if self.k is None else ("ids", "log_probs")
    return tuple(f"{self.role}@{name}" for name in (*what, *self.taps))

  def outputs(self, entries: Sequence[Any]) -> Outputs:
    """What the network would have returned, from the values of `entries`."""
    count = 1 if self.k is None else 2
    logits = entries[0] if self.k is None else TopK(*entries[:count])
    return Outputs(
      value={"logits": logits} if self.mapping else logits,
      taps=dict(zip(self.taps, entries[count:], strict=True)),
    )

  def of(self, outputs: Outputs) -> Outputs:
    """What is left of outputs in the folder; such as shapes of them."""
    logits = outputs.logits
    values = [logits]
    if self.k is not None:
      found = TopK.of(logits, self.k)
      values = [found.ids, found.log_probs]
    return self.outputs([*values, *(outputs.taps[path] for path in self.taps)])


@dataclasses.dataclass(frozen=True)
class Answers:
  """Outputs of roles of which a batch has the entries.

  Attributes:
    served: roles by name.
    batch: a step's batch.
    asked: the runs so far: role, start of the names of the stream's entries.
  """

  served: Mapping[str, Served]
  batch: Batch
  asked: set[tuple[str, str]] = dataclasses.field(default_factory=set)

  def __contains__(self, role: str) -> bool:
    """Whether the role is answered."""
    return role in self.served

  def check(
    self,
    role: str,
    given: Batch,
    *,
    taps: Sequence[str] = (),
    edits: Mapping[str, Any] | None = None,
    method: str | None = None,
    train: bool | None = None,
  ) -> str:
    """Refuses a run that the folder cannot answer.

    Args:
      role: which role is run.
      given: on what.
      taps: as in `Network.apply`, with what follows.
      edits: none.
      method: none.
      train: not true.

    Returns:
      The start of the names of the entries of the stream that it is run on.

    Raises:
      ConfigError: the run is another one than that which was cached.
    """
    served = self.served[role]
    start = f"role {role!r} is answered from the targets in {served.folder}, "
    asked = {"edits": edits, "method": method, "train": train}
    for name, value in asked.items():
      if value:
        raise ConfigError(
          f"{start}which cannot answer a run with {name}={value!r}; expected "
          "a plain run in evaluation mode, or Settings.targets=None"
        )
    for path in taps:
      if path not in served.taps:
        raise ConfigError(
          f"{start}which hold no tap {path!r}{did_you_mean(path, served.taps)}"
          f" (has {', '.join(served.taps) or 'none'}); cache it with --tap"
        )
    for start_of in self._streams(served):
      if all(
        given.get(name) is self.batch.get(start_of + name)
        for name in served.inputs
      ):
        self.asked.add((role, start_of))
        return start_of
    raise ConfigError(
      f"{start}but is run on other {', '.join(served.inputs)} than those of "
      "the data; expected the entries of a stream as they are, or "
      "Settings.targets=None"
    )

  def _streams(self, served: Served) -> list[str]:
    """Starts of the names of the streams that have the role's inputs."""
    last = served.inputs[0]
    names = [name for name in self.batch if f"/{name}".endswith(f"/{last}")]
    starts = [name.removesuffix(last) for name in names]
    return [
      s for s in starts if all(s + n in self.batch for n in served.inputs)
    ]

  def run(self, role: str, given: Batch, **asked: Any) -> Outputs:
    """The outputs of a role; see `check` for the arguments and errors."""
    start, served = self.check(role, given, **asked), self.served[role]
    return served.outputs([self.batch[start + name] for name in served.entries])

  def refuse_parameters(self, role: str) -> None:
    """Raises `ConfigError` if a role is answered: nobody loads it."""
    if role in self.served:
      raise ConfigError(
        f"role {role!r} is answered from the targets in "
        f"{self.served[role].folder} and has no parameters in this phase; "
        "expected Settings.targets=None"
      )

  def without(self, roles: Collection[str]) -> Answers:
    """Answers of the other roles only."""
    served = {r: s for r, s in self.served.items() if r not in roles}
    return dataclasses.replace(self, served=served)


NO_ANSWERS = Answers({}, {})


def with_targets(phase: Phase, nets: Nets, batch: Batch) -> Batch:
  """Adds the phase's targets to what a batch holds of every stream.

  Args:
    phase: the phase.
    nets: the roles.
    batch: a step's batch; targets that it holds already are left as they are.

  Returns:
    The batch with all targets.
  """
  full = dict(batch)
  for stream in ("", *phase.beside):
    seen = part(batch, stream) if stream else batch
    start = f"{stream}/" if stream else ""
    for name, target in phase.targets.items():
      if start + name not in full:
        full[start + name] = jax.lax.stop_gradient(target(nets, seen))
  return full
