"""RepBlend's outer step: every output of the released code, all cases.

In two of the three cases scores are so large that the released code's float32
sigmoid, whose steps near 1 are 1e-7, tells beside the 1e-6 in its logarithms:
its numbers are up to 2e-3 from those of the formula. With that sigmoid, and all
else in float64, they are met; with the library's loss as far as that goes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import trajectories
from tests.losses.vectors.trajectories import RATES, WAYS

CASES = golden_tools.cases("repblend__matching_step")


@jax.custom_jvp
def _sigmoid(x):
  x32 = x.astype(jnp.float32)
  return (1 / (1 + jnp.exp(-x32))).astype(x.dtype)


@_sigmoid.defjvp
def _sigmoid_jvp(primals, tangents):
  p = _sigmoid(*primals)
  return p, tangents[0] * p * (1 - p)


def _released_bce(x, s, eps=1e-6):
  p = _sigmoid(x)
  m = -s * jnp.log(p + eps) - (1 - s) * jnp.log(1 - p + eps)
  halves = (
    jnp.sum(jnp.where(which, m, 0.0)) / (jnp.sum(which) + eps)
    for which in (s > 0.5, s <= 0.5)
  )
  return sum(halves) / 2


@functools.cache
def _step(case, bce):
  """Ends, losses of the branches, gradients, all in float64."""
  a = {
    name: array.astype(np.float64) if array.dtype == np.float32 else array
    for name, array in CASES[case].items()
  }
  _, arrays = trajectories.inputs(a)
  merged = bool(a["param_merge_branches"])

  def value(arrays, merged):
    ends = trajectories.final(a, bce, **arrays)
    apart = {w: trajectories.matched(a, ends, (w,)) for w in WAYS}
    return trajectories.matched(a, ends, merged=merged), (ends, apart)

  @jax.jit
  def both(arrays):
    gradient = jax.grad(value, has_aux=True)
    found, (ends, apart) = gradient(arrays, merged)
    if merged:  # the data are trained by that loss, the rates are not
      own, _ = gradient(arrays, False)
      found |= {name: own[name] for name in RATES}
    return ends, apart, found

  with golden_tools.double_precision():
    return jax.device_get(both(jax.tree.map(jnp.asarray, arrays)))


def _compare(case, bce, rtol):
  ends, apart, gradients = _step(case, bce)
  found = {f"out_{w}_param_final": ends[w] for w in WAYS}
  found |= {f"out_{w}_match_loss": apart[w] for w in WAYS}
  found |= {f"grad_{name}": array for name, array in gradients.items()}
  outputs = {n for n in CASES[case] if n.startswith(("out_", "grad_"))}
  assert found.keys() == outputs
  for name, array in found.items():
    expected = CASES[case][name]
    atol = rtol * np.abs(expected).max()
    np.testing.assert_allclose(array, expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
  ("case", "rtol"),
  [
    ("case0", 1e-6),
    pytest.param("case1", 1e-4, marks=pytest.mark.slow),
    pytest.param("case2", 1e-6, marks=pytest.mark.slow),
  ],
)
def test_all_outputs_are_those_of_the_released_code_with_its_sigmoid(
  case, rtol
):
  _compare(case, _released_bce, rtol)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("case", "rtol"), [("case0", 2e-3), ("case1", 1e-4), ("case2", 3e-3)]
)
def test_the_exact_loss_is_as_close_as_the_released_sigmoid_is(case, rtol):
  _compare(case, losses.balanced_similarity_bce, rtol)


def test_the_cases_cover_blending_merging_and_both_similarities():
  shares = {c: a["in_blend_lambda"].min() for c, a in CASES.items()}
  merged = {bool(a["param_merge_branches"]) for a in CASES.values()}
  full = {"in_similarity" in a for a in CASES.values()}
  assert min(shares.values()) < 1
  assert max(shares.values()) == 1
  assert merged == full == {True, False}
