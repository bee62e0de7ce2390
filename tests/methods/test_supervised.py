"""The student without distillation."""

import jax
import numpy as np

from jaxkd import losses
from jaxkd.roles import Nets, initialise, usage
from tests.methods import toys


def test_it_is_the_cross_entropy_of_the_labels_and_nothing_else():
  method, batch = toys.supervised(), toys.batch(8, real=5)
  inputs = usage(method, batch).inputs
  assert list(inputs) == ["student"]
  view = Nets(method.roles, *initialise(method, jax.random.key(0), inputs))
  (phase,) = method.phases
  loss = phase.updates[0].loss(view, batch, None)
  logits = method.predict(view, batch).logits
  expected = losses.cross_entropy(logits, batch["label"])[:5].mean()
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-6)
  assert phase.validate(view, batch).total == loss.total


def test_training_lowers_the_loss(tmp_path):
  method = toys.supervised(epochs=10, lr=3e-2)
  toys.trainer(method, tmp_path).fit()
  lines = toys.lines(tmp_path, split="train")
  first, last = (lines[n]["metrics"]["loss"] for n in (0, -1))
  assert last < 0.7 * first
