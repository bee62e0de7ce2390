"""A finished run becomes a folder that says what it is, or one message."""

import json
import re

import jax
import numpy as np
import pytest

from jaxkd import export
from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.export import card, exporting, stablehlo
from jaxkd.export.parity import Difference, Parity
from tests.export import made
from tests.methods import toys


def make(workdir, **options):
  return export.export(
    made.experiment(), workdir, **{"format": "stablehlo", **options}
  )


def files(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_student_is_exported_as_it_was_evaluated(kept, exported):
  facts = json.loads((exported / "export.json").read_text())
  assert files(exported) == [
    "README.md",
    "export.json",
    "model.stablehlo",
    "parity.npz",
  ]
  assert facts["difference"]["relative"] <= 1e-5
  assert facts["inputs"] == {
    "image": {"dtype": "float32", "shape": ["batch", 12]}
  }
  summary = json.loads((kept / "summary.json").read_text())
  assert facts["parameters"] == summary["params"]["student"]
  test = toys.splits().test
  rows = test.take(np.arange(len(test)))
  logits = stablehlo.read(exported)({"image": rows["image"]})
  accuracy = np.mean(np.argmax(logits, -1) == rows["label"])
  assert accuracy == pytest.approx(summary["metrics"]["student/accuracy"][0])


def test_the_predictor_holds_what_it_reads_and_runs(workdir):
  made_ = make(workdir, role="predictor", seed=1)
  assert made_.folder == workdir / "export/stablehlo/predictor_seed_1"
  assert list(made_.facts["inputs"]) == ["image"]
  student = make(workdir, seed=1)
  assert made_.facts["parameters"] == student.facts["parameters"]
  assert student.lines() == [
    "student of KD on toy, seed 1: 380 parameters",
    student.lines()[1],
    f"stablehlo: {student.folder}",
  ]
  assert re.fullmatch(
    r"difference to the trained network \d\.\d\de-\d\d \(relative .* at most "
    r"1e-05; batches of 1, 7, 8\)",
    student.lines()[1],
  )


def test_orbax_holds_the_tree_alone(workdir):
  import orbax.checkpoint as ocp

  found = make(workdir, format="orbax", role="teacher")
  assert files(found.folder) == ["README.md", "export.json", "variables"]
  tree = ocp.StandardCheckpointer().restore(found.folder / "variables")
  assert list(tree) == ["params"]
  assert tree["params"]["fc1"]["kernel"].shape == (8, 16)
  assert found.lines()[1] == "read back equal, bit for bit"


def test_no_example_of_the_data_leaves_with_the_network(exported):
  image = made.Toy().splits(0).train.arrays["image"]
  with np.load(exported / "parity.npz") as arrays:
    shown = arrays["input:image"]
  assert shown.shape == (8, 12)
  assert np.isin(shown, image).all()  # every number is one of the data's
  assert not (shown[:, None] == image[None]).all(-1).any()


def test_an_earlier_export_is_replaced_and_other_folders_are_not(
  workdir, tmp_path
):
  out = tmp_path / "out"
  make(workdir, out=out)
  (out / "stale").write_text("")
  make(workdir, out=out, format="safetensors")
  assert "stale" not in files(out)
  assert "model.safetensors" in files(out)
  other = tmp_path / "thesis"
  other.mkdir()
  (other / "thesis.tex").write_text("precious")
  with pytest.raises(RefusedInput, match="is no export: name an empty or a"):
    make(workdir, out=other)
  assert files(other) == ["thesis.tex"]


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({"format": "stablhlo"}, r"did you mean 'stablehlo'\? \(has stablehlo,"),
    ({"role": "studant"}, "KD has no such role, did you mean 'student'"),
    (
      {"license": "MPL 2.0"},
      r"id of SPDX, did you mean 'MPL-2\.0'\?; expected",
    ),
    ({"license": ""}, "--license '' is no id of SPDX; expected letters"),
    ({"seed": 7}, "--seed 7: the run has 0, 1"),
    (
      {"role": "predictor", "format": "safetensors"},
      "rule over networks, safetensors holds the variables of one",
    ),
    ({"role": "predictor", "format": "orbax"}, "rule over networks"),
  ],
)
def test_what_does_not_go_together_is_named(workdir, options, expected):
  with pytest.raises(ConfigError, match=expected):
    make(workdir, **options)
  assert not (workdir / "export").exists()


def test_an_unfinished_run_is_refused(workdir):
  (workdir / "summary.json").unlink()
  with pytest.raises(RefusedInput, match="finish the run"):
    make(workdir)


def test_weights_that_have_changed_since_the_run_are_refused(
  workdir, monkeypatch
):
  source = {"teacher": {"source": "org/model", "fingerprint": "new"}}
  monkeypatch.setattr(card, "sources", lambda method: source)
  path = workdir / "jaxkd.json"
  card_of_run = json.loads(path.read_text())
  card_of_run["describe"]["weights"] = {"main/teacher": "old"}
  path.write_text(json.dumps(card_of_run))
  with pytest.raises(
    RefusedInput, match="'teacher', org/model, have .* old ->"
  ):
    make(workdir)
  source["teacher"]["fingerprint"] = "old"
  assert make(workdir).facts["sources"] == source


def test_an_export_that_computes_something_else_is_not_kept(
  workdir, monkeypatch
):
  read = stablehlo.read
  monkeypatch.setattr(
    stablehlo,
    "read",
    lambda folder: lambda batch: read(folder)(batch) * (1 + 1e-4),
  )
  with pytest.raises(RefusedInput, match=r"1\.00e-04 of the outputs' scale"):
    make(workdir)
  assert not list((workdir / "export").rglob("*.*"))


def test_a_network_inside_of_a_method_is_only_a_tree(tmp_path):
  import dataclasses

  inside = dataclasses.replace(made.perceptron(), examples={})
  with pytest.raises(ConfigError, match="reads pixels, which is no entry of"):
    exporting._check(inside, "stablehlo")
  exporting._check(inside, "orbax")


def test_a_difference_is_relative_to_the_scale_of_its_array():
  expected = {"a": np.float32([[100.0], [1.0]]), "b": np.float32([[1.0], [0]])}
  parity = Parity({"x": np.zeros((2, 1), np.float32)}, expected)
  found = parity.difference(
    lambda batch: {"a": expected["a"] + 1e-3, "b": expected["b"] + 1e-3}, 2
  )
  assert found.absolute == pytest.approx(1e-3, rel=1e-2)
  assert found.relative == pytest.approx(1e-3, rel=1e-2)
  assert found.within(1e-2)
  assert not found.within(1e-4)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_a_difference(wrong):
  expected = np.float32([[1.0], [-np.inf]])
  parity = Parity({"x": np.zeros((2, 1), np.float32)}, {"value": expected})
  assert parity.difference(lambda _: expected, 2) == Difference(
    absolute=0.0, relative=0.0
  )
  found = parity.difference(lambda _: np.float32([[wrong], [-np.inf]]), 2)
  assert not found.within(1e-5)


def test_a_batch_that_does_not_divide_begins_again():
  seen = []

  def double(batch):
    seen.append(batch["x"].ravel().tolist())
    return batch["x"] * 2

  parity = Parity.of(double, {"x": np.float32([[1], [2], [3]])})
  assert parity.difference(double, 2).absolute == 0
  assert seen[1:] == [[1, 2], [3, 1]]


def test_another_output_is_refused():
  parity = Parity.of(lambda b: b["x"], {"x": np.ones((2, 3), np.float32)})
  with pytest.raises(RefusedInput, match="gives logits; expected value"):
    parity.difference(lambda b: {"logits": b["x"]}, 2)
  with pytest.raises(RefusedInput, match=r"\(2, 1\); expected \(2, 3\)"):
    parity.difference(lambda b: b["x"][:, :1], 2)


def test_the_trained_graph_takes_its_variables_as_arguments(kept):
  from jaxkd.export.trained import restore
  from jaxkd.training.workdir import Workdir

  trained = restore(
    made.experiment(), Workdir.read(kept), role="student", seed=0
  )
  zeros = jax.tree.map(np.zeros_like, trained.variables)
  assert not np.any(trained.apply(zeros, trained.examples))
