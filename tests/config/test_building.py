"""gin builds, Python runs: what comes out is plain objects, and gin forgets."""

import dataclasses
import functools
import pickle
import threading

import gin
import jax
import pytest
from flax import linen as nn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxkd import config, identity
from jaxkd.errors import ConfigError, RefusedInput
from tests.config import samples

FULL = """\
WIDTHS = (16, 4)
Experiment.method = @KD()
Experiment.task = @Digits()
Experiment.rates = {'student': 0.1, 'teacher': 1}
Experiment.controls = (@Control(), @bare/Control())
Experiment.note = [@DKD, @tanh, (1, -2.5, None, True, 'it\\'s # "x"\\n'), 1e999]
Control.method = @KD()
bare/Control.method = None
KD.student = @student/Network()
KD.teacher = @teacher/Network()
KD.temperature = 2
Network.module = @MLP()
MLP.features = %WIDTHS
MLP.activation = @tanh
teacher/MLP.features = (64, 36, 18, 10)
Digits.train_size = 30
"""


@pytest.fixture
def built(experiments):
  return config.load(experiments.write("x.gin", FULL))


def test_objects_are_of_their_original_classes(built):
  assert type(built) is samples.Experiment
  assert type(built.method) is samples.KD
  assert type(built.task) is samples.Digits
  assert [type(c) for c in built.controls] == [samples.Control] * 2
  for network in (built.method.student, built.method.teacher):
    assert type(network) is samples.Network
    assert type(network.module) is samples.MLP


def test_what_is_passed_without_a_call_is_the_original_itself(built):
  assert built.note[0] is samples.DKD
  assert built.note[1] is nn.tanh
  assert built.method.student.module.activation is nn.tanh


@pytest.fixture
def load(experiments):
  config.register(samples.scaled, module="jaxkd.functions")

  def load(text):
    return config.load(experiments.write("x.gin", text)).note

  return load


def test_a_function_that_is_passed_carries_its_bindings(load):
  bound = load("Experiment.note = @scaled\nscaled.scale = 2\n")
  assert isinstance(bound, functools.partial)
  assert bound.func is samples.scaled
  assert bound.keywords == {"scale": 2}
  assert bound(5.0, 3.0) == 4.0


def test_bound_functions_equal_and_pickle_by_value(load):
  text = "Experiment.note = @scaled\nscaled.scale = 2\n"
  bound = load(text)
  assert bound == load(text) == pickle.loads(pickle.dumps(bound))
  assert hash(bound) == hash(load(text))
  assert bound != load(text.replace("2", "3"))
  assert bound != samples.scaled


def test_a_bound_function_is_described_as_in_python(load):
  bound = load("Experiment.note = @scaled\nscaled.scale = 2\n")
  made = functools.partial(samples.scaled, scale=2.0)
  assert identity.describe(bound) == identity.describe(made)


def test_scopes_bind_the_same_function_twice(load):
  first, second = load(
    """\
    Experiment.note = (@first/scaled, @second/scaled)
    scaled.inner = @tanh
    first/scaled.scale = 2.0
    second/scaled.scale = 3.0
    """
  )
  assert first.keywords == {"scale": 2.0, "inner": nn.tanh}
  assert second.keywords == {"scale": 3.0, "inner": nn.tanh}


def test_a_function_that_binds_itself_is_refused(load):
  with pytest.raises(ConfigError, match="@scaled: is built for itself"):
    load("Experiment.note = @scaled\nscaled.inner = @scaled\n")


def test_a_binding_of_a_function_that_nothing_passes_is_refused(load):
  with pytest.raises(ConfigError, match="nothing refers to @scaled"):
    load("Experiment.note = 1\nscaled.scale = 2.0\n")


def test_the_operative_text_keeps_what_is_bound(load, experiments):
  text = "Experiment.note = @a/scaled\na/scaled.scale = 2.0\n"
  bound = load(text)
  stored = config.operative_text(config.resolve("experiments/x.gin"))
  assert load(stored) == bound


def test_a_scope_binds_its_own_objects_and_inherits_the_rest(built):
  assert built.method.teacher.module.features == (64, 36, 18, 10)
  assert built.method.student.module.features == (16, 4)
  assert built.method.teacher.module.activation is nn.tanh


def test_containers_and_literals_arrive_as_written(built):
  assert built.rates == {"student": 0.1, "teacher": 1}
  assert built.note[2] == (1, -2.5, None, True, 'it\'s # "x"\n')
  assert built.note[3] == float("inf")


def test_what_nothing_binds_keeps_the_default_of_its_class(built):
  assert built.steps == samples.Experiment().steps
  assert built.method.weight == samples.KD().weight
  assert built.controls[1].method is None
  assert built.method.student.inputs == ("image",)


def test_built_objects_hash_replace_copy_and_equal_those_made_in_python(built):
  method = built.method
  assert hash(method) == hash(dataclasses.replace(method))
  assert dataclasses.replace(method, weight=0.3).weight == 0.3
  assert pickle.loads(pickle.dumps(built.task)) == samples.Digits(train_size=30)
  module = samples.MLP(features=(16, 4), activation=nn.tanh)
  assert method.student == samples.Network(module)


def test_a_built_linen_module_runs(built):
  module = built.method.teacher.module
  x = jax.numpy.ones((2, 5))
  outputs, variables = module.init_with_output(jax.random.key(0), x)
  assert outputs.shape == (2, 10)
  assert len(variables["params"]) == 4


def test_python_never_sees_a_binding(built):
  assert samples.KD().temperature == 4.0
  assert samples.MLP().features == (8, 4)


def test_two_loads_share_nothing(experiments):
  first = experiments.write(
    "a.gin",
    "T = 2\nExperiment.method = @KD()\nKD.temperature = %T\nKD.weight = 0.1\n",
  )
  second = experiments.write("b.gin", "Experiment.method = @KD()\n")
  assert config.load(first).method.weight == 0.1
  assert config.load(second).method == samples.KD()
  third = experiments.write(
    "c.gin", "Experiment.method = @KD()\nKD.temperature = %T\n"
  )
  with pytest.raises(ConfigError, match="%T: no such macro"):
    config.load(third)


def test_gin_holds_nothing_after_a_load_that_failed(experiments):
  path = experiments.write(
    "x.gin", "Experiment.method = @KD()\nKD.temperature = -1\n"
  )
  with pytest.raises(ConfigError):
    config.load(path)
  assert gin.config_str().strip() == ""
  assert not gin.config_is_locked()


def test_bindings_that_gin_had_before_do_not_leak_in(experiments):
  path = experiments.write("x.gin", "Experiment.method = @KD()\n")
  config.load(path)
  gin.bind_parameter("jaxkd.samples.KD.temperature", 9.0)
  with gin.config_scope("outside"):
    assert config.load(path).method.temperature == 4.0


def test_a_foreign_gin_constant_does_not_replace_a_macro(
  experiments, monkeypatch
):
  monkeypatch.setattr(gin.config, "_CONSTANTS", gin.config._CONSTANTS.copy())
  gin.constant("some.library.STEPS", 1)
  path = experiments.write("x.gin", "STEPS = 7\nExperiment.steps = %STEPS\n")
  assert config.load(path).steps == 7


def test_a_foreign_configurable_of_the_same_name_changes_nothing(experiments):
  gin.external_configurable(samples.DKD, name="KD", module="some.library")
  path = experiments.write(
    "x.gin", "Experiment.method = @KD()\nKD.weight = 0.5\n"
  )
  assert type(config.load(path).method) is samples.KD


def test_a_macro_of_an_object_is_built_for_each_use_in_its_scope(experiments):
  path = experiments.write(
    "x.gin",
    """\
    NET = @MLP()
    Experiment.note = (@a/Network(), @b/Network())
    Network.module = %NET
    a/MLP.features = (1,)
    """,
  )
  first, second = config.load(path).note
  assert first.module.features == (1,)
  assert second.module.features == (8, 4)


def test_the_root_can_be_any_registered_name_with_a_scope(experiments):
  path = experiments.write("x.gin", "KD.weight = 0.5\na/KD.temperature = 2\n")
  assert config.load(path, root="a/KD") == samples.KD(weight=0.5, temperature=2)


def test_what_a_class_refuses_is_said_with_the_line_that_binds_it(experiments):
  path = experiments.write(
    "x.gin",
    "Experiment.controls = (@a/Control(),)\nControl.method = @KD()\n"
    "KD.temperature = -1.0\n",
  )
  with pytest.raises(ConfigError) as error:
    config.load(path)
  assert str(error.value) == (
    "experiments/x.gin:3: a/KD: temperature must be > 0, got -1.0"
  )


def test_an_error_with_its_own_exit_code_keeps_it(experiments):
  path = experiments.write(
    "x.gin", "Experiment.task = @Digits()\nDigits.folder = 'refused'\n"
  )
  with pytest.raises(RefusedInput, match="x.gin:2: Digits: folder") as error:
    config.load(path)
  assert type(error.value) is RefusedInput
  assert error.value.exit_code == 3


def test_threads_load_different_configs_at_once(experiments):
  paths = [
    experiments.write(
      f"x{i}.gin", f"Experiment.method = @KD()\nKD.temperature = {i + 1}\n"
    )
    for i in range(8)
  ]
  found = {}

  def load(i):
    found[i] = config.load(paths[i]).method.temperature

  threads = [threading.Thread(target=load, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {i: i + 1 for i in range(8)}


def test_the_operative_text_builds_the_same_objects(experiments, built):
  resolved = config.resolve(
    "experiments/x.gin", ["KD.temperature=3", "WIDTHS=(2, 2)"]
  )
  text = config.operative_text(resolved)
  assert "WIDTHS = (2, 2)\n" in text
  assert "MLP.features = %WIDTHS\n" in text
  again = experiments.write("run/config.gin", text)
  overridden = config.load(
    "experiments/x.gin", overrides=["KD.temperature=3", "WIDTHS=(2, 2)"]
  )
  assert config.load(again) == overridden
  assert identity.digest(config.load(again)) == identity.digest(overridden)
  assert config.operative_text(config.resolve(again)) == text


def test_the_text_with_origins_loads_too(experiments, built):
  text = config.resolve("experiments/x.gin").text()
  assert config.load(experiments.write("y.gin", text)) == built


LITERALS = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text()
  | st.binary(),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.tuples(inner)
    | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
  ),
  max_leaves=8,
)
SLOW_FIXTURES = [HealthCheck.function_scoped_fixture]


@given(value=LITERALS)
@settings(max_examples=50, deadline=None, suppress_health_check=SLOW_FIXTURES)
def test_any_literal_survives_the_operative_text(value, experiments):
  path = experiments.write("x.gin", f"Experiment.note = {value!r}\n".encode())
  assert config.load(path).note == value
  text = config.operative_text(config.resolve(path))
  assert config.load(experiments.write("y.gin", text)).note == value


WORDS = st.sampled_from(
  "Experiment KD . = @ % ( ) [ ] { } , : / 'a' 3 - \n include import from T"
  " method note MLP () weight #".split(" ")
  + ["\n  ", " "]
)


@given(words=st.lists(WORDS, max_size=30))
@settings(max_examples=150, deadline=None, suppress_health_check=SLOW_FIXTURES)
def test_any_text_is_built_or_refused(words, experiments):
  path = experiments.write("x.gin", "".join(words).encode())
  try:
    outcome = config.load(path)
  except ConfigError as refused:
    outcome = refused
  built = type(outcome) is samples.Experiment
  assert built or str(outcome).startswith("experiments/x.gin:")
