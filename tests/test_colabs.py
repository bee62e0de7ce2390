"""The notebooks: short, without outputs, made from their scripts, and running.

`jupytext --to ipynb colabs/NAME.py` makes a notebook.
"""

import ast
import pathlib

import pytest

pytest.importorskip("jupytext", reason="the notebooks' tools: the extra dev")
import jupytext
import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parents[1] / "colabs"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: pathlib.Path) -> nbformat.NotebookNode:
  return nbformat.read(path, as_version=4)


def test_every_script_has_its_notebook():
  assert [p.stem for p in NOTEBOOKS] == [
    p.stem for p in sorted(FOLDER.glob("*.py"))
  ]
  assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_what_its_script_makes(path):
  made = jupytext.read(path.with_suffix(".py"))
  stored = read(path)
  assert [(c.cell_type, c.source) for c in stored.cells] == [
    (c.cell_type, c.source) for c in made.cells
  ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_stores_no_output(path):
  cells = read(path).cells
  assert len(cells) <= 12
  for cell in cells:
    assert not cell.get("outputs")
    assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing_that_the_package_lacks(path):
  tree = ast.parse(path.with_suffix(".py").read_text())
  kinds = ast.FunctionDef | ast.ClassDef
  assert not [node for node in ast.walk(tree) if isinstance(node, kinds)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_pictures_and_a_table(path, tmp_path):
  notebook = read(path)
  resources = {"metadata": {"path": str(tmp_path)}}
  nbclient.NotebookClient(
    notebook, timeout=600, kernel_name="python3", resources=resources
  ).execute()
  shown = [
    kind
    for cell in notebook.cells
    for output in cell.get("outputs", ())
    for kind in output.get("data", ())
  ]
  assert "image/png" in shown
  assert "text/markdown" in shown
