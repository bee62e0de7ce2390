"""Distill: the sum of its terms in all arrangements, and what it refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.method import Step
from jaxkd.methods import Distill
from jaxkd.nets import Linear
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.schedules import Decayed, Interpolated
from jaxkd.terms import Features, Labels, Logits
from tests.methods import toys

HINT = {"student": ("fc2",), "teacher": ("fc2",)}


def squared(student, teacher, *, scale=1.0, where=None):
  """Mean squared distance, [B]."""
  del where
  return scale * jnp.mean((student - teacher) ** 2, -1)


def listed(student, teacher, *, where=None):
  """Takes the lists of all pairs."""
  return sum(squared(s, t) for s, t in zip(student, teacher, strict=True))


def distill(*terms, **options):
  defaults = {
    "student": toys.mlp(),
    "teachers": {"teacher": toys.teacher()},
    "teacher_epochs": 2,
    "epochs": 2,
    "lr": 1e-2,
  }
  return Distill(terms=terms, **{**defaults, **options})


def view(method, batch):
  inputs = usage(method, batch).inputs
  params, collections = initialise(method, jax.random.key(0), inputs)
  return Nets(method.roles, params, collections)


def value(method, *, epoch=0, learner="student"):
  """The loss of the last phase at the start, with roles and batch."""
  batch = toys.batch(8, real=5)
  nets = view(method, batch)
  phase = next(p for p in method.phases if p.name.startswith("distil"))
  step = Step(index=jnp.int32(0), epoch=jnp.int32(epoch))

  @jax.jit
  def run(params, batch):
    inner = Nets(method.roles, params, nets.collections)
    shown = {n: f(inner, batch) for n, f in phase.targets.items()}
    return method.distil(learner, inner, {**batch, **shown}, step)

  return run(nets._params, batch), nets, batch


def mean(values):
  return np.mean(values[:5])


def test_the_loss_is_the_weighted_sum_over_real_examples():
  method = distill(
    Labels(weight=0.1), Logits(weight=0.9, options={"temperature": 4.0})
  )
  loss, nets, batch = value(method)
  student, teacher = (nets[n](batch).logits for n in ("student", "teacher"))
  task = losses.cross_entropy(student, batch["label"])
  kd = losses.kl(student, teacher, temperature=4.0)
  expected = mean(0.1 * task + 0.9 * kd)
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)
  assert set(loss.metrics) == {"cross_entropy", "KL", "accuracy"}


def test_weights_and_options_follow_their_schedules():
  warm_up = Interpolated(epochs=(0, 10), values=(0.0, 1.0))
  method = distill(
    Logits(weight=warm_up, options={"temperature": Decayed(value=4.0, every=5)})
  )
  loss, nets, batch = value(method, epoch=5)
  student, teacher = (nets[n](batch).logits for n in ("student", "teacher"))
  expected = 0.5 * mean(losses.kl(student, teacher, temperature=2.0))
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


@pytest.mark.parametrize("together", [False, True])
def test_pairs_of_features_are_compared_one_by_one_or_together(together):
  term = Features(
    loss=listed if together else squared,
    student=("fc1", "fc2"),
    teacher=("fc1", "fc2"),
    together=together,
  )
  loss, nets, batch = value(distill(term))
  taps = [
    nets[n](batch, taps=("fc1", "fc2")).taps for n in ("student", "teacher")
  ]
  expected = mean(sum(squared(taps[0][p], taps[1][p]) for p in taps[0]))
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_projector_fits_the_student_to_the_teacher_and_is_trained(tmp_path):
  term = Features(
    loss=squared,
    name="hint",
    student=("fc1",),
    teacher=("fc2",),
    projector=Network(Linear(8), inputs=("student",)),
  )
  method = distill(Labels(), term)
  assert "hint_projector_1" in method.roles
  before = view(method, toys.batch(8))._params["hint_projector_1"]["kernel"]
  assert before.shape == (16, 8)
  fitted = toys.trainer(method, tmp_path).fit()
  after = fitted.params["hint_projector_1"]["kernel"]
  assert np.abs(after - before).max() > 1e-4


def test_several_teachers_average_their_losses_or_are_combined():
  teachers = {"a": toys.teacher(), "b": toys.mlp()}
  loss, nets, batch = value(distill(Logits(), teachers=teachers))
  student, a, b = (nets[n](batch).logits for n in ("student", "a", "b"))
  expected = mean(losses.kl(student, a) + losses.kl(student, b)) / 2
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)
  term = Logits(combine=losses.probability_mean, options={"temperature": 3.0})
  loss, nets, batch = value(distill(term, teachers=teachers))
  p = (jax.nn.softmax(a / 3) + jax.nn.softmax(b / 3)) / 2
  log_q = jax.nn.log_softmax(student / 3)
  expected = mean(9 * jnp.sum(p * (jnp.log(p) - log_q), -1))
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-4)


def test_a_term_may_name_its_teachers():
  teachers = {"a": toys.teacher(), "b": toys.mlp()}
  loss, nets, batch = value(distill(Logits(teachers=("b",)), teachers=teachers))
  student, b = (nets[n](batch).logits for n in ("student", "b"))
  np.testing.assert_allclose(
    loss.total / loss.weight, mean(losses.kl(student, b)), rtol=1e-5
  )


# Peers and generations.


def test_peers_teach_each_other_as_constants():
  method = distill(Labels(), Logits(), teachers={}, peers={"peer": toys.mlp()})
  assert [p.name for p in method.phases] == ["distil"]
  loss, nets, batch = value(method)
  student, peer = (nets[n](batch).logits for n in ("student", "peer"))
  label = batch["label"]
  expected = mean(
    losses.cross_entropy(student, label)
    + losses.cross_entropy(peer, label)
    + losses.kl(student, peer)
    + losses.kl(peer, student)
  )
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)
  (update,) = method.phases[0].updates
  assert update.trains(tuple(method.roles)) == ("peer", "student")


def _gradient_of_the_peer(method):
  batch = toys.batch(8, real=5)
  nets = view(method, batch)
  step = Step(index=jnp.int32(0), epoch=jnp.int32(0))

  def total(peer):
    params = {**nets._params, "peer": peer}
    inner = Nets(method.roles, params, nets.collections)
    return method.distil("student", inner, batch, step).total

  return jax.jit(jax.grad(total))(nets._params["peer"])


def test_a_peers_gradient_is_that_of_its_own_loss():
  method = distill(Logits(), teachers={}, peers={"peer": toys.mlp()})
  found = _gradient_of_the_peer(method)
  batch = toys.batch(8, real=5)
  nets = view(method, batch)
  student = nets.student(batch).logits

  def own(peer):
    params = {**nets._params, "peer": peer}
    logits = Nets(method.roles, params, {}).peer(batch).logits
    return jnp.sum(losses.kl(logits, student)[:5])

  expected = jax.jit(jax.grad(own))(nets._params["peer"])
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_each_generation_is_taught_by_the_one_before(tmp_path):
  method = distill(Labels(), Logits(), teachers={}, generations=3)
  names = ["distil_generation_1", "distil_generation_2", "distil"]
  assert [p.name for p in method.phases] == names
  read = [sorted(p.targets) for p in method.phases]
  assert read == [[], ["teacher/logits"], ["teacher/logits"]]
  fitted = toys.trainer(method, tmp_path).fit()
  first, last = (fitted.params[n] for n in ("generation_1", "student"))
  assert not np.array_equal(first["fc1"]["kernel"], last["fc1"]["kernel"])


def test_generations_are_evaluated_as_an_ensemble_too():
  method, batch = distill(Labels(), Logits(), generations=2), toys.batch(4)
  nets = view(method, batch)
  outputs = method.outputs(nets, batch)
  assert list(outputs) == ["student", "teacher", "ensemble"]
  p = [
    jax.nn.softmax(nets[n](batch).logits) for n in ("generation_1", "student")
  ]
  np.testing.assert_allclose(
    jax.nn.softmax(outputs["ensemble"].logits), sum(p) / 2, rtol=1e-5
  )


# Access.


def test_a_top_k_teacher_shows_its_k_best_classes_only():
  method = distill(Logits(), access="topk", k=2)
  targets = method.phases[-1].targets
  assert sorted(targets) == ["teacher/ids", "teacher/log_probs"]
  loss, nets, batch = value(method)
  student, teacher = (nets[n](batch).logits for n in ("student", "teacher"))
  expected = mean(losses.kl(student, losses.TopK.of(teacher, 2)))
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


def test_a_teacher_of_samples_gives_labels():
  method = distill(Labels(of="teacher"), access="text")
  assert sorted(method.phases[-1].targets) == ["teacher/label"]
  loss, nets, batch = value(method)
  label = nets.teacher(batch).logits.argmax(-1)
  expected = mean(losses.cross_entropy(nets.student(batch).logits, label))
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


def test_logits_of_a_teacher_of_samples_are_refused():
  with pytest.raises(ConfigError, match="'KL' reads logits.*access 'topk'"):
    distill(Logits(), access="text")


@pytest.mark.parametrize("access", ["topk", "text"])
def test_submodules_of_a_teacher_need_white_access(access):
  with pytest.raises(ConfigError, match="'squared' reads submodules.*'white'"):
    distill(Features(loss=squared, **HINT), access=access)


def test_a_cosine_learning_rate_is_at_zero_at_the_end():
  method = distill(Labels(), lr_schedule="cosine", epochs=4)
  (update,) = method.phases[-1].planned(steps_per_epoch=5).updates
  (constant,) = distill(Labels()).phases[-1].planned(5).updates
  params = {"w": jnp.ones(3)}

  def sizes(optimizer):
    state, found = optimizer.init(params), []
    for _ in range(21):
      change, state = optimizer.update(params, state, params)
      found.append(abs(float(change["w"][0])))
    return np.array(found)

  np.testing.assert_allclose(sizes(constant.optimizer), 1e-2, rtol=1e-3)
  halves = 0.5 * (1 + np.cos(np.pi * np.arange(21) / 20))
  np.testing.assert_allclose(
    sizes(update.optimizer), 1e-2 * halves, rtol=1e-3, atol=1e-9
  )


# Refusals.


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: distill(), "expected terms with names"),
    (lambda: distill(Labels(), Labels()), "names of their own"),
    (lambda: distill(Labels(), access="grey"), "access='grey': expected one"),
    (
      lambda: distill(Labels(), lr_schedule="linear"),
      "='linear': expected one",
    ),
    (lambda: distill(Logits(), teachers={}), "'KL' needs a teacher"),
    (lambda: distill(Logits(), teachers={}, generations=2), "term of labels"),
    (lambda: distill(Labels(), generations=0), "at least 1 generation"),
    (
      lambda: distill(Labels(), teachers={"student": toys.mlp()}),
      "two networks are called 'student'",
    ),
    (
      lambda: distill(Labels(), peers={"teacher": toys.mlp()}),
      "two networks are called 'teacher'",
    ),
    (
      lambda: distill(
        Features(loss=squared, **HINT), peers={"peer": toys.mlp()}
      ),
      "peers are taught by",
    ),
    (lambda: Logits(options={"temperatur": 2.0}), "did you mean 'temperature'"),
    (lambda: Logits(options={"where": None}), "no option 'where'"),
    (lambda: Logits(loss="kl"), "expected a loss such as kl"),
    (
      lambda: Logits(
        options={"temperature": Interpolated(epochs=(0, 1), values=(1.0, -1.0))}
      ),
      "expected values above 0",
    ),
    (
      lambda: Features(loss=squared, student=("a", "b"), teacher=("a",)),
      "as many paths of both",
    ),
    (
      lambda: Features(
        loss=squared,
        student=("a",),
        teacher=("a",),
        projector=Network(Linear(8), inputs=("studnt",)),
      ),
      "did you mean 'student'",
    ),
  ],
)
def test_what_cannot_be_meant_is_refused_by_name(make, match):
  with pytest.raises(ConfigError, match=match):
    make()


def test_a_teacher_that_is_not_there_is_named_with_the_nearest():
  method = distill(Labels(of="techer"))
  with pytest.raises(ConfigError, match="'techer', did you mean 'teacher'"):
    usage(method, toys.batch(8))


def test_a_submodule_that_is_not_there_is_named():
  method = distill(Features(loss=squared, student=("fc9",), teacher=("fc2",)))
  with pytest.raises(ConfigError, match="role 'student'.*fc9"):
    usage(method, toys.batch(8))
