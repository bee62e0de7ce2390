"""Terms of features: projectors of every shape, and CRD's memory bank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, nets
from jaxkd.errors import ConfigError
from jaxkd.method import Step
from jaxkd.methods import Distill
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.terms import Contrast, Features, Labels
from tests.methods import toys

EMBED = {
  "projector": Network(nets.UnitEmbedding(features=6), inputs=("student",)),
  "teacher_projector": Network(
    nets.UnitEmbedding(features=6), inputs=("teacher",)
  ),
}


def cnn(*widths):
  return Network(nets.StageCNN(widths=widths, num_classes=toys.CLASSES))


def pictures(size=6):
  batch = toys.batch(size, real=size - 1)
  image = np.random.default_rng(0).normal(size=(size, 8, 8, 1))
  return {**batch, "image": image.astype(np.float32)}


def distill(*terms, **options):
  defaults = {"teacher_epochs": 2, "epochs": 2, "lr": 1e-2}
  return Distill(terms=terms, **{**defaults, **options})


def view(method, batch):
  inputs = usage(method, batch).inputs
  params, collections = initialise(method, jax.random.key(0), inputs)
  rng = jax.random.key(1)
  memory = method.memory
  return Nets(method.roles, params, collections, rng=rng, memory=memory)


def loss(method, batch):
  roles = view(method, batch)

  @jax.jit
  def run(params, batch):
    inner = Nets(method.roles, params, roles.collections)
    targets = method.phases[-1].targets
    shown = {name: show(inner, batch) for name, show in targets.items()}
    step = Step(index=jnp.int32(0), epoch=jnp.int32(0))
    return method.distil("student", inner, {**batch, **shown}, step)

  return run(roles._params, batch), roles


@pytest.mark.slow
def test_a_projector_may_give_the_loss_all_its_arrays():
  regressor = Network(nets.VIDRegressor(), inputs=("student", "teacher"))
  term = Features(
    loss=losses.vid,
    student=("stage1",),
    teacher=("stage1",),
    projector=regressor,
  )
  method = distill(term, student=cnn(2, 3), teachers={"teacher": cnn(4, 5)})
  batch = pictures()
  found, roles = loss(method, batch)

  @jax.jit
  def projected(batch):
    taps = [
      roles[name](batch, taps=("stage1",)).taps["stage1"]
      for name in ("student", "teacher")
    ]
    given = dict(zip(("student", "teacher"), taps, strict=True))
    return roles["vid_projector_1"](given).value

  arrays = projected(batch)
  expected = np.mean(losses.vid(*arrays)[:5])
  np.testing.assert_allclose(found.total / found.weight, expected, rtol=1e-5)


@pytest.mark.slow
def test_stages_are_fused_together_and_the_fusion_is_trained(tmp_path):
  stages = ("stage1", "stage2")
  term = Features(
    loss=losses.review_kd,
    student=stages,
    teacher=stages,
    projector=Network(nets.ReviewFusion(), inputs=("student", "teacher")),
    together=True,
  )
  method = distill(
    Labels(), term, student=cnn(2, 3), teachers={"teacher": cnn(4, 5)}
  )
  assert [r for r in method.roles if "projector" in r] == [
    "review_kd_projector_1"
  ]
  batch = pictures()
  roles = view(method, batch)
  step = Step(index=jnp.int32(0), epoch=jnp.int32(0))
  targets = method.phases[-1].targets

  @jax.jit
  @jax.grad
  def slope(projector):
    params = {**roles._params, "review_kd_projector_1": projector}
    inner = Nets(method.roles, params, roles.collections)
    shown = {name: show(inner, batch) for name, show in targets.items()}
    return method.distil("student", inner, {**batch, **shown}, step).total

  gradient = slope(roles._params["review_kd_projector_1"])
  sizes = [float(np.abs(g).max()) for g in jax.tree.leaves(gradient)]
  assert sum(size > 0 for size in sizes) > len(sizes) / 2


@pytest.mark.slow  # a whole run of all phases
def test_contrast_fills_its_bank_with_embeddings_and_labels(tmp_path):
  term = Contrast(
    name="crd",
    student=("fc2",),
    teacher=("fc2",),
    examples=20,
    features=6,
    negatives=16,
    **EMBED,
  )
  method = distill(
    Labels(), term, student=toys.mlp(), teachers={"teacher": toys.teacher()}
  )
  before = method.memory["crd"]
  assert not bool(before["bank"].ready)
  fitted = toys.trainer(method, tmp_path).fit()
  kept = fitted.memory["crd"]
  assert bool(kept["bank"].ready)
  expected = toys.splits().train.take(range(20))["label"]
  np.testing.assert_array_equal(kept["labels"], expected)
  lengths = np.linalg.norm(kept["bank"].student, axis=1)
  np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_both_embeddings_of_contrast_are_trained_and_the_teacher_is_not():
  term = Contrast(
    student=("fc2",), teacher=("fc2",), examples=20, features=6, **EMBED
  )
  method = distill(
    Labels(), term, student=toys.mlp(), teachers={"teacher": toys.teacher()}
  )
  (update,) = method.phases[-1].updates
  assert update.trains(tuple(method.roles)) == (
    "student",
    "crd_projector_1",
    "crd_teacher_projector_1",
  )


def test_contrast_without_embeddings_of_both_is_refused():
  with pytest.raises(ConfigError, match="a projector and a teacher_projector"):
    Contrast(student=("a",), teacher=("b",), examples=20)
