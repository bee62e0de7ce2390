"""The loop: phase after phase, exactly resumable at any moment.

A phase is a pure function of its compiled program, the variables it starts
from and its data stream. So its outcome is stored once, under `stages/`, and
a store shares it among the methods that have the phase in common.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.method import Method, Phase
from jaxkd.parallel import Mesh, Placement, arrays, processes
from jaxkd.roles import initialise
from jaxkd.training import checkpoint, files, proofs
from jaxkd.training.feeds import (
  MAIN,
  check_batches,
  feeds,
  join,
  picked,
  stays,
)
from jaxkd.training.host import Host, checked
from jaxkd.training.phase import PhaseRun, Settings, Stop, Trained
from jaxkd.training.program import Program, Programs, build
from jaxkd.training.progress import Progress
from jaxkd.training.progress import progress as make_progress
from jaxkd.training.state import Best, Fitted, State, first, frozen, settled
from jaxkd.training.store import Shared, key_of_phase
from jaxkd.training.target_files.folder import open_targets
from jaxkd.training.targets import cache_targets
from jaxkd.training.workdir import Run

Tree = Any
logger = logging.getLogger("jaxkd")


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
    phases, trained = self.phases(train=train), None
    with self.stop:
      while True:
        try:
          trained = phases.send(trained).train()
        except StopIteration as finished:
          return finished.value

  def phases(
    self, *, train: bool = True
  ) -> Generator[PhaseRun, Trained | None, Fitted]:
    """The phases that are to be trained, one after the other.

    Whoever drives the generator trains what it yields, alone or together with
    other runs, and sends back what that left; None if the store holds the
    outcome by now. See `fit`, also for errors.

    Args:
      train: whether phases that are not finished are trained.

    Yields:
      A phase, ready to train.

    Returns:
      The final variables.
    """
    sizes = (self.batch_size, *self.settings.batch_sizes)
    check_batches(self.placement.mesh, self.method, sizes)
    targets = open_targets(self.settings.targets) if train else None
    self.programs = self.programs or Programs.answered(self.method, targets)
    self._usage = self.programs.usage(self.splits, self.batch_size)
    self._rng = jax.random.key(self.seed)
    self._variables = self._start()
    self._readers = targets and targets.readers(
      self.method, self._usage.answered, self._variables, self.splits
    )
    memory = jax.tree.map(jnp.copy, dict(self.method.memory))
    self._memory = self.placement.put({"memory": memory})["memory"]
    self._offset = 0
    self._digests: dict[str, str] = {}
    self._on_device: list[Any] | None = None
    timing = processes.decide(
      lambda: files.read_json(self.run.timing, default={})
    )
    for index, phase in enumerate(self.method.lasting_phases):
      self._variables = settled(
        self.method, index, self._variables, self.placement
      )
      new = yield from self._phase(f"{index}_{phase.name}", phase, train)
      if new is not None:
        timing[phase.name] = new
        if processes.is_main():
          files.write_json(self.run.timing, timing)
    return Fitted(*self._variables, self._memory, timing)

  def _start(self) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """Variables by role before any phase, on their devices."""
    params, collections = initialise(
      self.method, self._rng, self._usage.inputs, self.placement.of_role
    )
    # Steps donate what they are given: the caller keeps the original.
    given = jax.tree.map(jnp.copy, dict(self.given))
    for role, variables in given.items():
      params[role] = variables["params"]
      collections[role] = {k: v for k, v in variables.items() if k != "params"}
    placed = self.placement.put({"params": params, "collections": collections})
    return placed["params"], placed["collections"]

  def _phase(
    self, name: str, phase: Phase, train: bool
  ) -> Generator[PhaseRun, Trained | None, dict[str, Any] | None]:
    """Runs a phase unless it is done, and takes over its outcome."""
    stage, timing = self.run.stages / name, None
    if not processes.decide(stage.exists):
      if not train:
        raise RefusedInput(f"{stage} is missing: the phase is not finished")
      timing = yield from self._make(name, phase)
    files.wait_for(stage)
    trained = phase.trains(tuple(self.method.roles))
    params, collections = self._variables
    outcome, meta = checkpoint.load_tree(
      stage,
      {
        "params": {role: params[role] for role in trained},
        "collections": {role: collections[role] for role in trained},
        "memory": phase.remembers(self._memory),
      },
    )
    if processes.is_main():
      shutil.rmtree(self.run.checkpoints / name, ignore_errors=True)
    self._variables = (
      {**params, **outcome["params"]},
      {**collections, **outcome["collections"]},
    )
    self._memory = {**self._memory, **outcome["memory"]}
    self._offset += meta["steps"]
    for role in trained:
      self._digests.pop(role, None)
    return timing

  def _begin(self, phase: Phase) -> None:
    """Lets the method change what the phase starts from."""
    if phase.begin is None:
      return
    params, collections = (dict(trees) for trees in self._variables)
    host = self._host(phase, params, collections, dict(self._memory))
    phase.begin(host)
    trained = phase.trains(tuple(self.method.roles))
    for before, after in zip(
      self._variables, (host.params, host.collections), strict=True
    ):
      changed = [r for r in after if after[r] is not before.get(r)]
      if set(changed) - set(trained):
        raise ConfigError(
          f"phase {phase.name!r}: begin changed {sorted(changed)}; expected "
          f"roles that the phase trains ({', '.join(trained)})"
        )
    self._variables = tuple(
      checked(before, after)
      for before, after in zip(
        self._variables, (host.params, host.collections), strict=True
      )
    )
    self._memory = checked(self._memory, host.memory)

  def _host(self, phase: Phase, params, collections, memory, epoch=0) -> Host:
    return Host(
      phase=phase.name,
      epoch=epoch,
      params=params,
      collections=collections,
      memory=memory,
      start=self._start,
      splits=self.splits,
      roles=self.method.roles,
      rng=self._rng,
      placement=self.placement,
      batch_size=self.settings.evaluation_batch_size,
      compiled=self.programs.host,
    )

  def _make(
    self, name: str, phase: Phase
  ) -> Generator[PhaseRun, Trained | None, dict[str, Any]]:
    """Brings the outcome into `stages`, from the store or by training."""
    stage = self.run.stages / name
    began = time.monotonic()
    self._begin(phase)
    used = self._usage.roles[phase.name]
    given = frozen(self.method, phase, self._variables, used=used)
    given = self.placement.keep(given)
    found = picked(
      phase,
      feeds(phase, self.splits, self.batch_size, self._rng),
      self._memory,
      functools.partial(self._with_targets, phase, given),
    )
    main = found[MAIN]
    epoch = pipeline.steps_per_epoch(main.source, main.batch_size)
    phase = phase.planned(epoch)
    steps = phase.length(epoch)
    steps = min(steps, self.settings.max_steps or steps)
    state, best = self.placement.put(self._first(phase))
    work = PhaseRun(
      phase=phase,
      label=f"{phase.name} (seed {self.seed})",
      program=self._program(phase, state, best, given, found, epoch),
      state=state,
      best=best,
      frozen=given,
      feeds=found,
      validation=self._validation_batches,
      after_epoch=functools.partial(self._after_epoch, phase),
      steps=steps,
      steps_per_epoch=epoch,
      offset=self._offset,
      directory=self.run.root,
      checkpoints=self.run.checkpoints / name,
      settings=self.settings,
      placement=self.placement,
      show=self.show,
      stop=self.stop,
    )
    shared = self._shared(work)
    work.key = shared and shared.folder.name
    preparation = time.monotonic() - began
    before = proofs.digests(given, self._digests)
    while not (shared and processes.decide(shared.exists)):
      trained = yield work
      if trained is not None:
        self._prove(work, before)
        checkpoint.save_tree(
          stage, trained.outcome, meta={"phase": phase.name, "steps": steps}
        )
        if shared is not None:
          processes.decide(functools.partial(shared.give, stage))
        return {**trained.timing, "preparation_seconds": round(preparation, 3)}
    processes.decide(functools.partial(shared.take, stage))
    return {"source": "shared by another method"}

  def _prove(self, work: PhaseRun, before: Mapping[str, str]) -> None:
    """Records what is known of a phase that has been trained."""
    name, after = work.phase.name, proofs.digests(work.frozen)
    self._digests |= after
    watch = self.programs.watches[name]
    found = proofs.collect(watch, work.program.step, before, after)
    if processes.is_main():
      proofs.record(self.run.proofs, name, found)
    for proof, result in found.items():
      if result.holds is False:
        logger.warning("phase %s: %s: %s", name, proof, result.evidence)

  def _first(self, phase: Phase) -> tuple[State, Best | None]:
    return first(
      self.method,
      phase,
      self._variables,
      rng=self._rng,
      memory=self._memory,
    )

  def _with_targets(
    self, phase: Phase, given: Tree, source: ArraySource
  ) -> ArraySource:
    readers = self._readers[phase.name] if self._readers else {}
    if readers:
      return source.with_beside(readers.get(id(source), ()))
    if not phase.targets or not self.settings.cache_targets:
      return source
    return cache_targets(
      self.programs.compute_targets(phase, self.placement),
      given,
      source,
      batch_size=self.settings.target_batch_size,
      placement=self.placement,
    )

  def _shared(self, work: PhaseRun) -> Shared | None:
    """Where methods share the outcome; host functions have no digest."""
    if self.store is None or work.phase.after_epoch is not None:
      return None
    key = key_of_phase(work, self.splits.validation)
    return Shared(self.store / key, self.run, self._offset)

  def _after_epoch(self, phase: Phase, state: State, epoch: int) -> State:
    """The state with the memory that the method's host function left."""
    trees = (
      {**before, **after}
      for before, after in zip(
        self._variables, (state.params, state.collections), strict=True
      )
    )
    memory = arrays.local(dict(state.memory))
    host = self._host(phase, *trees, memory, epoch)
    phase.after_epoch(host)
    return state.replace(memory=checked(state.memory, host.memory))

  def _program(self, phase, state, best, given, found, epoch) -> Program:
    programs = self.programs.phases
    if phase.name not in programs:
      batch = next(join(found, self.placement.part))
      programs[phase.name] = build(
        self.method,
        phase,
        state=state,
        best=best,
        frozen=given,
        batch=self.placement.put_batch(batch),
        validation_batch=next(iter(self._validation_batches())),
        steps_per_epoch=epoch,
        placement=self.placement,
        watch=self.programs.watches[phase.name],
        served=self.programs.served,
      )
    return programs[phase.name]

  def _validation_batches(self):
    """One pass over the placed batches of the validation split."""
    source = self.splits.validation
    size = self.settings.evaluation_batch_size
    host = pipeline.batches(source, size, *self.placement.part)
    if not stays(source):
      return map(self.placement.put_batch, host)
    if self._on_device is None:
      self._on_device = [self.placement.put_batch(batch) for batch in host]
    return self._on_device
