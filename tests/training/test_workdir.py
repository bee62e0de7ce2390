"""A workdir belongs to one config and one writer, and says so by name."""

import json
import logging
import os

import jax
import pytest

from jaxkd import identity
from jaxkd.errors import (
  ConfigError,
  RefusedInput,
  StorageError,
)
from jaxkd.training import workdir
from jaxkd.training.workdir import Workdir

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
CARD = {
  "kind": "experiment",
  "digest": "a1",
  "describe": identity.describe({"temperature": 4.0, "seeds": (0, 1)}),
}


def listing(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
    for p in folder.rglob("*")
  }


# -- identity -----------------------------------------------------------------


def test_a_new_workdir_says_whose_it_is(tmp_path):
  with Workdir.open(tmp_path / "new" / "run", **CARD) as opened:
    stored = json.loads((opened.root / "jaxkd.json").read_text())
    assert stored["format"] == 1
    assert [stored[k] for k in ("kind", "digest")] == ["experiment", "a1"]
    assert stored["describe"] == CARD["describe"]
    assert stored["versions"]["jax"] == jax.__version__
    assert opened.identity == stored


def test_the_same_config_opens_it_again_and_changes_nothing(tmp_path):
  Workdir.open(tmp_path, **CARD).close()
  before = (tmp_path / "jaxkd.json").read_bytes()
  with Workdir.open(tmp_path, **CARD):
    assert (tmp_path / "jaxkd.json").read_bytes() == before


def test_another_config_is_refused_with_the_differing_settings(tmp_path):
  Workdir.open(tmp_path, **CARD).close()
  describe = identity.describe({"temperature": 2.0, "seeds": (0, 1)})
  with pytest.raises(ConfigError, match="temperature.*4.0.*2.0") as error:
    Workdir.open(tmp_path, **{**CARD, "digest": "b2", "describe": describe})
  assert "seeds" not in str(error.value)
  assert "use another --workdir" in str(error.value)
  with pytest.raises(ConfigError, match="kind: experiment -> study"):
    Workdir.open(tmp_path, **{**CARD, "kind": "study"})
  with pytest.raises(ConfigError, match="same settings, another digest"):
    Workdir.open(tmp_path, **{**CARD, "digest": "b2"})
  Workdir.open(tmp_path, **CARD).close()  # the refusals released the lock


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
  (tmp_path / "thesis").mkdir()
  (tmp_path / "thesis" / "text.tex").write_text("precious")
  before = listing(tmp_path)
  with pytest.raises(RefusedInput, match="not a jaxkd workdir.*holds thesis;"):
    Workdir.open(tmp_path, **CARD)
  with pytest.raises(RefusedInput, match="not a jaxkd workdir"):
    Workdir.read(tmp_path)
  assert listing(tmp_path) == before


def test_a_file_is_no_workdir(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(RefusedInput, match="is a file, expected a folder"):
    Workdir.open(tmp_path / "file", **CARD)


def test_what_a_killed_first_opening_leaves_is_ours(tmp_path):
  (tmp_path / ".lock").write_text('{"pid": 1')
  (tmp_path / ".jaxkd.json.saving").write_text("{")
  Workdir.open(tmp_path, **CARD).close()
  assert sorted(os.listdir(tmp_path)) == [".lock", "jaxkd.json"]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("", "jaxkd.json is damaged"),
    ("[1]", "jaxkd.json is damaged"),
    ('{"format": 1}', "jaxkd.json is damaged: KeyError"),
    (
      '{"format": 2, "kind": "", "digest": "", "versions": {"jaxkd": "9"}}',
      "has format 2, .* reads format 1.*'jaxkd': '9'",
    ),
  ],
)
def test_unreadable_identities_are_refused(tmp_path, content, message):
  (tmp_path / "jaxkd.json").write_text(content)
  for open_it in (Workdir.read, lambda path: Workdir.open(path, **CARD)):
    with pytest.raises(RefusedInput, match=message):
      open_it(tmp_path)
  assert (tmp_path / "jaxkd.json").read_text() == content


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("jax_enable_x64", True, "x64: False -> True"),
    ("jax_default_prng_impl", "rbg", "impl: 'threefry2x32' -> 'rbg'"),
    ("jax_threefry_partitionable", False, "partitionable: True -> False"),
    ("jax_default_matmul_precision", "highest", "None -> 'highest'"),
  ],
)
def test_other_numeric_settings_are_refused(tmp_path, name, value, message):
  Workdir.open(tmp_path, **CARD).close()
  old = getattr(jax.config, name)
  jax.config.update(name, value)
  try:
    with pytest.raises(ConfigError, match=f"numeric settings(.|\n)*{message}"):
      Workdir.open(tmp_path, **CARD)
  finally:
    jax.config.update(name, old)


def test_other_xla_flags_are_refused(tmp_path, monkeypatch):
  Workdir.open(tmp_path, **CARD).close()
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
  with pytest.raises(ConfigError, match="xla_flags: .*fast_math=true'"):
    Workdir.open(tmp_path, **CARD)


def test_other_versions_are_told_and_gone_on_with(
  tmp_path, monkeypatch, caplog
):
  Workdir.open(tmp_path, **CARD).close()
  monkeypatch.setattr(workdir, "versions", lambda: {"jax": "99.0"})
  with caplog.at_level(logging.WARNING):
    Workdir.open(tmp_path, **CARD).close()
  assert "going on with {'jax': '99.0'}: numbers may differ" in caplog.text


# -- storage ------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(StorageError, match="file/run: Not a directory"):
    Workdir.open(tmp_path / "file" / "run", **CARD)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_storage_error(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(StorageError, match="Permission denied"):
    Workdir.open(tmp_path, **CARD)


def test_a_disk_that_takes_no_file_is_a_storage_error(tmp_path, monkeypatch):
  def refuse(*args):
    raise OSError(30, "Read-only file system")

  with monkeypatch.context() as patch:
    patch.setattr(workdir.Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match="cannot write to .*Read-only"):
      Workdir.open(tmp_path, **CARD)
  assert os.listdir(tmp_path) == [".lock"]
  Workdir.open(tmp_path, **CARD).close()


# -- paths --------------------------------------------------------------------


def test_paths_are_those_that_reports_read(tmp_path):
  with Workdir.open(tmp_path, **CARD) as opened:
    run = opened.run("no_kd", 3)
    paths = [opened.config, opened.command, opened.environment, opened.summary]
    inner = [run.metrics, run.timing, run.evaluation, run.stages]
    names = [str(p.relative_to(tmp_path)) for p in [*paths, *inner]]
  seed = "runs/no_kd/seed_3"
  assert names == [
    "config.gin",
    "command.txt",
    "environment.json",
    "summary.json",
    f"{seed}/metrics.jsonl",
    f"{seed}/timing.json",
    f"{seed}/evaluation.json",
    f"{seed}/stages",
  ]
  assert run.checkpoints == tmp_path / seed / "checkpoints"


@pytest.mark.parametrize("label", ["../x", "a/b", "", ".hidden", "a\n", "/x"])
def test_labels_cannot_lead_out_of_the_workdir(tmp_path, label):
  with Workdir.open(tmp_path, **CARD) as opened:
    with pytest.raises(ConfigError, match="run label .* must consist of"):
      opened.run(label, 0)
