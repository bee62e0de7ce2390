"""What is known of a step beyond its results: proofs for the run's record.

Most bugs of a distillation code base leave no error: a teacher that is trained
a little, differentiated for nothing, or run with its dropout on; a state that
is copied at every step. Each of them is excluded here by something that does
not follow from the code's good intentions:

* `gradient`: no cotangent reaches a leaf that an update does not train. Where
  the loss is given these leaves they pass an identity with a backward rule of
  its own; differentiation would have to trace that rule, and the rule notes
  the leaf.
* `evaluation`: every run of a frozen role was traced in evaluation mode,
  without random keys, and changed no collection.
* `donation`: the compiled step writes the new state where the old one lay.
* `digest`: the bytes of frozen roles are after a phase what they were before.
* `cost`: FLOPs and bytes of the compiled step; nothing to hold or to fail.

All but the digests come from the one trace and the one compilation that a run
needs anyway, and are shared by its seeds.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxkd.roles import Nets
from jaxkd.training import files, trees

if TYPE_CHECKING:
  from jaxkd.training.program import Compiled

Tree = Any
NAMED = 5  # leaves that evidence names
_ALIAS = re.compile(r"\{[\d, ]*\}: \((\d+), \{([\d, ]*)\}")


class Watch:
  """Notes what the traces of one phase show.

  Attributes:
    fixed: names of the leaves that some update was given and did not train.
    reached: those of them that a cotangent reached.
    runs: how roles were run, see `Nets.runs`.
  """

  def __init__(self):
    self.fixed: set[str] = set()
    self.reached: set[str] = set()
    self.runs: set[tuple[str, bool, tuple[str, ...], tuple[str, ...]]] = set()

  def untrained(self, params: Tree) -> Tree:
    """Returns parameters by role as they are, and notes who asks for gradients.

    Called inside of the function that is differentiated.
    """
    self.fixed |= set(trees.named_leaves(params))

    @jax.custom_vjp
    def same(params):
      return params

    def forward(params):
      return jax.tree.map(lambda primal: primal.value, params), None

    def backward(_, cotangents):
      self.reached |= {
        name
        for name, cotangent in trees.named_leaves(cotangents).items()
        if not isinstance(cotangent, jax.custom_derivatives.SymbolicZero)
      }
      return (cotangents,)

    same.defvjp(forward, backward, symbolic_zeros=True)
    return same(params)

  def saw(self, nets: Nets) -> None:
    """Notes how roles were run."""
    self.runs |= nets.runs


@dataclasses.dataclass(frozen=True)
class Proof:
  """What one proof found.

  Attributes:
    holds: whether it holds; None if there is nothing to hold.
    evidence: what was counted, or what is wrong, by name.
  """

  holds: bool | None
  evidence: str


def gradient(watch: Watch) -> Proof:
  """Whether cotangents stayed away from all that is not trained."""
  if watch.reached:
    return Proof(False, f"a cotangent reaches {_named(watch.reached)}")
  if not watch.fixed:
    return Proof(True, "every leaf is trained")
  return Proof(True, f"none reaches the {len(watch.fixed)} untrained leaves")


def evaluation(watch: Watch, frozen: Sequence[str]) -> Proof:
  """Whether frozen roles ran in evaluation mode.

  Args:
    watch: of the phase.
    frozen: the roles that the phase does not train.
  """
  wrong = set()
  for role, train, keys, changed in watch.runs:
    if role in frozen:
      wrong |= {f"{role} in training mode"} if train else set()
      wrong |= {f"{role} with a key for {key}" for key in keys}
      wrong |= {f"{role} changing {name}" for name in changed}
  if wrong:
    return Proof(False, f"ran: {_named(wrong)}")
  ran = sorted({run[0] for run in watch.runs if run[0] in frozen})
  return Proof(True, f"ran: {', '.join(ran)}" if ran else "none was run")


def donation(step: Compiled) -> Proof:
  """Whether donated arguments of a compiled step lie where results do."""
  donated = dict(_donated(step))
  total = sum(donated.values())
  footprint = step.footprint
  if footprint is None:
    return Proof(None, "the backend does not say")
  if footprint.aliased >= total:
    return Proof(True, f"{total:,} of {total:,} bytes")
  kept = aliased_arguments(step.executable.as_text())
  lost = {name for n, name in enumerate(donated) if n not in kept}
  return Proof(
    False, f"{footprint.aliased:,} of {total:,} bytes; not {_named(lost)}"
  )


def aliased_arguments(text: str) -> set[int]:
  """Numbers of the arguments whose place results take, from an HLO text."""
  head = text.partition("\n")[0]
  start = head.partition("input_output_alias={")[2]
  found = set()
  for number, index in _ALIAS.findall(start.partition("entry_")[0]):
    # Many arguments may come as one tuple: its entries then are the arguments.
    found.add(int(index.split(",")[0]) if index.strip() else int(number))
  return found


def _donated(step: Compiled) -> Iterator[tuple[str, int]]:
  """Name and bytes on a device of every donated argument that is read."""
  places = jax.tree.leaves(
    step.executable.input_shardings[0], is_leaf=lambda x: x is None
  )
  arguments = trees.named_leaves(step.lowered.args_info[0])
  for (name, info), place in zip(arguments.items(), places, strict=True):
    if info.donated and place is not None:
      count = math.prod(place.shard_shape(info.shape))
      yield name.partition("/")[2], count * info.dtype.itemsize


def digest(before: Mapping[str, str], after: Mapping[str, str]) -> Proof:
  """Whether roles are what they were.

  Args:
    before: digests by role when the phase began, from `digests`.
    after: those when it ended.
  """
  changed = {role for role in before if before[role] != after[role]}
  if changed:
    return Proof(False, f"{_named(changed)} changed")
  shown = (f"{role} {value[:12]}" for role, value in before.items())
  return Proof(True, ", ".join(shown))


def digests(
  frozen: Mapping[str, Mapping[str, Tree]],
  known: Mapping[str, str] | None = None,
) -> dict[str, str]:
  """A digest of every frozen role: parameters and collections.

  Args:
    frozen: `{"params", "collections"}` by role.
    known: digests of roles that an earlier phase had frozen too: those count,
      so that a change between the phases is one.
  """
  known = known or {}
  return {
    role: known.get(role)
    or trees.tree_digest({kind: frozen[kind][role] for kind in frozen})
    for role in frozen["params"]
  }


def cost(step: Compiled) -> Proof:
  """FLOPs and bytes of a compiled step on one device."""
  footprint = step.footprint
  memory = "" if footprint is None else f", {footprint.peak:,} bytes"
  return Proof(None, f"{step.flops:,.0f} FLOPs{memory}")


def collect(
  watch: Watch,
  step: Compiled,
  before: Mapping[str, str],
  after: Mapping[str, str],
) -> dict[str, Proof]:
  """All proofs of a phase that has been trained, by name.

  Args:
    watch: what was noted when the phase was traced.
    step: its step; one that was not compiled, as the phase was trained by
      another program, has no donation and no cost.
    before: digests by frozen role when the phase began.
    after: those when it ended.
  """
  found = {"gradient": gradient(watch)}
  if before:
    found["evaluation"] = evaluation(watch, tuple(before))
    found["digest"] = digest(before, after)
  if step.compiled:
    found |= {"donation": donation(step), "cost": cost(step)}
  return found


def record(path: Path, phase: str, found: Mapping[str, Proof]) -> None:
  """Adds a phase's proofs to the file of a run."""
  known = files.read_json(path, default={})
  rows = {name: dataclasses.asdict(proof) for name, proof in found.items()}
  files.write_json(path, {**known, phase: rows})


def _named(names: set[str]) -> str:
  shown = sorted(names)
  more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
  return ", ".join(shown[:NAMED]) + more
