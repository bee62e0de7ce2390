"""Files are the old or the new one; lines are cut where they ended."""

import json
import os

import pytest

from jaxkd.errors import StorageError
from jaxkd.training import files


def test_json_is_replaced_whole(tmp_path):
  path = tmp_path / "deep" / "summary.json"
  for value in ({"a": [1, 2.5, None]}, {"b": "ü"}):
    files.write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == value
  assert os.listdir(path.parent) == ["summary.json"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, name):
  path = tmp_path / "summary.json"
  files.write_json(path, 1)

  def refuse(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, name, refuse)
  with pytest.raises(StorageError, match="summary.json.*: No space left"):
    files.write_json(path, 2)
  assert path.read_text() == "1\n"
  assert os.listdir(tmp_path) == ["summary.json"]


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
  files.write_json(tmp_path / "a.json", 1)
  with pytest.raises(TypeError):
    files.write_json(tmp_path / "a.json", {"x": object()})
  assert (tmp_path / "a.json").read_text() == "1\n"


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
  calls, fsync, replace = [], os.fsync, os.replace
  monkeypatch.setattr(os, "fsync", lambda f: (calls.append("s"), fsync(f)))
  monkeypatch.setattr(
    os, "replace", lambda a, b: (calls.append("r"), replace(a, b))
  )
  files.write_json(tmp_path / "a.json", 1)
  assert "".join(calls) == "srs"


def test_an_absent_file_reads_as_the_default_or_is_named(tmp_path):
  path = tmp_path / "absent.json"
  assert files.read_json(path, default={"a": 1}) == {"a": 1}
  with pytest.raises(StorageError, match="cannot read .*absent.json"):
    files.read_json(path)


def test_a_damaged_file_is_named(tmp_path):
  path = tmp_path / "x.json"
  path.write_text('{"a": ')
  with pytest.raises(StorageError, match="x.json is damaged"):
    files.read_json(path, default={})
  with pytest.raises(StorageError, match="x.json is damaged"):
    files.read_lines(path, start=0)


def test_lines_are_read_from_an_offset(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"a": 1}\n{"a": 2}\n')
  assert files.read_lines(path, start=9) == [{"a": 2}]


def test_a_folder_is_copied_whole_or_not_at_all(tmp_path, monkeypatch):
  source, target = tmp_path / "source", tmp_path / "deep" / "target"
  (source / "inner").mkdir(parents=True)
  (source / "inner" / "x").write_bytes(b"abc")

  def fail(*_):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(os, "rename", fail)
    with pytest.raises(StorageError, match="copy to .*target: No space"):
      files.copy_folder(source, target)
  assert not target.exists()
  files.copy_folder(source, target)
  assert (target / "inner" / "x").read_bytes() == b"abc"
  assert os.listdir(target.parent) == ["target"]


def test_summaries_are_compared_without_their_circumstances():
  old = {"metrics": {"a": [1.0]}, "wall_seconds": 3, "commit": "x"}
  assert files.same_results(old, {**old, "wall_seconds": 9, "commit": "y"})
  assert not files.same_results(old, {**old, "metrics": {"a": [2.0]}})
  assert not files.same_results({}, old)


def test_storage_errors_name_the_path(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(StorageError, match="file/summary.json: "):
    files.write_json(tmp_path / "file" / "summary.json", 1)
  with pytest.raises(StorageError, match="cannot sync .*absent: No such file"):
    files.sync(tmp_path / "absent")
