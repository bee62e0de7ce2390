"""Distill with few labels: two streams, and teachers that come trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.method import Step
from jaxkd.methods import Distill
from jaxkd.nets import FusionMLP, Linear
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage, with_targets
from jaxkd.terms import Features, Labels, Logits
from tests.methods import toys

START = Step(index=jnp.int32(0), epoch=jnp.int32(0))
SPLITS = dataclasses.replace(
  toys.splits(train=6), others={"unlabelled": toys.source(24, 5)}
)


def distill(*terms, **options):
  defaults = {
    "student": toys.mlp(),
    "teachers": {"teacher": toys.teacher()},
    "unlabelled": "unlabelled",
    "teacher_epochs": 2,
    "epochs": 2,
    "lr": 1e-2,
  }
  return Distill(terms=terms, **{**defaults, **options})


def probed(*terms, **options):
  """A head on what an encoder makes of the sound."""
  head = Network(FusionMLP(features=(toys.CLASSES,)), inputs=("encoded",))
  return distill(
    *terms,
    encoder=toys.mlp(6, inputs=("audio",)),
    teachers={"teacher": head},
    **options,
  )


def joint(labelled=5, free=8):
  """A batch of unlabelled examples, with labelled ones beside."""
  beside = toys.batch(6, real=labelled)
  named = {f"labelled/{name}": value for name, value in beside.items()}
  return {**toys.batch(8, real=free), **named}, beside


def test_terms_that_read_labels_are_of_the_labelled_examples():
  batch, beside = joint()
  loss, nets = run(distill(Logits(loss=losses.dkd)), batch, beside)
  pair = (nets[name](beside).logits for name in ("student", "teacher"))
  expected = losses.dkd(*pair, labels=beside["label"])[:5].mean()
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


def run(method, batch, beside):
  """The loss of `distil` at the start, and the roles."""
  phases = {"distil": batch}
  inputs = usage(method, beside, phases).inputs
  params, collections = initialise(method, jax.random.key(0), inputs)
  nets = Nets(method.roles, params, collections)
  full = with_targets(method.phases[-1], nets, batch)
  return method.distil("student", nets, full, START), nets


def test_labels_are_of_one_batch_and_the_teacher_of_the_other():
  batch, beside = joint(labelled=5, free=7)
  method = distill(Labels(weight=0.5), Logits(weight=2.0))
  loss, nets = run(method, batch, beside)
  task = losses.cross_entropy(nets.student(beside).logits, beside["label"])
  kd = losses.kl(nets.student(batch).logits, nets.teacher(batch).logits)
  expected = 0.5 * task[:5].mean() + 2.0 * kd[:7].mean()
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)
  means = {name: s / w for name, (s, w) in loss.metrics.items()}
  np.testing.assert_allclose(means["cross_entropy"], task[:5].mean(), rtol=1e-5)
  np.testing.assert_allclose(means["KL"], kd[:7].mean(), rtol=1e-5)


def test_the_accuracy_is_that_of_the_labelled_examples():
  batch, beside = joint()
  loss, nets = run(distill(Logits(), Labels()), batch, beside)
  right = nets.student(beside).logits.argmax(-1) == beside["label"]
  total, weight = loss.metrics["accuracy"]
  assert (total, weight) == (right[:5].sum(), 5)


def test_labels_of_a_teacher_are_of_the_unlabelled_batch():
  batch, beside = joint()
  loss, nets = run(distill(Labels(of="teacher")), batch, beside)
  label = nets.teacher(batch).logits.argmax(-1)
  expected = losses.cross_entropy(nets.student(batch).logits, label).mean()
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


def test_labels_alone_make_as_many_steps_as_the_unlabelled_examples(tmp_path):
  method = distill(Labels(), teachers={})
  trainer = toys.trainer(method, tmp_path, splits=SPLITS)
  assert set(trainer.fit().timing) == {"distil"}
  assert trainer.fit().timing["distil"]["steps"] == 2 * 3


def test_the_unlabelled_labels_change_nothing(tmp_path):
  source = SPLITS.others["unlabelled"]
  wrong = {**source.arrays, "label": np.zeros_like(source.arrays["label"])}
  other = dataclasses.replace(
    SPLITS, others={"unlabelled": type(source)(wrong)}
  )
  found = [
    toys.trainer(
      distill(Labels(), Logits()), tmp_path / str(n), splits=splits
    ).fit()
    for n, splits in enumerate((SPLITS, other))
  ]
  jax.tree.map(
    np.testing.assert_array_equal,
    *(fitted.params["student"] for fitted in found),
  )


# An encoder.


def test_a_teacher_reads_what_the_encoder_returns():
  method, (batch, beside) = probed(Logits()), joint()
  loss, nets = run(method, batch, beside)
  encoded = nets.encoder(batch).value
  teacher = nets.teacher({"encoded": encoded}).logits
  kd = losses.kl(nets.student(batch).logits, teacher)
  np.testing.assert_allclose(loss.total / loss.weight, kd.mean(), rtol=1e-5)
  outputs = method.outputs(nets, batch)
  np.testing.assert_allclose(outputs["teacher"].logits, teacher, rtol=1e-5)


def test_the_encoding_is_a_feature_that_a_term_can_read():
  term = Features(
    loss=losses.cosine_distance,
    student=("fc2",),
    teacher=("concat",),
    projector=Network(Linear(6), inputs=("student",)),
  )
  batch, beside = joint()
  loss, nets = run(probed(term), batch, beside)
  student = nets.student(batch, taps=("fc2",)).taps["fc2"]
  ours = nets["cosine_distance_projector_1"]({"student": student}).value
  expected = losses.cosine_distance(ours, nets.encoder(batch).value).mean()
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


@pytest.mark.parametrize("cached", [True, False])
def test_the_head_learns_and_the_encoder_stays(tmp_path, cached):
  method = probed(Labels(), Logits(), teacher_epochs=8)
  trainer = toys.trainer(
    method, tmp_path, splits=SPLITS, settings={"cache_targets": cached}
  )
  fitted = trainer.fit()
  params, _ = trainer._start()
  jax.tree.map(
    np.testing.assert_array_equal, fitted.params["encoder"], params["encoder"]
  )
  kernels = (p["teacher"]["fc1"]["kernel"] for p in (params, fitted.params))
  assert np.abs(np.subtract(*kernels)).max() > 0.05


def test_an_encoder_is_never_trained_or_validated():
  teach, distil = probed(Labels(), Logits()).phases
  roles = ("encoder", "teacher", "student")
  assert teach.trains(roles) == ("teacher",)
  assert distil.trains(roles) == ("student",)
  assert list(teach.targets) == ["encoded"]
  assert teach.validate is None
  assert distil.validate is not None


def test_teachers_may_learn_from_more_labels(tmp_path):
  method = probed(Labels(), Logits(), teacher_stream="unlabelled")
  fitted = toys.trainer(method, tmp_path, splits=SPLITS).fit()
  assert fitted.timing["teach_teacher"]["steps"] == 2 * 3


def test_teachers_may_have_a_learning_rate_of_their_own():
  params = {"w": jnp.ones(3)}
  for own, expected in ((None, 1e-2), (0.5, 0.5)):
    phase = probed(Labels(), teacher_lr=own).phases[0].planned(3)
    optimizer = phase.updates[0].optimizer
    change, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(-change["w"], expected, rtol=1e-4)


def test_no_teacher_is_called_encoder():
  with pytest.raises(ConfigError, match="two networks are called 'encoder'"):
    probed(Logits(), peers={"encoder": toys.mlp()})
