"""Which stream a step reads: the data, or answers of the student.

A rule is a frozen dataclass; what changes is a `State`, four numbers that go
into a checkpoint as `dataclasses.asdict(state)` and come back as
`State(**saved)`. Random numbers are arguments, one uniform per step, so that a
run that is resumed makes the choices it would have made:

  state = rule.start()
  state = rule.validated(state, loss)           # after every validation
  stream, state = rule.choose(state, uniform)   # at every step

A step that reads `Stream.FRESH` lets the student answer and puts the answers
into the replay buffer, of which the state only holds the count.
"""

import dataclasses
import enum
from typing import Literal

from jaxkd.data import checks


class Stream(enum.IntEnum):
  """What a step trains on."""

  DATA = 0
  FRESH = 1
  REPLAY = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
  """What a rule remembers between steps.

  Attributes:
    step: steps chosen so far.
    stored: answers in the replay buffer.
    threshold: share of the steps that read the student's answers, 0 to 1.
    compared_loss: the validation loss that the next one is compared with, or
      None before the first.
  """

  step: int = 0
  stored: int = 0
  threshold: float = 0.0
  compared_loss: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveSampling:
  """The student's answers are used more when its validation loss rises.

    threshold <- min(threshold + raise_by, 1) if loss >= compared + tolerance

  and only then is the compared loss replaced. With u uniform in [0, 1), a step
  reads fresh answers if u < threshold * share, or if u < threshold and the
  buffer is not full; the replay if u < threshold otherwise; else the data. The
  share of fresh answers is 1 - step / steps, 1/2, or step / steps.

  Reference: Ko et al. (DistiLLM), https://arxiv.org/abs/2402.03898, Sec. 3.2.

  Attributes:
    steps: of the whole run.
    batch_size: answers that a fresh step adds.
    capacity: of the replay buffer, in answers.
    tolerance: how much the loss may rise unnoticed.
    raise_by: what the threshold is raised by.
    initial_threshold: at the start.
    fresh: how the share of fresh answers goes over the run.
  """

  steps: int
  batch_size: int
  capacity: int = 1000
  tolerance: float = 0.1
  raise_by: float = 0.1
  initial_threshold: float = 0.0
  fresh: Literal["decreasing", "constant", "increasing"] = "decreasing"

  def __post_init__(self):
    """Checks the numbers."""
    checks.require_integer("steps", self.steps, 1)
    _require_buffer(self.batch_size, self.capacity)
    checks.require_number("tolerance", self.tolerance, 0)
    checks.require_number("raise_by", self.raise_by, 0)
    threshold = self.initial_threshold
    valid = 0 <= threshold <= 1
    checks.require(valid, "initial_threshold", threshold, "0 to 1")
    ways = ("decreasing", "constant", "increasing")
    checks.require(self.fresh in ways, "fresh", self.fresh, " or ".join(ways))

  def start(self) -> State:
    """The state before the first step."""
    return State(threshold=self.initial_threshold)

  def validated(self, state: State, loss: float) -> State:
    """The state after a validation; the first one only sets the comparison."""
    if state.compared_loss is None:
      return dataclasses.replace(state, compared_loss=loss)
    if not loss >= state.compared_loss + self.tolerance:
      return state
    threshold = min(state.threshold + self.raise_by, 1.0)
    return dataclasses.replace(state, threshold=threshold, compared_loss=loss)

  def choose(self, state: State, uniform: float) -> tuple[Stream, State]:
    """What the next step reads, and the state after it.

    Args:
      state: before the step.
      uniform: u, drawn for this step, in [0, 1).

    Returns:
      The stream and the state.
    """
    gone = state.step / self.steps
    shares = {"decreasing": 1 - gone, "constant": 0.5, "increasing": gone}
    if uniform >= state.threshold:
      stream = Stream.DATA
    elif (
      state.stored < self.capacity
      or uniform < state.threshold * shares[self.fresh]
    ):
      stream = Stream.FRESH
    else:
      stream = Stream.REPLAY
    return stream, _after(state, stream, self.batch_size, self.capacity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedSampling:
  """A coin decides between the data and the student's answers.

    fresh answers if u < share, else the data

  The answers of a step go into the buffer first. GKD trains on them; DistiLLM's
  form of this rule trains on a draw from the whole buffer instead.

  Reference: Agarwal et al. (GKD), https://arxiv.org/abs/2306.13649, Alg. 1.

  Attributes:
    batch_size: answers that a fresh step adds.
    capacity: of the replay buffer, in answers.
    share: of the steps that use the student's answers; lambda.
  """

  batch_size: int
  capacity: int = 1000
  share: float = 0.5

  def __post_init__(self):
    """Checks the numbers."""
    _require_buffer(self.batch_size, self.capacity)
    checks.require(0 <= self.share <= 1, "share", self.share, "0 to 1")

  def start(self) -> State:
    """The state before the first step."""
    return State(threshold=self.share)

  def validated(self, state: State, loss: float) -> State:
    """The same state: the coin does not look at the validation loss."""
    del loss
    return state

  def choose(self, state: State, uniform: float) -> tuple[Stream, State]:
    """What the next step reads, and the state after it.

    Args:
      state: before the step.
      uniform: u, drawn for this step, in [0, 1).

    Returns:
      The stream, never the replay, and the state.
    """
    stream = Stream.FRESH if uniform < state.threshold else Stream.DATA
    return stream, _after(state, stream, self.batch_size, self.capacity)


def _require_buffer(batch_size: int, capacity: int) -> None:
  checks.require_integer("batch_size", batch_size, 1)
  checks.require_integer("capacity", capacity, 1)


def _after(
  state: State, stream: Stream, batch_size: int, capacity: int
) -> State:
  added = batch_size if stream == Stream.FRESH else 0
  stored = min(state.stored + added, capacity)
  return dataclasses.replace(state, step=state.step + 1, stored=stored)
