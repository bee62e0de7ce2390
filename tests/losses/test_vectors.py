"""Every loss equals the official code in value and gradient.

The first check of every loss runs, compiled, with the fast tests; all of them,
compiled, plainly and under vmap, with the slow ones.
"""

import collections

import numpy as np
import pytest

from tests.losses.vectors import all_checks

ALL = tuple(all_checks())
CHECKS = {check.name: check for check in ALL}
FIRST = {check.loss: check.name for check in reversed(ALL)}
HOWS = ("jit", "plain", "vmap")
EVERY = [
  pytest.param(
    name,
    how,
    marks=() if (name, how) == (FIRST[check.loss], "jit") else pytest.mark.slow,
  )
  for name, check in CHECKS.items()
  for how in HOWS
]


def test_names_of_checks_are_unique():
  names = collections.Counter(check.name for check in ALL)
  assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize(("name", "how"), EVERY)
def test_value_and_gradients_equal_the_reference(name, how):
  check = CHECKS[name]
  if how == "vmap" and not check.batched:
    pytest.skip("runs on the host or draws its shapes from values")
  value, gradients = check.run(how)
  np.testing.assert_allclose(
    value, check.value, rtol=check.rtol, atol=check.atol
  )
  for argument, expected in check.gradients.items():
    np.testing.assert_allclose(
      gradients[argument],
      expected,
      rtol=check.gradient_rtol,
      atol=check.gradient_atol,
      err_msg=argument,
    )
