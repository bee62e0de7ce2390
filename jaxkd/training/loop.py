"""The loop: phase after phase, exactly resumable at any moment.

A phase is a pure function of its compiled program, the variables it starts
from and its data stream. So its outcome is stored once, under `stages/`, and
a store shares it among the methods that have the phase in common.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.method import Method, Phase
from jaxkd.parallel import Mesh, Placement
from jaxkd.roles import Nets, initialise, key_of
from jaxkd.training import checkpoint, files
from jaxkd.training.phase import PhaseRun, Settings, Stop
from jaxkd.training.program import Program, Programs, build
from jaxkd.training.progress import Progress
from jaxkd.training.progress import progress as make_progress
from jaxkd.training.state import Best, create
from jaxkd.training.targets import cache_targets
from jaxkd.training.workdir import Run
from jaxkd.training.writers import Writers, lines_end

Tree = Any
DEVICE_BYTES = 2**28  # validation batches up to this size stay on the device


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


@dataclasses.dataclass(kw_only=True)
class Trainer:
  """Trains one method on one seed's data.

  Attributes:
    method: the method.
    splits: the data.
    seed: decides every random draw.
    batch_size: examples in a step, over all devices.
    run: where the run's files lie.
    settings: how it is executed.
    placement: on which devices.
    programs: what was compiled for the method already; new by default.
    store: folder of finished phases that methods share; None for none.
    show: makes the progress of a phase.
    given: variables by role of roles that do not start from scratch.
    stop: what asks for a stop.
  """

  method: Method
  splits: Splits
  seed: int
  batch_size: int
  run: Run
  settings: Settings = dataclasses.field(default_factory=Settings)
  placement: Placement = dataclasses.field(
    default_factory=lambda: Placement(Mesh())
  )
  programs: Programs | None = None
  store: Path | None = None
  show: Callable[..., Progress] = make_progress
  given: Mapping[str, Mapping[str, Tree]] = dataclasses.field(
    default_factory=dict
  )
  stop: Stop = dataclasses.field(default_factory=Stop)

  def fit(self, *, train: bool = True) -> Fitted:
    """Runs or resumes all phases.

    Args:
      train: whether phases that are not finished are trained.

    Returns:
      The final variables.

    Raises:
      RefusedInput: a phase is not finished and is not to be trained.
      NonFinite: a step was not finite.
      Preempted: the process was asked to stop; its state was saved.
      StorageError: files could not be read or written.
    """
    for size in (self.batch_size, *self.settings.batch_sizes):
      self.placement.mesh.check_batch(size)
    batch = next(pipeline.batches(self.splits.train, self.batch_size))
    self.programs = self.programs or Programs(self.method)
    self._usage = self.programs.usage(batch)
    self._rng = jax.random.key(self.seed)
    params, collections = initialise(self.method, self._rng, self._usage.inputs)
    # Steps donate what they are given: the caller keeps the original.
    given = jax.tree.map(jnp.copy, dict(self.given))
    for role, variables in given.items():
      params[role] = variables["params"]
      collections[role] = {k: v for k, v in variables.items() if k != "params"}
    self._variables = (params, collections)
    self._memory = jax.tree.map(jnp.copy, dict(self.method.memory))
    self._offset = 0
    self._on_device: list[Any] | None = None
    timing = files.read_json(self.run.timing, default={})
    with self.stop:
      for index, phase in enumerate(self.method.phases):
        phase = phase.planned(self._steps_per_epoch(phase))
        new = self._phase(f"{index}_{phase.name}", phase, train)
        if new is not None:
          timing[phase.name] = new
          files.write_json(self.run.timing, timing)
    return Fitted(*self._variables, self._memory, timing)

  def _phase(
    self, name: str, phase: Phase, train: bool
  ) -> dict[str, Any] | None:
    """Runs a phase unless it is done, and takes over its outcome."""
    state, frozen = create(
      self.method,
      phase,
      self._variables,
      used=self._usage.roles[phase.name],
      rng=self._rng,
      memory=self._memory,
    )
    stage, timing = self.run.stages / name, None
    if not stage.exists():
      if not train:
        raise RefusedInput(f"{stage} is missing: the phase is not finished")
      timing = self._make(name, phase, state, frozen)
    outcome, _ = checkpoint.load_tree(
      stage,
      {
        "params": state.params,
        "collections": state.collections,
        "memory": state.memory,
      },
    )
    shutil.rmtree(self.run.checkpoints / name, ignore_errors=True)
    params, collections = self._variables
    self._variables = (
      {**params, **outcome["params"]},
      {**collections, **outcome["collections"]},
    )
    self._memory = outcome["memory"]
    self._offset += self._length(phase)
    return timing

  def _source(self, phase: Phase) -> ArraySource:
    names = [field.name for field in dataclasses.fields(self.splits)]
    if phase.stream not in names:
      raise ConfigError(
        f"phase {phase.name!r}: stream={phase.stream!r}, expected one of "
        + ", ".join(names)
      )
    return getattr(self.splits, phase.stream)

  def _steps_per_epoch(self, phase: Phase) -> int:
    return pipeline.steps_per_epoch(self._source(phase), self.batch_size)

  def _length(self, phase: Phase) -> int:
    total = phase.length(self._steps_per_epoch(phase))
    return min(total, self.settings.max_steps or total)

  def _make(self, name: str, phase: Phase, state, frozen) -> dict[str, Any]:
    """Brings the outcome into `stages`, from the store or by training."""
    stage = self.run.stages / name
    began = time.monotonic()
    frozen = jax.device_put(frozen, self.placement.of(frozen))
    source = self._source(phase)
    if phase.targets and self.settings.cache_targets:
      source = cache_targets(
        self.method,
        phase,
        frozen,
        source,
        batch_size=self.settings.target_batch_size,
        placement=self.placement,
      )
    best = Best.of(state) if phase.validate else None
    state, best = jax.device_put(
      (state, best), self.placement.of((state, best))
    )
    work = PhaseRun(
      name=phase.name,
      label=f"{phase.name} (seed {self.seed})",
      program=self._program(phase, state, best, frozen, source),
      state=state,
      best=best,
      frozen=frozen,
      source=source,
      validation=self._validation_batches,
      steps=self._length(phase),
      steps_per_epoch=self._steps_per_epoch(phase),
      batch_size=self.batch_size,
      stream_seed=self._stream_seed(phase),
      offset=self._offset,
      directory=self.run.root,
      checkpoints=self.run.checkpoints / name,
      settings=self.settings,
      placement=self.placement,
      show=self.show,
      stop=self.stop,
    )
    shared = None if self.store is None else self.store / self._key(work)
    if shared is not None and shared.exists():
      self._take(shared, stage)
      return {"source": "shared by another method"}
    preparation = time.monotonic() - began
    outcome, timing = work.train()
    checkpoint.save_tree(stage, outcome, meta={"phase": phase.name})
    if shared is not None:
      self._give(stage, shared)
    return {**timing, "preparation_seconds": round(preparation, 3)}

  def _program(self, phase, state, best, frozen, source) -> Program:
    programs = self.programs.phases
    if phase.name not in programs:
      batch = next(pipeline.batches(source, self.batch_size))
      programs[phase.name] = build(
        self.method,
        phase,
        state=state,
        best=best,
        frozen=frozen,
        batch=self.placement.put_batch(batch),
        validation_batch=next(iter(self._validation_batches())),
        steps_per_epoch=self._steps_per_epoch(phase),
        placement=self.placement,
      )
    return programs[phase.name]

  def _validation_batches(self):
    """One pass over the placed batches of the validation split."""
    source = self.splits.validation
    host = pipeline.batches(source, self.settings.evaluation_batch_size)
    example = source.take(np.zeros(1, np.int32))
    if sum(x.nbytes for x in example.values()) * len(source) > DEVICE_BYTES:
      return map(self.placement.put_batch, host)
    if self._on_device is None:
      self._on_device = [self.placement.put_batch(batch) for batch in host]
    return self._on_device

  def _stream_seed(self, phase: Phase) -> int:
    key = key_of(self._rng, f"stream/{phase.name}")
    return int(jax.random.bits(key, dtype=np.uint32))

  # Sharing finished phases; their lines of metrics travel with them.

  def _key(self, work: PhaseRun) -> str:
    """Digest of everything that decides a phase's outcome and record."""
    parts = (
      work.name,
      work.program.fingerprint,
      checkpoint.tree_digest({"state": work.state, "frozen": work.frozen}),
      pipeline.fingerprint(work.source),
      pipeline.fingerprint(self.splits.validation),
      (work.stream_seed, work.batch_size, work.steps, work.steps_per_epoch),
      self.settings.evaluation_batch_size,
      self.settings.log_every_steps,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

  def _take(self, shared: Path, stage: Path) -> None:
    end = lines_end(self.run.root, self._offset)
    with Writers.resume(self.run.root, end) as writers:
      for line in files.read_json(shared / "lines.json"):
        writers.write(**{**line, "step": line["step"] + self._offset})
      writers.offset()
    files.copy_folder(shared / "outcome", stage)

  def _give(self, stage: Path, shared: Path) -> None:
    lines = files.read_lines(
      self.run.metrics, start=lines_end(self.run.root, self._offset)
    )
    building = shared.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    files.copy_folder(stage, building / "outcome")
    files.write_json(
      building / "lines.json",
      [{**line, "step": line["step"] - self._offset} for line in lines],
    )
    building.rename(shared)


@dataclasses.dataclass
class Predictor:
  """Runs a method's predictors; compiled once for all seeds.

  Attributes:
    method: the method.
    placement: on which devices.
    batch_size: examples in a batch.
  """

  method: Method
  placement: Placement
  batch_size: int

  def __post_init__(self):
    """Makes the jitted function."""

    def run(params, collections, memory, batch):
      nets = Nets(self.method.roles, params, collections, memory=memory)
      outputs = self.method.outputs(nets, batch)
      self._names = tuple(outputs)  # jit would sort a dict by name
      logits = [output.logits for output in outputs.values()]
      return logits, dict(self.method.measure(nets, batch))

    self._run = jax.jit(run)

  def __call__(
    self, fitted: Fitted, source: ArraySource
  ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs over a source.

    Args:
      fitted: the method's variables.
      source: N examples.

    Returns:
      Logits [N, ..., C] by predictor, in the method's order, and further
      measures [N] by name.
    """
    variables = (
      dict(fitted.params),
      dict(fitted.collections),
      dict(fitted.memory),
    )
    variables = jax.device_put(variables, self.placement.of(variables))
    parts = [
      jax.device_get(self._run(*variables, self.placement.put_batch(batch)))
      for batch in pipeline.batches(source, self.batch_size)
    ]
    logits, measures = jax.tree.map(
      lambda *rows: np.concatenate(rows)[: len(source)], *parts
    )
    return dict(zip(self._names, logits, strict=True)), measures
