"""Trained networks and finished runs to be exported, small and quick."""

import dataclasses
import pathlib
import re
import subprocess
import sys
import textwrap
from typing import ClassVar

import jax
import numpy as np

from jaxkd import nets
from jaxkd.data.source import Splits
from jaxkd.experiment import Experiment, run
from jaxkd.export.trained import Trained, plain
from jaxkd.methods import KD
from jaxkd.network import Network
from jaxkd.training.loop import Fitted
from jaxkd.training.phase import Settings
from tests.methods import toys

ENTRIES = {
  "image": ((28, 28, 1), np.float32),
  "picture": ((32, 32, 3), np.float32),
  "pixels": ((12,), np.float32),
  "tokens": ((16,), np.int32),
  "token_mask": ((16,), np.float32),
}


def batch(*names, size=8):
  """Random inputs of these names; positive, as a mask has to be."""
  random = np.random.default_rng(0)
  return {
    name: (
      random.integers(0, 50, (size, *shape)).astype(dtype)
      if dtype == np.int32
      else random.uniform(0.1, 1, (size, *shape)).astype(dtype)
    )
    for name, (shape, dtype) in ENTRIES.items()
    if name in names
  }


def trained(module, *names, dtype=None):
  """A network with random variables, statistics too, as if trained."""
  network, examples = Network(module, names), batch(*names)
  drawn = network.init(jax.random.key(0), examples)
  random = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda x: np.asarray(
      x + random.uniform(-0.1, 0.1, x.shape), dtype or x.dtype
    ),
    jax.device_get(drawn),
  )
  return Trained(
    role="student",
    seed=0,
    network=network,
    variables=variables,
    apply=lambda variables, batch: plain(network.apply(variables, batch)[0]),
    examples=examples,
    fitted=Fitted({}, {}, {}, {}),
  )


def decoder(**options):
  """A tiny decoder."""
  sizes = {"vocabulary_size": 50, "width": 16, "depth": 2, "heads": 2}
  return nets.CausalDecoder(**{**sizes, **options})


def perceptron():
  """A perceptron with random variables."""
  return trained(nets.MLP(features=(8, 4)), "pixels")


@dataclasses.dataclass(frozen=True)
class Toy:
  """Data of class means and noise."""

  name: ClassVar[str] = "toy"
  num_classes: ClassVar[int] = toys.CLASSES
  batch_size: ClassVar[int] = 8

  def splits(self, seed: int) -> Splits:
    """The same for all seeds."""
    return toys.splits(train=80)


def experiment():
  """A student of a teacher that hears, two seeds."""
  return Experiment(
    method=KD(
      student=toys.mlp(),
      teacher=toys.mlp(inputs=("audio",)),
      epochs=1,
      teacher_epochs=1,
    ),
    task=Toy(),
    seeds=(0, 1),
    settings=Settings(max_steps=2, evaluation_batch_size=8),
  )


def finished(folder: pathlib.Path) -> pathlib.Path:
  """A finished run."""
  run(experiment(), folder, command="jaxkd run toy.gin")
  return folder


def tell(capsys, text: str) -> None:
  """Prints a number that a claim is about."""
  with capsys.disabled():
    sys.stdout.write(f" {text} ")


def alone(use: str, folder: pathlib.Path, given: Trained) -> list[float]:
  """Runs what a model card says, in a Python without jaxkd, flax, optax, orbax.

  Args:
    use: the text of the card, with a program that makes `value` of `batch`.
    folder: the export.
    given: what was exported.

  Returns:
    The largest differences to the trained graph, with 1 and with 7 examples.
  """
  expected = jax.jit(given.apply)(given.variables, given.examples)
  np.savez(folder / "given.npz", expected=expected, **given.examples)
  program = re.search("```python\n(.*)```", use, re.DOTALL).group(1)
  blocked = ("jaxkd", "flax", "optax", "orbax", "gin", "grain", "chex")
  code = f"""
import os, sys
class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {blocked}:
      raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import numpy as np
os.chdir(sys.argv[1])
given = dict(np.load("given.npz"))
expected = given.pop("expected")
for size in (1, 7):
  batch = {{name: x[:size] for name, x in given.items()}}
{textwrap.indent(program, "  ")}
  assert value.shape == expected[:size].shape
  print(np.abs(value - expected[:size]).max())
"""
  done = subprocess.run(
    [sys.executable, "-I", "-c", code, str(folder)],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return [float(line) for line in done.stdout.split()]
