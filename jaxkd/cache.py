"""JAX's compilation cache, on by default in the user's own cache folder.

Programs in the cache are run as they are, so only a folder that nobody else
can write to is used.
"""

import logging
import os
import pathlib
import stat

import jax

logger = logging.getLogger("jaxkd")


def enable() -> None:
  """Turns the cache on unless the user configured it or switched it off.

  `JAX_COMPILATION_CACHE_DIR` names another folder; `JAXKD_CACHE=0` switches
  the cache off.
  """
  if os.environ.get("JAXKD_CACHE") == "0":
    return
  configured = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  folder = pathlib.Path(configured or pathlib.Path.home() / ".cache" / "jaxkd")
  if "://" not in str(folder) and not _private(folder):
    logger.warning(
      "compilation cache %s can be written by others and is not used: "
      "chmod 700 it",
      folder,
    )
    jax.config.update("jax_enable_compilation_cache", False)
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _private(folder: pathlib.Path) -> bool:
  """Makes the folder if needed; returns whether only this user may write."""
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
  except OSError:
    return False
  foreign = hasattr(os, "getuid") and state.st_uid != os.getuid()
  return not foreign and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
