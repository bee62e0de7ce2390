"""What a person sees: a bar, one table, or a line now and then."""

import io
import re
import sys
import types

import pytest

from jaxkd.training import progress


class Clock:
  """Seconds that pass only when told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  """A stream that says it is a terminal."""

  def isatty(self):
    return True


class Handle:
  """What a notebook's display returns."""

  def __init__(self):
    self.shown = []

  def update(self, content):
    self.shown.append(content._repr_html_())


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def terminal(monkeypatch):
  for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("TERM", "xterm-256color")
  monkeypatch.setenv("COLUMNS", "120")
  return Terminal()


@pytest.fixture
def notebook(monkeypatch):
  handle = Handle()
  shell = types.SimpleNamespace(kernel=object())

  def display(content, display_id):
    assert display_id
    handle.update(content)
    return handle

  package = types.ModuleType("IPython")
  package.get_ipython = lambda: shell
  module = types.ModuleType("IPython.display")
  module.display = display
  monkeypatch.setitem(sys.modules, "IPython", package)
  monkeypatch.setitem(sys.modules, "IPython.display", module)
  return handle


def run(bar, clock, steps, seconds):
  """Makes steps of 8 examples, each taking some seconds."""
  for step in range(1, steps + 1):
    clock.now += seconds
    bar.update(step, {"loss": 1 / step, "accuracy": 0.5}, examples=8)


def test_a_log_gets_the_first_line_at_once_and_one_every_30_seconds(clock):
  stream = io.StringIO()
  with progress.progress(100, "distil", stream, clock=clock) as bar:
    run(bar, clock, 65, 1.0)
  steps = re.findall(r"step (\d+)/100", stream.getvalue())
  assert steps == ["1", "31", "61", "65"]


def test_a_log_line_has_the_numbers_and_no_control_codes(clock):
  stream = io.StringIO()
  with progress.progress(100, "distil", stream, clock=clock) as bar:
    run(bar, clock, 1, 0.5)
  assert stream.getvalue() == (
    "distil: step 1/100 (1%), loss 1, accuracy 0.5, 16 examples/s, 50 s left\n"
  )


def test_a_log_says_when_it_is_done(clock):
  stream = io.StringIO()
  with progress.progress(4, "distil", stream, clock=clock) as bar:
    run(bar, clock, 4, 60.0)
  assert stream.getvalue().endswith("done in 4 min 00 s\n")


def test_noted_seconds_stay_out_of_the_rates(clock):
  stream = io.StringIO()
  with progress.progress(10, "distil", stream, clock=clock) as bar:
    clock.now += 3.0
    bar.note("compiled phase distil in 3.0 s", seconds=3.0)
    run(bar, clock, 1, 1.0)
  lines = stream.getvalue().splitlines()
  assert lines[0] == "compiled phase distil in 3.0 s"
  assert "8 examples/s, 9.0 s left" in lines[1]


def test_a_resumed_run_counts_time_from_its_own_start(clock):
  stream = io.StringIO()
  with progress.progress(100, "x", stream, start=90, clock=clock) as bar:
    clock.now += 5.0
    bar.update(95)
  assert "5.0 s left" in stream.getvalue()


def test_the_last_metrics_stay_when_an_update_has_none(clock):
  stream = io.StringIO()
  with progress.progress(2, "x", stream, clock=clock) as bar:
    bar.update(1, {"loss": 0.25})
    bar.update(2)
  assert stream.getvalue().count("loss 0.25") == 2


def test_an_error_is_named_with_its_step(clock):
  stream = io.StringIO()

  def fail():
    with progress.progress(9, "x", stream, clock=clock) as bar:
      bar.update(3)
      raise KeyError("a")

  with pytest.raises(KeyError):
    fail()
  assert "stopped at step 3 by KeyError" in stream.getvalue()


def test_a_terminal_gets_a_bar_that_is_redrawn(terminal, clock):
  with progress.progress(50, "distil", terminal, clock=clock) as bar:
    bar.note("compiled phase distil in 3.2 s", seconds=3.2)
    run(bar, clock, 50, 1.0)
  text = terminal.getvalue()
  assert "compiled phase distil in 3.2 s" in text
  assert "50/50" in text
  assert "━" in text
  assert "examples/s" in text
  assert "\r" in text


def test_a_terminal_is_redrawn_ten_times_a_second_at_most(terminal, clock):
  with progress.progress(1000, "distil", terminal, clock=clock) as bar:
    run(bar, clock, 1000, 0.001)
  assert len(re.findall(r"\d+/1000", terminal.getvalue())) < 40


def test_no_color_leaves_the_bar_without_colours(terminal, clock, monkeypatch):
  colour = re.compile("\x1b\\[[0-9;]*3[0-8][0-9;]*m")
  with progress.progress(9, "distil", terminal, clock=clock) as bar:
    run(bar, clock, 4, 1.0)
  assert colour.search(terminal.getvalue())
  monkeypatch.setenv("NO_COLOR", "1")
  plain = Terminal()
  with progress.progress(9, "distil", plain, clock=clock) as bar:
    run(bar, clock, 4, 1.0)
  assert not colour.search(plain.getvalue())


def test_a_dumb_terminal_gets_lines(clock, terminal, monkeypatch):
  monkeypatch.setenv("TERM", "dumb")
  with progress.progress(9, "distil", terminal, clock=clock) as bar:
    run(bar, clock, 1, 1.0)
  assert "\x1b" not in terminal.getvalue()


def test_a_notebook_gets_one_table_once_a_second_at_most(notebook, clock):
  stream = io.StringIO()
  with progress.progress(100, "distil", stream, clock=clock) as bar:
    run(bar, clock, 100, 0.05)
  assert stream.getvalue() == ""
  assert len(notebook.shown) == 6  # at 0, 1, 2, 3, 4 s and the end
  assert all(page.count("<table>") == 1 for page in notebook.shown)
  assert "<td>loss</td><td>0.01</td>" in notebook.shown[-1]
  assert 'value="100" max="100"' in notebook.shown[-1]


def test_a_notebook_shows_names_as_text(notebook, clock):
  with progress.progress(1, "<b>x</b>", clock=clock) as bar:
    bar.note("<script>1</script>")
    bar.update(1, {'"><img src=x>': 1.0})
  page = notebook.shown[-1]
  assert "<b>" not in page
  assert "<script" not in page
  assert "<img" not in page


def test_a_notebook_shows_a_note_that_came_last(notebook, clock):
  with progress.progress(1, "x", clock=clock) as bar:
    bar.update(1)
    bar.note("saved")
  assert "<div>saved</div>" in notebook.shown[-1]


def test_ipython_in_a_terminal_is_no_notebook(notebook, clock):
  shell = sys.modules["IPython"].get_ipython()
  del shell.kernel
  stream = io.StringIO()
  with progress.progress(1, "x", stream, clock=clock) as bar:
    bar.update(1)
  assert "step 1/1" in stream.getvalue()


def test_only_process_0_shows_anything(clock):
  stream = io.StringIO()
  bar = progress.progress(9, "x", stream, clock=clock, process_index=1)
  with bar:
    bar.note("hello")
    run(bar, clock, 9, 60.0)
  assert stream.getvalue() == ""


def test_names_cannot_steer_a_terminal(clock):
  stream = io.StringIO()
  with progress.progress(1, "a\x1b[2Jb", stream, clock=clock) as bar:
    bar.note("c\rd")
    bar.update(1, {"loss\x1b[31m": 1.0})
  assert not set("\x1b\r") & set(stream.getvalue())


def test_no_update_leaves_no_state_line(clock):
  stream = io.StringIO()
  with progress.progress(9, "x", stream, clock=clock):
    pass
  assert stream.getvalue() == ""


@pytest.mark.parametrize(
  ("metrics", "names"),
  [
    ({"accuracy": 1, "kd": 2, "loss": 3}, ["loss", "accuracy"]),
    (
      {"kd": 1, "task": 2, "accuracy/student": 3},
      ["kd", "task", "accuracy/student"],
    ),
    ({"route/a": 1, "a": 2, "b": 3, "c": 4}, ["a", "b"]),
    ({}, []),
  ],
)
def test_a_line_shows_losses_then_accuracies(metrics, names):
  assert list(progress.headline(metrics)) == names


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0.42, "0.4 s"),
    (9.96, "10 s"),
    (59.6, "1 min 00 s"),
    (185, "3 min 05 s"),
    (7800, "2 h 10 min"),
  ],
)
def test_durations_are_short(seconds, text):
  assert progress.duration(seconds) == text
