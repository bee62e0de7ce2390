"""The teacher's share: what its state sees, and how a controller learns it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.losses.trilateral import STATES
from tests import golden_tools
from tests.losses.vectors.trilateral import LAYERS, Bilevel, controlled

RANDOM = np.random.default_rng(3)
SHAPE = (6, 4)
STUDENT, TEACHER = (
  jnp.asarray(RANDOM.normal(size=SHAPE), jnp.float32) for _ in "st"
)
LABELS = jnp.array([0, 1, 1, 2, 3, 1])
MEANS = losses.class_mean_probabilities(TEACHER, LABELS)
CASES = golden_tools.cases("tgeo_kd__bilevel.derived")


def _weights(arrays):
  return {name: arrays[f"weight_{name}"] for name in LAYERS}


def _state(option="geometry", means=MEANS):
  return losses.trilateral_state(STUDENT, TEACHER, LABELS, means, option=option)


def _corners():
  s, t = jax.nn.softmax(STUDENT), jax.nn.softmax(TEACHER)
  return s, t, jax.nn.one_hot(LABELS, 4), MEANS[LABELS]


def test_the_options_are_those_of_the_code_and_the_ablation():
  s, t, g, m = _corners()
  sides = [(m - s) ** 2, (g - s) ** 2, (t - s) ** 2]
  angles = [(m - s) * (g - s), (t - s) * (g - s)]
  expected = {
    "geometry": [s, t, g, m, *sides, (t - g) ** 2, (m - g) ** 2],
    "probabilities": [s, t, g, m],
    "distances": sides,
    "angles": angles,
    "probabilities_angles": [s, t, g, m, *angles],
    "distances_angles": [*sides, *angles],
    "all": [s, t, g, m, *sides, *angles],
    "sg_tg": [s, t, g, sides[1], (t - g) ** 2],
    "sg_tg_st": [s, t, g, sides[1], sides[2], (t - g) ** 2],
  }
  assert expected.keys() == STATES.keys()
  for option, parts in expected.items():
    np.testing.assert_allclose(
      _state(option), jnp.concatenate(parts, 1), rtol=1e-6, err_msg=option
    )


def test_the_student_is_a_constant_of_the_state():
  def total(student):
    return losses.trilateral_state(student, TEACHER, LABELS, MEANS).sum()

  np.testing.assert_array_equal(jax.grad(total)(STUDENT), 0)


def test_the_state_sees_what_the_teacher_says_of_others_of_the_class():
  other = TEACHER.at[5].add(jnp.array([2.0, 0, 0, 0]))
  means = losses.class_mean_probabilities(other, LABELS)
  moved = jnp.abs(_state(means=means) - _state()).max(1) > 1e-3
  np.testing.assert_array_equal(moved, LABELS == 1)


def test_wrong_predictions_count_in_the_mean_of_a_class():
  teacher = 20 * jax.nn.one_hot(jnp.array([1, 1, 0, 0]), 2)
  labels = jnp.array([1, 1, 1, 0])
  means = losses.class_mean_probabilities(teacher, labels)
  np.testing.assert_allclose(means, [[1, 0], [1 / 3, 2 / 3]], atol=1e-6)


def test_a_class_without_examples_has_a_mean_of_zeros():
  means = losses.class_mean_probabilities(TEACHER, jnp.zeros(6, jnp.int32))
  np.testing.assert_array_equal(means[1:], 0)
  np.testing.assert_allclose(means[0].sum(), 1, rtol=1e-6)


def test_examples_left_out_are_not_in_the_means():
  where = jnp.array([1, 1, 0, 1, 1, 0])
  poisoned = jnp.where(where[:, None] > 0, TEACHER, jnp.nan)
  means = losses.class_mean_probabilities(poisoned, LABELS, where=where)
  np.testing.assert_allclose(means[1], jax.nn.softmax(TEACHER)[1], rtol=1e-6)


def test_the_temperature_is_in_the_teachers_part_alone():
  kd = lambda share, t: losses.trilateral_kd(
    STUDENT, TEACHER, LABELS, jnp.full(6, share), temperature=t
  )
  np.testing.assert_allclose(kd(0.0, 1.0), kd(0.0, 4.0))
  np.testing.assert_allclose(
    kd(1.0, 4.0), losses.kl(STUDENT, TEACHER, temperature=4.0), rtol=1e-6
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"option": "edges"}, "option='edges'; expected one of geometry"),
    ({"class_means": MEANS[:, :3]}, r"class_means \(4, 3\); expected \(4, 4\)"),
    ({"labels": LABELS[:2]}, r"labels \(2,\)"),
  ],
)
def test_wrong_arguments_of_the_state_are_named(change, message):
  arguments = {"labels": LABELS, "class_means": MEANS} | change
  with pytest.raises(ValueError, match=message):
    losses.trilateral_state(STUDENT, TEACHER, **arguments)


def test_a_share_for_every_example_is_needed():
  with pytest.raises(ValueError, match=r"teacher_share \(4,\)"):
    losses.trilateral_kd(STUDENT, TEACHER, LABELS, jnp.ones(4))


def test_a_share_rises_where_the_teacher_agrees_with_validation_more():
  a = CASES["case0"]
  run, weights = Bilevel(a), _weights(a)

  def validated(student):
    w, b = student
    return losses.cross_entropy(run.x_val @ w + b[None], run.y_val).mean()

  def each(student, share):
    w, b = student
    return losses.trilateral_kd(
      run.x @ w + b[None],
      run.teacher,
      run.y,
      jnp.full(len(run.y), share),
      temperature=run.temperature,
    )

  @jax.jit
  def slopes():
    upward = jax.grad(validated)(run.after(**weights))
    gaps = jax.tree.map(
      jnp.subtract,
      *(jax.jacobian(each)(run.start, share) for share in (1.0, 0.0)),
    )
    along = jax.tree.map(
      lambda u, gap: jnp.sum(u[None] * gap, range(1, gap.ndim)), upward, gaps
    )
    return -run.rate / len(run.y) * sum(along)

  expected = a["grad_alpha_step0__upper_loss"]
  np.testing.assert_allclose(slopes(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow  # differentiates through steps
@pytest.mark.parametrize("case", ["case0", "case2"])  # one step, three
def test_the_hypergradient_of_a_weight_is_a_finite_difference(case):
  a = CASES[case]
  with golden_tools.double_precision():
    doubles = {
      name: np.float64(array) if array.dtype == np.float32 else array
      for name, array in a.items()
    }
    run = Bilevel(doubles)
    weights = jax.tree.map(jnp.asarray, _weights(doubles))
    bias = weights.pop("fc2_bias")
    step = 1e-4 * (jnp.arange(bias.size) == 3)
    upper = jax.jit(lambda bias: run.upper(fc2_bias=bias, **weights))
    values = [upper(bias + step), upper(bias - step)]
    slope = float(values[0] - values[1]) / 2e-4
  expected = a["grad_fc2_bias__upper_loss"]
  assert slope == pytest.approx(float(expected[3]), rel=1e-3, abs=1e-8)
  assert np.abs(expected).max() > 1e-6


def test_a_controller_answers_every_example_alone():
  a = CASES["case0"]
  run, weights = Bilevel(a), _weights(a)
  w, b = run.start
  state = losses.trilateral_state(
    run.x @ w + b[None], run.teacher, run.y, run.means
  )
  whole = controlled(state, **weights)
  assert whole.shape == (len(state),)
  np.testing.assert_allclose(
    whole[2:4], controlled(state[2:4], **weights), rtol=1e-6
  )
