"""A student's epoch on cached targets beside one with its teacher running.

    python -m benchmarks.cached_targets [--quick] [--output FILE]

A causal decoder learns from a larger frozen one by plain distillation. What is
timed is an epoch as a run executes it, reading and decoding of the targets
included: with the teacher in every step (live), on all its logits and on its
128 most probable classes. Beside it the teacher's forward passes alone (T) and
the student's steps on targets that lie on the device (S): without any cost of
reading, caching is faster by (T + S) / S.

Then bytes of a token and what is lost, at vocabularies of language models:
distributions whose logits fall with the logarithm of the rank. The last line
printed is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxkd import allocator, nets
from jaxkd.data import pipeline
from jaxkd.data.pipeline import Feed
from jaxkd.data.source import ArraySource, Splits
from jaxkd.methods import KD
from jaxkd.network import Network, Pure
from jaxkd.parallel import Mesh, Placement
from jaxkd.roles import Nets, initialise
from jaxkd.training import state as states
from jaxkd.training.program import Programs, build
from jaxkd.training.proofs import Watch
from jaxkd.training.target_files import TargetFolder, Wanted, cache

PHASE = "distil"
REQUIRED = 0.8
PRIME = 7919  # divides no vocabulary here: ranks are a permutation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """How much is measured.

  Attributes:
    examples: rows of text in an epoch.
    length: tokens in a row.
    batch_size: rows in a step.
    vocabulary: of the decoders.
    teacher_width: and depth, heads of 32.
    teacher_depth: blocks.
    student_width: likewise.
    student_depth: blocks.
    k: classes that are kept.
    repetitions: rounds.
    vocabularies: where bytes and errors are measured.
    tokens: distributions at each of them.
    temperatures: of the errors.
  """

  examples: int = 128
  length: int = 64
  batch_size: int = 8
  vocabulary: int = 4096
  teacher_width: int = 256
  teacher_depth: int = 6
  student_width: int = 64
  student_depth: int = 2
  k: int = 128
  repetitions: int = 5
  vocabularies: tuple[int, ...] = (32_000, 128_256, 151_936)
  tokens: int = 2048
  temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)


QUICK = {
  "examples": 32,
  "length": 32,
  "vocabulary": 2048,
  "repetitions": 3,
  "tokens": 256,
}


def _decoder(budget: Budget, width: int, depth: int) -> Network:
  module = nets.CausalDecoder(
    vocabulary_size=budget.vocabulary,
    width=width,
    depth=depth,
    heads=width // 32,
  )
  return Network(module, ("tokens",))


def method(budget: Budget) -> KD:
  """Plain distillation; the teacher is there."""
  return KD(
    student=_decoder(budget, budget.student_width, budget.student_depth),
    teacher=_decoder(budget, budget.teacher_width, budget.teacher_depth),
    teacher_epochs=0,
    epochs=1,
    temperature=1.0,
  )


def text(budget: Budget) -> Splits:
  """Random tokens, of which the teacher makes what it will."""
  shape = (budget.examples, budget.length + 1)
  random = np.random.default_rng(0)
  tokens = random.integers(0, budget.vocabulary, shape).astype(np.int32)
  source = ArraySource({"tokens": tokens[:, :-1], "label": tokens[:, 1:]})
  return Splits(train=source, validation=source, test=source)


class Epochs:
  """The phase's epochs, with or without its teacher.

  Attributes:
    calls: an epoch by name; each returns when it is done.
    steps: of an epoch.
    compile_s: seconds of compilation, by name.
  """

  def __init__(self, budget: Budget, folder: Path):
    self._budget, self._folder = budget, folder
    self._method, self._splits = method(budget), text(budget)
    self._placement = Placement(Mesh())
    self.steps = -(-budget.examples // budget.batch_size)
    self.compile_s: dict[str, float] = {}
    usage = Programs(self._method).usage(self._splits, budget.batch_size)
    self._variables = initialise(self._method, jax.random.key(0), usage.inputs)
    self.cached = {
      "all": self._cache("all", usage.inputs, k=None),
      "topk": self._cache("topk", usage.inputs, k=budget.k),
    }
    self.calls = {"live": self._epoch("live", None), "teacher": self._teach()}
    for name in self.cached:
      targets = TargetFolder(folder / name)
      self.calls[f"cached_{name}"] = self._epoch(f"cached_{name}", targets)
      self.calls[f"student_{name}"] = self._epoch(
        f"student_{name}", targets, read=False
      )

  def _cache(self, name: str, inputs: Any, k: int | None) -> dict[str, Any]:
    began = time.monotonic()
    made = cache(
      Wanted(k=k),
      self._method,
      self._splits,
      self._folder / name,
      seed=0,
      inputs=inputs,
      batch_size=self._budget.batch_size,
      placement=self._placement,
    )
    return {
      "seconds": round(time.monotonic() - began, 3),
      "bytes_per_token": made.index["bytes_per_token"],
    }

  def _source(self, targets: TargetFolder | None, programs: Programs):
    source = self._splits.train
    if targets is None:
      return source
    usage = programs.usage(self._splits, self._budget.batch_size)
    readers = targets.readers(
      self._method, usage.answered, self._variables, self._splits
    )
    return source.with_beside(readers[PHASE][id(source)])

  def _epoch(
    self, name: str, targets: TargetFolder | None, *, read: bool = True
  ) -> Callable[[], float]:
    """An epoch of steps; it returns the loss of the last one.

    Args:
      name: for the record.
      targets: answer the teacher; None runs it.
      read: whether batches are read in the epoch, or lie on the device.
    """
    served = targets.served(self._method) if targets else {}
    programs = Programs(self._method, served)
    source = self._source(targets, programs)
    size = self._budget.batch_size
    usage = programs.usage(self._splits, size)
    phase = self._method.lasting_phases[0].planned(self.steps)
    phase = dataclasses.replace(phase, validate=None)
    copied = jax.tree.map(jnp.copy, self._variables)
    state = states.create(
      self._method, phase, copied, rng=jax.random.key(0), memory={}
    )
    frozen = states.frozen(self._method, phase, copied, used=usage.roles[PHASE])
    state, frozen = (
      jax.device_put(tree, self._placement.of(tree)) for tree in (state, frozen)
    )
    stream = pipeline.stream(Feed(source, size, 0))
    placed = [
      self._placement.put_batch(next(stream))
      for _ in range(1 if read else self.steps)
    ]
    program = build(
      self._method,
      phase,
      state=state,
      best=None,
      frozen=frozen,
      batch=placed[0],
      validation_batch=placed[0],
      steps_per_epoch=self.steps,
      placement=self._placement,
      watch=Watch(),
      served=served,
    )
    program.compile()
    self.compile_s[name] = round(program.seconds, 3)
    held = {"state": state}

    def epoch():
      for number in range(self.steps):
        if read:
          batch = self._placement.put_batch(next(stream))
        else:
          batch = placed[number]
        held["state"], metrics = program.step(held["state"], frozen, batch)
      total, weight = metrics["loss"]
      jax.block_until_ready(held["state"].step)
      return float(total) / float(weight)

    return epoch

  def _teach(self) -> Callable[[], None]:
    params, collections = self._variables

    @jax.jit
    def run(params, collections, batch):
      return Nets(self._method.roles, params, collections).teacher(batch).logits

    batches = [
      self._placement.put_batch(batch)
      for batch in pipeline.batches(self._splits.train, self._budget.batch_size)
    ]

    def epoch():
      for batch in batches:
        logits = run(params, collections, batch)
      jax.block_until_ready(logits)

    return epoch


def speeds(samples: harness.Samples) -> dict[str, dict[str, float]]:
  """Speed-ups beside those that free reading would give."""
  found = {}
  for name in ("all", "topk"):
    teacher = samples.ratio("teacher", f"student_{name}")
    speedup = samples.ratio("live", f"cached_{name}")
    found[name] = {
      "speedup": round(speedup, 3),
      "without_reading": round(1 + teacher, 3),
      "share": round(speedup / (1 + teacher), 3),
      "reading_over_student": round(
        samples.ratio(f"cached_{name}", f"student_{name}"), 3
      ),
    }
  return found


@dataclasses.dataclass(frozen=True)
class Peaked:
  """A teacher that makes distributions of seeds [B, L].

  Logits fall with the logarithm of the rank, 1 to 2.5 times as fast, with
  noise; the first stands out by up to 5 nats. Neighbours in rank are far apart
  in number.

  Attributes:
    vocabulary: classes.
  """

  vocabulary: int

  def init(self, rng: jax.Array, seeds: jax.Array) -> dict[str, Any]:
    """No parameters."""
    del rng, seeds
    return {"params": {}}

  def apply(self, variables: Any, seeds: jax.Array) -> jax.Array:
    """Logits, [B, L, vocabulary]."""
    del variables
    return jax.lax.map(jax.vmap(self.logits), seeds)

  def logits(self, seed: jax.Array) -> jax.Array:
    """Of one position, [vocabulary]."""
    keys = jax.random.split(jax.random.key(seed), 4)
    steep = jax.random.uniform(keys[0], (), minval=1.0, maxval=2.5)
    begin = jax.random.randint(keys[1], (), 0, self.vocabulary)
    numbers = PRIME * jnp.arange(self.vocabulary) + begin
    ranks = 1 + numbers % self.vocabulary
    noise = 0.3 * jax.random.normal(keys[2], (self.vocabulary,))
    first = jax.random.uniform(keys[3], (), maxval=5.0)
    values = noise - steep * jnp.log(ranks.astype(jnp.float32))
    return values + jnp.where(ranks == 1, first, 0.0)


def losses_at(budget: Budget, vocabulary: int, folder: Path) -> dict[str, Any]:
  """Bytes of a token and errors at a vocabulary."""
  length = 64
  seeds = np.arange(budget.tokens, dtype=np.int32).reshape(-1, length)
  source = ArraySource({"seeds": seeds})
  peaked = Peaked(vocabulary)
  teacher = Network(Pure(peaked.init, peaked.apply), ("seeds",))
  chosen = dataclasses.replace(method(budget), teacher=teacher)
  shapes = {"seeds": jax.ShapeDtypeStruct((1, length), jnp.int32)}
  made = cache(
    Wanted(k=budget.k, temperatures=budget.temperatures),
    chosen,
    Splits(train=source, validation=source, test=source),
    folder / str(vocabulary),
    seed=0,
    inputs={"teacher": shapes},
    batch_size=4,
    placement=Placement(Mesh()),
  )
  reader = made.reader("teacher")
  rows = np.arange(len(source))
  reader.read(rows)
  began = time.monotonic()
  reader.read(rows)
  decoded = time.monotonic() - began
  return {
    "bits": made.layout.codec.bits,
    "bytes_per_token": round(made.index["bytes_per_token"], 2),
    "kl": made.index["kl"],
    "read_tokens_per_s": round(budget.tokens / decoded),
  }


def measure(budget: Budget) -> dict[str, Any]:
  """The whole record."""
  head = {
    "benchmark": "cached_targets",
    **harness.record(),
    "backend": jax.default_backend(),
    **dataclasses.asdict(budget),
  }
  with tempfile.TemporaryDirectory() as folder:
    epochs = Epochs(budget, Path(folder))
    losses = {
      name: epochs.calls[name]()
      for name in ("live", "cached_all", "cached_topk")
    }
    samples = harness.interleave(epochs.calls, repetitions=budget.repetitions)
    found = speeds(samples)
    vocabularies = {
      str(size): losses_at(budget, size, Path(folder))
      for size in budget.vocabularies
    }
  return {
    **head,
    "loss_after_an_epoch": losses,
    "share_required": REQUIRED,
    "speed": found,
    "epoch_s": {n: round(samples.median(n), 4) for n in epochs.calls},
    "fastest_s": {n: round(samples.fastest(n), 4) for n in epochs.calls},
    "compile_s": epochs.compile_s,
    "caching": epochs.cached,
    "vocabulary_sizes": vocabularies,
    "load_average_1min_at_end": harness.load(),
  }


def main(arguments: list[str] | None = None) -> None:
  """Parses the command line and prints the record."""
  allocator.keep()  # as `jaxkd run` does
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--quick", action="store_true", help="smaller sizes")
  harness.add_output(parser)
  options = parser.parse_args(arguments)
  budget = dataclasses.replace(Budget(), **(QUICK if options.quick else {}))
  result = measure(budget)
  harness.emit(result, options.output)


if __name__ == "__main__":
  main()
