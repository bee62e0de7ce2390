"""What a person sees while a run trains, chosen by where it runs.

A terminal gets a bar, a notebook one HTML table that is updated in place at
most once a second, anything else (a log file, a batch system) one line every
30 seconds. Only process 0 shows anything. A progress never reads from a device:
it gets the numbers that the loop has fetched anyway.
"""

import html
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self, TextIO

TERMINAL_SECONDS = 0.1  # least time between two drawings
NOTEBOOK_SECONDS = 1.0
LOG_SECONDS = 30.0


class Progress:
  """Counts steps and examples; a subclass shows them.

  Use as a context manager, made by `progress`.
  """

  interval = 0.0  # least seconds between two drawings

  def __init__(
    self, total_steps: int, label: str, *, start: int, clock: Callable
  ):
    self.total_steps = total_steps
    self.label = _plain(label)
    self.step = start
    self.metrics: dict[str, float] = {}
    self.notes: list[str] = []
    self._start, self._clock = start, clock
    self._examples = 0
    self._began, self._apart = clock(), 0.0
    self._drawn_at: float | None = None
    self._drawn_step: int | None = None

  def update(
    self,
    step: int,
    metrics: Mapping[str, float] | None = None,
    examples: int = 0,
  ) -> None:
    """Tells how far the run is.

    Args:
      step: steps done so far.
      metrics: numbers on the host, or None to keep the last ones.
      examples: examples consumed since the last update.
    """
    self.step = step
    self._examples += examples
    if metrics is not None:
      self.metrics = {_plain(k): float(v) for k, v in metrics.items()}
    now = self._clock()
    if self._drawn_at is None or now - self._drawn_at >= self.interval:
      self._draw_now(now)

  def note(self, text: str, seconds: float = 0.0) -> None:
    """Shows a line of text, such as "compiled phase distil in 3.2 s".

    Args:
      text: the line.
      seconds: time that it took and that the rates leave out.
    """
    self._apart += seconds
    self.notes.append(_plain(text))
    self._draw_note(self.notes[-1])

  @property
  def seconds(self) -> float:
    """Seconds of training so far, without those named in notes."""
    return max(self._clock() - self._began - self._apart, 0.0)

  @property
  def examples_per_second(self) -> float | None:
    """The mean rate so far, None before there is one."""
    seconds = self.seconds
    return self._examples / seconds if self._examples and seconds else None

  @property
  def seconds_left(self) -> float | None:
    """Time left at the mean rate so far, None before there is one."""
    done = self.step - self._start
    if done <= 0:
      return None
    return self.seconds / done * max(self.total_steps - self.step, 0)

  def __enter__(self) -> Self:
    self._began = self._clock()
    return self

  def __exit__(self, error_type: type | None, *_: object) -> None:
    if error_type is not None:
      self.note(f"stopped at step {self.step} by {error_type.__name__}")
    if self._drawn_step != self.step and self._drawn_at is not None:
      self._draw_now(self._clock())
    self._end()

  def _draw_now(self, now: float) -> None:
    self._drawn_at, self._drawn_step = now, self.step
    self._draw()

  def _draw(self) -> None:
    """Shows the present state."""

  def _draw_note(self, text: str) -> None:
    """Shows a line."""

  def _end(self) -> None:
    """Leaves the output as it should stay."""

  def _rates(self) -> list[str]:
    """Returns examples a second and the time left, where known."""
    parts = []
    if (rate := self.examples_per_second) is not None:
      parts.append(f"{rate:,.0f} examples/s")
    if self.step >= self.total_steps:
      parts.append(f"done in {duration(self.seconds)}")
    elif (left := self.seconds_left) is not None:
      parts.append(f"{duration(left)} left")
    return parts


class LogProgress(Progress):
  """One plain line every 30 seconds, the first at once."""

  interval = LOG_SECONDS

  def __init__(self, *args: Any, stream: TextIO, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self._stream = stream

  def _draw(self) -> None:
    share = 100 * self.step // max(self.total_steps, 1)
    parts = [
      f"{self.label}: step {self.step}/{self.total_steps} ({share}%)",
      *(f"{k} {v:.4g}" for k, v in headline(self.metrics).items()),
      *self._rates(),
    ]
    self._draw_note(", ".join(parts))

  def _draw_note(self, text: str) -> None:
    self._stream.write(text + "\n")
    self._stream.flush()


class TerminalProgress(Progress):
  """A bar that rich redraws in place; colours unless NO_COLOR is set."""

  interval = TERMINAL_SECONDS

  def __init__(self, *args: Any, stream: TextIO, **kwargs: Any):
    super().__init__(*args, **kwargs)
    from rich import console, progress

    self._console = console.Console(file=stream)
    self._bar = progress.Progress(
      progress.TextColumn("{task.description}", markup=False),
      progress.BarColumn(bar_width=24 if self._console.width >= 100 else 10),
      progress.TextColumn("{task.fields[state]}", markup=False),
      console=self._console,
      auto_refresh=False,  # no thread: the loop's updates draw
    )
    self._task = self._bar.add_task(
      self.label, total=self.total_steps, completed=self.step, state=""
    )

  def __enter__(self) -> Self:
    self._bar.start()
    return super().__enter__()

  def _draw(self) -> None:
    parts = [
      f"{self.step}/{self.total_steps}",
      *(f"{k} {v:.4g}" for k, v in headline(self.metrics).items()),
      *self._rates(),
    ]
    state = "  ".join(parts)
    self._bar.update(self._task, completed=self.step, state=state)
    self._bar.refresh()

  def _draw_note(self, text: str) -> None:
    self._console.print(text, markup=False, highlight=False)

  def _end(self) -> None:
    self._bar.stop()


class NotebookProgress(Progress):
  """One HTML table in the cell's output, updated in place."""

  interval = NOTEBOOK_SECONDS

  def __init__(self, *args: Any, display: Callable, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self._display = display
    self._handle: Any = None

  def _draw(self) -> None:
    content = _Html(self._html())
    if self._handle is None:
      self._handle = self._display(content, display_id=True)
    else:
      self._handle.update(content)

  def _draw_note(self, text: str) -> None:
    self._drawn_step = None  # it comes with the next drawing, or at the end
    if self._handle is None:
      self._draw_now(self._clock())

  def _html(self) -> str:
    e = html.escape
    state = [f"{self.step}/{self.total_steps}", *self._rates()]
    cells = "".join(
      f"<tr><td>{e(name)}</td><td>{value:.4g}</td></tr>"
      for name, value in self.metrics.items()
    )
    notes = "".join(f"<div>{e(text)}</div>" for text in self.notes)
    return (
      f"<div>{e(self.label)} "
      f'<progress value="{self.step}" max="{max(self.total_steps, 1)}">'
      f"</progress> {e(', '.join(state))}</div><table>{cells}</table>{notes}"
    )


def progress(
  total_steps: int,
  label: str,
  stream: TextIO | None = None,
  *,
  start: int = 0,
  clock: Callable[[], float] = time.monotonic,
  process_index: int | None = None,
) -> Progress:
  """Returns the progress that fits where this process runs.

  Args:
    total_steps: the step at which the work is done.
    label: what is being done, such as the phase's name.
    stream: where a bar or lines go; by default standard error.
    start: the step from which the work starts, for a resumed run.
    clock: seconds, from any origin.
    process_index: which process this is; by default jax says.

  Returns:
    A context manager with `update` and `note`. On a process other than 0 it
    shows nothing.
  """
  stream = sys.stderr if stream is None else stream
  if process_index is None:
    import jax

    process_index = jax.process_index()
  counts = {"start": start, "clock": clock}
  if process_index != 0:
    return Progress(total_steps, label, **counts)
  display = _notebook_display()
  if display is not None:
    return NotebookProgress(total_steps, label, display=display, **counts)
  kind = TerminalProgress if _is_terminal(stream) else LogProgress
  return kind(total_steps, label, stream=stream, **counts)


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
  """Returns the few metrics for one line: losses, then accuracies.

  Args:
    metrics: name -> value.

  Returns:
    At most two of each: what is named "loss" or else the first terms without a
    "/", and what is named "accuracy" or "accuracy/<role>".
  """
  heads = {name: name.split("/")[0] for name in metrics}
  accuracies = [n for n in metrics if heads[n] == "accuracy"]
  losses = [n for n in metrics if heads[n] == "loss"] or [
    n for n in metrics if heads[n] == n and n not in accuracies
  ]
  return {n: metrics[n] for n in losses[:2] + accuracies[:2]}


def duration(seconds: float) -> str:
  """Returns seconds as text: "0.4 s", "42 s", "3 min 05 s", "2 h 10 min"."""
  if seconds < 9.95:
    return f"{seconds:.1f} s"
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60} min {whole % 60:02d} s"
  return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Html:
  """An object that a notebook shows as HTML, and a log as nothing."""

  def __init__(self, text: str):
    self.text = text

  def _repr_html_(self) -> str:
    return self.text

  def __repr__(self) -> str:
    return ""


def _notebook_display() -> Callable | None:
  """Returns IPython's display in a process that a notebook drives."""
  ipython = sys.modules.get("IPython")
  shell = ipython.get_ipython() if ipython is not None else None
  if getattr(shell, "kernel", None) is None:
    return None
  from IPython.display import display

  return display


def _is_terminal(stream: TextIO) -> bool:
  from rich import console

  return console.Console(file=stream).is_interactive


def _plain(text: str) -> str:
  """Returns the text without control characters, which steer terminals."""
  return "".join(c if c.isprintable() else "?" for c in str(text))
