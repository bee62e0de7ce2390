"""m2mKD: one shared harness, gradients through its frozen end, assembly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, nets
from jaxkd.errors import ConfigError
from jaxkd.method import Step
from jaxkd.methods import M2mKD
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.training import checkpoint
from tests.methods import toys

START = Step(jnp.int32(0), jnp.int32(0))
PLACES = [pytest.param(0, marks=pytest.mark.slow), 1, 2]


def modular(**options):
  options = {"num_classes": toys.CLASSES, **options}
  return Network(nets.ModularMLP(**options))


def m2mkd(kind=M2mKD, **options):
  defaults = {
    "meta": modular(divided_depths=(1, 1, 1), width=8),
    "teacher": modular(divided_depths=(2, 1, 2), width=8),
    "student": modular(
      divided_depths=(1, 1, 1), width=4, stitch_width=8, experts=3
    ),
    "meta_epochs": 2,
    "teacher_module_epochs": 1,
    "teacher_epochs": 1,
    "module_epochs": 2,
    "epochs": 2,
    "lr": 1e-2,
  }
  return kind(**{**defaults, **options})


def view(method):
  batch = toys.batch(8)
  inputs = usage(method, batch).inputs
  params, collections = initialise(method, jax.random.key(0), inputs)
  return Nets(method.roles, params, collections), batch


def apply(network, params, x, method, index):
  return network.module.apply({"params": params}, x, index=index, method=method)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_hybrid_is_prefix_module_and_suffix(place):
  method = m2mkd()
  found, batch = view(method)
  meta, teacher = found.params("meta"), found.params("teacher")
  states = apply(method.meta, meta, batch["image"], "prefix", place)
  np.testing.assert_allclose(
    method.given(place, found, batch), states, rtol=1e-5, atol=1e-6
  )
  states = apply(method.teacher, teacher, states, "module", place)
  logits = apply(method.meta, meta, states, "suffix", place)
  np.testing.assert_allclose(
    method.hybrid_logits(place, found, batch), logits, rtol=1e-5, atol=1e-6
  )


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_the_pair_loss_reaches_the_students_module_alone(place):
  method = m2mkd()
  found, batch = view(method)
  batch["given"] = method.given(place, found, batch)
  batch["shown"] = method.hybrid_logits(place, found, batch)

  def total(params):
    loss = method.pair(place, found.replaced(params), batch, START)
    return loss.total / loss.weight

  gradient = jax.grad(total)({"student": found.params("student")})["student"]
  for name, part in gradient.items():
    touched = any(np.any(leaf) for leaf in jax.tree.leaves(part))
    assert touched == (name == f"module{place}"), name
  if place < 2:  # through the frozen end of the harness
    assert np.any(jax.tree.leaves(gradient[f"module{place}"]["post_stitch"])[0])
  student = found.params("student")
  states = apply(method.student, student, batch["given"], "module", place)
  meta = found.params("meta")
  logits = apply(method.meta, meta, states, "suffix", place)
  expected = losses.module_pair(logits, batch["shown"], batch["label"]).mean()
  loss = method.pair(place, found, batch, START)
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


@pytest.mark.slow  # a whole run of all phases
def test_a_phase_trains_its_module_and_nothing_else(tmp_path):
  trained = {p.name: p.updates[0].trainable for p in m2mkd().phases}
  assert list(trained) == [
    "meta",
    "teach_0",
    "teach_1",
    "teach_2",
    "teach",
    "module_0",
    "module_1",
    "module_2",
    "distil",
  ]
  assert trained["teach_1"] == ("teacher/module1",)
  assert trained["module_2"] == ("student/module2",)
  trainer = toys.trainer(m2mkd(epochs=1, lr=1e-1), tmp_path)
  fitted, start = trainer.fit(), trainer._start()[0]
  for role, tree in start.items():
    kernel = lambda t: jax.tree.leaves(t["module1"]["block1"])[0]
    assert np.any(kernel(fitted.params[role]) != kernel(tree))


@pytest.mark.slow
def test_stitches_are_dropped_at_assembly():
  method = m2mkd()
  found, batch = view(method)

  def total(params):
    loss = method.distil(found.replaced({"student": params}), batch, START)
    return loss.total

  gradient = jax.grad(total)(found.params("student"))
  for name, module in gradient.items():
    for layer, part in module.items():
      touched = any(np.any(leaf) for leaf in jax.tree.leaves(part))
      assert touched != layer.endswith("stitch"), (name, layer)


@pytest.mark.slow  # a whole run of all phases
def test_modules_are_assembled_as_they_were_taught(tmp_path):
  class Still(M2mKD):
    def distil(self, nets, batch, step):
      loss = super().distil(nets, batch, step)
      return loss.replace(total=0 * loss.total)

  trainer = toys.trainer(m2mkd(Still, weight_decay=0.0), tmp_path)
  fitted, start = trainer.fit().params["student"], trainer._start()[0]
  for place in range(3):
    (stage,) = (tmp_path / "stages").glob(f"*module_{place}")
    taught = checkpoint.load_tree(stage)[0]["params"]["student"]
    pairs = zip(
      *(
        jax.tree.leaves(tree[f"module{place}"])
        for tree in (fitted, taught, start["student"])
      ),
      strict=True,
    )
    moved = []
    for now, then, first in pairs:
      np.testing.assert_array_equal(now, then)
      moved.append(np.any(now != first))
    assert any(moved)


def test_the_student_sees_its_own_examples_only():
  method = m2mkd(examples=5)
  rows = {p.name: p.stream.rows for p in method.phases}
  assert rows["meta"] is None
  assert rows["teach"] is None
  for name in ("module_0", "distil"):
    np.testing.assert_array_equal(rows[name]({}), np.arange(5))


def test_from_scratch_there_is_no_teacher():
  method = m2mkd(module_epochs=0)
  assert list(method.roles) == ["student"]
  assert [p.name for p in method.phases] == ["distil"]
  kd = m2mkd(module_epochs=0, logit_weight=0.5)
  assert "module_0" not in [p.name for p in kd.phases]


def test_the_harness_has_one_block_in_every_place():
  with pytest.raises(ConfigError, match="expected 1 everywhere"):
    m2mkd(meta=modular(divided_depths=(1, 2, 1), width=8))


@pytest.mark.slow
def test_eight_devices_train_as_one(tmp_path):
  toys.eight_devices_train_as_one(m2mkd(), tmp_path)
