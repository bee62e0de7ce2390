"""Memory and seconds of the chunked divergence beside the dense one.

    python -m benchmarks.chunked_divergence [--quick] [--output FILE]

Value and gradients, with respect to the student's hidden states and head, of
the mean KL between two networks' next-token distributions: all logits at once
(dense) and a tile at a time (`losses.linear_divergence`). Memory is what the
compiled program asks for beside arguments and results. The last line printed
is one JSON object. If torch can be imported, a chunked PyTorch step is timed
in turns with them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxkd import losses

try:
  from benchmarks import torch_chunked
except ImportError:
  torch_chunked = None

Array = jax.Array
OTHERS = {
  "jsd": losses.JSD(),
  "reverse_kl": losses.ReverseKL(),
  "total_variation": losses.TotalVariation(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """How much is measured.

  Attributes:
    tokens: positions.
    vocabulary: classes.
    student_width: of the student's hidden states.
    teacher_width: of the teacher's hidden states.
    dtype: of hidden states and heads.
    token_chunk: tokens in a tile.
    vocab_chunk: classes in a tile, of the variant that cuts those too.
    other_tokens: positions when other divergences, and values alone, are
      timed; their memory is that of all `tokens`.
    repetitions: rounds.
  """

  tokens: int = 4096
  vocabulary: int = 65536
  student_width: int = 512
  teacher_width: int = 1024
  dtype: str = "float32"
  token_chunk: int = 256
  vocab_chunk: int = 8192
  other_tokens: int = 512
  repetitions: int = 3


CPU = Budget()
GPU = Budget(
  tokens=8192,
  vocabulary=128256,
  student_width=2048,
  teacher_width=4096,
  dtype="bfloat16",
  token_chunk=1024,
  vocab_chunk=32768,
  other_tokens=8192,
  repetitions=9,
)
# As many tiles of as many widths of the vocabulary; seconds instead of minutes.
QUICK = {
  "tokens": 2048,
  "vocabulary": 8192,
  "token_chunk": 128,
  "vocab_chunk": 1024,
  "other_tokens": 256,
  "repetitions": 3,
}


class Arrays(NamedTuple):
  """Arguments of the loss.

  Attributes:
    student_hidden: [N, d].
    student_head: [d, V].
    teacher_hidden: [N, d_t].
    teacher_head: [d_t, V].
  """

  student_hidden: Any
  student_head: Any
  teacher_hidden: Any
  teacher_head: Any


def arrays(budget: Budget, tokens: int) -> Arrays:
  """Random hidden states, and heads that make logits of the order of 1."""
  keys = iter(jax.random.split(jax.random.key(0), 4))

  def normal(rows, columns, scale=1.0):
    draw = jax.random.normal(next(keys), (rows, columns), jnp.float32)
    return (scale * draw).astype(budget.dtype)

  ours, theirs = budget.student_width, budget.teacher_width
  return Arrays(
    normal(tokens, ours),
    normal(ours, budget.vocabulary, ours**-0.5),
    normal(tokens, theirs),
    normal(theirs, budget.vocabulary, theirs**-0.5),
  )


def shapes(budget: Budget) -> Arrays:
  """The arguments at full size, without their values."""
  return jax.eval_shape(lambda: arrays(budget, budget.tokens))


Loss = Callable[[Array, Array, Array, Array], Array]


def dense(divergence: losses.Divergence) -> Loss:
  """The mean over tokens, from all logits at once."""

  def loss(hidden, head, teacher_hidden, teacher_head):
    teacher = jax.lax.stop_gradient(teacher_hidden @ teacher_head)
    return divergence(hidden @ head, teacher).mean()

  return loss


def shortest(hidden: Array, head: Array, *teacher: Array) -> Array:
  """The mean KL as one writes it down, sum_c p_c (log p_c - log q_c)."""
  logits, teacher_logits = hidden @ head, jnp.matmul(*teacher)
  log_q = jax.nn.log_softmax(logits.astype(jnp.float32))
  log_p = jax.nn.log_softmax(teacher_logits.astype(jnp.float32))
  log_p = jax.lax.stop_gradient(log_p)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1).mean()


def chunked(divergence: losses.Divergence, **chunks: int) -> Loss:
  """The mean over tokens, a tile at a time."""

  def loss(*given):
    total = losses.linear_divergence(divergence, *given, **chunks)
    return total / given[0].shape[0]

  return loss


def with_gradients(loss: Loss) -> Callable:
  """The loss with the gradients of the student's hidden states and head."""
  return jax.value_and_grad(loss, (0, 1))


class Measurement:
  """One run of the benchmark: figures by the names of variants."""

  def __init__(self, budget: Budget):
    """Prepares the variants."""
    self.budget = budget
    tile = functools.partial(chunked, token_chunk=budget.token_chunk)
    kl = losses.KL()
    self.main = {
      "dense": with_gradients(dense(kl)),
      "dense_shortest": with_gradients(shortest),
      "chunked": with_gradients(tile(kl)),
      "chunked_vocab": with_gradients(tile(kl, vocab_chunk=budget.vocab_chunk)),
    }
    self.others = {"dense_value": dense(kl), "chunked_value": tile(kl)}
    for name, divergence in OTHERS.items():
      self.others[f"dense_{name}"] = with_gradients(dense(divergence))
      self.others[f"chunked_{name}"] = with_gradients(tile(divergence))
    self.seconds: dict[str, float] = {}
    self.fastest: dict[str, float] = {}
    self.memory: dict[str, int] = {}
    self.compile_s: dict[str, float] = {}
    self.ratios: dict[str, float] = {}
    self.difference = 0.0

  def plan_memory(self) -> None:
    """Bytes of temporary memory of every variant at full size."""
    for name, variant in (self.main | self.others).items():
      began = time.perf_counter()
      program = jax.jit(variant).lower(*shapes(self.budget)).compile()
      self.compile_s[name] = round(time.perf_counter() - began, 2)
      plan = program.memory_analysis()
      self.memory[name] = plan.temp_size_in_bytes

  def time_main(self) -> None:
    """Seconds at full size, and whether the results are the same."""
    given = arrays(self.budget, self.budget.tokens)
    calls = {name: compiled(f, given) for name, f in self.main.items()}
    self.difference = difference(calls["dense"](), calls["chunked"]())
    if torch_chunked is not None:
      chunk = self.budget.token_chunk
      calls["torch_chunked"] = torch_chunked.step(given, token_chunk=chunk)
    pairs = [(name, "dense") for name in calls if name != "dense"]
    self._time(calls, [*pairs, ("chunked", "dense_shortest")])

  def time_others(self) -> None:
    """Seconds of other divergences, and of values alone."""
    given = arrays(self.budget, self.budget.other_tokens)
    calls = {name: compiled(f, given) for name, f in self.others.items()}
    names = ["value", *OTHERS]
    self._time(calls, [(f"chunked_{n}", f"dense_{n}") for n in names])

  def _time(
    self, calls: dict[str, Callable], pairs: list[tuple[str, str]]
  ) -> None:
    samples = harness.interleave(
      calls, repetitions=self.budget.repetitions, warm_up=0
    )
    for name in calls:
      self.seconds[name] = round(samples.median(name), 4)
      self.fastest[name] = round(samples.fastest(name), 4)
      print(
        f"{name:24s} {self.seconds[name]:9.4f} s, fastest "
        f"{self.fastest[name]:.4f}",
        file=sys.stderr,
      )
    for first, second in pairs:
      ratio = samples.ratio(first, second)
      self.ratios[f"{first}_over_{second}"] = round(ratio, 3)

  def memory_ratios(self) -> dict[str, float]:
    """Temporary memory of chunked variants over that of dense ones."""
    pairs = [
      ("chunked", "dense"),
      ("chunked_vocab", "dense"),
      ("chunked", "dense_shortest"),
      *((f"chunked_{n}", f"dense_{n}") for n in ("value", *OTHERS)),
    ]
    return {
      f"{first}_over_{second}": round(
        self.memory[first] / max(self.memory[second], 1), 4
      )
      for first, second in pairs
    }


def compiled(variant: Callable, given: Arrays) -> Callable[[], Any]:
  """A call that runs the compiled variant to its end."""
  program = jax.jit(variant).lower(*given).compile()
  return lambda: jax.block_until_ready(program(*given))


def difference(expected: Any, result: Any) -> float:
  """Largest difference of value and gradients, relative to the largest."""
  pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(result), strict=True)
  return max(
    float(np.abs(a - b).max() / np.abs(a).max())
    for a, b in (jax.tree.map(np.float32, pair) for pair in pairs)
  )


def measure(budget: Budget) -> dict[str, Any]:
  """Runs everything.

  Args:
    budget: how much is measured.

  Returns:
    The JSON record.
  """
  peer = {} if torch_chunked is None else torch_chunked.record(harness.cores())
  head = {
    "benchmark": "chunked_divergence",
    **harness.record(**peer.get("versions", {})),
    "backend": jax.default_backend(),
    "torch_threads": peer.get("threads"),
    **dataclasses.asdict(budget),
  }
  run = Measurement(budget)
  run.plan_memory()
  run.time_main()
  run.time_others()
  memory_ratios = run.memory_ratios()
  return {
    **head,
    "memory_ratio": memory_ratios["chunked_over_dense"],
    "time_ratio": run.ratios["chunked_over_dense"],
    "memory_ratios": memory_ratios,
    "time_ratios": run.ratios,
    "median_s": run.seconds,
    "fastest_s": run.fastest,
    "temporary_mib": {
      name: round(size / harness.MEBI, 1) for name, size in run.memory.items()
    },
    "compile_s": run.compile_s,
    "largest_relative_difference": run.difference,
    "load_average_1min_at_end": harness.load(),
  }


def main(arguments: list[str] | None = None) -> None:
  """Parses the command line and prints the record."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--quick", action="store_true", help="smaller sizes")
  harness.add_output(parser)
  options = parser.parse_args(arguments)
  budget = GPU if jax.default_backend() == "gpu" else CPU
  if options.quick:
    budget = dataclasses.replace(budget, **QUICK)
  result = measure(budget)
  harness.emit(result, options.output)


if __name__ == "__main__":
  main()
