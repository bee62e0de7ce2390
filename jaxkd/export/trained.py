"""What is exported: a trained network, or what a method deploys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from jaxkd.data import pipeline
from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.roles import Nets
from jaxkd.training.loop import Trainer
from jaxkd.training.workdir import Workdir

if TYPE_CHECKING:
  from jaxkd.data.source import Splits
  from jaxkd.experiment import Experiment
  from jaxkd.method import Method
  from jaxkd.network import Network
  from jaxkd.training.loop import Fitted

Batch = Mapping[str, Any]
Tree = Any
PREDICTOR = "predictor"
LABEL = "main"  # of the experiment's own method
EXAMPLES = 8
_DRAWN = 64  # examples whose entries are shuffled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """A trained function of a batch.

  Attributes:
    role: the network's role, or `predictor`.
    seed: of the run.
    network: the role's network; None for a predictor.
    variables: what was trained, NumPy arrays; of a network by collection.
    apply: `(variables, batch) -> value`, the graph that was evaluated.
    examples: the batch entries that it reads, [N, ...]; none if it reads what
      the data lacks.
    fitted: the variables of all roles.
  """

  role: str
  seed: int
  network: Network | None
  variables: Tree
  apply: Callable[[Tree, Batch], Tree]
  examples: dict[str, np.ndarray]
  fitted: Fitted

  @property
  def size(self) -> int:
    """Bytes of the variables."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self.variables))


def restore(
  experiment: Experiment, workdir: Workdir, *, role: str, seed: int
) -> Trained:
  """Rebuilds what a finished run trained; trains and writes nothing.

  Args:
    experiment: what was run.
    workdir: its run directory.
    role: of a network, or `predictor`.
    seed: of the run.

  Raises:
    ConfigError: there is no such role.
    RefusedInput: a phase is not finished.
  """
  method = experiment.method
  if role != PREDICTOR and role not in method.roles:
    known = (*method.roles, PREDICTOR)
    raise ConfigError(
      f"--role {role}: {type(method).__name__} has no such role"
      + did_you_mean(role, known)
      + f" (has {', '.join(known)})"
    )
  splits = experiment.task.splits(seed)
  # On one device, whatever the mesh was.
  fitted = Trainer(
    method=method,
    splits=splits,
    seed=seed,
    batch_size=experiment.task.batch_size,
    run=workdir.run(LABEL, seed),
    settings=experiment.settings,
  ).fit(train=False)
  drawn = _scrambled(splits, seed)
  if role == PREDICTOR:
    return _predictor(method, fitted, drawn, seed)
  network = method.roles[role]
  missing = set(network.inputs) - set(drawn)
  return Trained(
    role=role,
    seed=seed,
    network=network,
    variables=jax.device_get(
      {"params": fitted.params[role], **fitted.collections[role]}
    ),
    apply=lambda variables, batch: plain(network.apply(variables, batch)[0]),
    examples={} if missing else {name: drawn[name] for name in network.inputs},
    fitted=fitted,
  )


def plain(outputs: Any) -> Tree:
  """The value of a network's outputs, of dicts, lists and arrays only."""
  value = outputs.value
  return dict(value) if isinstance(value, Mapping) else value


def _predictor(
  method: Method, fitted: Fitted, drawn: Batch, seed: int
) -> Trained:
  """The method's rule for prediction, and what it reads and runs."""
  used: set[str] = set()

  def apply(variables, batch):
    nets = Nets(
      method.roles,
      variables["params"],
      variables["collections"],
      memory=variables["memory"],
    )
    value = plain(method.predict(nets, batch))
    used.update(nets.used)
    return value

  everything = {
    "params": fitted.params,
    "collections": fitted.collections,
    "memory": fitted.memory,
  }
  rule = jax.jit(lambda batch: apply(everything, batch))
  kept = jax_export.export(rule)(drawn).module_kept_var_idx
  names = [sorted(drawn)[place] for place in kept]
  variables = jax.device_get(
    {
      "params": {role: fitted.params[role] for role in used},
      "collections": {role: fitted.collections[role] for role in used},
      "memory": dict(fitted.memory),
    }
  )
  return Trained(
    role=PREDICTOR,
    seed=seed,
    network=None,
    variables=variables,
    apply=apply,
    examples={name: drawn[name] for name in names},
    fitted=fitted,
  )


def _scrambled(splits: Splits, seed: int) -> dict[str, np.ndarray]:
  """Inputs like those of the data, but no example of it.

  Every position of every entry is taken from another training example, so
  that ranges and integers are right and nothing that is shown is private.
  """
  size = min(_DRAWN, len(splits.train))
  batch = next(pipeline.batches(splits.train, size))
  random = np.random.default_rng(seed)
  return {
    name: np.asarray(
      jnp.asarray(random.permuted(np.asarray(values), axis=0)[:EXAMPLES])
    )
    for name, values in batch.items()
  }
