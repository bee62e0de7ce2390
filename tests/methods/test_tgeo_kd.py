"""TGeo-KD: the hypergradient, the class table, the shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, nets
from jaxkd.errors import ConfigError
from jaxkd.method import Step
from jaxkd.methods import TGeoKD
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.training.feeds import examples
from tests.methods import toys

START = Step(jnp.int32(0), jnp.int32(0))


def splits(train=20):
  return toys.splits(train)


def tgeo(**options):
  controller = Network(nets.Controller(features=(6,)), inputs=("state",))
  if options.get("control") == "fixed":
    controller = None
  defaults = {
    "student": toys.mlp(),
    "teacher": toys.mlp(12, 4),
    "controller": controller,
    "num_classes": 4,
    "teacher_epochs": 2,
    "epochs": 3,
    "lr": 1e-2,
  }
  return TGeoKD(**{**defaults, **options})


def view(method, memory=None):
  seen = examples(method, splits(), 8)
  inputs = usage(method, *seen).inputs
  params, collections = initialise(method, jax.random.key(0), inputs)
  means = np.random.default_rng(0).dirichlet(np.ones(4), 4)
  memory = {"class_means": jnp.asarray(means, jnp.float32)}
  found = Nets(method.roles, params, collections, memory=memory)
  batch = dict(seen[1]["distil"])
  batch["shown"] = method.show(found, batch)
  return found, batch


def held_out(method, found, batch, controller):
  other = found.replaced({"controller": controller})
  loss = method.control_loss(other, batch, START)
  return loss.total / loss.weight


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_the_controllers_gradient_is_that_of_finite_differences(steps):
  method = tgeo(unrolled_steps=steps, unrolled_lr=0.5)
  found, batch = view(method)
  params = found.params("controller")
  gradient = jax.grad(lambda p: held_out(method, found, batch, p))(params)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
  direction = jax.tree.map(jnp.sign, gradient)
  move = lambda size: jax.tree.map(lambda p, d: p + size * d, params, direction)
  slope = (
    held_out(method, found, batch, move(2e-3))
    - held_out(method, found, batch, move(-2e-3))
  ) / 4e-3
  along = sum(
    jnp.sum(g * d)
    for g, d in zip(
      jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
    )
  )
  np.testing.assert_allclose(along, slope, rtol=0.05, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_virtual_steps_are_those_of_gradient_descent(steps):
  method = tgeo(unrolled_steps=steps, unrolled_lr=0.7)
  found, batch = view(method)
  student, controller = found.params("student"), found.params("controller")

  def inner(params):
    logits = toys.mlp().apply({"params": params}, batch)[0].logits
    state = losses.trilateral_state(
      logits, batch["shown"], batch["label"], found.memory["class_means"]
    )
    share = nets.Controller(features=(6,)).apply({"params": controller}, state)
    kd = losses.kl(logits, batch["shown"], temperature=1.5)
    task = losses.cross_entropy(logits, batch["label"])
    return jnp.mean(jax.lax.stop_gradient(share) * (kd - task) + task)

  after = student
  for _ in range(steps):
    slopes = jax.grad(inner)(after)
    after = jax.tree.map(lambda w, g: w - 0.7 * g, after, slopes)
  logits = toys.mlp().apply({"params": after}, {"image": batch["held/image"]})
  expected = losses.cross_entropy(logits[0].logits, batch["held/label"]).mean()
  np.testing.assert_allclose(
    held_out(method, found, batch, controller), expected, rtol=1e-4
  )


@pytest.mark.slow
def test_training_moves_the_controller_unless_it_is_frozen(tmp_path):
  for control, moved in (("learned", True), ("frozen_random", False)):
    method = tgeo(control=control)
    trainer = toys.trainer(method, tmp_path / control)
    fitted, start = trainer.fit(), trainer._start()[0]
    same = jax.tree.map(
      np.array_equal, fitted.params["controller"], start["controller"]
    )
    assert all(jax.tree.leaves(same)) != moved


@pytest.mark.slow
def test_the_class_table_is_of_the_whole_training_split(tmp_path):
  method = tgeo()
  trainer = toys.trainer(method, tmp_path)
  fitted = trainer.fit()
  rows = trainer.splits.train.take(np.arange(20))
  logits = toys.mlp(12, 4).apply({"params": fitted.params["teacher"]}, rows)
  p = jax.nn.softmax(logits[0].logits)
  for label in range(4):
    np.testing.assert_allclose(
      fitted.memory["class_means"][label],
      p[rows["label"] == label].mean(0),
      rtol=1e-4,
      atol=1e-6,
    )


def test_another_example_of_the_class_changes_the_share():
  method = tgeo()
  found, batch = view(method)
  shares = method.shares(found, found.student(batch).logits, batch)
  means = found.memory["class_means"].at[int(batch["label"][0])].set(0.25)
  found.memory["class_means"] = means
  changed = method.shares(found, found.student(batch).logits, batch)
  same = batch["label"] == batch["label"][0]
  assert np.all((shares != changed) == same)


def test_the_held_out_examples_are_not_the_students():
  method = tgeo()
  assert method.phases[-1].beside["held"].split == "validation"
  assert method.phases[-1].stream.split == "train"


def test_a_fixed_share_is_plain_distillation():
  method = tgeo(control="fixed", share=0.3)
  found, batch = view(method)
  loss = method.distil(found, batch, START)
  student = found.student(batch).logits
  kd = losses.kl(student, batch["shown"], temperature=1.5)
  task = losses.cross_entropy(student, batch["label"])
  np.testing.assert_allclose(
    loss.total / loss.weight, jnp.mean(0.3 * kd + 0.7 * task), rtol=1e-5
  )


def test_shares_are_reported_where_the_teacher_is_right_and_wrong():
  method = tgeo()
  found, batch = view(method)
  measured = method.measure(found, batch)
  right, wrong = measured["share/right"][1], measured["share/wrong"][1]
  assert np.all(right != wrong)
  for name, whole in (("right", right), ("wrong", wrong)):
    agree, differ = (
      measured[f"share/{name}_{how}"][1] for how in ("agree", "differ")
    )
    np.testing.assert_array_equal(agree | differ, whole)
    assert not np.any(agree & differ)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"control": "none"}, "TGeoKD.control='none': expected one of learned"),
    ({"controller": None}, "expected a controller unless the share is fixed"),
  ],
)
def test_wrong_controls_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    tgeo(**options)
