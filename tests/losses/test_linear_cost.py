"""What the chunked form costs, and what it does on several devices."""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd import losses
from jaxkd.parallel import Mesh

TOKENS, CLASSES, WIDTH, TEACHER_WIDTH = 128, 512, 32, 64
PIECES = pytest.mark.parametrize("vocab_chunk", [None, 64])


def _arrays():
  random = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(random.normal(size=shape) / 4, jnp.float32)

  return (
    normal(8, TOKENS // 8, WIDTH),
    normal(WIDTH, CLASSES),
    normal(8, TOKENS // 8, TEACHER_WIDTH),
    normal(TEACHER_WIDTH, CLASSES),
  )


def _chunked(*arrays, token_chunk=16, **how):
  return losses.linear_divergence(
    losses.kl, *arrays, token_chunk=token_chunk, **how
  )


def _dense(hidden, head, *teacher):
  return losses.kl(hidden @ head, jnp.matmul(*teacher)).sum()


def _compiled(f):
  return jax.jit(f).lower(*_arrays()).compile()


def _sizes(jaxpr):
  """Elements of every array that a jaxpr makes, in inner ones too."""
  for equation in jaxpr.eqns:
    yield from (math.prod(v.aval.shape) for v in equation.outvars)
    for inner in jax.core.jaxprs_in_params(equation.params):
      yield from _sizes(inner)


@PIECES
def test_no_array_has_the_size_of_the_logits(vocab_chunk):
  loss = functools.partial(_chunked, vocab_chunk=vocab_chunk)
  for f in (loss, jax.value_and_grad(loss, (0, 1))):
    jaxpr = jax.make_jaxpr(f)(*_arrays())
    tile = 16 * (vocab_chunk or CLASSES)
    arguments = max(x.size for x in _arrays())
    assert max(_sizes(jaxpr.jaxpr)) <= max(tile, arguments) < TOKENS * CLASSES


def test_memory_is_that_of_a_tile():
  both = [
    _compiled(jax.value_and_grad(f, (0, 1))).memory_analysis()
    for f in (_chunked, _dense)
  ]
  chunked, dense = (plan.temp_size_in_bytes for plan in both)
  assert chunked * 4 < dense  # an eighth of the tokens, and the hidden states


@pytest.mark.parametrize(
  ("wanted", "products"),
  [
    ((), WIDTH + TEACHER_WIDTH),
    ((0,), 2 * WIDTH + TEACHER_WIDTH),
    ((1,), 2 * WIDTH + TEACHER_WIDTH),
    ((0, 1), 3 * WIDTH + TEACHER_WIDTH),
  ],
)
def test_only_the_gradients_that_are_asked_for_are_computed(wanted, products):
  # One tile, since the analysis counts a loop's body once.
  loss = functools.partial(_chunked, token_chunk=TOKENS)
  f = jax.value_and_grad(loss, wanted) if wanted else loss
  text = jax.jit(f).lower(*_arrays()).as_text()
  sizes = [_work(line) for line in text.splitlines() if "dot_general" in line]
  assert sum(sizes) == TOKENS * CLASSES * products


def _work(line):
  """Multiplications of a matrix product, printed with its three types."""
  shapes = [
    [int(n) for n in dims.split("x")]
    for dims in re.findall(r"tensor<([\dx]+)xf32>", line)
  ]
  left, right, result = map(math.prod, shapes)
  return math.isqrt(left * right * result)


def test_a_training_step_may_donate_what_it_trains():
  def train(loss):
    @functools.partial(jax.jit, donate_argnums=0)
    def step(head, hidden, *teacher):
      value, gradient = jax.value_and_grad(loss, 1)(hidden, head, *teacher)
      return head - 0.1 * gradient, value

    hidden, head, *teacher = _arrays()
    values = []
    for _ in range(3):
      head, value = step(head, hidden, *teacher)
      values.append(float(value))
    return values

  values = train(_chunked)
  np.testing.assert_allclose(values, train(_dense), rtol=1e-4)
  assert values[2] < values[1] < values[0]


def test_it_may_be_rematerialised_and_scanned():
  hidden, *rest = _arrays()

  @jax.checkpoint
  def one(total, sequence):
    hidden, teacher_hidden = (x[None] for x in sequence)
    given = (hidden, rest[0], teacher_hidden, rest[2])
    return total + _chunked(*given, token_chunk=5), None

  def scanned(hidden):
    return jax.lax.scan(one, 0.0, (hidden, rest[1]))[0]

  value, gradient = jax.jit(jax.value_and_grad(scanned))(hidden)
  expected, exact = jax.jit(jax.value_and_grad(_dense))(hidden, *rest)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-6)


def _placed(mesh):
  """The arrays, tokens over the devices and heads on all of them."""
  whole, split = PartitionSpec(), PartitionSpec("data")
  specs = (split, whole, split, whole)
  shardings = [NamedSharding(mesh, spec) for spec in specs]
  return jax.device_put(_arrays(), tuple(shardings)), specs


def _collectives(program):
  """Kinds of communication in a program, with how often they are written."""
  kinds = "all-reduce|all-gather|all-to-all|collective-permute"
  found = re.findall(rf" ({kinds})(?:-start)?\(", program.as_text())
  return collections.Counter(found)


def _assert_equals_one_device(result):
  expected = jax.jit(jax.value_and_grad(_dense, (0, 1)))(*_arrays())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    jax.device_get(result),
    jax.device_get(expected),
  )


@PIECES
def test_on_a_mesh_every_device_keeps_its_tokens(vocab_chunk):
  arrays, _ = _placed(Mesh(data=8).devices)
  loss = functools.partial(_chunked, vocab_chunk=vocab_chunk)
  program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()
  result = program(*arrays)
  _assert_equals_one_device(result)
  assert result[1][0].sharding.spec[0] == "data"
  assert set(_collectives(program)) == {"all-reduce"}


@PIECES
def test_in_shard_map_the_gradient_of_the_head_is_summed_once(vocab_chunk):
  mesh = Mesh(data=8).devices
  arrays, specs = _placed(mesh)

  def loss(*arrays):
    part = _chunked(*arrays, token_chunk=4, vocab_chunk=vocab_chunk)
    return jax.lax.psum(part, "data")

  loss = jax.shard_map(
    loss, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()
  )
  program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()
  _assert_equals_one_device(program(*arrays))
  assert _collectives(program)["all-reduce"] <= 2  # the value, the head
  assert set(_collectives(program)) == {"all-reduce"}
