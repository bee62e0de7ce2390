"""The model card says what was trained, on what, how well, by which command."""

import dataclasses
import json
import re

import numpy as np
import pytest

from jaxkd import export
from jaxkd.evaluation import statistics
from jaxkd.export import card
from jaxkd.methods import KD
from jaxkd.report.tables import interval
from jaxkd.teachers.ensemble import JointWeights
from jaxkd.teachers.pretrained import Checkpoint, InMemory
from jaxkd.training.teacher import OrbaxRun
from tests.export import made
from tests.methods import toys


@pytest.fixture(scope="module")
def text(kept, tmp_path_factory):
  out = tmp_path_factory.mktemp("card") / "out"
  export.export(
    made.experiment(),
    kept,
    format="safetensors",
    out=out,
    command="jaxkd export run --format safetensors",
  )
  return (out / "README.md").read_text()


def test_it_begins_with_what_hubs_read(text):
  front = text.split("---\n")[1].splitlines()
  assert front == [
    "library_name: jaxkd",
    "tags:",
    '- "jax"',
    '- "knowledge-distillation"',
    '- "KD"',
    "datasets:",
    '- "toy"',
  ]


def test_it_says_what_was_trained(text, exported):
  assert "# MLP (student) of KD on toy" in text
  assert "<https://arxiv.org/abs/1503.02531>" in text
  facts = json.loads((exported / "export.json").read_text())
  for role, fingerprint in facts["fingerprints"].items():
    assert re.search(rf"\| {role} +\|.*\| {fingerprint} \|", text)
  assert "Other libraries do not know them." in text


@pytest.mark.parametrize(
  ("facts", "shown"),
  [
    ({"config": None}, r"The names .* L. Other libraries do not know them\."),
    (
      {"config": {"architectures": ["BertModel"]}},
      r"The layout is L: `transformers.BertModel.from_pretrained` reads the .*",
    ),
    (
      {"config": {"architectures": ["BertModel"]}, "sentences": "So."},
      r"The layout is L: `transformers.* reads the folder\.\n\nSo\.",
    ),
    ({"config": {}, "sentences": "So."}, r"The layout is L\.\n\nSo\."),
    ({"format": "orbax"}, ""),
  ],
)
def test_it_says_which_libraries_read_the_tensors(facts, shown):
  usual = {"format": "safetensors", "layout": "L", "sentences": None}
  assert re.fullmatch(shown, card._compatibility(usual | facts))


def test_it_has_the_metrics_with_their_intervals(text, kept):
  metrics = json.loads((kept / "summary.json").read_text())["metrics"]
  values = metrics["student/accuracy"]
  shown = interval(*statistics.mean_interval(values))
  assert re.search(rf"\| accuracy +\| {re.escape(shown)} +\| 2 ", text)


def test_it_has_the_commands_and_the_versions(text):
  assert "    jaxkd run toy.gin\n    jaxkd export run --format safe" in text
  assert re.search(r"\n    jax \d+\.\d+", text)
  assert text.endswith("may bind what is made of them.\n")


def test_a_license_stands_in_front_and_in_the_text(kept, tmp_path, text):
  out = tmp_path / "out"
  facts = export.export(
    made.experiment(), kept, format="orbax", out=out, license="Apache-2.0"
  ).facts
  licensed = (out / "README.md").read_text()
  assert licensed.startswith(
    '---\nlicense: "apache-2.0"\nlibrary_name: jaxkd\n'
  )
  assert "## Licence\n\n`Apache-2.0`.\n" in licensed
  assert facts["license"] == "Apache-2.0"
  assert "## Licence\n\nNone was given.\n" in text  # and none is invented
  assert "license:" not in text


IN_MEMORY = InMemory({"params": {"a": {"kernel": np.ones(2)}}})


@pytest.mark.parametrize(
  ("weights", "shown"),
  [
    (Checkpoint("org/model"), "org/model"),
    (Checkpoint("/models/bert"), "bert"),  # no folder of this machine
    (OrbaxRun("/runs/first", "teacher"), "first"),
    (IN_MEMORY, "variables given in Python"),
    (
      JointWeights((Checkpoint("org/model"), Checkpoint("/models/bert"))),
      "org/model, bert",
    ),
  ],
)
def test_a_teacher_from_elsewhere_is_named(weights, shown, monkeypatch):
  monkeypatch.setattr(type(weights), "fingerprint", lambda _: "0123")
  teacher = dataclasses.replace(toys.mlp(), weights=weights)
  found = card.sources(KD(student=toys.mlp(), teacher=teacher))
  assert found == {"teacher": {"source": shown, "fingerprint": "0123"}}
