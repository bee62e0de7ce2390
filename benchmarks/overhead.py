"""A distillation step beside the same step written by hand.

    python -m benchmarks.overhead [--quick] [--networks NAME ...]
      [--output FILE]

KD's compiled step, as a run executes it, and a jitted function of the same
networks with a loss and Adam in plain jax, which checks nothing and counts
nothing; and that function with jaxkd's losses (`same_losses`), which tells what
the step costs from what the losses' precision costs. `overhead_ratio` is the
first over the second, a median of paired rounds; `over_by_hand_interval` holds
nine tenths of the medians of resampled rounds. `first_loss` shows that all
compute the same. `loop_ratio` is the seconds a step takes in the loop of a run
(batches, record, progress) over those of the compiled step called in a row. The
last line printed is one JSON object. If torch can be imported and jax computes
on a CPU, the same in PyTorch is timed in turns with them, as it is and, where
that works, by `torch.compile`: `torch` and `torch_compile`.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import harness
from benchmarks.pairs import PAIRS, Pair, small
from jaxkd import allocator, losses
from jaxkd.data import pipeline
from jaxkd.data.source import Splits
from jaxkd.method import Batch
from jaxkd.methods.kd import KD
from jaxkd.network import Network
from jaxkd.parallel import Mesh, Placement
from jaxkd.roles import initialise
from jaxkd.training.loop import Trainer
from jaxkd.training.phase import Settings
from jaxkd.training.program import Programs, build
from jaxkd.training.proofs import Watch
from jaxkd.training.state import create, frozen
from jaxkd.training.workdir import Run

try:
  from benchmarks import torch_pairs
except ImportError:
  torch_pairs = None

LR = 1e-4
TEMPERATURE = 4.0
ALPHA = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """How much is measured.

  Attributes:
    repetitions: rounds.
    sample_seconds: fast steps are repeated until a sample takes so long.
    loop_steps: steps of the two loops.
    clock: "wall" seconds, or "cpu" seconds of all threads of the process,
      which other processes disturb less.
  """

  repetitions: int = 25
  sample_seconds: float = 0.2
  loop_steps: int = 60
  clock: str = "wall"


FULL = Budget()
QUICK = Budget(repetitions=3, sample_seconds=0.0, loop_steps=8)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclasses.dataclass
class Timed:
  """A step to be timed.

  Attributes:
    call: makes one step and waits for it; returns the loss, a number or the
      pair of sum and weight.
    program: what is called, compiled.
  """

  call: Callable[[], Any]
  program: Any

  @property
  def memory(self) -> dict[str, int]:
    """Bytes of the program: arguments, results beside them, temporary."""
    plan = self.program.memory_analysis()
    return {
      "arguments": plan.argument_size_in_bytes,
      "results": plan.output_size_in_bytes - plan.alias_size_in_bytes,
      "temporary": plan.temp_size_in_bytes,
    }


def method(pair: Pair) -> KD:
  """KD with a teacher that is given ready."""
  return KD(
    teacher=pair.network(pair.teacher),
    student=pair.network(pair.student),
    temperature=TEMPERATURE,
    alpha=ALPHA,
    teacher_epochs=0,
    epochs=1,
    lr=LR,
  )


def library_step(
  pair: Pair, *, placement: Placement | None = None, micro_batches: int = 1
) -> Timed:
  """KD's step as a run compiles it.

  Args:
    pair: the networks.
    placement: where everything lies; on one device if not given.
    micro_batches: parts of the batch whose gradients are added.
  """
  kd, placement = method(pair), placement or Placement(Mesh())
  source = pair.source(pair.batch_size)
  splits = Splits(train=source, validation=source, test=source)
  phase = kd.lasting_phases[0]
  (update,) = phase.updates
  update = dataclasses.replace(update, accumulate=micro_batches)
  phase = dataclasses.replace(phase, updates=(update,))
  rng = jax.random.key(0)
  use = Programs(kd).usage(splits, pair.batch_size)
  variables = initialise(kd, rng, use.inputs)
  trees = (
    create(kd, phase, variables, rng=rng, memory=kd.memory),
    frozen(kd, phase, variables, used=use.roles[phase.name]),
  )
  state, given = placement.put(trees[0]), placement.keep(trees[1])
  batch = placement.put_batch(next(pipeline.batches(source, pair.batch_size)))
  step = build(
    kd,
    phase,
    state=state,
    best=None,
    frozen=given,
    batch=batch,
    validation_batch=batch,
    steps_per_epoch=1000,
    placement=placement,
    watch=Watch(),
  ).step

  def call():
    nonlocal state
    state, metrics = jax.block_until_ready(step(state, given, batch))
    return metrics["loss"]

  return Timed(call, step.executable)


def fresh(pair: Pair) -> dict[str, Any]:
  """The variables that teacher and student begin at, as modules take them."""
  kd = method(pair)
  batch = jax.eval_shape(lambda: dict(pair.arrays(pair.batch_size)))
  shapes = dict.fromkeys(kd.roles, batch)
  params, others = initialise(kd, jax.random.key(0), shapes)
  return {role: {"params": params[role], **others[role]} for role in kd.roles}


def hand_written_step(
  pair: Pair, objective: Callable[..., jax.Array] | None = None
) -> Timed:
  """The same step in plain jax.

  Args:
    pair: the networks.
    objective: of logits, the teacher's logits and labels; `distillation` if
      not given.
  """
  objective = objective or distillation
  kd = method(pair)
  arrays = pair.arrays(pair.batch_size)
  batch = {name: jnp.asarray(value) for name, value in arrays.items()}
  variables = fresh(pair)
  teacher, own = variables["teacher"], variables["student"]
  optimizer = optax.adam(LR)
  params = own.pop("params")
  carry = params, own, optimizer.init(params)

  def step(carry, teacher, batch):
    params, statistics, moments = carry
    target = run(kd.teacher, teacher, batch, train=False)[0]

    def loss(params):
      variables = {"params": params, **statistics}
      logits, changed = run(kd.student, variables, batch, train=True)
      return objective(logits, target, batch["label"]), changed

    (value, changed), grads = jax.value_and_grad(loss, has_aux=True)(params)
    steps, moments = optimizer.update(grads, moments, params)
    params = optax.apply_updates(params, steps)
    return (params, {**statistics, **changed}, moments), value

  program = (
    jax.jit(step, donate_argnums=0).lower(carry, teacher, batch).compile()
  )

  def call():
    nonlocal carry
    carry, value = jax.block_until_ready(program(carry, teacher, batch))
    return value

  return Timed(call, program)


def run(
  network: Network, variables: Any, batch: Batch, *, train: bool
) -> tuple[jax.Array, Any]:
  """The module's logits, and the statistics that it changed."""
  module = network.module
  inputs = [batch[name] for name in network.inputs]
  takes = "train" in inspect.signature(module.__call__).parameters
  keywords = {"train": train} if takes else {}
  if train and "batch_stats" in variables:
    return module.apply(variables, *inputs, mutable=["batch_stats"], **keywords)
  return module.apply(variables, *inputs, **keywords), {}


def distillation(
  logits: jax.Array, target: jax.Array, label: jax.Array
) -> jax.Array:
  """(1 - alpha) CE + alpha T^2 KL, the mean, as one writes it down."""
  log_q = jax.nn.log_softmax(logits)
  task = -jnp.take_along_axis(log_q, label[..., None], -1).mean()
  log_q = jax.nn.log_softmax(logits / TEMPERATURE)
  log_p = jax.nn.log_softmax(target / TEMPERATURE)
  kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1).mean()
  return (1 - ALPHA) * task + ALPHA * TEMPERATURE**2 * kl


def library_losses(
  logits: jax.Array, target: jax.Array, label: jax.Array
) -> jax.Array:
  """The same with jaxkd's losses, which keep small divergences precise."""
  task = losses.cross_entropy(logits, label).mean()
  kl = losses.kl(logits, target, temperature=TEMPERATURE).mean()
  return (1 - ALPHA) * task + ALPHA * kl


def mean(loss: Any) -> float:
  """The loss of a call."""
  total, weight = loss if isinstance(loss, tuple) else (loss, 1.0)
  return float(total) / float(weight)


def torch_peer() -> bool:
  """Whether PyTorch is timed too; its peer is one for CPUs."""
  return torch_pairs is not None and jax.default_backend() == "cpu"


def compare(pair: Pair, budget: Budget) -> dict[str, Any]:
  """Times the steps of one pair in turns."""
  timed = {
    "jaxkd": library_step(pair),
    "by_hand": hand_written_step(pair),
    "same_losses": hand_written_step(pair, library_losses),
  }
  calls = {name: each.call for name, each in timed.items()}
  if torch_peer():
    calls |= torch_pairs.steps(
      pair, fresh(pair), lr=LR, temperature=TEMPERATURE, alpha=ALPHA
    )
  first = {name: mean(call()) for name, call in calls.items()}
  samples = harness.interleave(
    calls,
    repetitions=budget.repetitions,
    warm_up=2,
    sample_seconds=budget.sample_seconds,
    clock=CLOCKS[budget.clock],
  )
  found = {
    "batch_size": pair.batch_size,
    "first_loss": first,
    "step_ms": {name: round(1e3 * samples.median(name), 3) for name in calls},
    "fastest_ms": {
      name: round(1e3 * samples.fastest(name), 3) for name in calls
    },
    "overhead_ratio": round(samples.ratio("jaxkd", "by_hand"), 4),
    "planned_bytes": {name: each.memory for name, each in timed.items()},
  }
  for name in calls:
    if name != "jaxkd":
      found[f"over_{name}_interval"] = samples.interval("jaxkd", name)
      found[f"over_{name}"] = round(samples.ratio("jaxkd", name), 4)
  return found


def loop_seconds(pair: Pair, steps: int) -> dict[str, float]:
  """Seconds of a step in the loop of a run, and of the step alone.

  Args:
    pair: the networks.
    steps: of either loop.
  """
  one = pair.source(pair.batch_size)
  train = pair.source(steps * pair.batch_size)
  splits = Splits(train=train, validation=one, test=one)
  with tempfile.TemporaryDirectory() as folder:
    fitted = Trainer(
      method=method(pair),
      splits=splits,
      seed=0,
      batch_size=pair.batch_size,
      run=Run(Path(folder)),
      settings=Settings(cache_targets=False, checkpoint_every_steps=steps),
    ).fit()
  step = library_step(pair)
  step.call()
  began = time.perf_counter()
  for _ in range(steps):
    step.call()
  alone = (time.perf_counter() - began) / steps
  loop = fitted.timing["distil"]["seconds"] / steps
  return {
    "loop_step_ms": round(1e3 * loop, 3),
    "bare_step_ms": round(1e3 * alone, 3),
    "loop_ratio": round(loop / alone, 4),
  }


def measure(
  budget: Budget, names: Sequence[str], quick: bool
) -> dict[str, Any]:
  """Runs everything.

  Args:
    budget: how much is measured.
    names: of the pairs.
    quick: whether the networks are tiny.

  Returns:
    The JSON record.
  """
  threads = harness.cores()
  peer = torch_pairs.record(threads) if torch_peer() else {}
  record = {
    "benchmark": "overhead",
    **harness.record(**peer.get("versions", {})),
    "torch_threads": peer.get("threads"),
    "torch_compile_error": peer.get("compile_error"),
    **dataclasses.asdict(budget),
    "networks": {},
  }
  for name in names:
    pair = small(PAIRS[name]) if quick else PAIRS[name]
    found = compare(pair, budget) | loop_seconds(pair, budget.loop_steps)
    record["networks"][name] = found
    report(name, found)
  return {**record, "load_average_1min_at_end": harness.load()}


def report(name: str, found: dict[str, Any]) -> None:
  """Prints a line for people."""
  steps = "  ".join(f"{k} {v:.2f} ms" for k, v in found["step_ms"].items())
  print(
    f"{name:8s} {steps}  overhead {found['overhead_ratio']:.3f} "
    f"{found['over_by_hand_interval']}  loop {found['loop_ratio']:.3f}",
    file=sys.stderr,
  )


def main(arguments: list[str] | None = None) -> None:
  """Parses the command line and prints the record."""
  allocator.keep()  # as `jaxkd run` does
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--quick", action="store_true", help="tiny networks")
  parser.add_argument(
    "--networks", nargs="+", choices=PAIRS, default=list(PAIRS)
  )
  parser.add_argument("--clock", choices=CLOCKS, default="wall")
  harness.add_output(parser)
  options = parser.parse_args(arguments)
  budget = QUICK if options.quick else FULL
  budget = dataclasses.replace(budget, clock=options.clock)
  result = measure(budget, options.networks, options.quick)
  harness.emit(result, options.output)


if __name__ == "__main__":
  main()
