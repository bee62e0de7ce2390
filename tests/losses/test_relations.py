"""Relations of a batch: invariances, memory, masks, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.losses.compiled import losses


def _features(seed, *shape):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(size=shape), jnp.float32)


STUDENT, TEACHER = _features(0, 6, 4), _features(1, 6, 5)


@pytest.mark.parametrize(
  "loss", [losses.rkd, losses.rkd_distance, losses.rkd_angle]
)
def test_rkd_does_not_see_shifts_rotations_and_scale(loss):
  rotation, _ = jnp.linalg.qr(_features(2, 4, 4))
  moved = 3 * STUDENT @ rotation + 1
  np.testing.assert_allclose(
    loss(moved, TEACHER), loss(STUDENT, TEACHER), rtol=1e-4
  )


def test_pkt_does_not_see_rotations_and_lengths():
  rotation, _ = jnp.linalg.qr(_features(2, 4, 4))
  lengths = jnp.arange(1.0, 7.0)[:, None]
  np.testing.assert_allclose(
    losses.pkt(lengths * STUDENT @ rotation, TEACHER),
    losses.pkt(STUDENT, TEACHER),
    rtol=1e-4,
  )


def test_angles_in_chunks_are_those_at_once():
  def both(chunk):
    loss = lambda s: losses.rkd_angle(s, TEACHER, chunk=chunk)
    return jax.value_and_grad(loss)(STUDENT)

  value, gradient = both(6)
  in_chunks, its_gradient = both(4)  # a full chunk and a rest
  np.testing.assert_allclose(in_chunks, value, rtol=1e-6)
  np.testing.assert_allclose(its_gradient, gradient, rtol=1e-4, atol=1e-7)


def test_angles_in_chunks_never_hold_all_triples():
  batch, chunk = 256, 4
  loss = lambda s, t: losses.rkd_angle(s, t, chunk=chunk)
  shape = jax.ShapeDtypeStruct((batch, 8), jnp.float32)
  step = jax.jit(jax.grad(loss)).lower(shape, shape).compile()
  held = step.memory_analysis().temp_size_in_bytes
  assert held < 4 * batch**3 / 4  # a quarter of one array of all cosines


def test_the_gaussian_kernel_is_its_series():
  gamma, s, t = 0.4, STUDENT[:3], TEACHER[:3]

  def kernel(x):
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    return jnp.exp(-gamma * jnp.sum((x[:, None] - x[None]) ** 2, -1))

  expected = jnp.linalg.norm(kernel(s) - kernel(t)) / 9
  value = losses.correlation_congruence(s, t, gamma=gamma, order=12)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_neighbours_of_the_differences_are_those_that_count():
  s, t = STUDENT, _features(3, 6, 4)
  gap = np.abs(s - t)
  where = jnp.array([1, 0, 0, 1, 1, 0])
  value = losses.correlated_differences(s, t, where=where)
  expected = (gap[0] * gap[3] + gap[3] * gap[4]).sum() / 2
  np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
  "loss",
  [
    losses.rkd,
    losses.pkt,
    losses.gram_congruence,
    losses.correlation_congruence,
    losses.token_graph,
  ],
)
def test_a_batch_of_which_nothing_counts_costs_nothing(loss):
  bad = jnp.full((3, 4), jnp.nan)
  f = lambda s: loss(s, bad, where=jnp.zeros(3))
  value, gradient = jax.value_and_grad(f)(bad)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_a_token_of_one_image_moves_the_edges_of_another():
  tokens = _features(4, 2, 3, 4)  # two images of three tokens
  flat = tokens.reshape(6, 4)
  moved = flat.at[0].set(flat[4] + 0.01)
  teacher = _features(5, 6, 4)
  gradient = jax.grad(lambda s: losses.token_graph(s, teacher, neighbours=1))(
    moved
  )
  assert np.abs(gradient[4]).max() > 1e-4


def test_tokens_may_be_permuted_in_both_networks_alone():
  s, t = STUDENT, TEACHER
  order = jnp.array([3, 1, 5, 0, 2, 4])
  loss = lambda s, t: losses.token_graph(s, t, neighbours=2, variance=4.0)
  np.testing.assert_allclose(loss(s[order], t[order]), loss(s, t), rtol=1e-5)
  assert abs(loss(s[order], t) - loss(s, t)) > 1e-3


def test_edges_of_the_teacher_reach_pairs_that_the_student_lacks():
  teacher = jnp.array([[0.0], [1.0], [10.0], [11.0]])
  student = jnp.array([[0.0], [5.0], [1.0], [6.0]])  # other neighbours

  def gradient(edges):
    return jax.grad(
      lambda s: losses.token_graph(
        s, teacher, neighbours=1, variance=50.0, student_edges=edges
      )
    )(student)

  pull, push = gradient("teacher")[:, 0], gradient("own")[:, 0]
  assert pull[0] < 0 < pull[1]  # 0 and 1 are neighbours in the teacher alone
  assert push[0] > 0 > push[2]  # 0 and 2 in the student alone


def test_halves_are_those_of_the_batch_without_masked_examples():
  s, t, logits = STUDENT, TEACHER, _features(6, 6, 3)
  where = jnp.array([0, 1, 1, 0, 1, 1])
  real = np.flatnonzero(where)
  options = {"halves": True}
  np.testing.assert_allclose(
    losses.margin_aware(s, t, logits, where=where, **options),
    losses.margin_aware(s[real], t[real], logits[real], **options),
    rtol=1e-5,
  )


def test_certain_teachers_leave_no_margin():
  certain = jnp.zeros((6, 3)).at[:, 0].set(1e4)
  assert losses.margin_aware(STUDENT, TEACHER, certain) == 0


def test_the_semantic_gradient_is_that_of_the_cross_entropy():
  from jaxkd.losses.graphs import classifier_gradient

  labels = jnp.array([0, 2, 1, 1, 0, 2])
  kernel = _features(7, 4, 3)
  mean = lambda k: losses.cross_entropy(STUDENT @ k, labels).mean()
  np.testing.assert_allclose(
    classifier_gradient(STUDENT, STUDENT @ kernel, labels),
    jax.grad(mean)(kernel).T,
    rtol=1e-4,
    atol=1e-6,
  )


def test_banks_on_eight_devices_are_what_one_keeps():
  s, t = _features(8, 16, 4), _features(9, 16, 4)

  def call(s, t):
    bank = losses.MemoryBank.create(jax.random.key(0), 20, 4)
    index = jnp.arange(16)
    values, after = losses.crd(s, t, bank, index, (index[:, None] + 1) % 20)
    return values.mean() + after.student.sum() + after.teacher_log_z

  both = jax.jit(jax.value_and_grad(call))
  mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  value, gradient = both(*(jax.device_put(x, sharding) for x in (s, t)))
  expected, its_gradient = both(s, t)
  assert len(value.sharding.device_set) == 8
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, its_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: losses.rkd(STUDENT, TEACHER[:3]),
      r"rkd_distance: student \(6, 4\), teacher \(3, 5\); expected \[B, ...\]",
    ),
    (
      lambda: losses.pkt(STUDENT, TEACHER, where=jnp.ones(5)),
      r"pkt: where \(5,\); expected \[B\]",
    ),
    (
      lambda: losses.correlated_differences(STUDENT, TEACHER),
      "correlated_differences: student .* expected one shape",
    ),
    (
      lambda: losses.rkd_angle(STUDENT, TEACHER, chunk=0),
      "rkd_angle: chunk=0; expected a value above 0",
    ),
    (
      lambda: losses.margin_aware(STUDENT, TEACHER, STUDENT, weights="all"),
      "margin_aware: weights='all'; expected one of rows, columns",
    ),
  ],
)
def test_what_does_not_fit_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
