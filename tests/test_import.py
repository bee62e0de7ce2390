"""What importing jaxkd and asking for help load: little, and from no network.

Every claim is tested in a process of its own.
"""

import importlib
import pathlib
import pkgutil
import subprocess
import sys
import textwrap

import pytest

import jaxkd
from jaxkd import extras

ROOT = pathlib.Path(__file__).parents[1]
HEAVY = (
  "gin",
  "grain",
  "matplotlib",
  "orbax",
  "tensorflow",
  "tensorflow_datasets",
  "torch",
)
ROOMS = sorted(
  path.parent.relative_to(ROOT).as_posix().replace("/", ".")
  for path in (ROOT / "jaxkd").rglob("__init__.py")
)
# Optional packages: of the extras, and of the frameworks beside JAX.
OPTIONAL = sorted(
  {m.split(".")[0] for extra in extras.EXTRAS.values() for m in extra.modules}
  | {"tensorflow_datasets", "tensorboard", "sklearn", "IPython"}
)


def python(*arguments: str) -> str:
  """Runs a Python of its own in the repository; returns what it printed."""
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def run(code: str) -> str:
  return python("-c", textwrap.dedent(code))


def test_importing_jaxkd_loads_nothing_heavy():
  code = f"import sys, jaxkd; print({set(HEAVY)} & set(sys.modules))"
  assert run(code).strip() == "set()"


@pytest.mark.parametrize("room", ["losses", "method", "methods", "nets"])
def test_what_a_loss_or_a_method_needs_loads_nothing_heavy(room):
  code = f"import sys, jaxkd.{room}; print({set(HEAVY)} & set(sys.modules))"
  assert run(code).strip() == "set()"


def test_importing_every_room_opens_no_connection():
  run(
    f"""
    import importlib
    import socket

    def refuse(*arguments, **options):
      raise RuntimeError("a connection")

    for name in ("connect", "connect_ex", "sendto"):
      setattr(socket.socket, name, refuse)
    socket.getaddrinfo = socket.create_connection = refuse
    for room in {ROOMS}:
      importlib.import_module(room)
    """
  )


def test_help_imports_no_jax():
  printed = run(
    """
    import contextlib
    import sys

    from jaxkd import cli

    with contextlib.suppress(SystemExit):
      cli.main(["--help"])
    print({"jax", "flax", "numpy"} & set(sys.modules))
    """
  )
  assert "usage: jaxkd" in printed
  assert printed.splitlines()[-1] == "set()"


def test_the_package_runs_as_a_module():
  assert "usage: jaxkd" in python("-m", "jaxkd", "--help")
  assert jaxkd.__version__ in python("-m", "jaxkd", "--version")


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_resolves(room):
  module = importlib.import_module(room)
  for name in getattr(module, "__all__", ()):
    assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'teapot'"):
    _ = jaxkd.teapot


def test_every_module_is_importable_without_the_extras():
  modules = [
    info.name
    for info in pkgutil.walk_packages(jaxkd.__path__, "jaxkd.")
    if info.name != "jaxkd.__main__"
  ]
  assert "jaxkd.methods.mst_distill" in modules
  run(
    f"""
    import importlib
    import sys

    for name in {OPTIONAL}:
      sys.modules[name] = None  # importing it raises ImportError
    for module in {modules}:
      importlib.import_module(module)
    """
  )
