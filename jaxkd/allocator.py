"""The C library's allocator, told to keep what is freed for the next step.

XLA takes memory for a step's temporary arrays at every call on a CPU. What is
larger than 32 MiB glibc gets from the system and gives back when it is freed,
so that every step pays a page fault for each 4 KiB of it. What it keeps instead
is what a process had at its peak.
"""

import ctypes
import os

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_OWN = ("GLIBC_TUNABLES", "MALLOC_")  # a user who sets these knows better


def keep() -> bool:
  """Has freed memory kept for this process; to be called before JAX starts.

  Threads share one heap, since those of others have no more than 64 MiB.

  Returns:
    Whether it is so: not under a C library other than glibc, nor where the
    environment configures the allocator.
  """
  if any(name.startswith(_OWN) for name in os.environ):
    return False
  try:
    configure = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False
  options = {
    _MMAP_THRESHOLD: 2**30,
    _TRIM_THRESHOLD: 2**31 - 1,
    _ARENA_MAX: 1,
  }
  return all([configure(option, value) for option, value in options.items()])
