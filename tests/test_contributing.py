"""The worked example of CONTRIBUTING.md is true: it is taken out and run."""

import ast
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests import style

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)```", TEXT, re.S))
METHOD = "jaxkd/methods/logit_matching.py"
TEST = "tests/methods/test_logit_matching.py"
COMMANDS = re.search(r"Rehearse it.*?```bash\n(.*?)```", TEXT, re.S)[1]
EXPORT = """
from jaxkd.methods.logit_matching import LogitMatching

__all__ += ["LogitMatching"]
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  """A copy of the repository with the example in it."""
  folder = tmp_path_factory.mktemp("repository")
  ignore = shutil.ignore_patterns("__pycache__")
  for name in ("jaxkd", "experiments"):
    shutil.copytree(ROOT / name, folder / name, ignore=ignore)
  for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / name, folder / name)
  for name, text in FILES.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
  with (folder / "jaxkd/methods/__init__.py").open("a") as file:
    file.write(EXPORT)
  return folder


def run(module: str, *arguments: str, folder: pathlib.Path) -> str:
  done = subprocess.run(
    [sys.executable, "-m", module, *arguments],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": str(folder)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=500,
    check=False,
  )
  assert done.returncode == 0, done.stdout
  return done.stdout


def test_the_example_has_a_method_an_experiment_and_a_test():
  assert list(FILES) == [
    METHOD,
    "experiments/logit_matching/av_digits.gin",
    TEST,
  ]


def test_the_example_keeps_the_rules_of_a_method():
  method = ast.parse(FILES[METHOD])
  assert not style.against_arrows(METHOD, method)
  assert not style.banned_in_methods(method)
  assert not style.too_long(method)
  assert not style.undocumented(method)
  for path in style.METHODS:
    shared = style.copied(FILES[METHOD], path.read_text())
    assert shared <= style.COPIED


def test_the_example_passes_format_and_lint(tree):
  pytest.importorskip("ruff")
  python = [name for name in FILES if name.endswith(".py")]
  run("ruff", "format", "--check", *python, folder=tree)
  run("ruff", "check", *python, folder=tree)


def test_the_example_is_listed_by_its_first_line(tree):
  assert re.search(
    r"LogitMatching +Regression of the teacher's logits",
    run("jaxkd", "list", folder=tree),
  )


@pytest.mark.slow  # a run and its tests, in processes of their own
@pytest.mark.parametrize("command", COMMANDS.splitlines())
def test_the_commands_of_the_example_run(tree, command):
  module, *arguments = shlex.split(command)
  if module == "pytest":
    assert "3 passed" in run(module, *arguments, folder=tree)
  else:
    printed = run(module, *arguments, folder=tree)
    assert "LogitMatching on av_digits" in printed
    assert "no_kd/student" in printed
