"""Every experiment fits its data; every table is the measured one."""

import pathlib

import jax
import numpy as np
import pytest

from jaxkd import config, report, roles
from jaxkd.data import pipeline

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "experiments"
EXPERIMENTS = sorted(FOLDER.glob("[!b]*/*.gin"))
OVERRIDES = {"av_mnist.gin": ("FOLDER = 'idx'",)}
STUDIES = sorted(FOLDER.glob("*/results/study.json"))


def name_of(path):
  return str(path.relative_to(FOLDER))


def av_mnist_batch(size):
  shapes = {
    "image": ((size, 28, 28, 1), np.float32),
    "audio": ((size, 112, 112, 1), np.float32),
    "label": ((size,), np.int32),
    "index": ((size,), np.int32),
    "mask": ((size,), np.float32),
  }
  return {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_an_experiment_builds_and_its_roles_fit_its_data(path):
  overrides = OVERRIDES.get(path.name, ())
  experiment = config.load(str(path), overrides=overrides)
  task = experiment.task
  if task.name == "av_mnist":
    batch = av_mnist_batch(task.batch_size)
  else:
    batch = next(pipeline.batches(task.splits(0).train, task.batch_size))
  for method in experiment.methods.values():
    assert set(roles.usage(method, batch).inputs) == set(method.roles)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_an_experiment_file_is_short(path):
  assert len(path.read_text().splitlines()) <= 45


def test_the_studies_are_found():
  assert STUDIES


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_the_table_of_the_readme_is_the_measured_one(path):
  text = (path.parents[1] / "README.md").read_text()
  shown = text.split("<!-- table -->")[1].split("<!-- end -->")[0].strip()
  assert shown == report.study_table(path).strip()
  assert (path.parent / "study.md").read_text().count(shown) == 1
