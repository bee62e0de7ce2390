"""What feature losses promise beside the contract and the vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses

RANDOM = np.random.default_rng(3)


def _map(*shape):
  return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


STUDENT, TEACHER = _map(3, 5, 5, 4), _map(3, 5, 5, 4)


def test_the_larger_map_is_pooled_along_each_axis_by_itself():
  wide, tall = _map(2, 4, 6, 3), _map(2, 6, 4, 5)
  student, teacher = losses.match_sizes(wide, tall)
  assert student.shape == (2, 4, 4, 3)
  assert teacher.shape == (2, 4, 4, 5)
  pooled = tall.reshape(2, 6, 4, 5)
  np.testing.assert_allclose(teacher[:, 1], pooled[:, 1:3].mean(1), rtol=1e-6)


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
def test_every_kernel_of_nst_is_least_at_the_teacher(kernel):
  def loss(student):
    return losses.nst(student, TEACHER, kernel=kernel).sum()

  assert float(loss(STUDENT)) > 1e-3
  np.testing.assert_allclose(loss(TEACHER), 0, atol=1e-5)
  np.testing.assert_allclose(jax.grad(loss)(TEACHER), 0, atol=1e-5)


def test_nst_does_not_see_the_order_of_the_channels():
  np.testing.assert_allclose(
    losses.nst(STUDENT[..., ::-1], TEACHER),
    losses.nst(STUDENT, TEACHER),
    rtol=1e-5,
  )


def test_ickd_sees_the_order_of_channels_but_not_of_places():
  value = losses.ickd(STUDENT, TEACHER)
  turned = losses.ickd(STUDENT[:, ::-1], TEACHER)
  np.testing.assert_allclose(turned, value, rtol=1e-5)
  other = losses.ickd(STUDENT[..., ::-1], TEACHER)
  assert float(jnp.abs(other - value).max()) > 1e-3


@pytest.mark.parametrize(
  "loss", [losses.attention_transfer, losses.nst, losses.ickd]
)
def test_a_factor_on_the_student_changes_nothing(loss):
  np.testing.assert_allclose(
    loss(3 * STUDENT, TEACHER), loss(STUDENT, TEACHER), rtol=1e-4, atol=1e-6
  )


def test_conventions_of_attention_transfer_differ_by_root_and_places():
  code = losses.attention_transfer(STUDENT, TEACHER)
  paper = losses.attention_transfer(STUDENT, TEACHER, convention="paper")
  np.testing.assert_allclose(paper, jnp.sqrt(25 * code), rtol=1e-5)


def test_the_paper_takes_absolute_values_of_odd_powers():
  def value(student):
    return losses.attention_transfer(
      student, TEACHER, power=3, convention="paper"
    )

  np.testing.assert_allclose(value(-STUDENT), value(STUDENT), rtol=1e-6)


def test_factor_transfer_of_attention_squared_is_attention_transfer():
  factor = losses.factor_transfer(STUDENT, TEACHER, order=2, factor="attention")
  expected = losses.attention_transfer(STUDENT, TEACHER)
  np.testing.assert_allclose(factor**2 / 25, expected, rtol=1e-5)


def test_stages_count_half_of_the_next_deeper_one():
  one = losses.activation_boundary(STUDENT, TEACHER)
  three = losses.activation_boundary([STUDENT] * 3, [TEACHER] * 3)
  np.testing.assert_allclose(three, 1.75 * one, rtol=1e-6)


def test_an_activation_beyond_the_margin_costs_nothing():
  teacher = jnp.array([[[[1.0, 1.0, -1.0, 0.0]]]])
  student = jnp.array([[[[2.0, 0.5, -2.0, 0.5]]]])
  value = losses.activation_boundary(student, teacher)
  np.testing.assert_allclose(value, [0.5**2 + 1.5**2])


def test_ofd_skips_what_both_have_off_and_clips_at_the_margin():
  teacher = jnp.array([[[[-1.0, -1.0, 2.0]]]])
  student = jnp.array([[[[-2.0, 1.0, 1.0]]]])
  value = losses.ofd(student, teacher, -0.5 * jnp.ones(3))
  np.testing.assert_allclose(value, [1.5**2 + 1.0])


def test_the_ofd_margin_is_the_mean_of_the_negative_values():
  scale, bias = jnp.array([0.7, -1.2]), jnp.array([0.3, -0.4])
  drawn = RANDOM.normal(size=(400_000, 2)) * np.abs(scale) + np.array(bias)
  expected = [column[column < 0].mean() for column in drawn.T]
  margin = losses.ofd_margin(scale, bias)
  np.testing.assert_allclose(margin, expected, rtol=1e-2)


@pytest.mark.parametrize(
  ("scale", "bias", "expected"), [(1.0, 5.0, -3.0), (0.0, 1.0, 0.0)]
)
def test_a_channel_that_is_hardly_negative_has_three_deviations(
  scale, bias, expected
):
  value, slope = jax.value_and_grad(
    lambda s: losses.ofd_margin(s[None], jnp.array([bias]))[0]
  )(jnp.float32(scale))
  np.testing.assert_allclose(value, expected)
  assert np.isfinite(slope)


def test_the_best_variance_of_vid_is_the_mean_squared_error():
  error = float(jnp.mean((STUDENT - TEACHER) ** 2))

  def loss(v):
    return losses.vid(STUDENT, TEACHER, jnp.full(4, v)).mean()

  np.testing.assert_allclose(jax.grad(loss)(error), 0, atol=1e-6)


def test_the_weight_of_an_alignment_passes_no_gradient():
  slope = jax.grad(
    lambda z: losses.weighted_alignment(STUDENT, TEACHER, z, 0 * z).sum()
  )(jnp.ones((3, 2)))
  np.testing.assert_array_equal(slope, 0)


def test_review_of_a_vector_is_its_squared_error():
  student, teacher = STUDENT[:, 0, 0], TEACHER[:, 0, 0]
  np.testing.assert_allclose(
    losses.review_kd(student, teacher),
    losses.fitnet(student, teacher),
    rtol=1e-6,
  )


@pytest.mark.parametrize("over", ["channels", "columns"])
def test_kdsvd_has_finite_gradients_where_singular_values_are_equal(over):
  eye = jnp.broadcast_to(jnp.eye(4)[None, :, None], (2, 4, 4, 4))
  stages = [eye, 0 * eye, eye]
  slopes = jax.grad(
    lambda maps: losses.kdsvd(maps, stages[::-1], rank=2, over=over).sum()
  )(stages)
  assert all(np.isfinite(slope).all() for slope in slopes)


def test_all_masked_is_zero():
  nobody = jnp.zeros(3, bool)
  nan = jnp.nan * STUDENT
  assert losses.similarity_preserving(nan, nan, where=nobody) == 0
  np.testing.assert_array_equal(losses.fitnet(nan, nan, where=nobody), 0)


def test_no_dimension_is_salient_where_all_are_alike():
  features = jnp.ones((4, 3))
  order = jnp.zeros((2, 3, 4), int)
  value = losses.feature_salience(lambda x: x, features, features, order)
  np.testing.assert_array_equal(value, 0)
  np.testing.assert_array_equal(losses.least_salient(value, 0.5), [0])


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: losses.fitnet(STUDENT, TEACHER[..., :3]), "examples and chann"),
    (lambda: losses.fitnet(STUDENT, TEACHER[:2]), "fitnet: student feature"),
    (lambda: losses.nst(STUDENT, TEACHER[:, 0]), "with as many axes"),
    (lambda: losses.nst(STUDENT, TEACHER, kernel="cosine"), "expected one of"),
    (
      lambda: losses.fitnet(STUDENT, TEACHER, where=jnp.ones(2)),
      "where .2,.; expected .3,.",
    ),
    (lambda: losses.factor_transfer(STUDENT, TEACHER, order=3), "order=3"),
    (
      lambda: losses.ofd(STUDENT, TEACHER, jnp.ones(3)),
      "margin .3,.; expected .4,.",
    ),
    (lambda: losses.vid(STUDENT, TEACHER, jnp.ones(3)), "vid: variance"),
    (lambda: losses.fsp([STUDENT], [TEACHER]), "1 stage; expected two"),
    (lambda: losses.fsp([STUDENT] * 2, [TEACHER]), "2 of student, 1 of teach"),
    (
      lambda: losses.kdsvd(
        [STUDENT] * 2, [TEACHER[:, :, :3]] * 2, over="columns"
      ),
      "5 and 3 columns",
    ),
    (lambda: losses.review_kd(STUDENT, TEACHER[:, :3]), "expected one shape"),
    (lambda: losses.least_salient(jnp.ones(3), 2.0), "ratio=2.0; expected"),
    (
      lambda: losses.feature_salience(
        lambda x: x, STUDENT[:, 0, 0], TEACHER[:, 0, 0], jnp.zeros((1, 2, 3))
      ),
      "permutations .1, 2, 3.; expected .R, 4, 3.",
    ),
  ],
)
def test_what_does_not_fit_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
