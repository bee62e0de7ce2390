"""The rules of the code base hold, and each of them can fail."""

import ast
import itertools

import pytest

from tests import style
from tests.style import FILES, METHODS, PACKAGE, ROOT, name_of, parsed

BROKEN = {
  style.too_long: "def f():\n" + "  x = 1\n" * 60,
  style.undocumented: '"""D."""\nclass A:\n  """A."""\n  def f(self): pass\n',
  style.unannotated: "def f(x: int, *, y=1) -> int: return x\n",
  style.badly_explained_losses: (
    'def f(student) -> Array:\n  """A.\n\n  Args:\n  Needs: a.\n  """\n'
  ),
  style.banned_in_methods: "import jax\nstep = jax.jit(lambda x: x)\n",
  style.unsafe: "import numpy as np\nnp.load('x', allow_pickle=True)\n",
}


@pytest.mark.parametrize("rule", BROKEN, ids=lambda rule: rule.__name__)
def test_a_rule_finds_what_breaks_it(rule):
  assert len(rule(ast.parse(BROKEN[rule]))) == 1


@pytest.mark.parametrize(
  "code",
  [
    "import pickle",
    "from pickle import loads",
    "eval('1')",
    "import tarfile\ntarfile.open('x').extractall()",
    "import torch\ntorch.load('x')",
    "run('ls', shell=True)",
    "run('ls', shell=flag)",
  ],
)
def test_code_from_data_is_found_in_every_form(code):
  assert style.unsafe(ast.parse(code))


def test_an_import_against_the_arrows_is_found():
  tree = ast.parse("def f():\n  from jaxkd import training\n")
  assert style.against_arrows("jaxkd/methods/kd.py", tree)
  assert style.against_arrows(
    "jaxkd/losses/x.py", ast.parse("import jaxkd.nets")
  )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
  lines = len(path.read_text().splitlines())
  assert lines <= style.FILE_LINES or name_of(path) in style.LONG_FILES
  assert not style.too_long(parsed(path))


def test_every_room_has_its_arrows():
  rooms = {path.stem for path in PACKAGE.glob("*.py")}
  rooms |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
  assert rooms == style.ARROWS.keys() | style.TOP


def test_every_exception_is_still_needed():
  for name in style.LONG_FILES:
    assert len((ROOT / name).read_text().splitlines()) > style.FILE_LINES
  for name, room in style.AGAINST_ARROWS:
    assert any(
      imported.split(".")[:2] == ["jaxkd", room]
      for imported in style.imports(parsed(ROOT / name))
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_public_has_a_docstring(path):
  assert not style.undocumented(parsed(path))


# A method file is read beside its paper: the signatures of losses, phases and
# predictions are those of `jaxkd.method`.
@pytest.mark.parametrize(
  "path", [p for p in FILES if p not in METHODS], ids=name_of
)
def test_public_functions_are_annotated(path):
  assert not style.unannotated(parsed(path))


@pytest.mark.parametrize(
  "path", sorted((PACKAGE / "losses").glob("[!_]*.py")), ids=name_of
)
def test_losses_say_what_they_take_return_and_compute(path):
  assert not style.badly_explained_losses(parsed(path))


@pytest.mark.parametrize(
  ("code", "lacking"),
  [
    ('def f(x):\n  """Needs a docstring only."""', None),
    (
      'def f(z):\n  """A.\n\n  Args:\n  Returns:\n  Needs: z.\n  """',
      "f lacks Reference",
    ),
    (
      'def f(student) -> Array:\n  """A.\n\n  Args:\n  Returns:\n  Needs: z.'
      '\n  Reference: B.\n  """\n  checks.temperature("f", 1)',
      "f lacks Raises",
    ),
    (
      'class D(Divergence):\n  """D.\n\n  Needs: z.\n  """',
      "D lacks Reference",
    ),
    ('class TopK:\n  """No loss."""', None),
  ],
)
def test_what_a_loss_has_to_say_depends_on_what_it_is(code, lacking):
  found = style.badly_explained_losses(ast.parse(code))
  assert found == ([lacking] if lacking else [])


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_methods_leave_compiling_and_training_to_the_trainer(path):
  assert not style.banned_in_methods(parsed(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_the_arrows(path):
  assert not style.against_arrows(name_of(path), parsed(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_runs_code_from_data(path):
  assert not style.unsafe(parsed(path))


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_copied_method_is_found(path):
  text = path.read_text()
  assert style.copied(text, text.replace("student", "pupil")) > style.COPIED


@pytest.mark.parametrize(
  ("first", "second"),
  itertools.combinations(METHODS, 2),
  ids=lambda path: path.stem,
)
def test_no_paper_is_a_copy_of_another(first, second):
  assert style.copied(first.read_text(), second.read_text()) <= style.COPIED


@pytest.mark.parametrize(
  "text",
  [
    "open('/home/ada/x')",
    "see /Users/ada",
    "C:\\Users\\ada",
    "http://pypi.corp/simple",
    "--index-url https://registry.example.com/simple",
  ],
)
def test_a_machine_is_recognised(text):
  assert style.MACHINE.search(text)


def test_no_text_names_a_machine():
  found = [
    f"{name_of(path)}: {match.group()}"
    for path in style.TEXTS
    if (match := style.MACHINE.search(path.read_text()))
  ]
  assert not found
