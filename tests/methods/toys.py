"""Small data, networks and methods that train in no time."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from jaxkd import nets
from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource, Splits
from jaxkd.method import Method, Phase, Update, label_loss
from jaxkd.methods import KD, MSTDistill, Supervised
from jaxkd.network import Network, Pure
from jaxkd.parallel import Mesh, Placement
from jaxkd.roles import initialise, usage
from jaxkd.training import state as states
from jaxkd.training.loop import Trainer
from jaxkd.training.phase import Settings
from jaxkd.training.progress import Progress
from jaxkd.training.workdir import Run

CLASSES = 4


def source(size: int, seed: int = 0) -> ArraySource:
  """Image [12] and audio [8], both a class mean plus noise."""
  random = np.random.default_rng(seed)
  means = np.random.default_rng(99)
  label = random.integers(0, CLASSES, size).astype(np.int32)
  arrays = {"label": label}
  for name, width in (("image", 12), ("audio", 8)):
    centres = means.normal(size=(CLASSES, width))
    noise = random.normal(size=(size, width))
    arrays[name] = (centres[label] + noise).astype(np.float32)
  return ArraySource(arrays)


def splits(train: int = 20, validation: int = 10) -> Splits:
  """Sources of these sizes."""
  return Splits(
    train=source(train, 0), validation=source(validation, 1), test=source(8, 2)
  )


def batch(size: int, *, real: int | None = None) -> dict[str, np.ndarray]:
  """A batch of which the first `real` examples count."""
  full = next(pipeline.batches(source(size), size))
  mask = np.arange(size) < (size if real is None else real)
  return {**full, "mask": mask.astype(np.float32)}


def mlp(*features: int, inputs: tuple[str, ...] = ("image",)) -> Network:
  """A perceptron on the image, 16-8-4 by default."""
  features = features or (16, 8, CLASSES)
  return Network(nets.MLP(features=features), inputs=inputs)


def student() -> dict[str, Network]:
  """One role."""
  return {"student": mlp()}


def teacher() -> Network:
  """A perceptron on both inputs."""
  module = nets.FusionMLP(features=(16, 8, CLASSES))
  return Network(module, inputs=("image", "audio"))


def mst_distill(**options: Any) -> MSTDistill:
  """MST-Distill with four masks; all sizes are multiples of 8."""
  defaults = {
    "student": mlp(),
    "aux": mlp(inputs=("audio",)),
    "teacher": teacher(),
    "teacher_layers": ("fc1", "fc2"),
    "aux_layers": ("fc1", "fc2"),
    "heads": 2,
    "epochs_s1": 2,
    "epochs_s2": 2,
    "epochs": 2,
    "s1_lr": 1e-2,
    "s2_lr": 1e-2,
    "lr": 1e-2,
  }
  return MSTDistill(**{**defaults, **options})


def kd(**options: Any) -> KD:
  """KD from the teacher on both inputs."""
  defaults = {
    "student": mlp(),
    "teacher": teacher(),
    "teacher_epochs": 2,
    "epochs": 2,
    "lr": 1e-2,
  }
  return KD(**{**defaults, **options})


def supervised(**options: Any) -> Supervised:
  """The student on labels."""
  defaults = {"student": mlp(), "epochs": 2, "lr": 1e-2}
  return Supervised(**{**defaults, **options})


def label(nets, batch, step):
  """Cross entropy of the student."""
  del step
  return label_loss(nets.student(batch).logits, batch)


def validate(nets, batch):
  """The same for a validation split."""
  return label(nets, batch, None)


def pure(init: Callable[..., Any], apply: Callable[..., Any]) -> Network:
  """A network of two plain functions on the image."""
  return Network(Pure(init, apply))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Method):
  """One phase of whatever updates a test needs."""

  networks: Mapping[str, Network]
  updates: tuple[Update, ...] = ()
  first_memory: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def roles(self):
    return self.networks

  @property
  def phases(self):
    updates = self.updates or (update(),)
    length = {} if "epochs" in self.options else {"steps": 4}
    return (Phase(name="toy", updates=updates, **length, **self.options),)

  @property
  def memory(self):
    return self.first_memory

  def predict(self, nets, batch):
    return nets.student(batch)


def update(
  trainable: tuple[str, ...] = ("student",),
  loss: Callable[..., Any] = label,
  **options: Any,
) -> Update:
  """An update by gradient descent at rate 0.1."""
  return Update(
    **{
      "trainable": trainable,
      "loss": loss,
      "optimizer": optax.sgd(0.1),
      **options,
    }
  )


def begin(method: Method, batch: Mapping[str, Any], *, phase: int = 0):
  """Returns the state of a phase and the frozen trees, with fresh variables."""
  found = usage(method, batch)
  chosen = method.phases[phase]
  rng = jax.random.key(0)
  chosen = chosen.planned(steps_per_epoch=4)
  variables = initialise(method, rng, found.inputs)
  state = states.create(
    method,
    chosen,
    variables,
    rng=rng,
    memory=chosen.remembers(method.memory),
  )
  used = found.roles[chosen.name]
  return state, states.frozen(method, chosen, variables, used=used)


def quiet(total_steps: int, label: str, *, start: int = 0) -> Progress:
  """A progress that shows nothing."""
  return Progress(total_steps, label, start=start, clock=lambda: 0.0)


def trainer(method: Method, folder: Any, **options: Any) -> Trainer:
  """A trainer on batches of 8 that writes to `folder`."""
  settings = options.pop("settings", {})
  defaults = {
    "splits": splits(),
    "seed": 0,
    "batch_size": 8,
    "run": Run(folder),
    "settings": Settings(**{"evaluation_batch_size": 8, **settings}),
    "show": quiet,
  }
  return Trainer(method=method, **{**defaults, **options})


def lines(folder: pathlib.Path, *, split: str | None = None) -> list[dict]:
  """Lines of a run's metrics, of one split or of both."""
  text = (folder / "metrics.jsonl").read_text()
  found = [json.loads(line) for line in text.splitlines()]
  return [line for line in found if split in (None, line["split"])]


def eight_devices_train_as_one(method: Method, folder: Any, **options: Any):
  """Asserts it of parameters and memory; returns what one device found."""
  found = [
    trainer(
      method, folder / str(n), placement=Placement(Mesh(data=n)), **options
    ).fit()
    for n in (1, 8)
  ]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    *((f.params, f.memory) for f in found),
  )
  return found[0]
