"""What an experiment is, before anything is compiled or trained."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxkd.data import pipeline
from jaxkd.data.source import Splits
from jaxkd.experiment import Experiment
from jaxkd.method import Method
from jaxkd.roles import usage
from jaxkd.training.feeds import MAIN, examples, feeds


def show(experiment: Experiment) -> str:
  """Describes data, phases and roles of an experiment as text.

  Args:
    experiment: what to describe.

  Returns:
    One batch's entries; for each method its phases and lengths; for each role
    its parameters, FLOPs of a forward pass, inputs, and taps with shapes.
  """
  splits = experiment.task.splits(experiment.seeds[0])
  batch = next(pipeline.batches(splits.train, experiment.task.batch_size))
  sizes = ", ".join(
    f"{name} {len(getattr(splits, name))}"
    for name in ("train", "validation", "test")
  )
  lines = [f"task {experiment.task.name}: {sizes}; one batch:"]
  lines += [f"  {name}: {_statistics(rows)}" for name, rows in batch.items()]
  size = experiment.task.batch_size
  for label, method in experiment.methods.items():
    lines += ["", f"{label}: {type(method).__name__}"]
    lines += _phases(method, splits, size, experiment.settings.max_steps)
    lines += _roles(method, splits, size)
  return "\n".join(lines)


def _statistics(rows: np.ndarray) -> str:
  return (
    f"{rows.dtype} {list(rows.shape)}, {rows.min():.3g} to {rows.max():.3g}, "
    f"mean {rows.mean():.3g}"
  )


def _phases(
  method: Method, splits: Splits, batch_size: int, limit: int | None
) -> list[str]:
  lines = []
  for phase in method.lasting_phases:
    main = feeds(phase, splits, batch_size, jax.random.key(0))[MAIN]
    steps = phase.length(pipeline.steps_per_epoch(main.source, main.batch_size))
    steps = min(steps, limit or steps)
    trained = ", ".join(phase.trains(tuple(method.roles)))
    lines.append(f"  phase {phase.name}: {steps} steps, trains {trained}")
  return lines


def _roles(method: Method, splits: Splits, batch_size: int) -> list[str]:
  lines = []
  seen = examples(method, splits, batch_size)
  for role, given in usage(method, *seen).inputs.items():
    network = method.roles[role]
    variables = jax.eval_shape(network.init, jax.random.key(0), dict(given))
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    forward = jax.jit(lambda v, b, n=network: n.apply(v, b)[0].value)
    cost = forward.lower(variables, dict(given)).cost_analysis() or {}
    shapes = ", ".join(
      f"{k} " + " ".join(str(list(x.shape)) for x in jax.tree.leaves(v))
      for k, v in given.items()
    )
    lines.append(
      f"  role {role}: {network.name}, {count:,} parameters, "
      f"{cost.get('flops', float('nan')) / batch_size:,.0f} FLOPs an "
      f"example; reads {shapes}"
    )
    lines += [
      f"    tap {path}: {_shapes(output)}"
      for path, output in network.paths(given).items()
    ]
  return lines


def _shapes(output: Any) -> str:
  shapes = [list(x.shape) for x in jax.tree.leaves(output)]
  return ", ".join(map(str, shapes))
