"""Numbers in which methods differ."""

import dataclasses

import pytest

from jaxkd.errors import ConfigError
from jaxkd.training.numbers import differing, name_of, with_numbers
from tests.methods import toys


@dataclasses.dataclass(frozen=True)
class Inner:
  weight: float = 1.0
  steps: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
  parts: tuple[Inner, ...] = (Inner(), Inner())
  named: dict = dataclasses.field(default_factory=lambda: {"a": Inner()})
  rate: float = 0.1
  name: str = "x"

  def __post_init__(self):
    if not self.rate > 0:
      raise ConfigError("rate")


def test_equal_configs_differ_in_nothing():
  assert differing([Outer(), Outer(), Outer()]) == {}


def test_numbers_are_found_wherever_they_are():
  other = Outer(
    parts=(Inner(), Inner(weight=2)), named={"a": Inner(weight=0.5)}, rate=1
  )
  found = differing([Outer(), other])
  assert found == {
    ("parts", 1, "weight"): (1.0, 2.0),
    ("named", "a", "weight"): (1.0, 0.5),
    ("rate",): (0.1, 1.0),
  }
  assert [name_of(path) for path in found] == [
    "parts[1].weight",
    "named.a.weight",
    "rate",
  ]


@pytest.mark.parametrize(
  ("other", "path"),
  [
    (Outer(name="y"), "name"),
    (Outer(parts=(Inner(), Inner(steps=4))), r"parts\[1\].steps"),
    (Outer(parts=(Inner(),)), "parts"),
    (Outer(named={"b": Inner()}), "named"),
  ],
)
def test_what_decides_the_program_is_named(other, path):
  with pytest.raises(ConfigError, match=f"^{path} is "):
    differing([Outer(), other])


def test_networks_are_no_numbers():
  with pytest.raises(ConfigError, match="^student.module is MLP"):
    differing([toys.kd(), toys.kd(student=toys.mlp(8, 4))])


def test_a_config_takes_other_numbers_without_its_checks():
  made = with_numbers(
    Outer(),
    {
      ("parts", 1, "weight"): 7.0,
      ("rate",): -1.0,
      ("named", "a", "weight"): 2.0,
    },
  )
  assert made.parts == (Inner(), Inner(weight=7.0))
  assert made.named == {"a": Inner(weight=2.0)}
  assert made.rate == -1.0
  assert Outer().parts == (Inner(), Inner())
