"""Every loss equals the official code in value and gradient.

The first check of every loss runs with the fast tests, all others are slow.
"""

import collections

import numpy as np
import pytest

from tests.losses.vectors import all_checks

ALL = tuple(all_checks())
CHECKS = {check.name: check for check in ALL}
FIRST = {check.loss: check.name for check in reversed(ALL)}
EVERY = [
  pytest.param(
    name, marks=() if name == FIRST[check.loss] else pytest.mark.slow
  )
  for name, check in CHECKS.items()
]


def test_names_of_checks_are_unique():
  names = collections.Counter(check.name for check in ALL)
  assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize("how", ["plain", "jit", "vmap"])
@pytest.mark.parametrize("name", EVERY)
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
