"""Whose targets they are: everything else is refused by name."""

import dataclasses
import json

import numpy as np
import pytest

from jaxkd import cli, experiment, nets
from jaxkd.data.source import ArraySource
from jaxkd.errors import ConfigError, NonFinite, RefusedInput, StorageError
from jaxkd.network import Network
from jaxkd.training.phase import Settings
from jaxkd.training.target_files import TargetFolder
from jaxkd.training.target_files.folder import key_of
from tests.methods import toys
from tests.training.target_files import tools

KD = toys.kd(teacher_epochs=0, epochs=1)


@pytest.fixture
def folder(tmp_path):
  tools.write(KD, tmp_path / "targets", k=2)
  return tmp_path / "targets"


def index_of(folder):
  (path,) = folder.glob("teacher/*/index.json")
  return json.loads(path.read_text()), path


def run(method, folder, tmp_path, **options):
  settings = {"targets": str(folder)}
  trainer = toys.trainer(method, tmp_path / "run", settings=settings, **options)
  return trainer.fit()


def other_teacher(module):
  network = Network(module, inputs=("image", "audio"))
  return dataclasses.replace(KD, teacher=network)


def changed(change):
  """Splits of which the training split is another one."""
  splits = toys.splits()
  arrays = {k: v.copy() for k, v in splits.train.arrays.items() if k != "index"}
  change(arrays)
  return dataclasses.replace(splits, train=ArraySource(arrays))


def one_value(arrays):
  arrays["audio"][7, 3] += 1e-6


def one_label(arrays):
  arrays["label"][7] = (arrays["label"][7] + 1) % 4


@pytest.mark.parametrize(
  ("method", "options", "named"),
  [
    (KD, {"seed": 1}, "other weights of the network: "),
    (
      other_teacher(nets.FusionMLP(features=(16, 12, 4))),
      {},
      "another network .* other weights",
    ),
    (KD, {"splits": changed(one_value)}, "other examples: "),
    (KD, {"splits": toys.splits(21)}, r"other examples: .*|20 examples"),
    (
      KD,
      {"splits": tools.scaled(toys.splits(), "image", 2.0)},
      "examples that are decoded otherwise: ",
    ),
  ],
  ids=["weights", "network", "value", "examples", "decode"],
)
def test_what_is_stale_is_named_before_anything_is_trained(
  folder, tmp_path, method, options, named
):
  message = rf"(?s)role 'teacher' in .*split 'train'.*{named}"
  with pytest.raises(RefusedInput, match=message):
    run(method, folder, tmp_path, **options)
  assert not (tmp_path / "run").exists()


def test_only_what_the_teacher_reads_is_part_of_the_key(folder, tmp_path):
  run(KD, folder, tmp_path, splits=changed(one_label))
  assert (tmp_path / "run" / "stages").is_dir()


def test_another_form_is_refused_beside_the_first(folder):
  for options, named in (
    ({"k": 3}, "k: 2 -> 3"),
    ({}, "logits: 'topk' -> 'all', k: 2 -> None"),
    ({"k": 2, "bits": 5}, "bits: 8 -> 5"),
    ({"k": 2, "taps": ("fc1",)}, "taps: "),
    ({"k": 3, "seed": 1}, "k: 2 -> 3"),
  ):
    with pytest.raises(RefusedInput, match=named):
      tools.write(KD, folder, **options)


def test_seeds_and_splits_lie_beside_each_other(folder, tmp_path):
  tools.write(KD, folder, k=2, seed=1)
  tools.write(KD, folder, k=2, split="validation")
  assert len(TargetFolder(folder).targets["teacher"]) == 3
  run(KD, folder, tmp_path, seed=1)


def test_what_is_there_is_not_made_again(folder):
  before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
  tools.write(KD, folder, k=2)
  after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
  del before[next(folder.rglob(".lock"))], after[next(folder.rglob(".lock"))]
  assert before == after


def test_unfinished_targets_are_not_read(folder):
  index, path = index_of(folder)
  del index["tokens"]
  index["shards"] = []
  path.write_text(json.dumps(index))
  with pytest.raises(RefusedInput, match="0 shards of 1: run the same"):
    TargetFolder(folder)


def test_a_missing_or_short_file_is_named(folder, tmp_path):
  (path,) = folder.rglob("*.array_record")
  content = path.read_bytes()
  path.write_bytes(content[:-1])
  with pytest.raises(StorageError, match=r"array_record is 131,071 bytes long"):
    run(KD, folder, tmp_path)
  path.unlink()
  with pytest.raises(StorageError, match="array_record is missing"):
    run(KD, folder, tmp_path)


def test_a_folder_without_targets_or_of_another_format_is_refused(
  folder, tmp_path
):
  with pytest.raises(RefusedInput, match="has no targets"):
    run(KD, tmp_path / "nothing", tmp_path)
  index, path = index_of(folder)
  path.write_text(json.dumps({**index, "format": 99}))
  with pytest.raises(RefusedInput, match="format 99"):
    run(KD, folder, tmp_path)


def test_a_role_that_is_trained_cannot_be_cached(folder, tmp_path):
  method = toys.kd()
  with pytest.raises(ConfigError, match="trained by phase 'teach'.*OrbaxRun"):
    tools.write(method, tmp_path / "other")
  with pytest.raises(ConfigError, match="trained by phase 'teach'"):
    run(method, folder, tmp_path)


def test_an_unknown_role_tap_or_entry_is_refused(tmp_path):
  for options, named in (
    ({"role": "teachr"}, "did you mean 'teacher'"),
    ({"split": "trian"}, "expected one of train"),
    ({"where": "token_mask"}, "'token_mask': no entry"),
    ({"taps": ("fc7",)}, "fc7"),
    ({"k": 5}, "k=5: expected 1 to 4"),
    ({"bits": 8}, "of top-k only"),
    ({"temperatures": (0.0,)}, "expected numbers above 0"),
    ({"shard_mib": 0.0}, "shard_mib"),
  ):
    with pytest.raises(ConfigError, match=named):
      tools.write(KD, tmp_path, **options)


def test_a_mask_has_a_value_for_every_position(tmp_path):
  texts = tools.texts()
  train = texts.train.with_entry("weight", np.ones(20, np.float32))
  texts = dataclasses.replace(texts, train=train)
  with pytest.raises(ConfigError, match=r"'weight'.*\(8, 6\)"):
    tools.write(tools.taid(), tmp_path, texts, where="weight")


def test_a_role_that_reads_more_than_the_data_has_no_key():
  network = toys.mlp(inputs=("encoded",))
  with pytest.raises(ConfigError, match="'encoded', which is no entry"):
    key_of(network, {}, toys.source(4))


def infinite(rng, image):
  del rng, image
  return {"params": {}}


def not_finite(variables, image):
  del variables
  return image[:, :4] / (image[:, :1] > 0)


def test_logits_that_are_not_finite_are_not_cached(tmp_path):
  method = dataclasses.replace(KD, teacher=toys.pure(infinite, not_finite))
  for k in (None, 2):
    with pytest.raises(NonFinite, match="logits of example"):
      tools.write(method, tmp_path / str(k), k=k)


# Whole experiments.


@dataclasses.dataclass(frozen=True)
class Task:
  """The toys; the split is that of the seed."""

  name: str = "toys"
  num_classes: int = 4
  batch_size: int = 8

  def splits(self, seed):
    splits = toys.splits()
    return dataclasses.replace(splits, train=toys.source(20, seed))


def made(folder, **options):
  settings = Settings(targets=folder and str(folder), evaluation_batch_size=8)
  defaults = {"method": KD, "task": Task(), "settings": settings}
  return experiment.Experiment(**{**defaults, **options})


def test_all_seeds_are_checked_before_the_first_is_trained(folder, tmp_path):
  with pytest.raises(RefusedInput, match="other weights"):
    experiment.run(made(folder, seeds=(0, 1)), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_targets_that_no_phase_reads_are_refused(folder, tmp_path):
  with pytest.raises(ConfigError, match="of teacher, which no phase reads"):
    experiment.run(made(folder, method=toys.supervised()), tmp_path / "run")


def test_a_finished_run_is_evaluated_without_its_targets(folder, tmp_path):
  chosen = made(folder)
  result = experiment.run(chosen, tmp_path / "run")
  assert chosen.identity["targets"]["teacher"]["k"] == 2
  for path in list(folder.rglob("*"))[::-1]:
    path.rmdir() if path.is_dir() else path.unlink()
  again = experiment.evaluate(chosen, tmp_path / "run")
  assert again.summary["metrics"] == result.summary["metrics"]


GIN = """
Experiment.task = @AVDigits()
Experiment.method = @KD()
KD.student = @student/Network()
KD.teacher = @teacher/Network()
KD.teacher_epochs = 0
KD.epochs = 1
student/Network.module = @student/MLP()
student/Network.inputs = ('image',)
student/MLP.features = (16, 10)
teacher/Network.module = @teacher/FusionMLP()
teacher/Network.inputs = ('image', 'audio')
teacher/FusionMLP.features = (36, 18, 10)
"""


def test_the_command_line_caches_says_what_is_lost_and_trains(tmp_path, capsys):
  path, folder = tmp_path / "kd.gin", tmp_path / "targets"
  path.write_text(GIN)
  wanted = ["--to", str(folder), "--k", "4", "--temperatures", "1,4"]
  assert cli.main(["cache-targets", str(path), *wanted]) == 0
  said = capsys.readouterr().out
  assert "top 4 of 10 classes, 8 bits each" in said
  assert "KL(teacher || cached) at temperature 4: mean " in said
  assert cli.main(["cache-targets", str(path), "--to", str(folder)]) == 3
  assert "k: 4 -> None" in capsys.readouterr().err
  replay = [
    "run", str(path), "--workdir", str(tmp_path / "run"),
    "--set=Experiment.settings=@Settings()", "--set=Settings.max_steps=2",
    f"--set=Settings.targets='{folder}'",
  ]  # fmt: skip
  assert cli.main([*replay, "--set=teacher/FusionMLP.features=(8, 8, 10)"]) == 3
  assert "another network" in capsys.readouterr().err
  assert cli.main(replay) == 0
