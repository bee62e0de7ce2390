"""The loop: same seed same bits, records, snapshots, sharing, resuming."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd.data.source import Splits
from jaxkd.errors import ConfigError, Preempted, RefusedInput
from jaxkd.method import Loss, label_loss
from jaxkd.network import NNX, Network
from jaxkd.parallel import Mesh, Placement
from jaxkd.training.phase import Settings, Stop
from jaxkd.training.predictor import Predictor
from tests.methods import toys
from tests.test_network import Stack


def _record(folder):
  return (folder / "metrics.jsonl").read_bytes()


def _assert_equal_runs(first, second, fitted, again):
  """Asserts equal bytes of the records and equal bits of the variables."""
  assert _record(first) == _record(second)
  chex.assert_trees_all_equal(fitted.params, again.params)
  chex.assert_trees_all_equal(fitted.collections, again.collections)


# Determinism and records.


def test_the_same_seed_gives_the_same_bits(tmp_path):
  runs = [toys.trainer(toys.kd(), tmp_path / name).fit() for name in ("a", "b")]
  _assert_equal_runs(tmp_path / "a", tmp_path / "b", *runs)


def test_another_seed_gives_other_variables_and_another_order(tmp_path):
  for seed in (0, 1):
    trainer = toys.trainer(toys.supervised(), tmp_path / str(seed), seed=seed)
    trainer.fit()
  assert _record(tmp_path / "0") != _record(tmp_path / "1")


def test_lines_average_windows_of_steps(tmp_path):
  settings = {"log_every_steps": 1}
  each, windows = tmp_path / "each", tmp_path / "windows"
  toys.trainer(toys.supervised(), each, settings=settings).fit()
  settings = {"log_every_steps": 4}
  toys.trainer(toys.supervised(), windows, settings=settings).fit()
  single = toys.lines(each, split="train")
  assert [line["step"] for line in single] == [1, 2, 3, 4, 5, 6]
  assert [line["epoch"] for line in single] == [0, 0, 0, 1, 1, 1]
  # Epochs of 20 examples in batches of 8: the third batch has 4.
  losses = [line["metrics"]["loss"] for line in single]
  weights = [8, 8, 4, 8, 8, 4]
  expected = [
    np.average(losses[:4], weights=weights[:4]),
    np.average(losses[4:], weights=weights[4:]),
  ]
  found = toys.lines(windows, split="train")
  assert [line["step"] for line in found] == [4, 6]
  np.testing.assert_allclose(
    [line["metrics"]["loss"] for line in found], expected, rtol=1e-6
  )


def test_steps_count_over_all_phases_and_validations_follow_epochs(tmp_path):
  toys.trainer(toys.kd(), tmp_path, settings={"log_every_steps": 3}).fit()
  found = [
    (line["phase"], line["split"], line["step"], line["epoch"])
    for line in toys.lines(tmp_path)
  ]
  assert found == [
    (phase, split, step + offset, epoch)
    for phase, offset in (("teach", 0), ("distil", 6))
    for step, epoch in ((3, 0), (6, 1))
    for split in ("train", "validation")
  ]


def test_a_validation_line_is_the_mean_over_the_whole_split(tmp_path):
  trainer = toys.trainer(toys.supervised(epochs=1), tmp_path)
  params = trainer.fit().params
  (line,) = toys.lines(tmp_path, split="validation")
  rows = trainer.splits.validation.take(np.arange(10))
  batch = {**rows, "mask": np.ones(10, np.float32)}
  variables = {"params": params["student"]}
  logits = toys.mlp().apply(variables, batch)[0].logits
  loss = label_loss(logits, batch)
  assert line["metrics"]["accuracy"] == loss.metrics["accuracy"][0] / 10
  np.testing.assert_allclose(
    line["metrics"]["loss"], loss.total / 10, rtol=1e-6
  )


def test_a_phase_is_cut_at_the_most_steps_allowed(tmp_path):
  trainer = toys.trainer(toys.kd(), tmp_path, settings={"max_steps": 2})
  timing = trainer.fit().timing
  assert {name: t["steps"] for name, t in timing.items()} == {
    "teach": 2,
    "distil": 2,
  }
  assert json.loads((tmp_path / "timing.json").read_text()) == timing


# The best snapshot.


def _wandering(place):
  """A method whose parameter walks 1, 2, 3, ..., an epoch a step."""

  def loss(view, batch, step):
    bias = view.student(batch).value
    return Loss.mean(-bias.mean(-1), where=batch["mask"])

  def validate(view, batch):
    position = view.student(batch).value[0, 0]
    return Loss.mean((position - place) ** 2, where=batch["mask"])

  def init(rng, x):
    del rng, x
    return {"params": {"position": jnp.zeros(())}}

  def apply(variables, x):
    return jnp.full((len(x), 1), variables["params"]["position"])

  return toys.Toy(
    networks={"student": toys.pure(init, apply)},
    updates=(toys.update(loss=loss, optimizer=optax.sgd(1.0)),),
    options={"epochs": 5, "validate": validate},
  )


@pytest.mark.parametrize(("place", "expected"), [(2.2, 2), (9, 5), (2.5, 2)])
def test_a_phase_ends_where_its_validation_was_lowest(
  tmp_path, place, expected
):
  splits = toys.splits(train=8)
  trainer = toys.trainer(_wandering(place), tmp_path, splits=splits)
  fitted = trainer.fit()
  assert fitted.params["student"]["position"] == expected
  values = [
    line["metrics"]["loss"] for line in toys.lines(tmp_path, split="validation")
  ]
  np.testing.assert_allclose(
    values, [(n - place) ** 2 for n in range(1, 6)], rtol=1e-5
  )


# Cached targets.


@pytest.mark.parametrize(
  "method",
  [
    pytest.param(toys.kd(), id="kd"),
    pytest.param(
      toys.mst_distill(epochs_s2=1), id="mst", marks=pytest.mark.slow
    ),
  ],
)
def test_cached_targets_equal_live_ones(tmp_path, method):
  fitted = {
    cached: toys.trainer(
      method, tmp_path / str(cached), settings={"cache_targets": cached}
    ).fit()
    for cached in (False, True)
  }
  live, cached = (toys.lines(tmp_path / str(x)) for x in (False, True))
  for expected, line in zip(live, cached, strict=True):
    chex.assert_trees_all_close(
      line["metrics"], expected["metrics"], rtol=1e-6, atol=1e-6
    )
  chex.assert_trees_all_close(
    fitted[True].params, fitted[False].params, rtol=1e-6, atol=1e-6
  )


# Finished phases, shared or one's own.


def test_methods_share_a_phase_through_a_store(tmp_path):
  store = tmp_path / "store"
  first, second = toys.kd(temperature=4.0), toys.kd(temperature=2.0)
  fitted = toys.trainer(first, tmp_path / "first", store=store).fit()
  again = toys.trainer(second, tmp_path / "second", store=store).fit()
  assert again.timing["teach"] == {"source": "shared by another method"}
  assert "seconds" in again.timing["distil"]
  chex.assert_trees_all_equal(fitted.params["teacher"], again.params["teacher"])
  lines = [toys.lines(tmp_path / name) for name in ("first", "second")]
  ours, theirs = (
    [line for line in found if line["phase"] == "teach"] for found in lines
  )
  assert ours == theirs
  alone = toys.trainer(second, tmp_path / "alone").fit()
  _assert_equal_runs(tmp_path / "alone", tmp_path / "second", alone, again)


@pytest.mark.slow  # four whole runs
def test_other_seeds_and_settings_share_nothing(tmp_path):
  store = tmp_path / "store"
  for name, options in {
    "first": {},
    "seed": {"seed": 1},
    "batch": {"batch_size": 4},
    "data": {"splits": toys.splits(train=24)},
    "log": {"settings": {"log_every_steps": 2}},
  }.items():
    trainer = toys.trainer(
      toys.supervised(epochs=1), tmp_path / name, store=store, **options
    )
    assert "source" not in trainer.fit().timing["supervise"]


def test_a_finished_run_is_read_and_not_trained_again(tmp_path):
  fitted = toys.trainer(toys.supervised(), tmp_path).fit()
  before = _record(tmp_path)
  again = toys.trainer(toys.supervised(), tmp_path).fit(train=False)
  chex.assert_trees_all_equal(fitted.params, again.params)
  assert _record(tmp_path) == before


def test_an_unfinished_run_is_not_trained_where_it_is_only_read(tmp_path):
  with pytest.raises(RefusedInput, match="0_supervise is missing: the phase"):
    toys.trainer(toys.supervised(), tmp_path).fit(train=False)


def test_roles_can_start_from_given_variables_which_stay_usable(tmp_path):
  given = toys.trainer(toys.supervised(), tmp_path / "first").fit()
  student = {"params": jax.device_put(given.params["student"])}
  still = toys.supervised(lr=0.0)
  trainer = toys.trainer(
    still, tmp_path / "second", given={"student": student}, seed=3
  )
  fitted = trainer.fit()
  chex.assert_trees_all_equal(fitted.params["student"], student["params"])


def test_the_first_memory_of_a_method_stays_usable(tmp_path):
  def loss(view, batch, step):
    seen = view.memory["seen"] + 1
    return toys.label(view, batch, step).replace(memory={"seen": seen})

  method = toys.Toy(
    networks=toys.student(),
    updates=(toys.update(loss=loss),),
    first_memory={"seen": jnp.float32(0)},
  )
  for name in ("first", "second"):
    toys.trainer(method, tmp_path / name).fit()
  assert method.memory["seen"] == 0


# Stopping and resuming.


@pytest.mark.parametrize(
  "after",
  [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 6, 8))],
)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, after):
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  settings = {"log_every_steps": 5}
  fitted = toys.trainer(toys.kd(), whole, settings=settings).fit()
  with pytest.raises(Preempted, match="stopped after step .* of phase '"):
    toys.trainer(
      toys.kd(), stopped, settings=settings, stop=Stop(after=after)
    ).fit()
  again = toys.trainer(toys.kd(), stopped, settings=settings).fit()
  _assert_equal_runs(whole, stopped, fitted, again)
  assert not any((stopped / "checkpoints").glob("*"))


@pytest.mark.slow  # many whole runs
def test_a_run_stopped_again_and_again_resumes_to_the_same_bits(tmp_path):
  network = Network(NNX(functools.partial(Stack, classes=4)), inputs=("eight",))
  method = toys.Toy(
    networks={"student": network},
    updates=(toys.update(optimizer=optax.adam(1e-2)),),
    options={"epochs": 2, "validate": toys.validate},
  )
  splits = toys.splits()
  splits = Splits(
    **{
      name: getattr(splits, name).with_entry(
        "eight", getattr(splits, name).arrays["image"][:, :8]
      )
      for name in ("train", "validation", "test")
    }
  )
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  fitted = toys.trainer(method, whole, splits=splits).fit()
  for _ in range(2):
    with pytest.raises(Preempted):
      toys.trainer(method, stopped, splits=splits, stop=Stop(after=2)).fit()
  again = toys.trainer(method, stopped, splits=splits).fit()
  _assert_equal_runs(whole, stopped, fitted, again)


def test_a_stop_at_the_last_step_of_a_phase_loses_nothing(tmp_path):
  trainer = toys.trainer(toys.supervised(), tmp_path, stop=Stop(after=6))
  fitted = trainer.fit()
  assert fitted.timing["supervise"]["steps"] == 6


# Settings and prediction.


@pytest.mark.parametrize(
  "name", ["log_every_steps", "evaluation_batch_size", "max_steps"]
)
def test_settings_below_one_are_refused(name):
  with pytest.raises(ConfigError, match=f"Settings.{name}=0: expected"):
    Settings(**{name: 0})


def test_a_batch_that_the_mesh_cannot_split_is_refused_at_once(tmp_path):
  placement = Placement(Mesh(data=3))
  trainer = toys.trainer(toys.supervised(), tmp_path, placement=placement)
  with pytest.raises(ConfigError, match="batch_size=8 cannot be split over"):
    trainer.fit()


def test_a_predictor_covers_a_split_in_its_order(tmp_path):
  method = toys.kd()
  trainer = toys.trainer(method, tmp_path)
  fitted = trainer.fit()
  predictor = Predictor(method, trainer.placement, batch_size=3)
  logits, measures = predictor(fitted, trainer.splits.test)
  assert list(logits) == ["student", "teacher"]
  assert measures == {}
  rows = trainer.splits.test.take(np.arange(8))
  expected = toys.mlp().apply({"params": fitted.params["student"]}, rows)[0]
  np.testing.assert_allclose(logits["student"], expected.logits, rtol=1e-5)
