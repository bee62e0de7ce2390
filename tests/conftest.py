"""Eight virtual CPU devices, quick compilation, strict ranks, no luck.

What JAX reads from the environment is set before anything imports it, and
reaches the processes that tests start.
"""

import gc
import os

import hypothesis

# LLVM's optimisations of thousands of small programs take a quarter of the
# suite's time; `XLA_FLAGS=--xla_backend_optimization_level=3` has them.
FLAGS = {
  "--xla_force_host_platform_device_count": 8,
  "--xla_backend_optimization_level": 0,
}

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for name, value in FLAGS.items():
  given = os.environ.get("XLA_FLAGS", "")
  if name not in given:
    os.environ["XLA_FLAGS"] = f"{given} {name}={value}"
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

hypothesis.settings.register_profile(
  "jaxkd", derandomize=True, deadline=None, database=None
)
hypothesis.settings.load_profile("jaxkd")

# Compiled programs and their traces are millions of objects that live long:
# looking through them for cycles takes a seventh of the suite's time.
gc.set_threshold(10_000, 50, 100)


def pytest_configure(config):
  """Keeps compiled programs under pytest's cache, for this user alone."""
  cached = hasattr(config, "cache")  # not with -p no:cacheprovider
  if cached and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = config.cache.mkdir("jax")
    folder.chmod(0o700)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
