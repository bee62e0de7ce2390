"""Targets of toys, and runs on them."""

import dataclasses
from typing import Any

import numpy as np

from jaxkd import nets
from jaxkd.data.source import ArraySource, Splits
from jaxkd.method import Method
from jaxkd.methods import TAID
from jaxkd.network import Network
from jaxkd.parallel import Mesh, Placement
from jaxkd.training.program import Programs
from jaxkd.training.target_files import Wanted, cache
from jaxkd.training.target_files.folder import Targets
from tests.methods import toys

SYMBOLS, LENGTH = 40, 6


def write(
  method: Method, folder: Any, splits: Splits | None = None, **options: Any
) -> Targets:
  """Caches what `Wanted` says of the toys' splits."""
  seed = options.pop("seed", 0)
  splits = splits or toys.splits()
  return cache(
    Wanted(**options),
    method,
    splits,
    folder,
    seed=seed,
    inputs=Programs(method).usage(splits, 8).inputs,
    batch_size=8,
    placement=Placement(Mesh()),
    show=toys.quiet,
  )


def train(method: Method, folder: Any, **options: Any):
  """Trains; returns what `fit` did and every step's metrics by name."""
  settings = {"log_every_steps": 1, **options.pop("settings", {})}
  trainer = toys.trainer(method, folder, settings=settings, **options)
  fitted = trainer.fit()
  steps = toys.lines(folder, split="train")
  names = steps[-1]["metrics"]
  kept = [s["metrics"] for s in steps if s["phase"] == steps[-1]["phase"]]
  return fitted, {n: np.array([s[n] for s in kept]) for n in names}


def text(size: int, seed: int = 0) -> ArraySource:
  """Rows of symbols of which each answers to the one before."""
  random = np.random.default_rng(seed)
  tokens = random.integers(0, SYMBOLS, (size, LENGTH + 1))
  tokens[:, 1::2] = (tokens[:, ::2][:, : LENGTH // 2] * 3 + 1) % SYMBOLS
  mask = np.arange(LENGTH) < random.integers(2, LENGTH + 1, size)[:, None]
  return ArraySource(
    {
      "tokens": tokens[:, :-1].astype(np.int32),
      "label": tokens[:, 1:].astype(np.int32),
      "token_mask": mask.astype(np.float32),
    }
  )


def texts() -> Splits:
  """Splits of text."""
  return Splits(train=text(20), validation=text(8, 1), test=text(8, 2))


def decoder(width: int) -> Network:
  """A small recurrent decoder."""
  module = nets.GRUDecoder(vocabulary_size=SYMBOLS, width=width)
  return Network(module, inputs=("tokens",))


def taid(**options: Any) -> TAID:
  """TAID from a frozen decoder."""
  defaults = {
    "student": decoder(8),
    "teacher": decoder(16),
    "teacher_steps": 0,
    "warm_steps": 0,
    "steps": 5,
    "lr": 1e-2,
  }
  return TAID(**{**defaults, **options})


def scaled(splits: Splits, name: str, factor: float) -> Splits:
  """The splits with an entry of the training split decoded otherwise."""
  arrays = {k: v for k, v in splits.train.arrays.items() if k != "index"}
  train = ArraySource(arrays, decode={name: lambda rows: rows * factor})
  return dataclasses.replace(splits, train=train)
