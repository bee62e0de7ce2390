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


def test_lines_are_appended_and_truncated_at_the_offset(tmp_path):
  path = tmp_path / "runs" / "metrics.jsonl"
  offset = files.append_lines(path, ['{"a": 1}', '{"ü": 2}'])
  assert offset == path.stat().st_size == files.sync(path)
  files.append_lines(path, ["torn"])
  files.truncate(path, offset)
  assert path.read_text("utf-8") == '{"a": 1}\n{"ü": 2}\n'
  files.truncate(path, 0)
  assert path.read_bytes() == b""


def test_an_absent_file_holds_nothing_to_truncate(tmp_path):
  files.truncate(tmp_path / "metrics.jsonl", 0)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  ("offset", "message"),
  [(9, "has 4 bytes, the checkpoint .* 9"), (3, "no line ends at byte 3")],
)
def test_lost_or_torn_lines_are_refused(tmp_path, offset, message):
  path = tmp_path / "metrics.jsonl"
  files.append_lines(path, ["abc"])
  with pytest.raises(StorageError, match=message):
    files.truncate(path, offset)
  assert path.read_text() == "abc\n"


def test_storage_errors_name_the_path(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(StorageError, match="file/metrics.jsonl: "):
    files.append_lines(tmp_path / "file" / "metrics.jsonl", ["x"])
  with pytest.raises(StorageError, match="cannot sync .*absent: No such file"):
    files.sync(tmp_path / "absent")
