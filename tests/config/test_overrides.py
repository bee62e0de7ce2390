"""The command line wins over files, goes the same way, and leaves a trace."""

import pytest

from jaxkd import config
from jaxkd.errors import ConfigError

FILE = """\
include "base.gin"
Experiment.method = @KD()
Experiment.task = @Digits()
KD.weight = 0.5
KD.temperature = %TEMP
KD.student = @student/Network()
KD.teacher = @teacher/Network()
Network.module = @MLP()
"""


@pytest.fixture
def path(experiments):
  experiments.write("base.gin", "TEMP = 3.0\nKD.weight = 0.1\n")
  return experiments.write("x.gin", FILE)


def test_a_file_wins_over_what_it_includes_and_the_command_line_over_both(path):
  assert config.load(path).method.weight == 0.5
  built = config.load(path, overrides=["KD.weight = 0.7", "TEMP=5"])
  assert built.method.weight == 0.7
  assert built.method.temperature == 5


def test_an_override_can_have_a_scope(path):
  method = config.load(path, overrides=["teacher/MLP.features=(64, 10)"]).method
  assert method.teacher.module.features == (64, 10)
  assert method.student.module.features == (8, 4)


def test_an_override_can_be_a_reference(path):
  built = config.load(path, overrides=["Experiment.method=@DKD()"])
  assert type(built.method).__name__ == "DKD"


@pytest.mark.parametrize(
  ("override", "value"),
  [
    ("Digits.folder=data/av-mnist", "data/av-mnist"),
    ("Digits.folder=2024", "2024"),
    ("Digits.folder='a b'", "a b"),
    ("Digits.folder=a b", "a b"),
    ("Digits.folder=/data/#1", "/data/#1"),
    ("Digits.folder=a=b", "a=b"),
    ("Digits.folder=None", None),
    ("Digits.folder=%FOLDER", "there"),
  ],
)
def test_a_word_without_quotes_is_a_string_where_one_is_expected(
  override, value, path
):
  overrides = [override]
  if "%" in override:
    overrides.append("FOLDER=there")
  assert config.load(path, overrides=overrides).task.folder == value


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("KD.mode=sfot", "KD.mode: expected one of .*, did you mean soft?"),
    ("KD.weight=fast", r"KD.weight: expected float, got 'fast' \(str\)"),
    ("KD.wieght=3", "KD.wieght: no such parameter, did you mean weight?"),
    ("DKD.alpha=3", "DKD.alpha: has no effect, as nothing refers to @DKD"),
    ("TEMPS=3", "TEMPS: no binding uses this macro, did you mean TEMP?"),
    (
      "studnt/MLP.features=(1,)",
      ".*: no reference has the scope 'studnt', did",
    ),
    ("KD.weight=@Nothing()", "KD.weight: no such name @Nothing"),
    ("KD.weight=(1", "KD.weight: syntax error: EOF"),
    ("KD.weight", "'KD.weight': expected Name.parameter=value or MACRO=value"),
  ],
)
def test_an_override_is_checked_like_a_line_of_a_file(override, message, path):
  with pytest.raises(ConfigError, match=f"^command line:2: {message}"):
    config.load(path, overrides=["TEMP=1", override])


def test_the_same_override_twice_is_an_error(path):
  with pytest.raises(ConfigError) as error:
    config.load(path, overrides=["KD.weight=1", "KD.weight=2"])
  assert str(error.value) == (
    "command line:2: KD.weight: bound twice, first as override 1"
  )


def test_each_value_says_where_it_comes_from_and_what_it_replaced(path):
  resolved = config.resolve(path, ["TEMP=5"])
  found = {(e.name, e.parameter): e for e in resolved.entries}
  weight = found["KD", "weight"]
  assert (weight.value, weight.file, weight.line) == (
    "0.5",
    "experiments/x.gin",
    4,
  )
  assert weight.overridden == "was 0.1 in experiments/base.gin:2"
  macro = found["TEMP", ""]
  assert (macro.file, macro.line) == ("command line", 1)
  assert macro.overridden == "was 3.0 in experiments/base.gin:1"
  assert found["Network", "module"].overridden is None


def test_the_resolved_text_is_the_config_with_its_origins(path):
  assert config.resolve(path, ["KD.temperature=2"]).text() == (
    """\
TEMP = 3.0  # experiments/base.gin:1, not used: its consumer was overridden

Experiment.method = @KD()  # experiments/x.gin:2
Experiment.task = @Digits()  # experiments/x.gin:3

KD.student = @student/Network()  # experiments/x.gin:6
KD.teacher = @teacher/Network()  # experiments/x.gin:7
KD.temperature = 2  # command line:1, was %TEMP in experiments/x.gin:5
KD.weight = 0.5  # experiments/x.gin:4, was 0.1 in experiments/base.gin:2

Network.module = @MLP()  # experiments/x.gin:8
"""
  )


def test_what_an_override_leaves_without_consumer_is_no_error(path):
  overrides = ["Experiment.method=@DKD()"]
  resolved = config.resolve(path, overrides)
  unused = {f"{e.name}.{e.parameter}" for e in resolved.entries if not e.used}
  assert "KD.weight" in unused
  assert "Experiment.task" not in unused
  assert config.operative_text(resolved) == (
    "Experiment.method = @DKD()\nExperiment.task = @Digits()\n"
  )
