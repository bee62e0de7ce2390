"""Streams beside the main one, phases without data, and host functions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd.data.source import Splits
from jaxkd.errors import ConfigError, Preempted
from jaxkd.method import Loss, Method, Phase, Stream, Update, label_loss, part
from jaxkd.training.phase import Stop
from jaxkd.training.step import make_step
from tests.methods import toys


def splits():
  return Splits(
    train=toys.source(20, 0),
    validation=toys.source(10, 1),
    test=toys.source(8, 2),
    others={"unlabelled": toys.source(12, 3)},
  )


def both(nets, batch, step):
  """Cross entropy of one stream, entropy of the other one."""
  del step
  other = part(batch, "unlabelled")
  log_q = jax.nn.log_softmax(nets.student(other).logits)
  entropy = -jnp.sum(jnp.exp(log_q) * log_q, -1)
  mean = jnp.sum(entropy * other["mask"]) / jnp.sum(other["mask"])
  task = label_loss(nets.student(batch).logits, batch)
  return Loss.mean(
    task.total / task.weight + mean,
    where=batch["mask"],
    metrics={"entropy": mean, "seen": other["index"].max().astype(float)},
    memory={"seen": nets.memory["seen"].at[batch["index"]].add(1)},
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounds(Method):
  """Two rounds; the second one starts anew, on examples picked between."""

  epochs: int = 3
  beside: bool = True

  @property
  def roles(self):
    return {"first": toys.mlp(), "student": toys.mlp()}

  @property
  def memory(self):
    return {
      "seen": jnp.zeros(20, jnp.int32),
      "picked": jnp.zeros(20, bool),
      "epochs": jnp.int32(0),
    }

  @property
  def phases(self):
    first = Update(
      trainable=("first",),
      loss=lambda nets, batch, step: label_loss(
        nets.first(batch).logits, batch
      ),
      optimizer=optax.sgd(0.1),
    )
    second = Update(trainable=("student",), loss=both, optimizer=optax.sgd(0.1))
    return (
      Phase(name="one", updates=(first,), epochs=2),
      Phase(
        name="two",
        updates=(second,),
        epochs=self.epochs,
        stream=Stream("train", rows=self.rows, batch_size=4),
        beside={"unlabelled": Stream("unlabelled")},
        begin=self.pick,
        after_epoch=self.count,
      ),
    )

  def rows(self, memory):
    return np.flatnonzero(memory["picked"])

  def confidence(self, nets, batch):
    return {"top": jax.nn.softmax(nets.first(batch).logits).max(-1)}

  def pick(self, host):
    top = host.run(self.confidence)["top"]
    assert top.shape == (20,)
    host.memory["picked"] = np.isin(np.arange(20), np.argsort(top)[:6])
    host.params["student"] = host.start()[0]["first"]

  def count(self, host):
    host.memory["epochs"] = host.memory["epochs"] + 1

  def predict(self, nets, batch):
    return nets.student(batch)


def fit(folder, method=None, **options):
  trainer = toys.trainer(method or Rounds(), folder, splits=splits(), **options)
  return trainer, trainer.fit()


def test_rows_are_picked_from_memory_when_the_phase_begins(tmp_path):
  _, fitted = fit(tmp_path)
  picked = np.flatnonzero(fitted.memory["picked"])
  assert len(picked) == 6
  assert set(np.flatnonzero(fitted.memory["seen"])) == set(picked)
  assert fitted.memory["epochs"] == 3


def test_a_role_can_start_where_another_one_started(tmp_path):
  method = Rounds(epochs=1)
  trainer = toys.trainer(
    method, tmp_path, splits=splits(), settings={"max_steps": 1}
  )
  fitted = trainer.fit()
  start = trainer._start()[0]
  step = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()),
    fitted.params["student"],
    start["first"],
  )
  assert 0 < max(jax.tree.leaves(step)) < 0.2
  own = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()),
    fitted.params["student"],
    start["student"],
  )
  assert max(jax.tree.leaves(own)) > 0.2


@pytest.mark.parametrize(
  "after",
  [
    pytest.param(3, marks=pytest.mark.slow),
    6,
    pytest.param(7, marks=pytest.mark.slow),
    pytest.param(9, marks=pytest.mark.slow),
  ],
)
def test_a_run_resumes_between_and_inside_rounds(tmp_path, after):
  _, expected = fit(tmp_path / "whole")
  options = {"settings": {"checkpoint_every_steps": 2}}
  with pytest.raises(Preempted):
    fit(tmp_path / "cut", stop=Stop(after=after), **options)
  _, resumed = fit(tmp_path / "cut", **options)
  for kind in ("params", "collections", "memory"):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(resumed, kind),
      getattr(expected, kind),
    )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"extra": 1}, "added or removed extra"),
    ({"epochs": np.zeros(3, np.int32)}, "expected one shape and type"),
  ],
)
def test_a_host_function_keeps_the_kind_of_memory(tmp_path, change, message):
  class Wrong(Rounds):
    def count(self, host):
      host.memory.update(change)

  with pytest.raises(ConfigError, match=message):
    fit(tmp_path, Wrong())


def test_a_host_function_changes_only_what_its_phase_trains(tmp_path):
  class Wrong(Rounds):
    def pick(self, host):
      super().pick(host)
      host.params["first"] = host.start()[0]["first"]

  with pytest.raises(ConfigError, match="begin changed.*expected roles"):
    fit(tmp_path, Wrong())


def test_a_host_function_runs_named_functions_only(tmp_path):
  class Wrong(Rounds):
    def pick(self, host):
      host.run(lambda nets, batch: {"x": batch["index"]})

  with pytest.raises(ConfigError, match="a method's own function"):
    fit(tmp_path, Wrong())


def test_an_unknown_split_is_named(tmp_path):
  with pytest.raises(ConfigError, match="phase 'two': split 'unlabelled'"):
    toys.trainer(Rounds(), tmp_path, splits=toys.splits()).fit()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Method):
  """Learns from noise of its own."""

  @property
  def roles(self):
    return {"student": toys.mlp(inputs=("noise",))}

  @property
  def phases(self):
    update = Update(
      trainable=("student",), loss=self.loss, optimizer=optax.sgd(0.1)
    )
    return (Phase(name="dream", updates=(update,), steps=5, stream=None),)

  def loss(self, nets, batch, step):
    del step
    size = (len(batch["mask"]), 12)
    noise = jax.random.normal(nets.key("noise"), size)
    out = nets.student({"noise": noise}).logits
    return Loss.mean(jnp.sum(out**2, -1), where=batch["mask"])

  def predict(self, nets, batch):
    return nets.student({"noise": batch["image"]})


def test_a_phase_without_data_trains(tmp_path):
  trainer = toys.trainer(Noise(), tmp_path)
  fitted, start = trainer.fit(), trainer._start()[0]
  change = np.abs(
    fitted.params["student"]["fc1"]["kernel"]
    - start["student"]["fc1"]["kernel"]
  )
  assert change.max() > 0


@pytest.mark.parametrize(
  "options",
  [
    {"epochs": 2},
    {"steps": 2, "validate": toys.validate},
    {"steps": 2, "after_epoch": print},
  ],
)
def test_without_data_there_are_no_epochs(options):
  with pytest.raises(ConfigError, match="without data there are no epochs"):
    Phase(name="p", updates=(toys.update(),), stream=None, **options)


def test_targets_are_given_for_every_stream(tmp_path):
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Taught(Rounds):
    @property
    def phases(self):
      one, two = super().phases
      return one, dataclasses.replace(two, targets={"shown": self.show})

    def show(self, nets, batch):
      return nets.first(batch).logits

  seen = []

  def loss(nets, batch, step):
    seen.append({n: v.shape for n, v in batch.items() if "shown" in n})
    return both(nets, batch, step)

  method = Taught()
  for cached in (True, False):
    one, two = method.phases
    update = dataclasses.replace(two.updates[0], loss=loss)
    two = dataclasses.replace(two, updates=(update,))

    class Given(Taught):
      phases = (one, two)

    seen.clear()
    fit(tmp_path / str(cached), Given(), settings={"cache_targets": cached})
    assert seen[-1] == {"shown": (4, 4), "unlabelled/shown": (8, 4)}


# What an update remembers.


@pytest.mark.parametrize("accumulate", [1, 4])
def test_memory_of_means_does_not_see_micro_batches(accumulate):
  def loss(nets, batch, step):
    task = toys.label(nets, batch, step)
    return task.replace(metrics={"twice": (2 * task.total, task.weight)})

  def remember(memory, means, step):
    return {
      "mean": memory["mean"] + means["loss"],
      "twice": means["twice"],
      "step": step.index,
    }

  update = toys.update(loss=loss, remember=remember, accumulate=accumulate)
  first = {
    "mean": jnp.float32(0),
    "twice": jnp.float32(0),
    "step": jnp.int32(0),
  }
  method = toys.Toy(
    networks=toys.student(), updates=(update,), first_memory=first
  )
  batch = toys.batch(8, real=5)
  state, given = toys.begin(method, batch)
  step = jax.jit(make_step(method, method.phases[0], steps_per_epoch=4))
  new, metrics = step(state, given, batch)
  mean = metrics["loss"][0] / metrics["loss"][1]
  np.testing.assert_allclose(new.memory["mean"], mean, rtol=1e-6)
  np.testing.assert_allclose(new.memory["twice"], 2 * mean, rtol=1e-6)
  newer, _ = step(new, given, batch)
  assert newer.memory["step"] == 1
