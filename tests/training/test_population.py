"""Runs side by side leave what each leaves alone."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkd.errors import NonFinite, Preempted
from jaxkd.method import Loss, Update
from jaxkd.network import Network
from jaxkd.training import checkpoint, population
from jaxkd.training.grid import Grid, Member, Together
from jaxkd.training.loop import Trainer
from jaxkd.training.phase import Settings, Stop
from jaxkd.training.program import Programs
from jaxkd.training.workdir import Run
from tests.methods import toys

SEEDS = (0, 1)
METHODS = {
  f"lr={lr},alpha={alpha}": toys.kd(lr=lr, alpha=alpha)
  for lr, alpha in ((1e-2, 0.3), (1e-2, 0.7), (3e-2, 0.3))
}
LABELS = {f"lr={lr}": toys.supervised(lr=lr) for lr in (1e-2, 3e-2)}
PROGRAMS = {
  name: Programs(method) for name, method in (METHODS | LABELS).items()
}


def trainers(root, methods=METHODS, seeds=SEEDS, **options):
  """One for each method and seed."""
  defaults = {"splits": toys.splits(), "batch_size": 8}
  made = {}
  for name, method in methods.items():
    programs = PROGRAMS.get(name) or Programs(method)
    for seed in seeds:
      run = f"{name},seed={seed}"
      made[run] = Trainer(
        method=method,
        seed=seed,
        run=Run(root / run),
        programs=programs,
        **{**defaults, **options},
      )
  return made


def together(root, stop=None, **options):
  """Trains them side by side."""
  made = trainers(root, stop=stop or Stop(), **options)
  return population.fit(made, root / "population", stop=stop or Stop())


def lines(root, name):
  """The record of a run."""
  text = (root / name / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def bits(fitted):
  """The bytes of all parameters."""
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(fitted.params)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """Six runs together, and each alone."""
  root = tmp_path_factory.mktemp("runs")
  joined = together(root / "joined", store=root / "joined" / "shared")
  alone = {
    name: trainer.fit() for name, trainer in trainers(root / "alone").items()
  }
  return root, joined, alone


def test_every_run_ends_as_it_does_alone(both):
  _, joined, alone = both
  assert joined.keys() == alone.keys()
  for name, fitted in alone.items():
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
      joined[name].params,
      fitted.params,
    )


def test_every_run_has_the_record_that_it_has_alone(both):
  root, joined, _ = both
  for name in joined:
    ours, theirs = lines(root / "joined", name), lines(root / "alone", name)
    assert len(ours) == len(theirs) == 2 * (1 + 2)  # a window, two epochs
    for one, other in zip(ours, theirs, strict=True):
      np.testing.assert_allclose(
        list(one.pop("metrics").values()),
        list(other.pop("metrics").values()),
        atol=2e-6,
      )
      assert one == other


def test_a_phase_in_common_is_trained_once_a_seed(both):
  root, joined, _ = both
  sources = [
    json.loads((root / "joined" / name / "timing.json").read_text())["teach"]
    for name in joined
  ]
  trained = [one["population"] for one in sources if "population" in one]
  assert trained == [4] * 4  # two learning rates, two seeds; alpha is shared


def test_nothing_of_the_population_is_left(both):
  root, _, _ = both
  assert not (root / "joined" / "population").exists()


@pytest.mark.parametrize("after", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stopped_population_resumes_with_the_same_bits(tmp_path, after):
  options = {"methods": LABELS, "settings": Settings(checkpoint_every_steps=2)}
  whole = together(tmp_path / "whole", **options)
  with pytest.raises(Preempted, match="4 runs as asked"):
    together(tmp_path / "cut", **options, stop=Stop(after=after))
  resumed = together(tmp_path / "cut", **options)
  for name in whole:
    assert bits(resumed[name]) == bits(whole[name])
    assert lines(tmp_path / "cut", name) == lines(tmp_path / "whole", name)


@pytest.mark.slow
def test_a_kill_between_two_outcomes_changes_no_bit(tmp_path, monkeypatch):
  whole = together(tmp_path / "whole", methods=LABELS)
  save, made = checkpoint.save_tree, []

  def until_killed(path, *arguments, **options):
    if len(made) == 2:  # of four
      raise KeyboardInterrupt
    made.append(path)
    save(path, *arguments, **options)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, "save_tree", until_killed)
    with pytest.raises(KeyboardInterrupt):
      together(tmp_path / "cut", methods=LABELS)
  resumed = together(tmp_path / "cut", methods=LABELS)
  for name in whole:
    assert bits(resumed[name]) == bits(whole[name])
    assert lines(tmp_path / "cut", name) == lines(tmp_path / "whole", name)


@pytest.mark.slow
def test_a_run_that_is_not_finite_ends_alone(tmp_path):
  methods = {**METHODS, "wild": toys.kd(lr=1e30, alpha=0.3)}
  ended = together(tmp_path / "all", methods=methods, seeds=(0,))
  rest = together(tmp_path / "rest", seeds=(0,))
  wild = ended.pop("wild,seed=0")
  assert isinstance(wild, NonFinite)
  assert "phase 'teach', step" in str(wild)
  assert ended.keys() == rest.keys()
  for name, fitted in rest.items():
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
      ended[name].params,
      fitted.params,
    )


@pytest.mark.slow
def test_a_run_that_failed_before_a_restart_is_still_named(tmp_path):
  methods = {"wild": toys.kd(lr=1e30), "tame": toys.kd()}
  settings = Settings(checkpoint_every_steps=3)
  options = {"methods": methods, "seeds": (0,), "settings": settings}
  with pytest.raises(Preempted):
    together(tmp_path, stop=Stop(after=3), **options)
  ended = together(tmp_path, **options)
  assert isinstance(ended["wild,seed=0"], NonFinite)
  assert not isinstance(ended["tame,seed=0"], NonFinite)


def works(root, **options):
  """The first phase of every run, ready to train."""
  return [
    Member(name, trainer.method, trainer.seed, next(trainer.phases()))
    for name, trainer in trainers(root, **options).items()
  ]


def test_settings_share_what_a_seed_gives_them(tmp_path):
  (grid,) = population.grids(works(tmp_path))
  assert [len(row) for row in grid.rows] == [3, 3]
  assert {path: x.shape for path, x in grid.numbers.items()} == {
    ("alpha",): (2, 3),
    ("lr",): (2, 3),
  }


def test_settings_with_teachers_of_their_own_share_nothing(tmp_path):
  found = []
  for name, trainer in trainers(tmp_path, seeds=(0,)).items():
    phases = trainer.phases()
    work = phases.send(next(phases).train())
    found.append(Member(name, trainer.method, 0, work))
  (grid,) = population.grids(found)
  assert [len(row) for row in grid.rows] == [1, 1, 1]
  assert not any(grid.one_for_all.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught(toys.Toy):
  """A large frozen teacher, run at every step; a weight that may vary."""

  weight: float = 1.0

  @property
  def updates_of(self):
    def loss(nets, batch, step):
      del step
      student = nets.student(batch).logits
      apart = (student - nets.teacher(batch).logits) ** 2
      return Loss.mean(self.weight * apart.mean(-1), where=batch["mask"])

    return (
      Update(trainable=("student",), loss=loss, optimizer=optax.sgd(0.1)),
    )

  @property
  def phases(self):
    return (dataclasses.replace(super().phases[0], updates=self.updates_of),)


def taught(**options):
  roles = {"teacher": toys.mlp(512, 512, 4), "student": toys.mlp(4)}
  return Taught(networks=roles, **options)


def flops(root, weights):
  """Of a step of all settings of one seed."""
  methods = {str(w): taught(weight=w) for w in weights}
  (grid,) = population.grids(works(root, methods=methods, seeds=(0,)))
  made = Together(grid, sharded=False)
  batch = grid.stack_seeds(lambda work: work.feeds[""].batch(0))
  numbers = [jnp.asarray(x) for x in grid.numbers.values()]
  state = grid.stack(lambda work: work.state)
  lowered = jax.jit(made.step).lower(numbers, state, made.frozen, batch)
  cost = lowered.compile().cost_analysis()
  return (cost[0] if isinstance(cost, list) else cost)["flops"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shooting(toys.Toy):
  """Its only step takes it so far."""

  far: float

  @property
  def phases(self):
    update = toys.update(
      optimizer=optax.chain(optax.sgd(self.far), optax.scale(1e9))
    )
    return (dataclasses.replace(super().phases[0], updates=(update,)),)


def test_parameters_that_overflow_at_the_last_step_end_a_run(tmp_path):
  methods = {
    name: Shooting(networks=toys.student(), far=far)
    for name, far in {"wild": 1e38, "tame": 1e-10}.items()
  }
  settings = Settings(max_steps=1)
  ended = together(tmp_path, methods=methods, seeds=(0,), settings=settings)
  assert "phase 'toy', step 0: a loss or para" in str(ended["wild,seed=0"])
  assert not isinstance(ended["tame,seed=0"], NonFinite)


def test_the_settings_of_a_seed_share_one_pass_of_the_teacher(tmp_path):
  one, eight = flops(tmp_path, [1.0]), flops(tmp_path, np.linspace(1, 2, 8))
  assert eight < 1.1 * one


def test_seeds_with_one_teacher_share_its_variables(tmp_path):
  given = next(iter(trainers(tmp_path, {"a": taught()}, (0,)).values()))
  variables = given.fit()
  teacher = {"params": variables.params["teacher"]}
  made = works(
    tmp_path / "b", methods={"a": taught()}, given={"teacher": teacher}
  )
  (grid,) = population.grids(made)
  assert grid.one_for_all == {"teacher": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deciding(toys.Toy):
  """A number that decides the program."""

  share: float = 0.0

  @property
  def phases(self):
    if self.share > 0.5:
      return super().phases
    return tuple(reversed(super().phases))


def test_a_number_that_decides_the_program_splits_the_grid(tmp_path, caplog):
  methods = {
    str(share): Deciding(networks=toys.student(), share=share)
    for share in (0.1, 0.9)
  }
  with caplog.at_level(logging.WARNING, "jaxkd"):
    grids = population.grids(works(tmp_path, methods=methods))
  assert [[len(row) for row in grid.rows] for grid in grids] == [[1] * 2] * 2
  assert "share decide the program" in caplog.text


def way(root, method, seeds=SEEDS, **options):
  """How the runs of a method would be trained."""
  made = works(root, methods={"a": method}, seeds=seeds, **options)
  return population.choose(Grid.of(made))


def test_perceptrons_are_joined_and_rolled(tmp_path):
  found = way(tmp_path, toys.kd())
  assert (found.name, found.rolled) == ("vmap", True)


def test_one_run_is_trained_alone(tmp_path):
  assert way(tmp_path, toys.kd(), seeds=(3,)).name == "loop"


def test_host_functions_are_of_one_run(tmp_path):
  options = {"after_epoch": lambda host: None, "epochs": 1}
  method = toys.Toy(networks=toys.student(), options=options)
  found = way(tmp_path, method)
  assert found.name == "loop"
  assert "host function" in found.reason


class Small(nn.Module):
  """A convolution over the entries of the image."""

  @nn.compact
  def __call__(self, x, train=False):
    del train
    return nn.Dense(4)(nn.Conv(2, (3,))(x[..., None]).reshape(len(x), -1))


def test_convolutions_on_a_cpu_are_tried_and_the_times_are_told(tmp_path):
  found = way(tmp_path, toys.supervised(student=Network(Small())))
  assert found.name in ("vmap", "loop")
  assert not found.rolled
  assert found.reason.count(" ms ") == 2


@pytest.mark.slow
def test_steps_that_are_sent_one_by_one_give_the_same(tmp_path, monkeypatch):
  rolled = together(tmp_path / "rolled", methods=LABELS)
  monkeypatch.setattr(population, "ROLLED_BYTES", 0)
  sent = together(tmp_path / "sent", methods=LABELS)
  for name, fitted in rolled.items():
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
      sent[name].params,
      fitted.params,
    )
