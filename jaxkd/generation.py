"""Answers drawn from a decoder, a token at a time.

`generate` is a pure compiled function. It may be called inside a training
step, under `jit`, `vmap` and `grad`: no gradient passes through what is drawn.
In a loss of a method:

  nets.student(batch)  # has to be run before it has parameters
  variables = {"params": nets.params("student")}
  answers = generate(
    self.student, variables, batch["prompt"], batch["length"],
    nets.key("answers"), steps=64,
  )
  logits = nets.student({**batch, "tokens": answers.tokens}).logits[:, :-1]
  where = answers.drawn[:, 1:]  # logits are of the token behind
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen

from jaxkd.errors import ConfigError
from jaxkd.network import Linen, Network

Array = jax.Array
Variables = Mapping[str, Any]


@flax.struct.dataclass
class Answers:
  """Prompts with what was drawn behind them; M = L + steps.

  Attributes:
    tokens: integers [B, M]: a row's prompt, at once its answer, then padding.
    lengths: of prompt and answer together, a stop token included, [B].
    drawn: whether a token belongs to the answer, [B, M].
    log_probabilities: of the answer's tokens under the model as it is, in
      nats, [B, M]; 0 elsewhere.
    drawn_log_probabilities: under what they were drawn from, after temperature
      and truncation; 0 where the temperature is 0.
  """

  tokens: Array
  lengths: Array
  drawn: Array
  log_probabilities: Array
  drawn_log_probabilities: Array


@flax.struct.dataclass
class _State:
  """What goes around the loop.

  Attributes:
    step: tokens drawn so far in a row that has not ended.
    answers: as far as they are.
    ended: rows that have drawn a stop token, [B].
    cache: of the decoder; it lacks the last token of every row.
  """

  step: Array
  answers: Answers
  ended: Array
  cache: Any


def generate(
  network: Network,
  variables: Variables,
  tokens: Array,
  lengths: Array,
  key: Array,
  *,
  steps: int,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float = 1.0,
  stop_tokens: Sequence[int] = (),
  pad: int = 0,
) -> Answers:
  """Draws an answer to every prompt.

  Args:
    network: of a decoder: a Linen module that reads tokens, `token_mask` and
      `positions`, and keeps what it has read in the collection `cache` that
      its `empty_cache(rows, length)` makes, as `nets.CausalDecoder` does.
    variables: of the network, by collection.
    tokens: prompts, integers [B, L], with anything behind their ends.
    lengths: of the prompts, [B], at least 1.
    key: a typed key; or one for each row, [B], with which a row's answer does
      not depend on the others.
    steps: the most tokens of an answer.
    temperature: of the softmax; at 0 the most probable token is taken.
    top_k: draws from the k most probable tokens.
    top_p: draws from the fewest tokens that have this mass together.
    stop_tokens: an answer ends with the first of these.
    pad: the token behind the ends.

  Returns:
    The answers.

  Raises:
    ConfigError: for a network that keeps no cache, or arguments of other
      shapes or out of range.
  """
  module = _decoder(network)
  _check_prompts(tokens, lengths, key)
  if steps < 1:
    raise ConfigError(f"generate: steps={steps}; expected at least 1")
  _check_truncation("generate", temperature, top_k, top_p)
  return _generate(
    module,
    jax.lax.stop_gradient(dict(variables)),
    tokens,
    lengths,
    key if key.ndim else jax.random.split(key, len(tokens)),
    steps=steps,
    truncation=(temperature, top_k, top_p),
    stop_tokens=tuple(stop_tokens),
    pad=pad,
  )


def truncated(
  logits: Array,
  *,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float = 1.0,
) -> Array:
  """Log-probabilities that tokens are drawn from.

  The logits are divided by the temperature, all but the k largest are left
  out, and of the softmax of those the fewest with a mass of p are kept. Equal
  logits are kept or left out together.

  Args:
    logits: [..., V].
    temperature: at 0 the first of the largest logits has all the mass.
    top_k: at least 1.
    top_p: above 0, up to 1.

  Returns:
    [..., V], float32 at least, -inf where a token is left out.

  Raises:
    ConfigError: for a number out of range.

  Reference: Holtzman et al., https://arxiv.org/abs/1904.09751, Sec. 3.
  """
  _check_truncation("truncated", temperature, top_k, top_p)
  size = logits.shape[-1]
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  if temperature == 0:
    best = jax.nn.one_hot(jnp.argmax(logits, -1), size, dtype=bool)
    return jnp.where(best, 0.0, -jnp.inf)
  logits = logits / temperature
  if top_k is not None and top_k < size:
    least = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  if top_p < 1:
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    mass = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
    before = jnp.sum(mass < top_p, axis=-1, keepdims=True)
    last = jnp.minimum(before, size - 1)
    least = jnp.take_along_axis(ordered, last, axis=-1)
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  return jax.nn.log_softmax(logits)


@functools.partial(
  jax.jit,
  static_argnames=("module", "steps", "truncation", "stop_tokens", "pad"),
)
def _generate(
  module: linen.Module,
  variables: Variables,
  tokens: Array,
  lengths: Array,
  keys: Array,
  *,
  steps: int,
  truncation: tuple[float, int | None, float],
  stop_tokens: tuple[int, ...],
  pad: int,
) -> Answers:
  rows, prompt_size = tokens.shape
  size = prompt_size + steps

  def read(cache, tokens, **places):
    logits, changed = module.apply(
      {**variables, "cache": cache}, tokens, **places, mutable=["cache"]
    )
    return logits, changed["cache"]

  def another(state):
    answers, (temperature, top_k, top_p) = state.answers, truncation
    last = (answers.lengths - 1)[:, None]
    newest = jnp.take_along_axis(answers.tokens, last, axis=1)
    logits, cache = read(state.cache, newest, positions=last)
    model = jax.nn.log_softmax(logits[:, 0].astype(jnp.float32))
    source = truncated(
      logits[:, 0], temperature=temperature, top_k=top_k, top_p=top_p
    )
    now = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
    chosen = jax.vmap(jax.random.categorical)(now, source)
    stops = jnp.any(chosen[:, None] == jnp.array(stop_tokens, int)[None], -1)
    return _State(
      step=state.step + 1,
      answers=_longer(answers, state.ended, chosen, model, source),
      ended=state.ended | stops,
      cache=cache,
    )

  start = _only_prompts(tokens, lengths, size, pad)
  _, cache = read(
    module.empty_cache(rows, size),
    start.tokens[:, :prompt_size],
    token_mask=jnp.arange(prompt_size)[None] < lengths[:, None],
  )
  ended = jnp.zeros(rows, bool)
  return jax.lax.while_loop(
    lambda state: (state.step < steps) & ~jnp.all(state.ended),
    another,
    _State(step=jnp.int32(0), answers=start, ended=ended, cache=cache),
  ).answers


def _only_prompts(
  tokens: Array, lengths: Array, size: int, pad: int
) -> Answers:
  """Answers of no tokens yet, [B, size]."""
  behind = ((0, 0), (0, size - tokens.shape[1]))
  is_prompt = jnp.arange(size)[None] < lengths[:, None]
  zeros = jnp.zeros(is_prompt.shape, jnp.float32)
  return Answers(
    tokens=jnp.where(is_prompt, jnp.pad(tokens, behind), pad),
    lengths=lengths,
    drawn=zeros > 0,
    log_probabilities=zeros,
    drawn_log_probabilities=zeros,
  )


def _longer(
  answers: Answers, ended: Array, chosen: Array, model: Array, source: Array
) -> Answers:
  """The answers with one token more in rows that have not ended.

  Args:
    answers: so far.
    ended: [B].
    chosen: the token, [B].
    model: log-probabilities of the model, [B, V].
    source: those that the token was drawn from, [B, V].
  """
  rows, size = answers.tokens.shape
  slots = jnp.where(ended, size, answers.lengths)

  def put(array, values):
    return array.at[jnp.arange(rows), slots].set(values, mode="drop")

  def of_chosen(table):
    return jnp.take_along_axis(table, chosen[:, None], axis=-1)[:, 0]

  return Answers(
    tokens=put(answers.tokens, chosen.astype(answers.tokens.dtype)),
    lengths=answers.lengths + jnp.where(ended, 0, 1),
    drawn=put(answers.drawn, True),
    log_probabilities=put(answers.log_probabilities, of_chosen(model)),
    drawn_log_probabilities=put(
      answers.drawn_log_probabilities, of_chosen(source)
    ),
  )


def _decoder(network: Network) -> linen.Module:
  module = network.module
  module = module.module if isinstance(module, Linen) else module
  if not (isinstance(module, linen.Module) and hasattr(module, "empty_cache")):
    raise ConfigError(
      f"generate: {network.name} keeps no cache; expected a Linen module with "
      "empty_cache(rows, length), such as CausalDecoder"
    )
  return module


def _check_prompts(tokens: Array, lengths: Array, key: Array) -> None:
  integers = jnp.issubdtype(tokens.dtype, jnp.integer)
  if tokens.ndim != 2 or not integers or lengths.shape != tokens.shape[:1]:
    raise ConfigError(
      f"generate: tokens are {tokens.dtype} {tokens.shape}, lengths "
      f"{lengths.shape}; expected integers [B, L] and [B]"
    )
  typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  if not typed or key.shape not in ((), lengths.shape):
    raise ConfigError(
      f"generate: the key is {key.dtype} {key.shape}; expected a typed key, or "
      "one for each row"
    )


def _check_truncation(
  name: str, temperature: float, top_k: int | None, top_p: float
) -> None:
  valid = {
    f"temperature={temperature}; expected 0 or above": (
      0 <= temperature < math.inf
    ),
    f"top_k={top_k}; expected at least 1": top_k is None or top_k >= 1,
    f"top_p={top_p}; expected above 0 and up to 1": 0 < top_p <= 1,
  }
  for message, holds in valid.items():
    if not holds:
      raise ConfigError(f"{name}: {message}")
