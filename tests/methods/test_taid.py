"""TAID: the target, the share that is carried, and what a resume must keep."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, nets
from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import ConfigError, Preempted
from jaxkd.method import Step
from jaxkd.methods import TAID
from jaxkd.network import Network
from jaxkd.roles import Nets
from jaxkd.training.phase import Stop
from jaxkd.training.step import make_step
from tests.methods import toys

SYMBOLS, LENGTH = 7, 6


def text(size, seed=0):
  random = np.random.default_rng(seed)
  tokens = random.integers(0, SYMBOLS, (size, LENGTH + 1)).astype(np.int32)
  lengths = random.integers(1, LENGTH + 1, size)
  mask = np.arange(LENGTH) < lengths[:, None]
  return ArraySource(
    {
      "tokens": tokens[:, :-1],
      "label": tokens[:, 1:],
      "token_mask": mask.astype(np.float32),
    }
  )


def splits():
  return Splits(train=text(24), validation=text(8, 1), test=text(8, 2))


def model(width):
  module = nets.GRUDecoder(vocabulary_size=SYMBOLS, width=width)
  return Network(module, inputs=("tokens",))


def taid(**options):
  defaults = {
    "student": model(4),
    "teacher": model(8),
    "teacher_steps": 2,
    "warm_steps": 2,
    "steps": 6,
    "rate": 0.3,
    "teacher_lr": 1e-2,
    "lr": 1e-2,
  }
  return TAID(**{**defaults, **options})


def start(method):
  """The state of the last phase, its frozen trees, and a batch."""
  batch = text(8).take(np.arange(8))
  batch = {**batch, "mask": (np.arange(8) < 7).astype(np.float32)}
  batch.pop("index")
  state, frozen = toys.begin(method, batch, phase=len(method.phases) - 1)
  share = losses.TeacherShare.create(method.start)
  return state.replace(memory={"share": share}), frozen, batch


def outputs(method, state, frozen, batch):
  view = Nets(
    method.roles,
    {**frozen["params"], **state.params},
    {**frozen["collections"], **state.collections},
    memory=state.memory,
  )
  return view.student(batch).logits, view.teacher(batch).logits, view


def where(batch):
  return batch["mask"][:, None] * batch["token_mask"]


def test_the_loss_is_the_token_mean_of_the_cross_entropy_to_the_target():
  method = taid()
  state, frozen, batch = start(method)
  student, teacher, view = outputs(method, state, frozen, batch)
  loss = method.distil(view, batch, Step(jnp.int32(0), jnp.int32(0)))
  target = jax.nn.softmax(0.6 * student + 0.4 * teacher)
  values = -jnp.sum(target * jax.nn.log_softmax(student), -1)
  expected = jnp.sum(values * where(batch)) / jnp.sum(where(batch))
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


def test_a_share_of_one_is_plain_distillation_of_any_divergence():
  method = taid(start=1.0, divergence=losses.reverse_kl)
  state, frozen, batch = start(method)
  student, teacher, view = outputs(method, state, frozen, batch)
  loss = method.distil(view, batch, Step(jnp.int32(0), jnp.int32(0)))
  values = losses.reverse_kl(student, teacher)
  expected = jnp.sum(values * where(batch)) / jnp.sum(where(batch))
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_share_follows_the_mean_over_all_tokens(accumulate):
  method = taid(rate=1.0)
  phase = method.phases[-1].planned(3)
  (update,) = phase.updates
  update = dataclasses.replace(update, accumulate=accumulate)
  phase = dataclasses.replace(phase, updates=(update,))
  state, frozen, batch = start(method)
  step = jax.jit(make_step(method, phase, steps_per_epoch=3))
  expected = losses.TeacherShare.create(0.4)
  for number in range(4):
    state, metrics = step(state, frozen, batch)
    total, weight = metrics["distance"]
    assert weight == where(batch).sum()
    expected = losses.advance_share(
      expected, total / weight, progress=number / 6, start=0.4, rate=1.0
    )
    np.testing.assert_allclose(
      state.memory["share"].share, expected.share, rtol=1e-6
    )
  assert state.memory["share"].share > 0.8  # ahead of the line, at 0.7


@pytest.mark.slow  # a whole run of all phases
def test_a_resumed_run_keeps_share_momentum_and_loss(tmp_path):
  def fit(folder, **options):
    return toys.trainer(taid(), folder, splits=splits(), **options).fit()

  whole = fit(tmp_path / "whole")
  for after in (5, 8):
    folder = tmp_path / str(after)
    with pytest.raises(Preempted):
      fit(folder, stop=Stop(after=after))
    resumed = fit(folder)
    for kind in ("params", "memory"):
      jax.tree.map(
        np.testing.assert_array_equal,
        getattr(resumed, kind),
        getattr(whole, kind),
      )
  assert whole.memory["share"].share > 0.4


@pytest.mark.slow
def test_the_first_step_leaves_the_share_where_it_is(tmp_path):
  settings = {"max_steps": 1}
  trainer = toys.trainer(taid(), tmp_path, splits=splits(), settings=settings)
  share = trainer.fit().memory["share"]
  np.testing.assert_allclose(share.share, 0.4)
  assert share.momentum == 0
  assert share.ready


def test_the_teacher_has_a_rate_of_its_own():
  method = taid(teacher_lr=0.5, lr=0.25, warm_steps=2, weight_decay=0.0)
  params = {"head": {"bias": jnp.ones(2)}}
  rates = {}
  for phase in method.phases:
    (update,) = phase.planned(3).updates
    state = update.optimizer.init(params)
    change, _ = update.optimizer.update(params, state, params)
    rates[phase.name] = -float(change["head"]["bias"][0])
  assert rates == pytest.approx(
    {"teach": 0.5, "warm": 0.25, "distil": 0.25}, rel=1e-4
  )


def test_only_matrices_decay():
  method = taid(weight_decay=0.5, lr=1.0, clip=1e9)
  (update,) = method.phases[-1].planned(3).updates
  params = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
  optimizer = update.optimizer
  zeros = jax.tree.map(jnp.zeros_like, params)
  change, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(change["head"]["kernel"], -0.5)
  np.testing.assert_array_equal(change["head"]["bias"], 0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"start": 0.5, "end": 0.4}, "expected 0 <= start <= end"),
    ({"ratio": 2.0}, "TAID.ratio=2.0: expected 0 to 1"),
  ],
)
def test_wrong_numbers_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    taid(**options)


@pytest.mark.slow  # a whole run of all phases
def test_the_phases_share_what_they_can(tmp_path):
  """Teachers and warm students do not depend on what comes after."""
  method, other = taid(), taid(start=1.0, adaptive=False)
  found = [
    toys.trainer(
      m, tmp_path / str(n), splits=splits(), store=tmp_path / "store"
    )
    .fit()
    .timing
    for n, m in enumerate((method, other))
  ]
  assert found[1]["teach"] == {"source": "shared by another method"}
  assert found[1]["warm"] == {"source": "shared by another method"}
  assert "source" not in found[1]["distil"]


@pytest.mark.slow
def test_eight_devices_train_as_one(tmp_path):
  """Shards hold unequal numbers of tokens; t follows the mean of all."""
  found = toys.eight_devices_train_as_one(taid(), tmp_path, splits=splits())
  assert found.memory["share"].share > 0.4
