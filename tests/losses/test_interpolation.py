"""The teacher's share in a target: where it may go, and that it resumes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

OPTIONS = {"start": 0.2, "rate": 0.05, "decay": 0.9}


def _run(values, state=None, first=0, steps=40, **options):
  """Shares before every step, and the state after the last."""
  options = {**OPTIONS, **options}
  state = state or losses.TeacherShare.create(options["start"])
  shares = []
  for number, value in enumerate(values, start=first):
    shares.append(float(state.share))
    state = losses.advance_share(
      state, jnp.float32(value), progress=number / steps, **options
    )
  return np.array(shares), state


def _noise(steps=40):
  return np.random.default_rng(0).uniform(0.5, 2.0, steps)


def test_the_first_step_only_keeps_its_loss():
  shares, state = _run([3.0])
  assert shares.tolist() == pytest.approx([0.2])
  assert (float(state.share), float(state.momentum)) == (shares[0], 0.0)
  assert float(state.previous_loss) == 3.0
  assert bool(state.ready)


@pytest.mark.parametrize("end", [0.6, 1.0])
def test_the_share_never_falls_and_stays_between_the_line_and_the_end(end):
  shares, _ = _run(_noise(), end=end)
  line = 0.2 + (end - 0.2) * (np.arange(40) - 1) / 40
  assert (np.diff(shares) >= 0).all()
  assert (shares[2:] >= line[2:] - 1e-6).all()
  assert shares.max() <= end + 1e-6


def test_without_adaptation_the_share_is_the_line():
  shares, _ = _run(_noise(), adaptive=False)
  line = 0.2 + 0.8 * (np.arange(40) - 1) / 40
  np.testing.assert_allclose(shares[2:], line[2:], atol=1e-6)


def test_a_loss_that_stays_gives_half_the_rate_of_what_is_left():
  shares, _ = _run(np.ones(40), steps=1e9)
  expected = 1 - 0.8 * (1 - 0.05 / 2) ** np.maximum(np.arange(40) - 1, 0)
  np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_a_falling_loss_is_followed_faster_than_a_rising_one():
  falling = _run(np.linspace(8, 1, 40), steps=1e9)[0]
  steady = _run(np.ones(40), steps=1e9)[0]
  rising = _run(np.linspace(1, 8, 40), steps=1e9)[0]
  assert (falling[3:] > steady[3:]).all()
  assert (steady[3:] > rising[3:]).all()


def test_a_resumed_run_has_the_same_shares_to_the_bit():
  values = _noise()
  whole, last = _run(values)
  before, state = _run(values[:15])
  leaves, tree = jax.tree.flatten(state)
  state = jax.tree.unflatten(tree, [np.asarray(leaf) for leaf in leaves])
  after, resumed = _run(values[15:], state=state, first=15)
  np.testing.assert_array_equal(np.concatenate([before, after]), whole)
  for ours, expected in zip(
    *map(jax.tree.leaves, (resumed, last)), strict=True
  ):
    np.testing.assert_array_equal(ours, expected)


def test_the_state_is_finite_float32_scalars_from_the_start():
  start = losses.TeacherShare.create(0.4)
  for state in (start, _run([2.0, 1.0])[1]):
    for leaf, kind in zip(
      jax.tree.leaves(state), ["float32"] * 3 + ["bool"], strict=True
    ):
      assert leaf.shape == ()
      assert leaf.dtype == kind
      assert not leaf.weak_type
      assert np.isfinite(leaf)


def test_the_share_passes_no_gradient_to_the_loss():
  _, state = _run([2.0, 1.5])

  def share(loss):
    return losses.advance_share(state, loss, progress=0.5, **OPTIONS).share

  assert float(jax.grad(share)(jnp.float32(1.0))) == 0.0


def test_a_loss_of_zero_leaves_the_share_finite():
  shares, state = _run([0.0, 0.0, 1.0, 0.0])
  assert np.isfinite([*shares, state.share, state.momentum]).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"start": 1.2}, "start=1.2; expected 0 to 1"),
    ({"end": 0.1}, "end=0.1; expected 0.2 to 1"),
    ({"decay": 2}, "decay=2; expected 0 to 1"),
    ({"rate": -1}, "rate=-1; expected 0 to inf"),
  ],
)
def test_a_number_out_of_range_is_named(options, message):
  state = losses.TeacherShare.create(0.2)
  with pytest.raises(ValueError, match=f"^advance_share: {message}"):
    losses.advance_share(
      state, jnp.float32(1), progress=0, **{**OPTIONS, **options}
    )


def test_a_first_share_out_of_range_is_named():
  with pytest.raises(ValueError, match="^TeacherShare: start=-0.1; expected 0"):
    losses.TeacherShare.create(-0.1)
