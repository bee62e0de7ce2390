"""Whatever a config holds: one ConfigError, quickly, and nothing is run."""

import os
import signal

import gin
import pytest

from jaxkd import config
from jaxkd.errors import ConfigError
from tests.config import samples

HEAD = "Experiment.method = @KD()\n"
SELF = "experiments/x.gin"

HOSTILE = {
  "import_os": "import os\n",
  "import_relative_module": "import canary\n",
  "import_as": "import os.path as p\n",
  "import_from": "from os import system\n",
  "import_in_the_middle": HEAD + "import canary\n",
  "dynamic_registration": (
    "from __gin__ import dynamic_registration\nimport os\n"
    "os.system.command = 'touch canary'\nExperiment.method = @os.system()\n"
  ),
  "include_absolute": "include '/etc/passwd'\n",
  "include_parent": "include '../outside.gin'\n",
  "include_far_parent": "include '../../../../../../etc/passwd'\n",
  "include_link": "include 'link.gin'\n",
  "include_link_folder": "include 'folder/outside.gin'\n",
  "include_self": "include 'x.gin'\n",
  "include_folder": "include 'kd'\n",
  "include_null_byte": "include 'a\\0b.gin'\n",
  "include_long_name": f"include '{'a' * 5000}.gin'\n",
  "include_device": "include '/dev/zero'\n",
  "include_url": "include 'https://example.com/x.gin'\n",
  "include_loop_of_links": "include 'loop.gin'\n",
  "include_number": "include 3\n",
  "brackets": "Experiment.note = " + "(" * 20_000 + ")" * 20_000,
  "brackets_of_dicts": "Experiment.note = " + "{1: " * 20_000,
  "brackets_over_lines": "Experiment.note = " + "[\n" * 20_000,
  "brackets_through_macros": "\n".join(
    f"M{i} = {'(' * 15}%M{i + 1}{',)' * 15}" for i in range(40)
  ),
  "bad_utf8": b"Experiment.label = '\xff\xfe'\n",
  "utf16": (HEAD * 3).encode("utf-16"),
  "huge": b"#" * 1_000_001,
  "many_tokens": "Experiment.note = [" + "1," * 400_000 + "]",
  "strings_in_a_row": "Experiment.note = " + "'a' " * 200_000,
  "null_bytes": b"Experiment.label = '\x00'\n\x00\x00",
  "binary": bytes(range(256)) * 100,
  "pickle": b"\x80\x04\x95cposix\nsystem\n(S'touch canary'\ntR.",
  "python": "__import__('os').system('touch canary')\n",
  "python_value": "Experiment.note = __import__('os').system('touch canary')",
  "python_lambda": "Experiment.note = lambda: 0\n",
  "f_string": 'Experiment.label = f\'{open("canary", "w")}\'\n',
  "arithmetic": "Experiment.steps = 9 ** 9 ** 9\n",
  "huge_number": "Experiment.steps = 0x" + "f" * 900_000,
  "huge_decimal": "Experiment.steps = " + "9" * 900_000,
  "unhashable_key": "Experiment.note = {[1]: 2}\n",
  "reference_as_key": "Experiment.note = {@KD(): 2}\n",
  "macro_of_itself": HEAD + "T = %T\nKD.temperature = %T\n",
  "macros_in_a_ring": "A = %B\nB = (%A, %A)\nExperiment.note = %A\n",
  "macros_that_double": "".join(
    f"M{i} = (%M{i + 1}, %M{i + 1})\n" for i in range(60)
  )
  + "M60 = ()\nExperiment.note = %M0\n",
  "macros_that_multiply": "".join(
    f"M{i} = ({f'%M{i + 1},' * 40})\n" for i in range(6)
  )
  + "M6 = ()\nExperiment.note = %M0\n",
  "overridden_lines_that_multiply": f"M = ({'1,' * 9000})\n"
  + f"Experiment.note = ({'%M,' * 3000})\n" * 5,
  "long_chain_of_macros": "".join(f"M{i} = %M{i + 1}\n" for i in range(3000)),
  "object_of_itself": "Experiment.controls = (@Control(),)\n"
  "Control.method = 1\nControl.children = (@Control(),)\n",
  "objects_in_a_ring": "Experiment.controls = (@a/Control(),)\n"
  "Control.method = 1\na/Control.children = (@b/Control(),)\n"
  "b/Control.children = (@a/Control(),)\n",
  "objects_that_double": "Experiment.note = @s0/Control()\n"
  "Control.method = 1\n"
  + "".join(
    f"s{i}/Control.children = (@s{i + 1}/Control(), @s{i + 1}/Control())\n"
    for i in range(20)
  ),
  "objects_that_nest": "Experiment.note = @s0/Control()\nControl.method = 1\n"
  + "".join(
    f"s{i}/Control.children = (@s{i + 1}/Control(),)\n" for i in range(2000)
  ),
  "gin_singleton": "Experiment.note = @gin.singleton()\n",
  "gin_singleton_bound": "k/gin.singleton.constructor = @KD\n"
  "Experiment.note = @k/gin.singleton()\n",
  "gin_macro": "T/gin.macro.value = 3\nExperiment.note = @T/gin.macro()\n",
  "gin_macro_short": "T/macro.value = 3\nExperiment.note = @T/macro()\n",
  "gin_constant": "Experiment.note = @gin.REQUIRED/gin.constant()\n",
  "foreign_constant": "Experiment.note = %SECRET\n",
  "foreign_configurable": "Experiment.note = @canary()\n",
  "foreign_by_module": "Experiment.note = @foreign.canary()\n",
  "foreign_binding": "canary.path = 'canary'\n",
  "builtin": "Experiment.note = @print()\n",
  "attribute": "Experiment.__class__ = 3\n",
  "dunder_init": "Experiment.__init__ = 3\n",
  "linen_parent": "Experiment.note = @MLP()\nMLP.parent = 3\n",
  "no_newline_block": "KD:",
  "block_of_nothing": "KD:\n  \nExperiment.steps = 1",
  "unfinished": "Experiment.note = (1,\n",
  "unfinished_string": "Experiment.label = 'abc\n",
  "semicolon": "Experiment.steps = 1; import os\n",
  "bad_indent": "KD:\n    weight = 1.0\n  temperature = 1.0\n",
  "many_unknown_names": "".join(f"Name{i}.x = {i}\n" for i in range(9000)),
  "many_unknown_macros": "".join(
    f"Experiment.x{i} = %M{i}\n" for i in range(7000)
  ),
  "many_scopes": "Experiment.note = @Control()\n"
  + "".join(f"s{i}/Control.method = {i}\n" for i in range(6000)),
  "deep_scope": f"{'s/' * 20_000}KD.weight = 1.0\n",
  "escape_codes": "Experiment.note = f'\x1b[2J\x1b]0;canary\x07'\n",
  "only_at": "Experiment.note = @\n",
  "only_percent": "Experiment.note = %\n",
  "only_minus": "Experiment.note = -",
}


@pytest.fixture
def two_seconds():
  """Ends a test after two seconds of this process's own time."""

  def stop(*_):
    raise TimeoutError("took more than two seconds of processor time")

  previous = signal.signal(signal.SIGVTALRM, stop)
  signal.setitimer(signal.ITIMER_VIRTUAL, 2.0)
  yield
  signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
  signal.signal(signal.SIGVTALRM, previous)


@pytest.fixture
def surroundings(experiments, monkeypatch):
  """What an attack would want: a module, a foreign function, files, links."""
  gin.external_configurable(samples.canary, module="foreign")
  monkeypatch.setattr(gin.config, "_CONSTANTS", gin.config._CONSTANTS.copy())
  gin.constant("SECRET", 1)
  experiments.write("kd/digits.gin", HEAD)
  root = experiments.root
  (root.parent / "canary.py").write_text("open('canary', 'w')")
  (root.parent / "outside.gin").write_text("Experiment.steps = 3\n")
  os.symlink(root.parent / "outside.gin", root / "link.gin")
  os.symlink(root.parent, root / "folder")
  os.symlink(root / "loop.gin", root / "loop.gin")
  monkeypatch.syspath_prepend(str(root.parent))
  return experiments


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_config_is_refused_and_runs_nothing(
  text, surroundings, two_seconds
):
  path = surroundings.write("x.gin", text)
  with pytest.raises(ConfigError) as refused:
    config.load(path)
  assert type(refused.value) is ConfigError
  assert refused.value.exit_code == 2
  for line in str(refused.value).splitlines():
    file, number, message = line.split(":", 2)
    assert file == SELF
    assert int(number) >= 1
    assert 0 < len(message) < 1100
  assert not (surroundings.root.parent / "canary").exists()


OVERRIDES = {
  "import": "import os",
  "second_line": "KD.weight=1\nimport os",
  "carriage_return": "KD.weight=1\rimport os",
  "include": "include '/etc/passwd'",
  "foreign": "Experiment.note=@canary()",
  "singleton": "Experiment.note=@gin.singleton()",
  "brackets": "Experiment.note=" + "(" * 20_000,
  "macro": "T=%T",
  "no_value": "KD.weight=",
  "no_name": "=3",
  "path": "../KD.weight=3",
}


@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES.keys())
def test_a_hostile_override_is_refused_and_runs_nothing(
  override, surroundings, two_seconds
):
  path = surroundings.write("x.gin", HEAD)
  with pytest.raises(ConfigError, match="command line:1: "):
    config.load(path, overrides=[override])
  assert not (surroundings.root.parent / "canary").exists()


@pytest.mark.parametrize(
  "path", ["", ".", "nowhere.gin", "/dev/null/x", "a\0b", "a" * 5000, "kd/"]
)
def test_a_path_that_is_no_file_is_a_config_error(path, surroundings):
  with pytest.raises(ConfigError, match="no such file"):
    config.load(path)


def test_a_file_that_cannot_be_read_is_a_config_error(experiments, monkeypatch):
  path = experiments.write("x.gin", HEAD)

  def refuse(*_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr("pathlib.Path.open", refuse)
  with pytest.raises(ConfigError, match="x.gin:1: cannot be read: Permission"):
    config.load(path)


def test_includes_that_branch_at_every_level_are_read_once(
  experiments, two_seconds
):
  for i in range(20):
    again = f"include 'f{i + 1}.gin'\n" * 2 if i < 19 else ""
    experiments.write(f"f{i}.gin", again + f"Experiment.label = '{i}'\n")
  assert config.load("experiments/f0.gin").label == "0"
