"""What the tests of checkpoints share: states by step, and what is true."""

import os
import subprocess
import sys
import textwrap

import grain
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.training.checkpoint import Checkpoints, tree_digest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def state(step):
  draws = np.random.RandomState(step)
  return {
    "step": jnp.int32(step),
    "rng": jax.random.key(step),
    "params": {
      "w": jnp.asarray(draws.randn(64, 32), jnp.float32),
      "half": jnp.asarray(draws.randn(500), jnp.bfloat16),
    },
  }


LIKE = state(0)


def save_all(folder, steps, keep=2):
  with Checkpoints(folder, keep=keep) as checkpoints:
    for step in steps:
      checkpoints.save(step, state(step), meta={"offset": step * 7})


def restored_truly(folder):
  """Restores, and checks that all that comes back is of one saved step."""
  found = Checkpoints(folder).restore(LIKE)
  assert tree_digest(found.state) == tree_digest(state(found.step))
  assert found.meta == {"offset": found.step * 7}
  return found.step


def counter(start=0):
  data = grain.MapDataset.range(100).shuffle(seed=1).repeat().batch(4)
  iterator = iter(data.to_iter_dataset())
  for _ in range(start):
    next(iterator)
  return iterator


def run(program, *args, check=True, **environment):
  return subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program), *map(str, args)],
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=check,
  )
