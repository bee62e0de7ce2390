"""Every mistake is named with its file, its line and the nearest valid name."""

import pytest

from jaxkd import config
from jaxkd.errors import ConfigError

HAS_KD = (
  "(has student=None, teacher=None, temperature=4.0, weight=0.9, mode='soft')"
)
HEAD = "Experiment.method = @KD()"

# Name of the mistake: (third line of the file, what is said of it).
MISTAKES = {
  "parameter": (
    "KD.temperatur = 2.0",
    f"KD.temperatur: no such parameter, did you mean temperature? {HAS_KD}",
  ),
  "name": ("KDD.alpha = 2.0", "KDD.alpha: no such name KDD, did you mean KD?"),
  "name_with_module": (
    "jaxkd.samples.KD.weight = 1.0",
    "jaxkd.samples.KD.weight: no such name jaxkd.samples.KD, did you mean KD?",
  ),
  "reference": (
    "Experiment.task = @Digit()",
    "Experiment.task: no such name @Digit, did you mean Digits?",
  ),
  "reference_in_a_tuple": (
    "Experiment.note = [1, {'a': (@Digit(),)}]",
    "Experiment.note: no such name @Digit, did you mean Digits?",
  ),
  "scope": (
    "student/KD.weight = 1.0",
    "student/KD.weight: no reference has the scope 'student' (has none)",
  ),
  "macro_undefined": (
    "KD.weight = %WEIGHT",
    "KD.weight: %WEIGHT: no such macro (has none)",
  ),
  "macro_unused": (
    "WEIGHT = 2.0",
    "WEIGHT: no binding uses this macro (has none)",
  ),
  "macro_in_lower_case": (
    "weight = 2.0",
    "weight: neither Name.parameter nor a macro, whose name is UPPER_CASE",
  ),
  "macro_with_a_scope": ("a/WEIGHT = 2.0", "a/WEIGHT: a macro has no scope"),
  "macro_with_a_registered_name": (
    "DKD = 2.0",
    "DKD: is bound by its parameters (has alpha=1.0, beta=8.0)",
  ),
  "macro_of_itself": (
    "WEIGHT = (%WEIGHT,)",
    "WEIGHT: refers to itself (WEIGHT -> WEIGHT)",
  ),
  "required": (
    "KD.weight = %gin.REQUIRED",
    "KD.weight: is %gin.REQUIRED and must be bound by this config",
  ),
  "missing_parameter": (
    "Experiment.note = @Control()",
    "Experiment.note: @Control() needs method, which nothing binds",
  ),
  "unused": (
    "DKD.alpha = 2.0",
    "DKD.alpha: has no effect, as nothing refers to @DKD()",
  ),
  "unused_in_a_scope": (
    "Experiment.note = (@a/KD(), @DKD())\na/DKD.alpha = 2.0",
    "a/DKD.alpha: has no effect, as nothing refers to @a/DKD()",
  ),
  "passed_and_bound": (
    "Experiment.note = @DKD\nDKD.alpha = 2.0",
    "DKD.alpha: has no effect, as @DKD is passed without a call",
  ),
  "passed_with_a_scope": (
    "Experiment.note = @a/DKD",
    "Experiment.note: @a/DKD: has a scope and no call; write @a/DKD()",
  ),
  "string_for_float": (
    "KD.weight = '4'",
    "KD.weight: expected float, got '4' (str)",
  ),
  "list_for_tuple": (
    "Experiment.seeds = [1, 2]",
    "Experiment.seeds: expected tuple[int, ...], got [1, 2] (list);"
    " write (1, 2)",
  ),
  "literal": (
    "KD.mode = 'sfot'",
    "KD.mode: expected one of 'soft', 'hard', got 'sfot' (str),"
    " did you mean soft?",
  ),
  "class_of_a_reference": (
    "Experiment.task = @DKD()",
    "Experiment.task: expected Digits or None, got @DKD()",
  ),
  "class_for_an_object": (
    "Experiment.task = @Digits",
    "Experiment.task: expected Digits or None, got @Digits (the class itself;"
    " @Digits() builds one)",
  ),
  "bound_twice": (
    "KD.weight = 0.1\nKD.weight = 0.2",
    "KD.weight: bound twice in one file, first in line 3",
  ),
  "include_below": (
    "include 'kd/base.gin'",
    "include 'kd/base.gin': must come before the first binding (line 2),"
    " which it would override",
  ),
  "syntax": (
    "KD.weight 3",
    "syntax error: Couldn't parse statement, expected ':' or '='.",
  ),
  "no_quotes": ("KD.mode = soft", "syntax error: soft: a string needs quotes"),
}


@pytest.mark.parametrize(
  ("text", "message"), MISTAKES.values(), ids=MISTAKES.keys()
)
def test_a_mistake_is_said_with_file_and_line(text, message, experiments):
  experiments.write("kd/base.gin", "# empty\n")
  path = experiments.write("kd/digits.gin", f"# head\n{HEAD}\n{text}\n")
  with pytest.raises(ConfigError) as error:
    config.resolve(path)
  line = 3 + text.count("\n")
  assert str(error.value) == f"experiments/kd/digits.gin:{line}: {message}"


def test_all_mistakes_are_said_at_once_in_the_order_of_the_lines(experiments):
  experiments.write("base.gin", "KD.mode = 'sfot'\n")
  path = experiments.write(
    "x.gin",
    """
    include "base.gin"
    import os
    Experiment.method = @KDD()
    KD.weight = '4'
    KD.temperatur = 1.0
    """,
  )
  with pytest.raises(ConfigError) as error:
    config.resolve(path, ["KD.wieght=1", "KD.weight"])
  places = [line.split(": ")[0] for line in str(error.value).splitlines()]
  assert places == [
    "experiments/x.gin:3",
    "experiments/x.gin:4",
    "experiments/x.gin:5",
    "experiments/x.gin:6",
    "experiments/base.gin:1",
    "command line:1",
    "command line:2",
  ]


def test_a_misspelt_scope_names_the_nearest(experiments):
  path = experiments.write(
    "x.gin",
    """\
    Experiment.method = @KD()
    KD.student = @student/Network()
    KD.teacher = @teacher/Network()
    Network.module = @MLP()
    studnt/MLP.features = (3,)
    """,
  )
  with pytest.raises(ConfigError) as error:
    config.load(path)
  assert str(error.value) == (
    "experiments/x.gin:5: studnt/MLP.features: no reference has the scope"
    " 'studnt', did you mean student? (has student, teacher)"
  )


def test_a_macro_is_checked_where_it_is_used_and_its_place_is_named(
  experiments,
):
  path = experiments.write(
    "x.gin", f"T = 'hot'\n{HEAD}\nKD.temperature = %T\nKD.weight = %T\n"
  )
  with pytest.raises(ConfigError) as error:
    config.load(path)
  assert str(error.value).splitlines() == [
    f"experiments/x.gin:{line}: KD.{name}: expected float, got 'hot' (str)"
    " (%T is bound in experiments/x.gin:1)"
    for line, name in ((3, "temperature"), (4, "weight"))
  ]


def test_an_undefined_macro_names_the_nearest(experiments):
  path = experiments.write(
    "x.gin",
    f"{HEAD}\nTEMP = 2\nKD.temperature = %TMEP\nKD.weight = %TEMP\n",
  )
  with pytest.raises(ConfigError, match="x.gin:3: .*TMEP.*did you mean TEMP"):
    config.load(path)


def test_a_required_value_can_come_from_anywhere_above(experiments):
  experiments.write("base.gin", "WEIGHT = %gin.REQUIRED\nKD.weight = %WEIGHT\n")
  path = experiments.write(
    "x.gin", f"include 'base.gin'\n{HEAD}\nWEIGHT = 0.5\n"
  )
  assert config.load(path).method.weight == 0.5


def test_a_required_macro_that_nothing_binds_is_said_where_it_stands(
  experiments,
):
  experiments.write("base.gin", "WEIGHT = %gin.REQUIRED\nKD.weight = %WEIGHT\n")
  path = experiments.write("x.gin", f"include 'base.gin'\n{HEAD}\n")
  with pytest.raises(ConfigError, match=r"^experiments/base.gin:1: WEIGHT: is"):
    config.load(path)


def test_the_root_must_be_registered_and_complete(experiments):
  path = experiments.write("x.gin", "Experiment.steps = 3\n")
  with pytest.raises(ConfigError, match="no such name @Experimnt, did you"):
    config.load(path, root="Experimnt")
  with pytest.raises(ConfigError, match=r"y.gin:1: @Control\(\) needs method"):
    config.load(experiments.write("y.gin", ""), root="Control")


def test_a_block_is_checked_like_its_bindings(experiments):
  path = experiments.write(
    "x.gin", f"{HEAD}\nKD:\n  weight = 0.5\n  temperatur = 1.0\n"
  )
  with pytest.raises(ConfigError, match="x.gin:4: KD.temperatur: no such"):
    config.load(path)


def test_after_a_broken_file_nothing_is_guessed_about_the_whole(experiments):
  path = experiments.write("x.gin", f"{HEAD}\nKD.weight = %WEIGHT\n@@\n")
  with pytest.raises(ConfigError) as error:
    config.load(path)
  assert str(error.value) == (
    "experiments/x.gin:3: syntax error: Unexpected token."
  )
