"""What this machine offers to jaxkd, as text to paste into a question.

Nothing here imports an optional package: presence is looked up, not tried. The
home directory is written `~`.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
from typing import Any

from jaxkd import extras

PACKAGES = (
  "jaxkd",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
  "gin-config",
  "chex",
  "tensorboardX",
  "safetensors",
  "tensorflow-datasets",
  "protobuf",
)
PLUGINS = (
  "jax-cuda12-plugin",
  "jax-cuda12-pjrt",
  "jax-cuda13-plugin",
  "jax-cuda13-pjrt",
)


def diagnose() -> dict[str, Any]:
  """Returns what `doctor` prints.

  Returns:
    A dict of plain values: `python`, `system`, `packages` (name -> version or
    None), `devices`, `plugins` (name -> verdict), `compile_cache`, `tfds`,
    `gcsfs`, and `extras` (name -> {"gives", "present", "missing"}).
  """
  packages = {name: _version(name) for name in PACKAGES}
  return {
    "python": platform.python_version(),
    "system": f"{platform.system()} {platform.release()}"
    f" {platform.machine()}, {os.cpu_count()} CPUs",
    "packages": packages,
    "devices": _devices(),
    "plugins": _plugins(packages["jaxlib"]),
    "compile_cache": _compile_cache(),
    "tfds": _tfds(packages),
    "gcsfs": "ok" if _found("gcsfs") else "not installed: no gs:// folders",
    "extras": {name: _extra(extra) for name, extra in extras.EXTRAS.items()},
  }


def doctor() -> str:
  """Returns the diagnosis as plain text, a line a fact."""
  facts = diagnose()
  lines = [
    f"python         {facts['python']}",
    f"system         {facts['system']}",
    f"devices        {facts['devices']}",
    f"compile cache  {facts['compile_cache']}",
    f"TFDS           {facts['tfds']}",
    f"gcsfs          {facts['gcsfs']}",
  ]
  lines += [f"{name:14} {text}" for name, text in facts["plugins"].items()]
  lines += ["", "packages"]
  lines += [
    f"  {name:20} {version or 'not installed'}"
    for name, version in facts["packages"].items()
  ]
  lines += ["", 'extras (pip install "jaxkd[NAME]")']
  for name, extra in facts["extras"].items():
    state = "yes" if extra["present"] else "no "
    missing = ", ".join(extra["missing"])
    tail = f" (missing: {missing})" if missing else ""
    lines.append(f"  {name:8} {state}  {extra['gives']}{tail}")
  return hide_home("\n".join(lines)) + "\n"


def hide_home(text: str) -> str:
  """Returns the text with the home directory written `~`."""
  home = str(pathlib.Path.home())
  return text.replace(home, "~") if len(home) > 1 else text


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _found(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except (ImportError, ValueError):
    return False


def _extra(extra: extras.Extra) -> dict[str, Any]:
  missing = [module for module in extra.modules if not _found(module)]
  return {"gives": extra.gives, "present": not missing, "missing": missing}


def _devices() -> str:
  """Returns how many devices of which kind jax sees, or why none."""
  try:
    import jax

    devices = jax.devices()
  except Exception as error:  # a broken install is what doctor is asked about
    return f"none: {type(error).__name__}: {_first_line(error)}"
  kinds = [f"{d.platform} ({d.device_kind})" for d in devices]
  return ", ".join(f"{kinds.count(k)} x {k}" for k in dict.fromkeys(kinds))


def _plugins(jaxlib: str | None) -> dict[str, str]:
  """Returns a verdict on each accelerator plugin that is installed."""
  verdicts = {}
  for name in PLUGINS:
    version = _version(name)
    if version is None:
      continue
    verdicts[name] = version
    if version != jaxlib:
      cuda = name.split("-")[1]
      verdicts[name] += (
        f": does not match jaxlib {jaxlib} and is not used;"
        f' pip install "jaxkd[{cuda}]"'
      )
  if (version := _version("libtpu")) is not None:
    verdicts["libtpu"] = version
  return verdicts or {"plugins": "no CUDA or TPU plugin"}


def _compile_cache() -> str:
  """Returns where compiled programs are kept and whether that is private."""
  if os.environ.get("JAXKD_CACHE") == "0":
    return "off (JAXKD_CACHE=0)"
  try:
    import jax

    configured = jax.config.jax_compilation_cache_dir
  except ImportError:
    configured = None
  path = pathlib.Path(
    configured
    or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    or pathlib.Path.home() / ".cache" / "jaxkd"
  )
  if "://" in str(configured):
    return f"{configured} (remote, not looked at)"
  if not path.is_dir():
    return f"{path} (made at first use)"
  state = path.stat()
  if hasattr(os, "getuid") and state.st_uid != os.getuid():
    return f"{path} (belongs to another user, not used)"
  if os.name == "posix" and state.st_mode & 0o077:
    mode = f"{state.st_mode & 0o777:o}"
    what = (
      "writable by others, not used"
      if state.st_mode & 0o022
      else ("readable by others")
    )
    return f"{path} ({what}, mode {mode}: chmod 700 it)"
  return f"{path} (private)"


def _tfds(packages: dict[str, str | None]) -> str:
  """Returns "ok" or why TensorFlow Datasets would not import."""
  if packages["tensorflow-datasets"] is None:
    return "not installed: pip install tensorflow-datasets"
  if not _found("importlib_resources"):
    return "needs importlib_resources: pip install importlib_resources"
  try:  # generated code; it checks the version of protobuf, and needs no TF
    importlib.import_module("tensorflow_metadata.proto.v0.schema_pb2")
  except Exception as error:  # protobuf raises a class of its own
    return (
      f"does not import with protobuf {packages['protobuf']}"
      f' ({_first_line(error)}): pip install "protobuf>=6.31.1"'
    )
  return "ok"


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]
