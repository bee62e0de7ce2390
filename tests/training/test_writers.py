"""The record of a run: exact lines, exact resumption, views that may fail."""

import json
import logging
import struct
import sys
import types

import numpy as np
import pytest

from jaxkd.errors import ConfigError, StorageError
from jaxkd.extras import MissingExtra
from jaxkd.training.writers import Writers, lines_end


class Spy:
  """A tracker that keeps what it gets, and fails from a step on."""

  name = "spy"

  def __init__(self, fails_from=10**9):
    self.calls, self.fails_from, self.closed = [], fails_from, False

  def log(self, step, values):
    if step >= self.fails_from:
      raise RuntimeError("the service is away")
    self.calls.append((step, dict(values)))

  def flush(self):
    pass

  def close(self):
    self.closed = True


def write(writers, steps):
  """Writes one line a step."""
  for step in steps:
    writers.write("distil", step, step // 2, "train", {"task": 1 / (step + 1)})


def lines(folder):
  """Returns the parsed lines of the record."""
  text = (folder / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def events(folder):
  """Returns the TensorBoard events of all files in a folder, oldest first."""
  from tensorboardX.proto import event_pb2

  found = []
  for path in sorted(folder.glob("events.out.tfevents.*")):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack("<Q", data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


def fake_package(monkeypatch, name, **functions):
  """Installs a module of this name."""
  module = types.ModuleType(name)
  vars(module).update(functions)
  monkeypatch.setitem(sys.modules, name, module)


def test_a_line_is_exactly_as_documented(tmp_path):
  with Writers(tmp_path) as writers:
    writers.write("distil", 12, 1, "validation", {"task": 0.1, "kd": 2})
  assert (tmp_path / "metrics.jsonl").read_text() == (
    '{"phase": "distil", "step": 12, "epoch": 1, "split": "validation",'
    ' "metrics": {"kd": 2.0, "task": 0.1}}\n'
  )


def test_the_order_of_the_metrics_does_not_change_the_line(tmp_path):
  for folder, names in (("a", "xyz"), ("b", "zyx")):
    with Writers(tmp_path / folder) as writers:
      writers.write("p", 1, 0, "train", dict.fromkeys(names, 1.0))
  a, b = (tmp_path / x / "metrics.jsonl" for x in "ab")
  assert a.read_bytes() == b.read_bytes()


def test_floats_survive_to_the_last_bit(tmp_path):
  value = np.nextafter(0.1, 1.0)
  with Writers(tmp_path) as writers:
    writers.write(
      "p", np.int32(1), 0, "train", {"a": value, "b": np.float32(1)}
    )
  assert lines(tmp_path)[0]["metrics"] == {"a": value, "b": 1.0}


def test_values_that_are_not_finite_are_strings_of_valid_json(tmp_path):
  bad = {"a": np.nan, "b": np.inf, "c": -np.inf}
  with Writers(tmp_path) as writers:
    writers.write("p", 1, 0, "train", bad)
  assert lines(tmp_path)[0]["metrics"] == {"a": "nan", "b": "inf", "c": "-inf"}


def test_offset_is_the_size_on_disk(tmp_path):
  with Writers(tmp_path) as writers:
    assert writers.offset() == 0
    write(writers, range(3))
    assert writers.offset() == (tmp_path / "metrics.jsonl").stat().st_size > 0


def test_a_resumed_record_is_byte_equal_to_an_unbroken_one(tmp_path):
  with Writers(tmp_path / "a") as writers:
    write(writers, range(6))
  writers = Writers(tmp_path / "b")
  write(writers, range(3))
  offset = writers.offset()
  write(writers, range(3, 5))
  writers.close()
  with (tmp_path / "b" / "metrics.jsonl").open("ab") as file:
    file.write(b'{"phase": "dis')  # a killed process
  with Writers.resume(tmp_path / "b", offset) as writers:
    assert writers.offset() == offset
    write(writers, range(3, 6))
  a, b = (tmp_path / x / "metrics.jsonl" for x in "ab")
  assert a.read_bytes() == b.read_bytes()


def test_a_new_record_replaces_what_a_killed_start_left(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("torn")
  with Writers(tmp_path) as writers:
    write(writers, [7])
  assert [line["step"] for line in lines(tmp_path)] == [7]


@pytest.mark.parametrize("offset", [-1, 10**6])
def test_an_offset_outside_the_file_is_refused(tmp_path, offset):
  with Writers(tmp_path) as writers:
    write(writers, range(3))
  with pytest.raises(StorageError, match="bytes, expected at least"):
    Writers.resume(tmp_path, offset)


def test_an_offset_inside_a_line_is_refused(tmp_path):
  with Writers(tmp_path) as writers:
    write(writers, range(3))
  with pytest.raises(StorageError, match="does not end a line"):
    Writers.resume(tmp_path, 5)


@pytest.mark.parametrize("step", [-1, 0, 2, 9])
def test_lines_end_after_the_last_line_of_a_step(tmp_path, step):
  ends = [0]
  with Writers(tmp_path) as writers:
    for i in range(4):
      write(writers, [i])
      ends.append(writers.offset())
  assert lines_end(tmp_path, step) == ends[min(step + 1, 4)]


def test_a_torn_line_ends_what_counts(tmp_path):
  with Writers(tmp_path) as writers:
    write(writers, [0])
    end = writers.offset()
  with (tmp_path / "metrics.jsonl").open("ab") as file:
    file.write(b'{"step": 1, "me')
  assert lines_end(tmp_path, 5) == end
  assert lines_end(tmp_path / "absent", 5) == 0


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(StorageError, match="cannot write"):
    Writers(tmp_path / "file")


def test_tensorboard_gets_every_value_by_split(tmp_path):
  with Writers(tmp_path) as writers:
    writers.write("p", 3, 0, "train", {"kd": 0.5})
    writers.write("p", 3, 0, "validation", {"kd": 0.25})
  found = {
    (v.tag, e.step): v.simple_value
    for e in events(tmp_path)
    for v in e.summary.value
  }
  assert found == {("train/kd", 3): 0.5, ("validation/kd", 3): 0.25}


@pytest.mark.parametrize(("given", "found"), [(None, 3), (9, 9)])
def test_tensorboard_hides_what_comes_after_the_offset(tmp_path, given, found):
  with Writers(tmp_path) as writers:
    write(writers, range(3))
    offset = writers.offset()
    write(writers, range(3, 6))
  folder = tmp_path / "later"
  folder.mkdir()
  (tmp_path / "metrics.jsonl").rename(folder / "metrics.jsonl")
  Writers.resume(folder, offset, purge_step=given).close()
  starts = [e.step for e in events(folder) if e.session_log.status == 1]
  assert starts == [found]


def test_a_tracker_gets_the_values_by_split(tmp_path):
  spy = Spy()
  with Writers(tmp_path, [spy]) as writers:
    writers.write("p", 3, 0, "train", {"kd": 0.5})
  assert spy.calls == [(3, {"train/kd": 0.5})]
  assert spy.closed


def test_a_tracker_that_fails_is_named_once_and_dropped(tmp_path, caplog):
  spy, other = Spy(fails_from=2), Spy()
  with (
    caplog.at_level(logging.WARNING),
    Writers(tmp_path, [spy, other]) as writers,
  ):
    write(writers, range(5))
  assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4]
  assert len(spy.calls) == 2
  assert len(other.calls) == 5
  assert caplog.text.count("the tracker spy failed") == 1
  assert "the service is away" in caplog.text


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(ConfigError, match="did you mean 'wandb'"):
    Writers(tmp_path / "run", ["wandbb"])
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_missing_tracker_names_its_command(tmp_path, monkeypatch, name):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(MissingExtra, match=rf'"jaxkd\[{name}\]"'):
    Writers(tmp_path, [name])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_run_trackers_log_by_step_and_finish(tmp_path, monkeypatch, name):
  calls = []
  run = types.SimpleNamespace(
    log=lambda values, step: calls.append((step, values)),
    finish=lambda: calls.append("finished"),
  )
  fake_package(monkeypatch, name, init=lambda **options: run)
  with Writers(tmp_path, [name]) as writers:
    writers.write("p", 3, 0, "train", {"kd": 0.5})
  assert calls == [(3, {"train/kd": 0.5}), "finished"]


def test_mlflow_logs_to_a_file_of_the_run(tmp_path, monkeypatch):
  calls = []
  run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="id"))
  client = types.SimpleNamespace(
    create_run=lambda experiment, run_name: run,
    log_metric=lambda *args, step: calls.append((*args, step)),
    set_terminated=calls.append,
  )

  def start(tracking_uri):
    calls.append(tracking_uri)
    return client

  fake_package(monkeypatch, "mlflow", MlflowClient=start)
  with Writers(tmp_path, ["mlflow"]) as writers:
    writers.write("p", 3, 0, "train", {"kd": 0.5})
  uri = f"sqlite:///{tmp_path}/mlflow.db"
  assert calls == [uri, ("id", "train/kd", 0.5, 3), "id"]


def test_a_tracker_that_does_not_start_stops_before_training(
  tmp_path, monkeypatch
):
  def init(**options):
    raise OSError("no login")

  fake_package(monkeypatch, "wandb", init=init)
  with pytest.raises(ConfigError, match="'wandb' does not start: no login"):
    Writers(tmp_path, ["wandb"])


def test_closing_twice_is_harmless(tmp_path):
  writers = Writers(tmp_path)
  write(writers, [1])
  writers.close()
  writers.close()
  assert len(lines(tmp_path)) == 1
