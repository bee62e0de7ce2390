"""Memory that is freed is kept, unless the user configures the allocator."""

import os
import platform
import subprocess
import sys

import pytest

TRIALS, MEBIBYTES = 20, 64
CODE = f"""
import resource, sys
import numpy as np
from jaxkd import allocator
if sys.argv[1] == "keep":
  print(allocator.keep(), end=" ")
for _ in range({TRIALS}):
  np.ones({MEBIBYTES} << 17)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""

pytestmark = pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="only glibc is configured"
)


def _printed(argument: str, **variables: str) -> list[str]:
  clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
  done = subprocess.run(
    [sys.executable, "-c", CODE, argument],
    env={**clean, **variables},
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.split()


def test_arrays_of_every_step_lie_where_those_of_the_last_one_did():
  (often,) = _printed("leave")
  kept, once = _printed("keep")
  assert kept == "True"
  # As many pages as before in the first of the trials, and none in the others;
  # a page has 4 KiB at least, and may be a huge one.
  assert int(once) < int(often) / 2


def test_the_users_configuration_stays():
  kept, _ = _printed("keep", MALLOC_ARENA_MAX="2")
  assert kept == "False"
