"""KD: its objective, its schedule, its frozen teacher."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.method import Step
from jaxkd.roles import Nets, initialise, usage
from tests.methods import toys


def _view(method, batch):
  inputs = usage(method, batch).inputs
  params, collections = initialise(method, jax.random.key(0), inputs)
  return Nets(method.roles, params, collections)


@pytest.mark.parametrize(
  ("epoch", "alpha"),
  [(0, 0.5), (29, 0.5), (30, 0.25), (59, 0.25), (90, 1 / 16)],
)
def test_alpha_is_halved_every_thirty_epochs(epoch, alpha):
  method, batch = toys.kd(temperature=3.0), toys.batch(8, real=5)
  view = _view(method, batch)
  batch["teacher_logits"] = method.teacher_logits(view, batch)
  step = Step(index=jnp.int32(0), epoch=jnp.int32(epoch))
  loss = method.distil(view, batch, step)
  student, teacher = (view[r](batch).logits for r in ("student", "teacher"))
  task = losses.cross_entropy(student, batch["label"])[:5].mean()
  kd = losses.kl(student, teacher, temperature=3.0)[:5].mean()
  np.testing.assert_allclose(
    loss.total / loss.weight, (1 - alpha) * task + alpha * kd, rtol=1e-5
  )


def test_the_teacher_is_trained_first_and_then_frozen(tmp_path):
  method = toys.kd()
  assert [p.name for p in method.phases] == ["teach", "distil"]
  fitted = toys.trainer(method, tmp_path / "both").fit()
  alone = toys.kd(epochs=1, lr=1e-2)
  again = toys.trainer(alone, tmp_path / "short").fit()
  chex.assert_trees_all_equal(fitted.params["teacher"], again.params["teacher"])
  fresh = _view(method, toys.batch(8))._params["teacher"]["fc1"]["kernel"]
  trained = fitted.params["teacher"]["fc1"]["kernel"]
  assert not np.array_equal(fresh, trained)


class Ready:
  """Weights of ones."""

  def load(self, like):
    return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), like)

  def fingerprint(self):
    return "ones"


def test_a_teacher_that_is_given_ready_stays_as_it_is(tmp_path):
  teacher = dataclasses.replace(toys.teacher(), weights=Ready())
  method = toys.kd(teacher=teacher, teacher_epochs=0, epochs=1)
  assert [phase.name for phase in method.lasting_phases] == ["distil"]
  fitted = toys.trainer(method, tmp_path).fit()
  for leaf in jax.tree.leaves(fitted.params["teacher"]):
    assert np.all(leaf == 1)


def test_the_deployed_network_is_the_student():
  method, batch = toys.kd(), toys.batch(4)
  view = _view(method, batch)
  outputs = method.outputs(view, batch)
  assert list(outputs) == ["student", "teacher"]
  np.testing.assert_array_equal(
    method.predict(view, batch).logits, outputs["student"].logits
  )


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_a_weight_outside_of_zero_to_one_is_refused(alpha):
  with pytest.raises(ConfigError, match=f"KD.alpha={alpha}: expected 0 to 1"):
    toys.kd(alpha=alpha)
