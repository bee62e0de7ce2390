"""Generation: as without a cache, row by row, and from the right softmax."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.generation import generate, truncated
from jaxkd.method import Loss, Method, Phase, Update
from jaxkd.network import Linen, Network
from jaxkd.roles import Nets, usage
from tests.nets import filling

SYMBOLS = 13
SMALL = nets.CausalDecoder(
  vocabulary_size=SYMBOLS, width=16, depth=1, heads=4, key_value_heads=2
)
LENGTHS = np.array([1, 3, 7, 7, 3, 1, 7, 3], np.int32)
PROMPTS = np.random.default_rng(0).integers(0, SYMBOLS, (8, 7), np.int32)
STEPS = 9
KEY = jax.random.key(3)
USUAL = {"steps": STEPS, "temperature": 1.5, "stop_tokens": (2, 5), "pad": 12}
NETS = {
  "scanned": SMALL.clone(depth=3, scan_layers=True, remat=True),
  "with_all": SMALL.clone(
    depth=2,
    window=3,
    qk_norm=True,
    bias=True,
    attention_cap=2.0,
    rotary_scaling=nets.YarnScaling(factor=3.0, trained_length=5),
    tied=True,
  ),
  # Of one block: behind it, the cache keeps what the rates of then gave.
  "dynamic": SMALL.clone(
    rotary_scaling=nets.DynamicScaling(factor=3.0, trained_length=5)
  ),
}


def network(module):
  return Network(module, inputs=("tokens", "token_mask"))


@functools.cache
def filled(module):
  """Variables that make sharp and varied distributions."""
  variables = filling.random_variables(module, PROMPTS)
  return jax.tree.map(lambda x: 1.5 * x, variables)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(module, variables, tokens, lengths):
  """Logits without a cache, of rows of these lengths."""
  mask = jnp.arange(tokens.shape[1])[None] < jnp.asarray(lengths)[:, None]
  return module.apply(variables, tokens, mask)


def answer(module, *, tokens=PROMPTS, lengths=LENGTHS, key=KEY, **options):
  return generate(
    network(module),
    filled(module),
    tokens,
    lengths,
    key,
    **{**USUAL, **options},
  )


def answers_alone(found, row, length):
  """The answer of a row."""
  return np.asarray(found.tokens)[row, length : found.lengths[row]]


# The cache.


@pytest.mark.parametrize("name", NETS)
def test_cached_choices_are_the_uncached_argmax_token_for_token(name):
  module = NETS[name]
  tokens = np.zeros((8, 7 + STEPS), np.int32)
  tokens[:, :7], lengths, rows = PROMPTS, LENGTHS.copy(), np.arange(8)
  for _ in range(STEPS):
    logits = logits_of(module, filled(module), tokens, lengths)
    tokens[rows, lengths] = jnp.argmax(logits, -1)[rows, lengths - 1]
    lengths += 1
  found = answer(module, temperature=0, stop_tokens=(), pad=0)
  np.testing.assert_array_equal(found.lengths, lengths)
  written = np.arange(7 + STEPS)[None] < lengths[:, None]
  np.testing.assert_array_equal(found.tokens, np.where(written, tokens, 0))
  assert len(np.unique(tokens[written])) > 3


def test_eight_rows_of_unequal_prompts_are_eight_single_rows():
  keys = jax.random.split(KEY, 8)
  together = answer(SMALL, key=keys)
  assert len(np.unique(together.lengths - LENGTHS)) > 3
  for row, length in enumerate(LENGTHS):
    one = slice(row, row + 1)
    alone = answer(
      SMALL,
      tokens=PROMPTS[one, :length],
      lengths=LENGTHS[one],
      key=keys[one],
    )
    assert alone.lengths[0] == together.lengths[row]
    size = alone.tokens.shape[1]
    for name in ("tokens", "drawn"):
      of_all, own = (np.asarray(getattr(x, name)) for x in (together, alone))
      np.testing.assert_array_equal(of_all[row, :size], own[0])
    for name in ("log_probabilities", "drawn_log_probabilities"):
      of_all, own = (np.asarray(getattr(x, name)) for x in (together, alone))
      np.testing.assert_allclose(of_all[row, :size], own[0], atol=1e-5)


def test_what_is_behind_a_prompts_end_does_not_matter():
  behind = np.arange(7)[None] >= LENGTHS[:, None]
  other = np.where(behind, (PROMPTS + 5) % SYMBOLS, PROMPTS)
  for first, second in zip(
    jax.tree.leaves(answer(SMALL)),
    jax.tree.leaves(answer(SMALL, tokens=other)),
    strict=True,
  ):
    np.testing.assert_array_equal(first, second)


# What is returned.


def test_answers_stand_behind_their_prompts_and_in_front_of_padding():
  found = answer(SMALL)
  places = np.arange(7 + STEPS)[None]
  is_prompt = places < LENGTHS[:, None]
  until = np.asarray(found.lengths)[:, None]
  np.testing.assert_array_equal(found.drawn, ~is_prompt & (places < until))
  tokens = np.asarray(found.tokens)
  prompts = np.pad(PROMPTS, ((0, 0), (0, STEPS)))
  np.testing.assert_array_equal(tokens[is_prompt], prompts[is_prompt])
  assert (tokens[places >= until] == 12).all()


def test_an_answer_ends_with_the_first_stop_token_or_after_all_steps():
  found = answer(SMALL)
  own = [answers_alone(found, row, LENGTHS[row]) for row in range(8)]
  for tokens in own:
    assert not np.isin(tokens[:-1], (2, 5)).any()
    assert np.isin(tokens[-1], (2, 5)) or len(tokens) == STEPS
  assert any(np.isin(tokens[-1], (2, 5)) for tokens in own)


def test_log_probabilities_are_those_of_the_uncached_model():
  options = {"temperature": 1.5, "top_k": 6, "top_p": 0.8}
  found = answer(SMALL, **options)
  logits = logits_of(SMALL, filled(SMALL), found.tokens, found.lengths)
  for ours, table in (
    (found.log_probabilities, jax.nn.log_softmax(logits)),
    (found.drawn_log_probabilities, truncated(logits, **options)),
  ):
    of_next = jnp.take_along_axis(
      table[:, :-1], found.tokens[:, 1:, None], axis=-1
    )[..., 0]
    expected = np.where(found.drawn[:, 1:], of_next, 0)
    np.testing.assert_allclose(ours[:, 1:], expected, atol=1e-5)
    assert np.isfinite(ours).all()
    assert (np.asarray(ours)[np.asarray(found.drawn)] < 0).any()


def test_greedy_choices_have_probability_one():
  found = answer(SMALL, temperature=0, steps=2)
  assert not np.asarray(found.drawn_log_probabilities).any()
  assert np.asarray(found.log_probabilities).min() < -0.01


def test_a_key_gives_the_same_answers_again_and_another_gives_others():
  first, again = answer(SMALL), answer(SMALL)
  np.testing.assert_array_equal(first.tokens, again.tokens)
  other = answer(SMALL, key=jax.random.key(4))
  assert (first.tokens != other.tokens).any()


def test_rows_of_equal_prompts_draw_by_themselves():
  found = answer(
    SMALL,
    tokens=PROMPTS[:1].repeat(8, 0),
    lengths=LENGTHS[:1].repeat(8),
  )
  assert len(np.unique(found.tokens, axis=0)) > 4


# The distribution.

COUNT = 8192
WAYS = {
  "softmax": {},
  "top_k": {"top_k": 5, "temperature": 1.5},
  "top_p": {"top_p": 0.7, "temperature": 1.5},
  "both": {"top_k": 6, "top_p": 0.9, "temperature": 1.5},
}


def kept(probabilities, *, temperature=1.0, top_k=SYMBOLS, top_p=1.0):
  """The distribution after temperature and truncation, in float64."""
  p = probabilities ** (1 / temperature)
  order = np.argsort(-p)
  p[order[top_k:]] = 0
  p /= p.sum()
  mass = np.cumsum(p[order])
  p[order[1:][mass[:-1] >= top_p]] = 0
  return p / p.sum()


@functools.cache
def soft():
  """A net whose tokens all have some probability, and its variables."""
  return jax.tree.map(lambda x: x / 1.75, filled(SMALL))


def expected_next(tokens, **way):
  """Probabilities of the token behind, without a cache."""
  row = np.asarray(tokens, np.int32)[None]
  logits = logits_of(SMALL, soft(), row, np.array([row.shape[1]]))
  return kept(np.exp(np.float64(jax.nn.log_softmax(logits[0, -1]))), **way)


def fits(counts, expected):
  """The p-value of a chi-square test; 0 if an impossible token was drawn."""
  possible = expected > 0
  if counts[~possible].any():
    return 0.0
  times = counts.sum() * expected[possible]
  assert times.min() > 5
  return stats.chisquare(counts[possible], times).pvalue


@pytest.mark.parametrize("name", ["softmax", "top_k", "top_p"])
def test_tokens_are_drawn_from_the_softmax(name):
  way = WAYS[name]
  prompt = PROMPTS[2]
  found = generate(
    network(SMALL),
    soft(),
    prompt[None].repeat(COUNT, 0),
    np.full(COUNT, 7, np.int32),
    KEY,
    steps=2,
    **way,
  )
  first, second = np.asarray(found.tokens)[:, 7:].T
  counts = np.bincount(first, minlength=SYMBOLS)
  expected = expected_next(prompt, **way)
  assert fits(counts, expected) > 1e-3
  assert (counts > 0).sum() == (expected > 0).sum()
  usual = counts.argmax()
  after = expected_next([*prompt, usual], **way)
  counts = np.bincount(second[first == usual], minlength=SYMBOLS)
  assert fits(counts, after) > 1e-3
  assert np.abs(expected - after).max() > 0.05
  colder = {**way, "temperature": 0.8 * way.get("temperature", 1)}
  counts = np.bincount(first, minlength=SYMBOLS)
  assert fits(counts, expected_next(prompt, **colder)) < 1e-6


@pytest.mark.parametrize("name", WAYS)
def test_truncation_equals_its_definition(name):
  way = WAYS[name]
  logits = np.random.default_rng(1).normal(size=(40, SYMBOLS)) * 2
  ours = truncated(jnp.float32(logits), **way)
  p = np.exp(logits)
  expected = np.stack([kept(row / row.sum(), **way) for row in p])
  np.testing.assert_allclose(np.exp(ours), expected, rtol=1e-4, atol=1e-6)


def test_equal_logits_are_kept_or_left_out_together():
  logits = jnp.array([3.0, 1.0, 1.0, 0.0])
  kept_by_k = jnp.isfinite(truncated(logits, top_k=2))
  np.testing.assert_array_equal(kept_by_k, [True, True, True, False])
  kept_by_p = jnp.isfinite(truncated(logits, top_p=0.8))
  np.testing.assert_array_equal(kept_by_p, [True, True, True, False])


@pytest.mark.parametrize(
  ("way", "count"),
  [
    ({"top_k": 99}, SYMBOLS),
    ({"top_p": 1.0}, SYMBOLS),
    ({"top_p": 1e-9}, 1),
    ({"top_k": 1}, 1),
    ({"temperature": 0}, 1),
  ],
)
def test_the_ends_of_truncation_keep_all_or_the_best(way, count):
  logits = jnp.float32(np.random.default_rng(2).permutation(SYMBOLS))
  left = jnp.isfinite(truncated(logits, **way))
  assert left.sum() == count
  assert left[logits.argmax()]


def test_of_equal_logits_the_first_is_taken_at_temperature_0():
  found = truncated(jnp.zeros((2, 3)), temperature=0)
  np.testing.assert_array_equal(found, [[0, -np.inf, -np.inf]] * 2)


# Inside other transformations.


def test_answers_are_the_same_inside_another_jit():
  inside = jax.jit(lambda key: answer(SMALL, key=key))(KEY)
  np.testing.assert_array_equal(inside.tokens, answer(SMALL).tokens)


def test_no_gradient_passes_through_what_is_drawn():
  def loss(params, tokens, drawn):
    logits = SMALL.apply({"params": params}, tokens)[:, :-1]
    of_next = jnp.take_along_axis(
      jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1
    )[..., 0]
    return -jnp.sum(jnp.where(drawn[:, 1:], of_next, 0))

  def on_policy(params):
    found = generate(
      network(SMALL), {"params": params}, PROMPTS, LENGTHS, KEY, **USUAL
    )
    extra = found.log_probabilities.sum() + found.drawn_log_probabilities.sum()
    return loss(params, found.tokens, found.drawn) + extra

  params, found = filled(SMALL)["params"], answer(SMALL)
  ours = jax.jit(jax.grad(on_policy))(params)
  expected = jax.jit(jax.grad(loss))(params, found.tokens, found.drawn)
  for x, y in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # compiles every member's loop
def test_a_population_draws_as_its_members_do():
  members = [filled(SMALL), soft()]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
  keys = jax.random.split(KEY, (2, 8))
  draw = functools.partial(generate, network(SMALL), **USUAL)
  found = jax.vmap(lambda v, k: draw(v, PROMPTS, LENGTHS, k))(stacked, keys)
  for number, member in enumerate(members):
    alone = draw(member, PROMPTS, LENGTHS, keys[number])
    np.testing.assert_array_equal(found.tokens[number], alone.tokens)
    np.testing.assert_array_equal(found.lengths[number], alone.lengths)


@dataclasses.dataclass(frozen=True)
class OnPolicy(Method):
  """A student that learns what the teacher says to its own answers."""

  student: Network

  @property
  def roles(self):
    return {"student": self.student, "teacher": self.student}

  @property
  def phases(self):
    update = Update(
      trainable=("student",), loss=self.loss, optimizer=optax.sgd(0.1)
    )
    return (Phase(name="distill", updates=(update,), steps=1),)

  def loss(self, nets, batch, step):
    del step
    nets.student(batch)
    variables = {"params": nets.params("student")}
    found = generate(
      self.student,
      variables,
      batch["tokens"],
      batch["lengths"],
      nets.key("answers"),
      steps=4,
    )
    read = {"tokens": found.tokens, "token_mask": found.tokens >= 0}
    student, teacher = (
      jax.nn.log_softmax(role(read).logits[:, :-1])
      for role in (nets.student, nets.teacher)
    )
    gap = jnp.sum(jnp.exp(teacher) * (teacher - student), -1)
    return Loss.mean(gap, where=found.drawn[:, 1:])

  def predict(self, nets, batch):
    return nets.student(batch)


@pytest.mark.slow  # compiles a whole step
def test_a_method_draws_answers_inside_its_loss():
  method = OnPolicy(network(SMALL))
  batch = {
    "tokens": PROMPTS,
    "token_mask": np.ones((8, 7), np.float32),
    "lengths": LENGTHS,
  }
  used = usage(method, batch)
  assert set(used.inputs) == {"student", "teacher"}
  params = {"student": soft()["params"], "teacher": filled(SMALL)["params"]}

  @jax.jit
  @jax.value_and_grad
  def step(student):
    roles = Nets(
      method.roles,
      {**params, "student": student},
      training=("student",),
      rng=KEY,
    )
    loss = method.loss(roles, batch, None)
    return loss.total / loss.weight

  value, gradient = step(params["student"])
  assert value > 1e-5
  moved = jax.tree.map(lambda w, g: w - 0.5 * g, params["student"], gradient)
  assert step(moved)[0] < value


# What is refused.


def test_networks_without_a_cache_are_refused():
  gru = nets.GRUDecoder(vocabulary_size=SYMBOLS)
  with pytest.raises(ConfigError, match="GRUDecoder keeps no cache; expected"):
    generate(network(gru), {}, PROMPTS, LENGTHS, KEY, steps=1)


def test_an_adapted_module_generates_too():
  adapted = Network(Linen(SMALL), inputs=("tokens",))
  found = generate(adapted, filled(SMALL), PROMPTS, LENGTHS, KEY, **USUAL)
  np.testing.assert_array_equal(found.tokens, answer(SMALL).tokens)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"tokens": PROMPTS[0]}, r"tokens are int32 \(7,\), lengths \(8,\)"),
    ({"tokens": np.float32(PROMPTS)}, r"float32.*expected integers \[B, L\]"),
    ({"lengths": LENGTHS[:3]}, r"lengths \(3,\); expected"),
    ({"key": jnp.zeros(2, jnp.uint32)}, r"key is uint32 \(2,\); expected a t"),
    ({"key": jax.random.split(KEY, 3)}, r"\(3,\); expected a typed key, or"),
    ({"steps": 0}, "steps=0; expected at least 1"),
    ({"temperature": -1.0}, "generate: temperature=-1.0; expected 0 or above"),
    ({"top_k": 0}, "generate: top_k=0; expected at least 1"),
    ({"top_p": 0.0}, "generate: top_p=0.0; expected above 0 and up to 1"),
    ({"top_p": 1.5}, "generate: top_p=1.5; expected"),
  ],
)
def test_arguments_that_cannot_be_meant_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    answer(SMALL, **options)
