"""PCoreSet: rounds, what is picked, students that start anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, nets, selection
from jaxkd.data.source import Splits
from jaxkd.errors import ConfigError, Preempted
from jaxkd.method import part
from jaxkd.methods import PCoreSet
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.training.feeds import examples
from jaxkd.training.phase import Stop
from tests.methods import toys


def splits():
  return Splits(
    train=toys.source(24, 0),
    validation=toys.source(10, 1),
    test=toys.source(8, 2),
  )


def pcoreset(kind=PCoreSet, **options):
  head = nets.DualHead(
    backbone=nets.MLP(features=(8, 6)), num_classes=toys.CLASSES
  )
  defaults = {
    "student": Network(head),
    "teacher": toys.mlp(),
    "examples": 24,
    "num_classes": 4,
    "query": 3,
    "rounds": 2,
    "steps": 4,
    "teacher_steps": 3,
    "lr": 1e-2,
  }
  return kind(**{**defaults, **options})


def fit(folder, method=None, **options):
  trainer = toys.trainer(
    method or pcoreset(), folder, splits=splits(), **options
  )
  return trainer, trainer.fit()


def labelled_after(folder, rounds):
  """Which examples have a label after so many rounds."""
  _, fitted = fit(folder / str(rounds), pcoreset(rounds=rounds))
  return np.asarray(fitted.memory["labelled"])


@pytest.mark.slow  # a whole run of all phases
def test_labels_grow_by_the_query_from_one_of_every_class(tmp_path):
  train, before = splits().train.arrays["label"], None
  for rounds in range(3):
    labelled = labelled_after(tmp_path, rounds)
    assert labelled.sum() == 4 + 3 * rounds
    if rounds == 0:
      assert sorted(train[labelled]) == [0, 1, 2, 3]
    else:
      assert np.all(labelled[before])
    before = labelled


@pytest.mark.slow
def test_queries_cover_the_students_own_probabilities(tmp_path):
  before = labelled_after(tmp_path, 0)
  trainer, fitted = fit(tmp_path / "run", pcoreset(rounds=1))
  rows = trainer.splits.train.take(np.arange(24))
  found = Nets(
    trainer.method.roles, fitted.params, memory=trainer.method.memory
  )
  value = found.round_0(rows).value
  p = 0.5 * jax.nn.softmax(value["labels"])
  p = np.asarray(p + 0.5 * jax.nn.softmax(value["teacher"]))
  picked, pool = [], np.flatnonzero(~before)
  for _ in range(3):  # one after the other, each a centre for the next
    centres = p[np.concatenate([np.flatnonzero(before), picked]).astype(int)]
    apart = np.linalg.norm(p[pool, None] - centres[None], axis=-1).min(1)
    picked.append(pool[apart.argmax()])
    pool = pool[pool != picked[-1]]
  new = np.flatnonzero(np.asarray(fitted.memory["labelled"]) & ~before)
  assert set(new) == set(picked)


@pytest.mark.slow
def test_every_student_starts_from_the_same_tree(tmp_path):
  starts = {}

  class Watched(PCoreSet):
    def begin(self, number, host):
      super().begin(number, host)
      role = self._students[number]
      starts[role] = jax.device_get(host.params[role])

  trainer, fitted = fit(tmp_path, pcoreset(Watched))
  first = trainer._start()[0]["round_0"]
  assert list(starts) == ["round_0", "round_1", "student"]
  for role, start in starts.items():
    jax.tree.map(np.testing.assert_array_equal, start, first)
    learned = fitted.params[role]["label_head"]["kernel"]
    assert np.any(learned != first["label_head"]["kernel"])


@pytest.mark.parametrize("role", ["round_0", "round_1", "student"])
def test_every_student_learns_from_labels_and_from_both_streams(role):
  method = pcoreset()
  seen = examples(method, splits(), 8)
  inputs = usage(method, *seen).inputs
  params, collections = initialise(method, jax.random.key(0), inputs)
  found = Nets(method.roles, params, collections, memory=method.memory)
  batch = dict(seen[1]["round_0"])
  other = part(batch, "unlabelled")
  batch["shown"] = method.show(found, batch)
  batch["unlabelled/shown"] = method.show(found, other)
  ours, free = (found[role](rows).value for rows in (batch, other))
  kd = lambda s, t: losses.kl(s, t, temperature=2.0).mean()
  task = losses.cross_entropy(ours["labels"], batch["label"]).mean()
  expected = 0.5 * task + 0.5 * (
    kd(ours["teacher"], batch["shown"])
    + kd(free["teacher"], batch["unlabelled/shown"])
  )
  loss = method.distil(role, found, batch, None)
  np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


def test_the_streams_of_a_round_are_what_has_a_label_and_what_has_none():
  phase = pcoreset().phases[-1]
  memory = {"labelled": jnp.arange(24) < 5}
  np.testing.assert_array_equal(phase.stream.rows(memory), np.arange(5))
  assert phase.stream.replace
  rows = phase.beside["unlabelled"].rows(memory)
  np.testing.assert_array_equal(rows, np.arange(5, 24))


@pytest.mark.slow  # a whole run of all phases
@pytest.mark.parametrize("after", [5, 7, 11, 12])
def test_a_run_resumes_between_rounds_and_inside_them(tmp_path, after):
  _, whole = fit(tmp_path / "whole")
  with pytest.raises(Preempted):
    fit(tmp_path / "cut", stop=Stop(after=after))
  _, resumed = fit(tmp_path / "cut")
  for kind in ("params", "memory"):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(resumed, kind),
      getattr(whole, kind),
    )


@pytest.mark.slow  # a whole run of all phases
@pytest.mark.parametrize(
  "strategy", ["coreset", "uncertainty", "badge", "class_balanced", "random"]
)
def test_other_strategies_pick_as_many(tmp_path, strategy):
  _, fitted = fit(tmp_path, pcoreset(strategy=strategy, rounds=1))
  assert fitted.memory["labelled"].sum() == 7


def test_labels_alone_need_no_teacher_in_the_loss(tmp_path):
  method = pcoreset(teacher_weight=0.0, rounds=0)
  assert method.phases[-1].targets == {}
  trainer, fitted = fit(tmp_path, method)
  rows = trainer.splits.test.take(np.arange(8))
  found = Nets(method.roles, fitted.params, memory=fitted.memory)
  np.testing.assert_allclose(
    method.predict(found, rows).logits,
    jax.nn.log_softmax(found.student(rows).value["labels"]),
    rtol=1e-5,
  )


def test_a_pool_of_another_size_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="examples=30: the pool has 24"):
    fit(tmp_path, pcoreset(examples=30))


def test_an_unknown_strategy_is_refused():
  with pytest.raises(ConfigError, match="strategy='best': expected one of"):
    pcoreset(strategy="best")


def test_starting_centres_decide_the_first_pick():
  pool = jnp.asarray([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
  for centre, first in (([1.0, 0.0], 2), ([0.0, 1.0], 0)):
    picks = selection.probability_coreset(pool, jnp.asarray([centre]), count=1)
    assert picks[0] == first


def clap(**options):
  teacher = nets.PrototypeClassifier(
    encoder=nets.ProjectionHead(features=5, dropout=0.0),
    num_classes=toys.CLASSES,
  )
  defaults = {"teacher": Network(teacher), "prototypes": 5, "refit_passes": 2}
  return pcoreset(**{**defaults, **options})


@pytest.mark.parametrize(
  ("first", "names"),
  [
    (False, "refit_0 round_0 round_1 refit_1 round_2 refit_2"),
    (True, "refit_0 round_0 refit_1 round_1 refit_2 round_2"),
  ],
)
def test_the_teacher_is_fitted_to_the_labels_of_a_round(first, names):
  method = clap(refit_first=first, teacher_steps=0)
  assert " ".join(phase.name for phase in method.lasting_phases) == names


@pytest.mark.slow  # a whole run of all phases
@pytest.mark.parametrize("first", [False, True])
def test_refitting_moves_prototypes_alone_and_starts_from_the_names(
  tmp_path, first
):
  method = clap(rounds=1, refit_first=first)
  trainer, fitted = fit(tmp_path, method)
  names, teacher = fitted.memory["names"], fitted.params["teacher"]
  assert not np.array_equal(teacher["prototypes"], names)
  assert np.asarray(fitted.memory["labelled"]).sum() == 7
  rows = trainer.splits.train.take(np.flatnonzero(fitted.memory["labelled"]))
  start = {**teacher, "prototypes": names}
  logits = Nets(method.roles, {"teacher": start}).teacher(rows).logits
  p = np.asarray(jax.nn.softmax(logits))
  for c in range(toys.CLASSES):  # sureness is that of the names, not refitted
    found = p[rows["label"] == c, c]
    expected = found.mean() if found.size else 0.0
    np.testing.assert_allclose(
      fitted.memory["confidence"][c], expected, rtol=1e-4, atol=1e-6
    )


def test_sure_names_hold_their_prototypes():
  method = clap()
  params = {"teacher": _drawn(method)}
  batch = toys.batch(8)

  def slope(confidence):
    memory = {
      "names": params["teacher"]["prototypes"] + 1.0,
      "confidence": confidence,
    }

    def total(teacher):
      found = Nets(method.roles, {"teacher": teacher}, memory=memory)
      loss = method.constrain(found, batch, None)
      return loss.total / loss.weight

    return jax.jit(jax.grad(total))(params["teacher"])["prototypes"]

  # d/dP mean_c a_c |P_c - P0_c|^2 = 2 a_c (P_c - P0_c) / C
  sure = jnp.array([0.0, 0.2, 0.5, 1.0])
  expected = np.broadcast_to(-2 * sure[:, None] / 4, (4, 5))
  np.testing.assert_allclose(
    slope(sure) - slope(0 * sure), expected, rtol=1e-3, atol=1e-5
  )


@pytest.mark.parametrize("name", ["refit_0", "round_0"])
def test_the_first_step_has_a_rate_of_zero(name):
  (phase,) = (phase for phase in clap().phases if phase.name == name)
  (update,) = phase.planned(10).updates
  ones, changes = {"w": jnp.ones(1)}, []
  state = update.optimizer.init(ones)
  for _ in range(2):
    change, state = update.optimizer.update(ones, state, ones)
    changes.append(float(change["w"][0]))
  assert changes[1] < changes[0] == 0


def _drawn(method):
  return method.teacher.init(jax.random.key(0), toys.batch(8))["params"]
