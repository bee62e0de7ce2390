"""The rules of the code base, as functions of a file's text or syntax tree.

Each returns the names or lines that break it. `test_style.py` applies them.
"""

import ast
import difflib
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxkd"
FILES = sorted(PACKAGE.rglob("*.py"))
METHODS = sorted((PACKAGE / "methods").glob("[!_]*.py"))

FILE_LINES, FUNCTION_LINES, COPIED = 400, 60, 0.10

# Files above the limit, each with what holds it together.
LONG_FILES: dict[str, str] = {
  "jaxkd/losses/__init__.py": "a list of names",
  "jaxkd/methods/repblend.py": "four kinds of training in one paper",
}
# Functions above the limit, likewise.
LONG_FUNCTIONS = dict.fromkeys(
  ("crd", "gradient_descent", "kdsvd", "sharded_divergence", "topk_divergence"),
  "two thirds are the docstring that the catalogue is made of",
)
# On top: these may import everything.
TOP = {
  "__init__",
  "__main__",
  "allocator",
  "cache",
  "cli",
  "commands",
  "doctor",
  "experiment",
  "plan",
  "result",
  "runs",
  "show",
  "studies",
}
# Whom every other room may import.
ARROWS = {
  "errors": set(),
  "extras": {"errors"},
  "losses": set(),
  "selection": {"losses"},
  "catalog": {"losses"},
  "adapters": {"errors"},
  "network": {"adapters", "errors"},
  "generation": {"network", "errors"},
  "nets": {"losses", "errors"},
  "params": {"errors"},
  "teachers": {"network", "nets", "losses", "adapters", "errors", "extras"},
  "method": {"network", "losses", "params", "errors"},
  "drawing": {"network"},
  "targets": {"losses", "method", "network", "errors"},
  "roles": {"drawing", "method", "network", "targets", "errors"},
  "schedules": {"errors"},
  "terms": {"losses", "method", "network", "roles", "schedules", "errors"},
  "methods": {
    "method",
    "network",
    "nets",
    "losses",
    "schedules",
    "selection",
    "evaluation",
    "terms",
    "errors",
  },
  "parallel": {"errors"},
  "data": {"errors", "extras"},
  "evaluation": {"errors"},
  "identity": {"errors"},
  "training": {
    "method",
    "params",
    "network",
    "roles",
    "targets",
    "losses",
    "parallel",
    "teachers",
    "data",
    "identity",
    "errors",
    "extras",
  },
  "report": {"evaluation", "errors", "extras"},
  "export": {
    "data",
    "errors",
    "evaluation",
    "experiment",
    "extras",
    "method",
    "nets",
    "network",
    "report",
    "roles",
    "teachers",
    "training",
  },
  "config": {"errors"},
}
# Single imports against an arrow, each with its reason.
AGAINST_ARROWS = {
  **{
    ("jaxkd/config/registry.py", room): "registers what the rooms show"
    for room in (
      "catalog",
      "data",
      "evaluation",
      "experiment",
      "methods",
      "nets",
      "network",
      "parallel",
      "schedules",
      "teachers",
      "terms",
    )
  },
  ("jaxkd/config/registry.py", "training"): "registers Settings and OrbaxRun",
}
BANNED_IN_METHODS = {"jit", "grad", "value_and_grad", "print", "pmap"}
BANNED_IMPORTS_IN_METHODS = {"logging", "gin", "orbax", "grain"}
UNSAFE_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "extractall", "os.system", "torch.load"}
MACHINE = re.compile(
  r"(?<![\w.~{}/:-])/(?:home|root|work|Users|mnt|workspace)/\w"
  r"|[A-Z]:\\\\?Users"
  r"|https?://[\w.-]+\.(?:internal|corp|local|lan)\b"
  r"|\b(?:artifactory|nexus|registry|mirror)[\w-]*\.[\w.-]+\.(?:com|dev|io|net)\b"
)
TEXTS = [
  path
  for pattern in ("*.md", "*.cfg", "*.toml", "*.cff", ".*.yaml", ".ci/*")
  for path in ROOT.glob(pattern)
] + [
  path
  for folder in ("jaxkd", "tests", "experiments", "colabs", "docs")
  for path in sorted((ROOT / folder).rglob("*"))
  if path.suffix in {".py", ".md", ".gin", ".ipynb", ".txt", ".html"}
  and path.name != "test_style.py"
]


def name_of(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


def parsed(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(), str(path))


def functions(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, ast.AST]]:
  """Functions and methods with dotted names; what is nested in one is its."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.ClassDef):
      yield from functions(node, f"{owner}{node.name}.")
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      yield f"{owner}{node.name}", node


def public(name: str) -> bool:
  return not any(part.startswith("_") for part in name.split("."))


def dotted(node: ast.AST) -> str:
  """`a.b.c` of a call's function; a part that is no name is left out."""
  if isinstance(node, ast.Attribute):
    return f"{dotted(node.value)}.{node.attr}".lstrip(".")
  return node.id if isinstance(node, ast.Name) else ""


def imports(tree: ast.AST) -> Iterator[str]:
  """Dotted names of what is imported; not what only type checkers import."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING":
      continue
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    yield from imports(node)


def too_long(tree: ast.AST) -> list[str]:
  return [
    f"{name} has {node.end_lineno - node.lineno + 1} lines"
    for name, node in functions(tree)
    if node.end_lineno - node.lineno >= FUNCTION_LINES
    and name not in LONG_FUNCTIONS
  ]


def undocumented(tree: ast.AST) -> list[str]:
  """Public functions and classes without docstring."""
  found = [] if ast.get_docstring(tree) else ["module"]
  classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
  named = [*functions(tree), *((node.name, node) for node in classes)]
  return found + [
    name for name, node in named if public(name) and not ast.get_docstring(node)
  ]


def unannotated(tree: ast.AST) -> list[str]:
  """Public functions with an argument or a result without type."""
  found = []
  for name, node in functions(tree):
    arguments = node.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    given += [a for a in (arguments.vararg, arguments.kwarg) if a]
    bare = [
      a.arg for a in given if not a.annotation and a.arg not in ("self", "cls")
    ]
    if public(name) and (bare or not node.returns):
      found.append(f"{name}({', '.join(bare)})")
  return found


def badly_explained_losses(tree: ast.Module) -> list[str]:
  """Losses whose docstring lacks a section; building blocks need none.

  A loss says what it needs or is a kind of divergence; `test_catalog` finds
  those that forgot to say it.
  """
  found = []
  for node in tree.body:
    text = ast.get_docstring(node) if hasattr(node, "name") else None
    sections = ["Needs", "Reference"]
    if isinstance(node, ast.FunctionDef):
      divergence = False
      sections += ["Args", "Returns"] + ["Raises"] * _can_raise(node)
    elif isinstance(node, ast.ClassDef):
      divergence = "Divergence" in [dotted(base) for base in node.bases]
    else:
      continue
    says = re.findall(r"^(\w+):", text or "", re.M)
    lacking = [section for section in sections if section not in says]
    if public(node.name) and (divergence or "Needs" in says) and lacking:
      found.append(f"{node.name} lacks {', '.join(lacking)}")
  return found


def _can_raise(node: ast.AST) -> bool:
  return any(
    isinstance(inner, ast.Raise)
    or (
      isinstance(inner, ast.Call) and dotted(inner.func).startswith("checks.")
    )
    for inner in ast.walk(node)
  )


def banned_in_methods(tree: ast.AST) -> list[str]:
  found = [
    f"import {name}"
    for name in imports(tree)
    if name.split(".")[0] in BANNED_IMPORTS_IN_METHODS
    or name.split(".")[-1] in BANNED_IN_METHODS
  ]
  for node in ast.walk(tree):
    name = dotted(node) if isinstance(node, ast.Attribute | ast.Name) else ""
    if name.split(".")[-1] in BANNED_IN_METHODS:
      found.append(f"line {node.lineno}: {name}")
    if name.endswith(("optimizer.update", "tx.update", "apply_updates")):
      found.append(f"line {node.lineno}: {name}")
  return found


def unsafe(tree: ast.AST) -> list[str]:
  """What would run code from data."""
  found = [
    f"import {name}"
    for name in imports(tree)
    if name.split(".")[0] in UNSAFE_IMPORTS
  ]
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    name = dotted(node.func)
    if any(
      name == bad or (bad == "extractall" and name.endswith(bad))
      for bad in UNSAFE_CALLS
    ):
      found.append(f"line {node.lineno}: {name}")
    found += [
      f"line {node.lineno}: {keyword.arg}"
      for keyword in node.keywords
      if keyword.arg in ("shell", "allow_pickle")
      and not (
        isinstance(keyword.value, ast.Constant) and keyword.value.value is False
      )
    ]
  return found


def against_arrows(name: str, tree: ast.AST) -> list[str]:
  """Imports of rooms that the room of the file `name` may not know."""
  room = pathlib.PurePosixPath(name).parts[1].removesuffix(".py")
  if room in TOP:
    return []
  found = set()
  for imported in imports(tree):
    parts = imported.split(".")
    if parts[0] == "jaxkd" and len(parts) > 1:
      other = parts[1]
      if other not in ARROWS[room] | {room} and (
        (name, other) not in AGAINST_ARROWS
      ):
        found.add(f"{room} imports {other}")
      if room == "methods" == other and not name.endswith("/__init__.py"):
        found.add(f"a paper imports {imported}")
  return sorted(found)


def statements(text: str) -> list[str]:
  """Stripped lines of code without comments, docstrings and imports."""
  tree = ast.parse(text)
  for node in ast.walk(tree):
    if hasattr(node, "body") and isinstance(node.body, list):
      node.body = [
        part
        for part in node.body
        if not isinstance(part, ast.Import | ast.ImportFrom)
        and not (
          isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
        )
      ] or [ast.Pass()]
  return [line.strip() for line in ast.unparse(tree).splitlines() if line]


def copied(first: str, second: str) -> float:
  """Share of the shorter of two method files that the other one repeats.

  Counted in runs of at least three statements: the single lines in common are
  the names that `Method` prescribes.
  """
  matcher = difflib.SequenceMatcher(
    None, statements(first), statements(second), autojunk=False
  )
  lines = sum(b.size for b in matcher.get_matching_blocks() if b.size >= 3)
  return lines / min(len(first.splitlines()), len(second.splitlines()))
