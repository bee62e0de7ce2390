"""Names in configs are unique, and say what can be bound."""

import dataclasses

import gin
import pytest
from flax import linen as nn

from jaxkd import config
from jaxkd.config import registry
from jaxkd.errors import ConfigError
from tests.config import samples


def test_registered_names_map_to_the_objects_themselves(empty_registry):
  config.register(samples.KD, module="jaxkd.methods")
  config.register(nn.relu, module="jaxkd.nets", name="ReLU")
  assert config.registered() == {"KD": samples.KD, "ReLU": nn.relu}


def test_a_second_object_of_a_name_is_refused_over_all_rooms(empty_registry):
  config.register(samples.KD, module="jaxkd.methods")
  with pytest.raises(ConfigError, match="jaxkd.nets.KD has the name of jaxkd"):
    config.register(samples.DKD, module="jaxkd.nets", name="KD")
  assert config.registered() == {"KD": samples.KD}


def test_registering_the_same_again_changes_nothing(empty_registry):
  config.register(samples.KD, module="jaxkd.methods")
  config.register(samples.KD, module="jaxkd.methods")
  assert config.registered() == {"KD": samples.KD}


@pytest.mark.parametrize(
  ("obj", "name"), [(samples.KD, "a.b"), (samples.KD, "1a"), (3, "THREE")]
)
def test_only_classes_and_functions_with_names_register(
  obj, name, empty_registry
):
  with pytest.raises(ConfigError, match="a class or a function with a Python"):
    config.register(obj, module="jaxkd.methods", name=name)


def test_registering_does_not_touch_gin_before_a_load(empty_registry):
  class Unheard:
    pass

  config.register(Unheard, module="jaxkd.methods")
  selectors = gin.config._REGISTRY.matching_selectors("jaxkd.methods.Unheard")
  assert not selectors


def test_a_linen_module_offers_its_own_fields_only():
  assert list(registry.parameters(samples.MLP)) == ["features", "activation"]


def test_parameters_show_their_defaults_without_addresses():
  @dataclasses.dataclass
  class Sample:
    needed: float
    plain: tuple[int, ...] = (1,)
    function: object = nn.relu
    other: object = dataclasses.field(default_factory=list)
    text: str = "x" * 100

  shown = [str(p) for p in registry.parameters(Sample).values()]
  assert shown == [
    "needed (required)",
    "plain=(1,)",
    "function=relu",
    "other=...",
    f"text='{'x' * 36}...",
  ]


def test_a_function_can_be_built_with_any_keyword_it_takes(experiments):
  def make(size: int, /, scale: float = 1.0, **more):
    return None

  assert list(registry.parameters(make)) == ["scale"]

  def collect(**named):
    return named

  config.register(collect, module="jaxkd.functions")
  path = experiments.write(
    "x.gin", "Experiment.note = @collect()\ncollect.anything = 3\n"
  )
  assert config.load(path).note == {"anything": 3}


def test_an_annotation_that_cannot_be_evaluated_is_not_checked(experiments):
  @dataclasses.dataclass
  class Sample:
    value: "NowhereDefined" = None  # noqa: F821  # the point of the test

  config.register(Sample, module="jaxkd.samples")
  path = experiments.write(
    "x.gin", "Experiment.note = @Sample()\nSample.value = 'anything'\n"
  )
  assert config.load(path).note.value == "anything"
