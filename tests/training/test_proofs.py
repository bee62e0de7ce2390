"""Every proof holds for what is right and fails for what is planted wrong."""

import ctypes
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxkd.method import Phase
from jaxkd.network import Network
from jaxkd.training import proofs, step
from jaxkd.training.program import Compiled, Programs
from jaxkd.training.proofs import Watch
from tests.methods import toys


def imitate(nets, batch, now):
  """Labels, and the distance to a teacher that is run live."""
  loss = toys.label(nets, batch, now)
  gap = nets.teacher(batch).logits - nets.student(batch).logits
  return dataclasses.replace(loss, total=loss.total + (gap**2).sum())


def distilled(loss=imitate, **options):
  """A student that learns from a frozen teacher."""
  return toys.Toy(
    networks={"student": toys.mlp(), "teacher": toys.teacher()},
    updates=(toys.update(loss=loss, **options),),
  )


def watched(method, batch_size=4):
  """What tracing a step of the method's phase shows."""
  batch, watch = toys.batch(batch_size), Watch()
  state, frozen = toys.begin(method, batch)
  phase = method.phases[0]
  made = step.make_step(method, phase, steps_per_epoch=4, watch=watch)
  jax.eval_shape(made, state, frozen, batch)
  return watch


def proven(method, folder, **options):
  """The proofs that training a toy leaves."""
  toys.trainer(method, folder, **options).fit()
  return json.loads((folder / "proofs.json").read_text())["toy"]


def test_a_run_leaves_proofs_that_hold(tmp_path, caplog):
  found = proven(distilled(), tmp_path)
  assert {name for name in found if found[name]["holds"]} == {
    "gradient",
    "evaluation",
    "digest",
    "donation",
  }
  assert found["gradient"]["evidence"] == "none reaches the 6 untrained leaves"
  assert found["evaluation"]["evidence"] == "ran: teacher"
  assert found["digest"]["evidence"].startswith("teacher ")
  student = 4 * (13 * 16 + 17 * 8 + 9 * 4)
  assert found["donation"]["evidence"] == (
    f"{student + 16:,} of {student + 16:,} bytes"
  )
  assert found["cost"]["holds"] is None
  assert "FLOPs" in found["cost"]["evidence"]
  assert not [line for line in caplog.records if line.name == "jaxkd"]


def test_a_step_that_differentiates_what_is_frozen_is_caught(monkeypatch):
  right = jax.grad

  def wrong(objective, has_aux):
    """Gradients of the frozen tree too, thrown away."""
    both = right(objective, argnums=(0, 1), has_aux=has_aux)

    def gradient(*arguments):
      (grads, _), aux = both(*arguments)
      return grads, aux

    return gradient

  assert proofs.gradient(watched(distilled())).holds
  monkeypatch.setattr(step.jax, "grad", wrong)
  found = proofs.gradient(watched(distilled()))
  assert not found.holds
  assert "teacher/fc1/kernel" in found.evidence
  assert "student" not in found.evidence


def test_a_leaf_that_stops_its_gradient_is_not_reached():
  watch = Watch()

  def objective(both):
    both = watch.untrained(both)
    return both["a"]["w"] * jax.lax.stop_gradient(both["b"]["w"])

  jax.grad(objective)({"a": {"w": 2.0}, "b": {"w": 3.0}})
  assert watch.fixed == {"a/w", "b/w"}
  assert watch.reached == {"a/w"}


def test_the_rest_of_a_role_that_is_trained_in_part_is_watched():
  method = distilled(trainable=("student/fc2", "student/fc3"))
  watch = watched(method)
  student = {name for name in watch.fixed if name.startswith("student")}
  assert student == {"student/fc1/bias", "student/fc1/kernel"}
  assert not watch.reached


class Dropped(linen.Module):
  """A perceptron with dropout and a counter of its training passes."""

  @linen.compact
  def __call__(self, x, train: bool = False):
    passes = self.variable("passes", "n", lambda: jnp.zeros(()))
    if train:
      passes.value += 1
    x = linen.Dense(8, name="fc1")(x)
    x = linen.Dropout(0.5, deterministic=not train)(x)
    return linen.Dense(toys.CLASSES, name="fc2")(x)


def noisy(nets, batch, now):
  """Runs the teacher with its dropout on."""
  teacher = nets.teacher(batch, train=True).logits
  loss = toys.label(nets, batch, now)
  return dataclasses.replace(loss, total=loss.total + teacher.sum())


def quiet(nets, batch, now):
  """Runs the same teacher as it should be."""
  teacher = nets.teacher(batch).logits
  loss = toys.label(nets, batch, now)
  return dataclasses.replace(loss, total=loss.total + teacher.sum())


@pytest.mark.parametrize(("loss", "holds"), [(quiet, True), (noisy, False)])
def test_a_teacher_with_its_dropout_on_is_caught(loss, holds):
  roles = {"student": toys.mlp(), "teacher": Network(Dropped(), ("image",))}
  method = toys.Toy(networks=roles, updates=(toys.update(loss=loss),))
  found = proofs.evaluation(watched(method), ("teacher",))
  assert found.holds is holds
  expected = (
    "ran: teacher"
    if holds
    else "ran: teacher changing passes, teacher in training mode, "
    "teacher with a key for dropout"
  )
  assert found.evidence == expected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targeted(toys.Toy):
  """Targets of a teacher that is in training mode, or is not."""

  train: bool

  @property
  def phases(self):
    def target(nets, batch):
      return nets.teacher(batch, train=self.train).logits

    updates = (toys.update(),)
    targets = {"seen": target}
    return (Phase(name="toy", updates=updates, steps=1, targets=targets),)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("cache_targets", [False, True])
def test_targets_are_watched_live_and_cached(train, cache_targets, tmp_path):
  roles = {"student": toys.mlp(), "teacher": toys.teacher()}
  settings = {"cache_targets": cache_targets}
  method = Targeted(networks=roles, train=train)
  found = proven(method, tmp_path, settings=settings)
  assert found["evaluation"]["holds"] is not train
  assert "teacher" in found["evaluation"]["evidence"]


def corrupt(host):
  """Writes into the teacher's memory behind JAX's back."""
  leaf = host.params["teacher"]["fc1"]["bias"]
  ctypes.memset(leaf.unsafe_buffer_pointer(), 1, 4)


@pytest.mark.parametrize("after_epoch", [None, corrupt])
def test_a_teacher_that_changes_is_caught(after_epoch, tmp_path, caplog):
  options = {"epochs": 1, "after_epoch": after_epoch}
  method = dataclasses.replace(distilled(), options=options)
  found = proven(method, tmp_path)["digest"]
  assert found["holds"] is (after_epoch is None)
  if after_epoch:
    assert found["evidence"] == "teacher changed"
    assert "phase toy: digest: teacher changed" in caplog.text


def compiled(function, *arguments):
  made = jax.jit(function, donate_argnums=0).lower(*arguments)
  return Compiled(made)


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_state_that_is_copied_is_named():
  state = {"a": np.ones((4, 3), np.float32), "b": np.ones(5, np.float32)}
  right = compiled(lambda s, x: (jax.tree.map(jnp.add, s, s), x + 1), state, 1)
  assert proofs.donation(right) == proofs.Proof(True, "68 of 68 bytes")
  wrong = compiled(lambda s, x: (s["a"] + x, s["b"].sum()), state, 1)
  assert proofs.donation(wrong) == proofs.Proof(False, "48 of 68 bytes; not b")


def test_aliases_are_read_from_the_head_of_a_program():
  head = (
    "HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), "
    "{1}: (3, {}, must-alias) }, entry_computation_layout={(f32[2]{0})->f32[]}"
  )
  assert proofs.aliased_arguments(head + "\n{9}: (7, {}, x)") == {0, 3}
  tuple_of_all = head.replace("(0, {},", "(0, {5},").replace(
    "(3, {}", "(0, {7}"
  )
  assert proofs.aliased_arguments(tuple_of_all) == {5, 7}
  assert proofs.aliased_arguments("HloModule jit_step, x={}") == set()


def test_what_stays_frozen_keeps_its_first_digest():
  frozen = {"params": {"teacher": {"w": jnp.ones(3)}}, "collections": {}}
  frozen["collections"]["teacher"] = {}
  fresh = proofs.digests(frozen)
  assert proofs.digests(frozen, {"teacher": "old"}) == {"teacher": "old"}
  assert not proofs.digest({"teacher": "old"}, fresh).holds


def test_seeds_share_traces_and_each_has_its_proofs(tmp_path):
  method = distilled()
  programs = Programs(method)
  both = [
    proven(method, tmp_path / str(seed), seed=seed, programs=programs)
    for seed in (0, 1)
  ]
  assert both[0]["digest"] != both[1]["digest"]
  assert {**both[0], "digest": 0} == {**both[1], "digest": 0}
