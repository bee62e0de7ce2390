"""MMANet: masks behind the stems, mining, both terms, every subset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, nets
from jaxkd.data import DigitViews
from jaxkd.method import Step
from jaxkd.methods import MMANet
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.training.feeds import examples
from tests.methods import toys

VIEWS = ("left", "right", "sums")
TASK = DigitViews(train_size=48, batch_size=8)


def mmanet(**options):
  views = Network(
    nets.MultimodalMLP(stem_features=(6,), features=(8, 5)),
    inputs=(*VIEWS, "available"),
  )
  head = Network(nets.MLPHead(features=(8, 5)), inputs=("masked",))
  defaults = {
    "student": views,
    "teacher": views,
    "auxiliary": head,
    "modalities": VIEWS,
    "num_classes": 10,
    "teacher_epochs": 2,
    "epochs": 6,
    "mine_from": 1,
    "begin": 3,
    "lr": 1e-2,
    "warm_up": 1,
    "drops": (2,),
  }
  return MMANet(**{**defaults, **options})


def view(method, weak=((1, 0, 1), (1, 0, 0), (0, 0, 1))):
  seen = examples(method, TASK.splits(0), 8)
  inputs = usage(method, *seen).inputs
  params, collections = initialise(method, jax.random.key(0), inputs)
  memory = {**method.memory, "weak": jnp.asarray(weak, jnp.int32)}
  found = Nets(
    method.roles,
    params,
    collections,
    memory=memory,
    rng=jax.random.key(1),
    training=("student", "auxiliary"),
  )
  batch = dict(seen[1]["distil"])
  batch["shown"] = method.show(found, batch)
  batch["shown_feature"] = method.show_feature(found, batch)
  return found, batch


def at(epoch):
  return Step(jnp.int32(0), jnp.int32(epoch))


def test_a_dropped_modality_is_zero_behind_its_stem():
  found, batch = view(mmanet())
  available = jnp.asarray([[1.0, 0.0, 1.0]] * 8)
  taps = found.student(
    {**batch, "available": available}, taps=("masked", "stem2")
  ).taps
  assert np.any(taps["stem2"])
  assert not np.any(taps["masked"][:, 6:12])
  assert np.any(taps["masked"][:, :6])
  assert np.any(taps["masked"][:, 12:])


def test_the_loss_has_both_terms_from_its_epoch_on():
  method = mmanet()
  found, batch = view(method)
  early, late = (method.distil(found, batch, at(e)) for e in (2, 3))
  names = ("task", "mad", "mar")
  task, mad, mar = (late.metrics[n][0] / late.metrics[n][1] for n in names)
  np.testing.assert_allclose(early.total / early.weight, task, rtol=1e-5)
  np.testing.assert_allclose(
    late.total / late.weight, task + 0.5 * mar + 30.0 * mad, rtol=1e-5
  )
  assert mad > 0


def test_the_similarities_are_weighed_by_the_teachers_doubt():
  method = mmanet()
  found, batch = view(method)
  shown = 5 * np.random.default_rng(0).normal(size=batch["shown"].shape)
  batch = {**batch, "shown": shown.astype(np.float32)}
  drawn = method._drawn(found, batch)
  taps = found.student(
    {**batch, "available": drawn}, taps=(method.feature,)
  ).taps
  expected = losses.margin_aware(
    taps[method.feature], batch["shown_feature"], batch["shown"]
  )
  loss = method.distil(found, batch, at(3))
  np.testing.assert_allclose(loss.metrics["mad"][0] / 8, expected, rtol=1e-5)
  flat = mmanet(uniform=True)
  loss = flat.distil(found, batch, at(3))
  assert abs(loss.metrics["mad"][0] / 8 - expected) > 1e-4 * expected


@pytest.mark.slow
def test_without_a_weak_combination_the_auxiliary_head_learns_nothing():
  method = mmanet(mad_weight=0.0)
  for weak, learns in ((((0, 0, 0),) * 3, False), (((1, 1, 1),) * 3, True)):
    found, batch = view(method, weak)

    def total(params, found=found, batch=batch):
      other = found.replaced({"auxiliary": params})
      return method.distil(other, batch, at(3)).total

    gradient = jax.grad(total)(found.params("auxiliary"))
    drawn = np.asarray(method._drawn(found, batch))
    if learns:
      assert (drawn == 1).all(1).any()
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient)) == learns


@pytest.mark.slow  # three whole runs
def test_mining_names_the_pair_that_differs_most(tmp_path):
  method = mmanet()

  class Said(MMANet):
    worst = 0

    def predicted(self, nets, batch):
      found = super().predicted(nets, batch)
      full = jnp.zeros_like(found["full"])
      said = {name: full for name in found}
      other = jnp.arange(len(full)) % 2
      return {**said, str(self.worst): other.astype(full.dtype)}

  pairs = [row for row in method.combinations if row.sum() == 2]
  for worst, pair in enumerate(pairs):
    fields = {f: getattr(method, f) for f in method.__dataclass_fields__}
    said = Said(**fields)
    object.__setattr__(said, "worst", worst)
    trainer = toys.trainer(said, tmp_path / str(worst), splits=TASK.splits(0))
    weak = np.asarray(trainer.fit().memory["weak"])
    assert {tuple(row) for row in weak} == {
      tuple(pair),
      *(tuple(r) for r in np.eye(3, dtype=int)[pair > 0]),
    }


@pytest.mark.slow  # a whole run of all phases
def test_divergences_are_summed_over_the_mining_epochs(tmp_path):
  first = toys.trainer(
    mmanet(mine_from=2), tmp_path / "one", splits=TASK.splits(0)
  ).fit()
  both = toys.trainer(
    mmanet(mine_from=1), tmp_path / "two", splits=TASK.splits(0)
  ).fit()
  assert np.all(both.memory["divergence"] >= first.memory["divergence"])
  assert np.any(both.memory["divergence"] > first.memory["divergence"])


def test_every_subset_is_a_predictor():
  method = mmanet()
  found, batch = view(method)
  outputs = method.outputs(found, batch)
  assert list(outputs) == [
    "student",
    "teacher",
    "left",
    "right",
    "sums",
    "left+right",
    "left+sums",
    "right+sums",
    "left+right+sums",
  ]
  np.testing.assert_array_equal(
    outputs["student"].logits, outputs["left+right+sums"].logits
  )
  assert np.any(outputs["left"].logits != outputs["student"].logits)


def test_what_an_example_lacks_stays_away():
  method = mmanet()
  found, batch = view(method)
  batch["available"] = jnp.asarray([[1.0, 1.0, 0.0]] * 8)
  outputs = method.outputs(found, batch)
  np.testing.assert_array_equal(
    outputs["left+right"].logits, outputs["left+right+sums"].logits
  )


def test_the_rate_warms_up_and_drops():
  method = mmanet(weight_decay=0.0, epochs=6)
  (update,) = method.phases[-1].planned(20).updates
  ones, changes = {"w": jnp.ones(1)}, []
  state = update.optimizer.init(ones)
  for _ in range(120):
    change, state = update.optimizer.update(ones, state, ones)
    changes.append(-float(change["w"][0]))
  assert changes[0] == 0
  assert changes[10] < changes[19] < changes[40]
  np.testing.assert_allclose(changes[-1], 0.1 * changes[59], rtol=0.05)
