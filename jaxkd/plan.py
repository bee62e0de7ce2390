"""What a run would take of every device, known before it: `jaxkd plan`.

Every phase's step is compiled from shapes alone, as `run` would compile it,
and nothing is trained, loaded or written. A phase's peak is a sum of parts:
what the step reads, by role, as the mesh splits it; what it returns, where
that does not lie where donated state lay; and the compiler's temporaries. To
it comes what lies on a device beside the step.

Outside of both, and not counted, are

* the validation program, the one that keeps the best snapshot, and that of
  cached targets: they run between steps, on what lies there anyway, and their
  temporaries are those of a forward pass;
* variables of roles that no phase has split over the mesh yet: they are drawn
  or loaded on the first device;
* host memory: the data, cached targets, the copy that a checkpoint is written
  from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError
from jaxkd.experiment import Experiment
from jaxkd.parallel import Mesh, held
from jaxkd.parallel.collectives import Collective, collectives
from jaxkd.training.ideal import Ideal, ideal
from jaxkd.training.outline import Outline, Outliner

MOST = 3  # parts that advice is given on
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclasses.dataclass(frozen=True)
class Part:
  """Bytes on one device of one kind.

  Attributes:
    name: of what, such as `student parameters`.
    kind: `trained`, `frozen`, `optimizer`, `memory`, `batch`, `outputs`,
      `temporaries`, `code`, `best`, `validation`, `unread` or `state`.
    bytes: how many.
    in_step: whether the step itself takes them, or they lie beside it.
  """

  name: str
  kind: str
  bytes: int
  in_step: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhasePlan:
  """What one phase takes.

  Attributes:
    label: `main`, or the control's.
    phase: its name.
    steps: its length.
    parts: bytes on one device.
    reported: the step's peak as the compiler reports it; None if it does not.
    flops: of a step on one device; what a loop runs counts once.
    ideal: what its networks take alone, see `training.ideal`.
    collectives: what the step sends between devices.
    device_memory: bytes that a device has; None if unknown.
    advice: what would help against the biggest parts, if it does not fit.
  """

  label: str
  phase: str
  steps: int
  parts: tuple[Part, ...]
  reported: int | None
  flops: float
  ideal: Ideal
  collectives: tuple[Collective, ...]
  device_memory: int | None
  advice: tuple[str, ...]

  @property
  def step_peak(self) -> int:
    """Bytes of the step, the sum of its parts."""
    return sum(part.bytes for part in self.parts if part.in_step)

  @property
  def peak(self) -> int:
    """Bytes of the step and of what lies beside it."""
    return sum(part.bytes for part in self.parts)

  @property
  def fits(self) -> bool | None:
    """Whether a device has that much; None if unknown."""
    if self.device_memory is None:
      return None
    return self.peak <= self.device_memory

  def plain(self) -> dict[str, Any]:
    """All of it as JSON can hold it."""
    return {
      **dataclasses.asdict(self),
      "step_peak": self.step_peak,
      "peak": self.peak,
      "flops_ratio": self.flops_ratio,
      "temporaries_ratio": self.temporaries_ratio,
      "fits": self.fits,
    }

  def text(self) -> str:
    """A few lines to be read."""
    name = f"{self.label}: phase {self.phase}, {self.steps} steps"
    lines = [name, "  bytes on a device:"]
    for part in self.parts:
      beside = "" if part.in_step else "  (beside the step)"
      lines.append(f"  {size_text(part.bytes):>12}  {part.name}{beside}")
    lines.append(f"  {size_text(self.peak):>12}  peak")
    if self.reported is not None:
      lines.append(
        f"  of which the step {size_text(self.step_peak)}; the compiler says "
        f"{size_text(self.reported)}"
      )
    lines.append(f"  {self.flops:,.0f} FLOPs a step on a device")
    for ratio, what in (
      (self.flops_ratio, "the FLOPs of its networks alone"),
      (self.temporaries_ratio, "the temporaries of the largest of them alone"),
    ):
      lines += [f"  {ratio:.2f} x {what}"] if ratio is not None else []
    for one in self.collectives:
      loop = ", in a loop" if one.in_loop else ""
      lines.append(
        f"  {one.count} x {one.kind} of {size_text(one.bytes)} over "
        f"{one.group} devices{loop}"
      )
    if not self.collectives:
      lines.append("  nothing is sent between devices")
    if self.fits is not None:
      verb = "fits" if self.fits else "DOES NOT FIT"
      lines.append(f"  {verb} in {size_text(self.device_memory)}")
    return "\n".join([*lines, *(f"    {line}" for line in self.advice)])

  @property
  def flops_ratio(self) -> float | None:
    """FLOPs of the step by those of its networks alone."""
    return self.flops / self.ideal.flops if self.ideal.flops else None

  @property
  def temporaries_ratio(self) -> float | None:
    """Temporaries of the step by those of the network that needs most."""
    if not self.ideal.temporaries:
      return None
    kinds = {part.kind: part.bytes for part in self.parts}
    return kinds.get("temporaries", 0) / self.ideal.temporaries


def plan(
  experiment: Experiment, *, device_memory: int | None = None
) -> Iterator[PhasePlan]:
  """Plans every phase of the experiment's methods, one after the other.

  Args:
    experiment: what would be run, on its mesh.
    device_memory: bytes that a device has; what the device says if not given.

  Raises:
    ConfigError: the experiment does not fit its data or the mesh, or there
      are too few devices.
  """
  mesh = experiment.mesh
  _ = mesh.devices
  if device_memory is None:
    statistics = mesh.devices.devices.flat[0].memory_stats() or {}
    device_memory = statistics.get("bytes_limit")
  splits = experiment.task.splits(experiment.seeds[0])
  for label, method in experiment.methods.items():
    outliner = Outliner(
      method=method,
      splits=splits,
      batch_size=experiment.task.batch_size,
      settings=experiment.settings,
      placement=experiment.placement,
    )
    for outline in outliner.outlines():
      alone = ideal(method, outline, experiment.placement)
      yield _planned(label, outline, alone, mesh, device_memory)


def _planned(
  label: str,
  outline: Outline,
  alone: Ideal,
  mesh: Mesh,
  device_memory: int | None,
) -> PhasePlan:
  step = outline.program.step
  footprint = step.footprint
  made = PhasePlan(
    label=label,
    phase=outline.phase.name,
    steps=outline.steps,
    parts=tuple(part for part in _parts(outline) if part.bytes),
    reported=footprint and footprint.peak,
    flops=step.flops,
    ideal=alone,
    collectives=collectives(step.executable.as_text()),
    device_memory=device_memory,
    advice=(),
  )
  if made.fits is False:
    advice = tuple(_advice(made, outline, mesh))
    made = dataclasses.replace(made, advice=advice)
  return made


def _parts(outline: Outline) -> Iterator[Part]:
  """What a device holds, what the step reads first."""
  step = outline.program.step
  arguments = (outline.state, outline.frozen, outline.batch)
  # The compiler drops what a step does not read: it has no sharding then.
  places = jax.tree.leaves(
    step.executable.input_shardings[0], is_leaf=lambda x: x is None
  )
  leaves, structure = jax.tree.flatten(arguments)
  state, frozen, batch = jax.tree.unflatten(
    structure,
    [
      leaf if place is not None else None
      for leaf, place in zip(leaves, places, strict=True)
    ],
  )
  for kind, params, collections in (
    ("trained", state.params, state.collections),
    ("frozen", frozen["params"], frozen["collections"]),
  ):
    for role in params:
      yield Part(f"{role} parameters ({kind})", kind, held(params[role]))
      rest = held(collections[role])
      yield Part(f"{role} collections ({kind})", kind, rest)
  for update, tree in state.optimizer.items():
    yield Part(f"optimizer state of {update}", "optimizer", held(tree))
  for name, tree in state.memory.items():
    yield Part(f"memory {name}", "memory", held(tree))
  counters = held((state.step, state.failed, state.rng))
  yield Part("counters and key", "state", counters)
  yield Part("batch", "batch", held(batch))
  _, metrics = step.lowered.out_info
  yield Part("metrics", "outputs", _whole(metrics))
  footprint = step.footprint
  if footprint is not None:
    yield Part("temporaries", "temporaries", footprint.temporaries)
    yield Part("program", "code", footprint.code)
  unread = held(arguments) - held((state, frozen, batch))
  yield Part("arguments that the step does not read", "unread", unread, False)
  if outline.best is not None:
    yield Part("best snapshot", "best", held(outline.best), False)
  yield Part(
    "validation batches", "validation", outline.validation_bytes, False
  )


def _whole(tree: Any) -> int:
  """Bytes of replicated results."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _advice(made: PhasePlan, outline: Outline, mesh: Mesh) -> Iterator[str]:
  """What would help against the biggest parts."""
  over = made.peak - made.device_memory
  yield f"{size_text(over)} too much; the biggest parts, and what would help:"
  biggest = sorted(made.parts, key=lambda part: -part.bytes)[:MOST]
  wide = any(
    leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(outline.frozen)
  )
  once = all(update.accumulate == 1 for update in outline.phase.updates)
  for part in biggest:
    ways = []
    if part.kind in ("trained", "frozen", "optimizer", "memory", "best"):
      if mesh.fsdp == 1:
        ways.append("split it: a mesh with fsdp above 1")
    if part.kind == "frozen" and wide:
      ways.append(
        "keep frozen weights in bfloat16: the dtype of what loads them"
      )
    if part.kind == "temporaries":
      if once:
        ways.append("micro-batches: accumulate above 1 in the update")
      ways += ["remat, where the net has it", "more devices under data or fsdp"]
    if part.kind in ("batch", "validation"):
      ways.append("smaller batches, or more devices under data or fsdp")
    shown = "; ".join(ways) or "nothing but a smaller one, or more memory"
    yield f"{part.name}, {size_text(part.bytes)}: {shown}"


def mesh_of(text: str) -> Mesh:
  """The mesh of `data=8,fsdp=1,tensor=1`; axes left out have size 1.

  Raises:
    ConfigError: an axis or a size is not one.
  """
  sizes = {}
  axes = [field.name for field in dataclasses.fields(Mesh)]
  for part in text.split(","):
    axis, _, size = (word.strip() for word in part.partition("="))
    if axis not in axes or not size.isdecimal() or axis in sizes:
      raise ConfigError(
        f"--mesh {text}: {part!r} is none of {', '.join(axes)} with its size; "
        "expected such as data=8,fsdp=1,tensor=1"
      )
    sizes[axis] = int(size)
  return Mesh(**sizes)


def bytes_of(text: str) -> int:
  """The bytes of `16GiB`.

  Raises:
    ConfigError: it is no number with a unit.
  """
  unit = text.lstrip("0123456789. ")
  try:
    found = int(float(text.removesuffix(unit)) * _UNITS[unit or "B"])
  except (ValueError, KeyError):
    found = 0
  if found < 1:
    raise ConfigError(
      f"--device-memory {text}: expected a number with one of "
      f"{', '.join(_UNITS)}, such as 16GiB"
    )
  return found


def size_text(count: int) -> str:
  """Bytes to be read: `1.5 GiB`."""
  for unit in ("TiB", "GiB", "MiB", "KiB"):
    if count >= _UNITS[unit]:
      return f"{count / _UNITS[unit]:.1f} {unit}"
  return f"{count} B"
