"""Every experiment fits its data; every table is the measured one."""

import json
import pathlib

import jax
import numpy as np
import pytest

from jaxkd import config, report, roles
from jaxkd.training.feeds import examples

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "experiments"
EXPERIMENTS = sorted(
  path for path in FOLDER.rglob("*.gin") if FOLDER / "base" not in path.parents
)
OVERRIDES = {"av_mnist.gin": ("FOLDER = 'idx'",)}
MINILM = {
  "model_type": "bert",
  "hidden_size": 384,
  "num_hidden_layers": 6,
  "intermediate_size": 1536,
}
STUDIES = sorted(FOLDER.rglob("results/study.json"))


def name_of(path):
  return str(path.relative_to(FOLDER))


def shapes(size, **images):
  """A batch of a task whose files are not here."""
  entries = {
    name: ((size, *side, 1), np.float32) for name, side in images.items()
  }
  entries |= dict.fromkeys(("label", "index"), ((size,), np.int32))
  entries["mask"] = ((size,), np.float32)
  return {k: jax.ShapeDtypeStruct(*v) for k, v in entries.items()}


def seen(method, task):
  """The batches of evaluation and of the phases."""
  if task.name == "av_mnist":
    return (shapes(task.batch_size, image=(28, 28), audio=(112, 112)),)
  if task.name == "fashion_mnist":
    return (shapes(task.batch_size, image=(28, 28)),)
  if task.name == "spam":
    return mails(task)
  return examples(method, task.splits(0), task.batch_size)


def mails(task):
  """Batches of few labels, of which the phase `distil` has both kinds."""
  whole = shapes(task.batch_size)
  row = (task.batch_size, task.length)
  whole["tokens"] = jax.ShapeDtypeStruct(row, np.int32)
  whole["token_mask"] = jax.ShapeDtypeStruct(row, np.float32)
  beside = {f"labelled/{name}": value for name, value in whole.items()}
  return whole, {"distil": {**whole, **beside}}


def overrides(path, folder):
  """Bindings in the place of files that are not here."""
  if "minilm" in path.parts:
    (folder / "config.json").write_text(json.dumps(MINILM))
    return (f"MODEL = {str(folder)!r}",)
  if "efficientnet" in path.parts:
    (folder / "weights.pth").touch()
    return (f"SOURCE = {str(folder / 'weights.pth')!r}",)
  return OVERRIDES.get(path.name, ())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_an_experiment_builds_and_its_roles_fit_its_data(path, tmp_path):
  found = overrides(path, tmp_path)
  experiment = config.load(str(path), overrides=found)
  for method in experiment.methods.values():
    found = roles.usage(method, *seen(method, experiment.task))
    assert set(found.inputs) == set(method.roles)
    experiment.evaluation.check(found.outputs, experiment.task)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_an_experiment_file_is_short(path):
  assert len(path.read_text().splitlines()) <= 45


def test_the_studies_are_found():
  assert STUDIES


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_the_table_of_the_readme_is_the_measured_one(path):
  study = path.parents[1]
  above = (folder / "README.md" for folder in (study, *study.parents))
  text = next(file for file in above if file.exists()).read_text()
  mark = f"<!-- table of {study.name} -->"
  shown = text.split(mark)[1].split("<!-- end -->")[0].strip()
  assert shown == report.study_table(path).strip()
  assert (path.parent / "study.md").read_text().count(shown) == 1
