"""Size and CPU latency of a sentence encoder and of its students.

    python -m benchmarks.encoder_latency [--model FOLDER] [--quick]
      [--output FILE]

The networks are those of `experiments/minilm`; the teacher is the encoder with
its linear head. A row has 64 tokens, all of them there. Without a folder of the
model the teacher has the sizes of all-MiniLM-L6-v2 and drawn weights, which
take as long. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxkd import nets
from jaxkd.network import Network
from jaxkd.roles import initialise
from jaxkd.teachers import Pretrained

INPUTS = ("tokens", "token_mask")
VOCABULARY = 30522
CLASSES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """How much is measured.

  Attributes:
    repetitions: samples of every figure.
    length: tokens in a row.
    batch_sizes: rows at once.
    sample_seconds: fast calls are repeated until a sample takes so long.
  """

  repetitions: int = 15
  length: int = 64
  batch_sizes: tuple[int, ...] = (1, 32)
  sample_seconds: float = 0.2


FULL = Budget()
QUICK = Budget(repetitions=3, length=16, batch_sizes=(1, 4), sample_seconds=0.0)


def teacher(model: Path | None) -> Network:
  """The sentence encoder, with its weights if there is a folder of them."""
  if model is not None:
    return Pretrained(model, pooling="mean", pooler=False)
  return Network(nets.BERT(vocabulary_size=VOCABULARY, pooling="mean"), INPUTS)


def students() -> dict[str, Network]:
  """The students of `experiments/minilm`, by name."""
  shared = {
    "vocabulary_size": VOCABULARY,
    "width": 128,
    "head": "classes",
    "num_classes": CLASSES,
  }
  encoder = nets.BERT(
    depth=2, heads=4, hidden=512, length=64, pooling="mean", **shared
  )
  return {
    "encoder_student": Network(encoder, INPUTS),
    "static_student": Network(nets.StaticEmbedding(**shared), INPUTS),
  }


def rows(size: int, length: int) -> dict[str, np.ndarray]:
  """Random tokens in a full batch."""
  tokens = np.random.default_rng(0).integers(0, VOCABULARY, (size, length))
  return {
    "tokens": tokens.astype(np.int32),
    "token_mask": np.ones((size, length), np.float32),
  }


Model = tuple[Network, Mapping[str, Any]]


def classifiers(model: Path | None, length: int) -> dict[str, list[Model]]:
  """Networks with variables, to be run in a row, by what they make.

  Args:
    model: folder of the teacher.
    length: tokens in a row.
  """
  batch = rows(1, length)
  encoder = started(teacher(model), batch)
  encoded = jax.eval_shape(lambda: apply(*encoder, batch))
  head = Network(nets.FusionMLP(features=(CLASSES,)), ("encoded",))
  head = started(head, {"encoded": jnp.zeros(encoded.shape)})
  found = {"teacher": [encoder, head]}
  for name, network in students().items():
    found[name] = [started(network, batch)]
  return found


@dataclasses.dataclass(frozen=True)
class _Alone:
  """A method of one role, for its variables."""

  roles: Mapping[str, Network]


def started(network: Network, batch: Mapping[str, Any]) -> Model:
  """The network with its variables, loaded or drawn."""
  shapes = jax.eval_shape(lambda: dict(batch))
  params, others = initialise(
    _Alone({"net": network}), jax.random.key(0), {"net": shapes}
  )
  return network, {"params": params["net"], **others["net"]}


def apply(network: Network, variables: Any, batch: Mapping[str, Any]) -> Any:
  """What the network returns."""
  return network.apply(variables, batch)[0].value


def compiled(models: list[Model], batch: Mapping[str, Any]) -> Callable:
  """A call that classifies a batch and waits."""
  networks = [network for network, _ in models]

  def run(variables, batch):
    value = apply(networks[0], variables[0], batch)
    for network, own in zip(networks[1:], variables[1:], strict=True):
      value = apply(network, own, {"encoded": value})
    return value

  variables = jax.device_put([own for _, own in models])
  batch = jax.device_put(batch)
  program = jax.jit(run).lower(variables, batch).compile()
  return lambda: jax.block_until_ready(program(variables, batch))


def size_of(models: list[Model]) -> dict[str, int]:
  """Parameters, and their bytes, in all and beside the embeddings of words."""
  leaves = [
    (path, leaf)
    for _, variables in models
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
  ]
  words = [x.size for path, x in leaves if "words" in str(path)]
  count = sum(leaf.size for _, leaf in leaves)
  return {
    "parameters": count,
    "bytes": sum(leaf.nbytes for _, leaf in leaves),
    "parameters_without_words": count - sum(words),
  }


def measure(budget: Budget, model: Path | None) -> dict[str, Any]:
  """Runs everything.

  Args:
    budget: how much is measured.
    model: folder of the teacher.

  Returns:
    The JSON record.
  """
  head = {
    "benchmark": "encoder_latency",
    **harness.record(),
    "weights": "loaded" if model else "drawn",
    **dataclasses.asdict(budget),
  }
  found = classifiers(model, budget.length)
  record = {name: size_of(models) for name, models in found.items()}
  speed = {}
  for size in budget.batch_sizes:
    batch = rows(size, budget.length)
    samples = harness.interleave(
      {name: compiled(models, batch) for name, models in found.items()},
      repetitions=budget.repetitions,
      warm_up=2,
      sample_seconds=budget.sample_seconds,
    )
    for name in found:
      record[name][f"batch{size}_ms"] = 1e3 * samples.median(name)
      record[name][f"batch{size}_fastest_ms"] = 1e3 * samples.fastest(name)
    speed[f"batch{size}"] = {
      name: samples.ratio("teacher", name) for name in students()
    }
  return {
    **head,
    "networks": record,
    "teacher_time_over": speed,
    "load_average_1min_at_end": harness.load(),
  }


def report(networks: Mapping[str, Mapping[str, float]]) -> None:
  """Prints a line for every network, for people."""
  for name, values in networks.items():
    figures = "  ".join(f"{key} {value:,.4g}" for key, value in values.items())
    print(f"{name:16s} {figures}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
  """Parses the command line and prints the record."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", type=Path, help="folder of the teacher")
  parser.add_argument("--quick", action="store_true", help="smaller sizes")
  harness.add_output(parser)
  options = parser.parse_args(arguments)
  result = measure(QUICK if options.quick else FULL, options.model)
  report(result["networks"])
  harness.emit(result, options.output)


if __name__ == "__main__":
  main()
