"""Studies: one table of one number; settings never see the test split."""

import dataclasses
import json
import types

import numpy as np
import pytest

from jaxkd import studies
from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import ConfigError, NonFinite
from jaxkd.experiment import Experiment, run
from jaxkd.runs import train_together
from tests.methods import toys


@dataclasses.dataclass(frozen=True)
class ToyTask:
  """Toy data; without a test split it can only be validated on."""

  name: str = "toy"
  num_classes: int = toys.CLASSES
  batch_size: int = 8
  with_test: bool = True

  def splits(self, seed: int) -> Splits:
    train, validation = toys.source(24, seed), toys.source(16, seed + 50)
    test = toys.source(8, seed + 90)
    if not self.with_test:
      test = Unread({"label": test.arrays["label"]})
    return Splits(train=train, validation=validation, test=test)


class Unread(ArraySource):
  """A split that must not be read."""

  def take(self, indices):
    raise AssertionError("the test split was read")


def experiment(**options):
  given = {"method": toys.supervised(), "task": ToyTask(), **options}
  return Experiment(**given)


def candidates():
  return {
    name: experiment(
      method=toys.supervised(lr=lr, epochs=4), task=ToyTask(with_test=False)
    )
    for name, lr in (("lr=high", 1e-2), ("lr=none", 1e-9))
  }


def test_the_setting_with_the_best_validation_numbers_is_chosen(tmp_path):
  groups = {"a": candidates(), "b": candidates()}
  found = studies.choose(
    groups, tmp_path / "tune", seeds=(0, 1), show=toys.quiet
  )
  assert found["chosen"] == {"a": "lr=high", "b": "lr=high"}
  assert found["candidates"] == 2
  assert found["split"] == "validation"
  assert json.loads((tmp_path / "tune" / "tune.json").read_text()) == found


def test_a_candidate_that_diverges_is_never_chosen(tmp_path):
  wild = experiment(method=toys.supervised(lr=1e38, epochs=4))
  group = {"lr=wild": wild, "lr=low": experiment()}
  found = studies.choose(
    {"a": group}, tmp_path / "t", seeds=(0,), show=toys.quiet
  )
  assert found["chosen"] == {"a": "lr=low"}
  assert list(found["means"]["a"]) == ["lr=low"]
  study = json.loads((tmp_path / "t" / "study.json").read_text())
  assert "not finite" in study["diverged"]["a,lr=wild"]


def test_diverging_everywhere_is_an_error(tmp_path):
  wild = experiment(method=toys.supervised(lr=1e38, epochs=4))
  with pytest.raises(NonFinite):
    studies.choose(
      {"a": {"lr=wild": wild}}, tmp_path / "t", seeds=(0,), show=toys.quiet
    )
  with pytest.raises(NonFinite, match=r"b: none of lr=wild"):
    studies.choose(
      {"a": {"lr=low": experiment()}, "b": {"lr=wild": wild}},
      tmp_path / "u",
      seeds=(0,),
      show=toys.quiet,
    )


def test_every_experiment_gets_as_many_candidates(tmp_path):
  one = {"x": experiment()}
  with pytest.raises(ConfigError, match="expected as many of each"):
    studies.choose(
      {"a": one, "b": one | {"y": experiment()}}, tmp_path, seeds=(0,)
    )


def test_a_number_that_was_not_measured_is_named_with_the_nearest(tmp_path):
  wrong = experiment(metric="student/acuracy")
  with pytest.raises(ConfigError, match="did you mean 'student/accuracy'"):
    studies.study({"a": wrong}, tmp_path / "s", seeds=(0,), show=toys.quiet)


def test_the_compared_number_is_the_experiments_own(tmp_path):
  one = experiment(metric="student/cross_entropy")
  content = studies.study(
    {"a": one}, tmp_path / "s", seeds=(0,), show=toys.quiet
  )
  assert content["metric"] == "student/cross_entropy"
  assert content["rows"][0]["mean"] == pytest.approx(
    content["experiments"][0]["metrics"]["student/cross_entropy"][0]
  )


def test_an_unknown_split_is_refused():
  with pytest.raises(ConfigError, match="measured_on='train'"):
    experiment(measured_on="train")


def test_a_population_gives_the_table_of_separate_runs(tmp_path):
  made = {
    name: experiment(method=toys.kd(lr=lr, epochs=3))
    for name, lr in (("slow", 1e-3), ("fast", 1e-2))
  }
  options = {"seeds": (0, 1), "show": toys.quiet}
  alone = studies.study(made, tmp_path / "alone", **options)
  joined = studies.study(made, tmp_path / "joined", population=True, **options)
  for one, other in zip(alone["rows"], joined["rows"], strict=True):
    assert one == other
  for one, other in zip(
    alone["experiments"], joined["experiments"], strict=True
  ):
    for name, values in one["metrics"].items():
      np.testing.assert_allclose(other["metrics"][name], values, atol=1e-5)
  assert not (tmp_path / "joined" / "slow" / "population").exists()


@pytest.mark.slow
def test_a_population_chooses_and_names_what_diverges(tmp_path):
  options = {"seeds": (0,), "population": True, "show": toys.quiet}
  group = {
    str(lr): experiment(method=toys.supervised(lr=lr)) for lr in (1e-2, 1e30)
  }
  found = studies.choose({"student": group}, tmp_path, **options)
  assert list(found["means"]["student"]) == ["0.01"]
  assert found["chosen"] == {"student": "0.01"}


def test_side_by_side_no_run_reads_cached_targets():
  runs = types.SimpleNamespace(targets=types.SimpleNamespace(folder="cached"))
  message = "targets in cached: expected Settings.targets=None"
  with pytest.raises(ConfigError, match=message):
    train_together([(runs, None)], skip=False)


def test_a_population_is_trained_by_one_process(tmp_path, monkeypatch):
  monkeypatch.setattr("jaxkd.parallel.processes.count", lambda: 2)
  with pytest.raises(ConfigError, match="by one process, there are 2"):
    run(experiment(), tmp_path / "run", population=True)
  assert not (tmp_path / "run").exists()
