"""DHO: whose gradient goes where, two streams, a mixture that is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, nets
from jaxkd.data.source import Splits
from jaxkd.method import Step
from jaxkd.methods import DHO
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.training.feeds import examples
from tests import golden_tools
from tests.methods import toys

START = Step(jnp.int32(0), jnp.int32(0))


def splits():
  return Splits(
    train=toys.source(6, 0),
    validation=toys.source(10, 1),
    test=toys.source(8, 2),
    others={"unlabelled": toys.source(20, 3)},
  )


def dho(**options):
  head = nets.DualHead(
    backbone=nets.MLP(features=(8, 6)),
    num_classes=toys.CLASSES,
    single=options.pop("single", False),
  )
  defaults = {
    "student": Network(head),
    "teacher": toys.mlp(),
    "teacher_epochs": 2,
    "epochs": 3,
    "lr": 1e-2,
    "labelled_batch": 4,
  }
  return DHO(**{**defaults, **options})


def view(method):
  seen = examples(method, splits(), 8)
  inputs = usage(method, *seen).inputs
  params, collections = initialise(method, jax.random.key(0), inputs)
  batch = dict(seen[1]["distil"])
  found = Nets(method.roles, params, collections, memory=method.memory)
  for stream in ("", "labelled/"):
    rows = {
      k.removeprefix(stream): v
      for k, v in batch.items()
      if k.startswith(stream)
    }
    batch[f"{stream}shown"] = method.show(found, rows)
  return found, batch


def gradient(method):
  found, batch = view(method)

  def total(params):
    other = found.replaced({"student": params})
    loss = method.distil(other, batch, START)
    return loss.total / loss.weight

  return jax.grad(total)(found.params("student"))


@pytest.mark.slow
def test_each_head_receives_its_own_signal_alone():
  labels = gradient(dho(teacher_weight=0.0))
  assert np.any(labels["label_head"]["kernel"])
  assert not np.any(labels["teacher_head"]["kernel"])
  teacher = gradient(dho(label_weight=0.0))
  assert not np.any(teacher["label_head"]["kernel"])
  assert np.any(teacher["teacher_head"]["kernel"])
  both = gradient(dho())
  for half in (labels, teacher):
    assert np.any(half["backbone"]["fc1"]["kernel"])
  np.testing.assert_allclose(
    both["backbone"]["fc1"]["kernel"],
    labels["backbone"]["fc1"]["kernel"] + teacher["backbone"]["fc1"]["kernel"],
    rtol=1e-4,
    atol=1e-6,
  )


@pytest.mark.slow
def test_a_single_head_receives_both():
  params = gradient(dho(single=True))
  assert set(params) == {"backbone", "label_head"}


def test_streams_are_averaged_apart():
  method = dho()
  found, batch = view(method)
  ours = found.student({"image": batch["labelled/image"]}).value
  free = found.student(batch).value
  kd = lambda s, t: losses.kl(s, t, temperature=2.0).mean()
  task = losses.cross_entropy(ours["labels"], batch["labelled/label"]).mean()
  expected = 0.5 * task + 0.5 * (
    kd(ours["teacher"], batch["labelled/shown"])
    + kd(free["teacher"], batch["shown"])
  )
  loss = method.distil(found, batch, START)
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


@pytest.mark.slow
def test_the_mixture_of_the_best_epoch_is_deployed(tmp_path):
  method = dho()
  trainer = toys.trainer(method, tmp_path, splits=splits())
  fitted = trainer.fit()
  share, temperature = np.asarray(fitted.memory["mixture"])
  assert temperature in losses.dual_heads.TEMPERATURES
  rows = splits().validation.take(np.arange(10))
  found = Nets(method.roles, fitted.params, memory=fitted.memory)
  value = found.student(rows).value
  best = losses.best_mixture(value["labels"], value["teacher"], rows["label"])
  np.testing.assert_allclose(best[:2], (share, temperature), rtol=1e-6)
  mixed = share * jax.nn.softmax(value["labels"]) + (
    1 - share
  ) * jax.nn.softmax(value["teacher"] / temperature)
  np.testing.assert_allclose(
    jnp.exp(method.predict(found, rows).logits), mixed, rtol=1e-4, atol=1e-6
  )


def test_without_a_choice_the_mixture_is_the_given_one(tmp_path):
  method = dho(choose=False, share=0.3, mixture_temperature=2.0)
  fitted = toys.trainer(method, tmp_path, splits=splits()).fit()
  np.testing.assert_allclose(fitted.memory["mixture"], [0.3, 2.0])
  assert method.phases[-1].validate is None


# Vectors of the released code.


@pytest.mark.parametrize(
  "case",
  [
    pytest.param(c, marks=() if c in ("case0", "case2") else pytest.mark.slow)
    for c in golden_tools.cases("dho__losses")
  ],
)
def test_the_loss_is_that_of_the_released_code(case):
  arrays = golden_tools.cases("dho__losses")[case]

  def total(labels, labelled, unlabelled):
    return losses.dual_head(
      labels,
      arrays["in_labels"],
      (
        (labelled, arrays["in_teacher_labeled_logits"], None),
        (unlabelled, arrays["in_teacher_unlabeled_logits"], None),
      ),
      temperature=float(arrays["param_temperature"]),
      label_weight=float(arrays["param_ce_weight"]),
      teacher_weight=float(arrays["param_kd_weight"]),
    )

  names = ("labeled_ce_logits", "labeled_kd_logits", "unlabeled_kd_logits")
  given = [jnp.asarray(arrays[f"in_{name}"]) for name in names]
  for run in (total, jax.jit(total)):
    value, gradients = jax.value_and_grad(run, argnums=(0, 1, 2))(*given)
    np.testing.assert_allclose(value, arrays["out_loss"], rtol=1e-5, atol=1e-6)
    for name, found in zip(names, gradients, strict=True):
      np.testing.assert_allclose(
        found, arrays[f"grad_{name}"], rtol=1e-4, atol=1e-6
      )


@pytest.mark.parametrize("case", golden_tools.cases("dho__dual_head_inference"))
def test_the_mixture_is_that_of_the_released_search(case):
  arrays = golden_tools.cases("dho__dual_head_inference")[case]
  heads = [jnp.asarray(arrays[f"in_{n}_logits"]) for n in ("ce", "kd")]
  share, temperature, accuracy = losses.best_mixture(
    *heads, jnp.asarray(arrays["in_labels"])
  )
  np.testing.assert_allclose(share, arrays["out_best_alpha"], atol=1e-6)
  np.testing.assert_allclose(temperature, arrays["out_best_beta"], atol=1e-6)
  np.testing.assert_allclose(
    100 * accuracy, arrays["out_best_accuracy_percent"], atol=1e-3
  )
  for (share, temperature), expected in zip(
    arrays["param_fixed_alpha_beta"],
    arrays["out_fixed_accuracy_percent"],
    strict=True,
  ):
    mixed = losses.mixed_log_probabilities(
      *heads, share=float(share), temperature=float(temperature)
    )
    right = jnp.mean(jnp.argmax(mixed, -1) == arrays["in_labels"])
    np.testing.assert_allclose(100 * right, expected, atol=1e-3)


@pytest.mark.parametrize("case", golden_tools.cases("dho__clip_student_heads"))
def test_clips_heads_are_those_of_the_released_code(case):
  arrays = golden_tools.cases("dho__clip_student_heads")[case]

  class Same(nets.MLP):
    def __call__(self, inputs):
      return inputs

  net = nets.DualHead(
    backbone=Same(), num_classes=len(arrays["param_ce_bias"]), normalized=True
  )
  params = {
    ours: {
      "kernel": jnp.asarray(arrays[f"param_{theirs}_weight"].T),
      "bias": jnp.asarray(arrays[f"param_{theirs}_bias"]),
    }
    for ours, theirs in (("label_head", "ce"), ("teacher_head", "kd"))
  }

  def total(params, features):
    value = net.apply({"params": params}, features)
    return (
      jnp.sum(value["labels"] * arrays["in_cotangent_ce"])
      + jnp.sum(value["teacher"] * arrays["in_cotangent_kd"])
    ), value

  (gradients, feature), value = jax.grad(total, (0, 1), has_aux=True)(
    params, jnp.asarray(arrays["in_features"])
  )
  for name, key in (("labels", "ce"), ("teacher", "kd")):
    np.testing.assert_allclose(
      value[name], arrays[f"out_{key}_logits"], rtol=1e-5, atol=1e-6
    )
  close = {"rtol": 1e-4, "atol": 1e-6}
  np.testing.assert_allclose(feature, arrays["grad_features"], **close)
  for ours, theirs in (("label_head", "ce"), ("teacher_head", "kd")):
    np.testing.assert_allclose(
      gradients[ours]["kernel"].T, arrays[f"grad_{theirs}_weight"], **close
    )
    np.testing.assert_allclose(
      gradients[ours]["bias"], arrays[f"grad_{theirs}_bias"], **close
    )
