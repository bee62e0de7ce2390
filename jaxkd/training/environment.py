"""The machine, the software and the settings that decide the numbers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

_PACKAGES = {
  "jaxkd": "jaxkd",
  "jax": "jax",
  "jaxlib": "jaxlib",
  "flax": "flax",
  "optax": "optax",
  "orbax": "orbax-checkpoint",
  "grain": "grain",
  "numpy": "numpy",
}
# Flags that leave every number as it is: device count, threads, dumps.
_NEUTRAL_FLAGS = (
  "--xla_force_host_platform_device_count",
  "--xla_cpu_multi_thread_eigen",
  "--xla_dump",
)


def versions() -> dict[str, str]:
  """Returns the versions of the packages that decide the numbers."""
  found = {}
  for name, package in _PACKAGES.items():
    try:
      found[name] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "unknown"
  return found


def numerics() -> dict[str, Any]:
  """Returns the settings outside of the config that decide the numbers."""
  flags = os.environ.get("XLA_FLAGS", "").split()
  return {
    "x64": bool(jax.config.jax_enable_x64),
    "threefry_partitionable": bool(
      getattr(jax.config, "jax_threefry_partitionable", True)
    ),
    "default_prng_impl": str(jax.config.jax_default_prng_impl),
    "matmul_precision": jax.config.jax_default_matmul_precision,
    "xla_flags": sorted(f for f in flags if not f.startswith(_NEUTRAL_FLAGS)),
  }


def _commit() -> str:
  """The git commit of the checkout that this package runs from."""
  root = Path(__file__).resolve().parents[2]
  command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
  try:
    answer = subprocess.run(
      command, capture_output=True, text=True, timeout=10, check=True
    ).stdout.split("\n")
  except (OSError, subprocess.SubprocessError):
    return "unknown"
  return answer[1] if Path(answer[0]).resolve() == root else "unknown"


def environment() -> dict[str, Any]:
  """Describes the machine and software, for `environment.json`.

  Returns:
    A JSON tree: python, platform, package versions, devices, numeric
    settings, XLA_FLAGS, and the git commit of the checkout or "unknown".
  """
  return {
    "python": platform.python_version(),
    "platform": platform.platform(),
    "machine": platform.machine(),
    "cpus": os.cpu_count(),
    "versions": versions(),
    "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
    "process_count": jax.process_count(),
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    **numerics(),
    "commit": _commit(),
  }
