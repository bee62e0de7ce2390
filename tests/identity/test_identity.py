"""A built config has a description and a digest that only its content moves."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import typing

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp

from jaxkd import identity
from jaxkd.errors import ConfigError
from tests.config import samples

ROOT = pathlib.Path(__file__).parents[2]


def example() -> samples.Experiment:
  teacher = samples.Network(samples.MLP(features=(64, 10)))
  return samples.Experiment(
    method=samples.KD(teacher=teacher, student=samples.Network(samples.MLP())),
    rates={"b": 1.0, "a": 2.0},
    note=[nn.relu, samples.Precision.HIGH, {"x", "y", "z"}],
  )


def in_fresh_process(seed: str) -> str:
  script = (
    "from tests.identity import test_identity as t; from jaxkd import identity;"
    " print(identity.digest(t.example()))"
  )
  environment = {
    **os.environ,
    "PYTHONHASHSEED": seed,
    "PYTHONPATH": str(ROOT),
  }
  done = subprocess.run(
    [sys.executable, "-c", script],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.strip()


def test_the_digest_is_the_same_in_another_process():
  seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
  assert in_fresh_process(seed) == identity.digest(example())


OTHER = {
  samples.MLP: {"features": (1,), "activation": nn.gelu},
  samples.Network: {"module": samples.MLP((1,)), "inputs": ("audio",)},
  samples.KD: {
    "student": samples.Network(samples.MLP()),
    "teacher": samples.Network(samples.MLP()),
    "temperature": 5.0,
    "weight": 0.8,
    "mode": "hard",
  },
  samples.Digits: {"folder": "x", "train_size": 1, "shuffle": False},
  samples.Experiment: {
    "method": samples.DKD(),
    "task": samples.Digits(),
    "seeds": (0, 1, 2),
    "rates": {},
    "controls": (samples.Control(method=None),),
    "label": "other",
    "steps": 101,
    "note": 0,
  },
}


@pytest.mark.parametrize(
  ("cls", "field"), [(cls, field) for cls in OTHER for field in OTHER[cls]]
)
def test_every_field_moves_the_digest(cls, field):
  base = cls(samples.MLP()) if cls is samples.Network else cls()
  changed = dataclasses.replace(base, **{field: OTHER[cls][field]})
  assert identity.digest(changed) != identity.digest(base)
  lines = identity.difference(
    identity.describe(base), identity.describe(changed)
  )
  assert len(lines) == 1
  assert lines[0].startswith(f"{cls.__name__}.{field}")


def test_the_samples_above_name_every_field():
  for cls, fields in OTHER.items():
    own = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
    assert own == set(fields)


@pytest.mark.parametrize(
  ("one", "other"),
  [
    (1, True),
    (1, 1.0),
    (1, "1"),
    (None, "None"),
    ((1,), [1]),
    ((1,), (1, 1)),
    ({}, []),
    ({"a": 1}, {"dict": [["a", 1]]}),
    (b"a", "61"),
    ({1}, [1]),
    (samples.KD(), samples.DKD()),
    (samples.KD, samples.KD()),
    (nn.relu, nn.tanh),
    (jnp.float32, jnp.bfloat16),
    (np.dtype("float32"), "float32"),
    (pathlib.PurePosixPath("a"), "a"),
    (np.ones(2), np.ones(3)),
    (np.ones(2), np.ones(2, np.float32)),
    (np.ones((2, 1)), np.ones((1, 2))),
    (jnp.ones(2), jnp.zeros(2)),
    (functools.partial(nn.gelu, approximate=True), nn.gelu),
    (samples.Digits().__post_init__, samples.KD().__post_init__),
    (0.0, -0.0),
    (nn.Dense(3), nn.Dense(3, name="head")),
  ],
)
def test_what_differs_has_another_digest(one, other):
  assert identity.digest(one) != identity.digest(other)


def test_what_configures_the_same_has_the_same_digest():
  assert identity.digest(samples.KD(temperature=4)) == identity.digest(
    samples.KD()
  )
  one = samples.Experiment(rates={"a": 1.0, "b": 2.0})
  other = samples.Experiment(rates={"b": 2.0, "a": 1.0})
  assert identity.digest(one) == identity.digest(other)
  assert identity.digest(np.ones(2)) == identity.digest(np.ones(4)[::2])


class Pair(typing.NamedTuple):
  first: int
  second: int = 2


def test_the_description_is_json_and_holds_no_address():
  obj = dataclasses.replace(
    example(), note=[Pair(1), functools.partial(max, 1)]
  )
  described = identity.describe(obj)
  text = json.dumps(described)
  assert json.loads(text) == described
  assert "0x" not in text
  assert '"jax.nn.functions.relu"' in text


def test_a_default_that_is_a_closure_is_described_as_the_default():
  fields = identity.describe(nn.Dense(3))["fields"]
  assert fields["kernel_init"] == {
    "default": "flax.linen.linear.Dense.kernel_init"
  }
  with pytest.raises(ConfigError, match="Dense.kernel_init: jax.nn.init"):
    identity.describe(nn.Dense(3, kernel_init=nn.initializers.normal()))


class Odd:
  pass


def ring():
  items: list = []
  items.append(items)
  return items


@pytest.mark.parametrize(
  ("note", "message"),
  [
    (lambda x: x, r"Experiment.note\[0\]: .*<lambda>.*which no module holds"),
    (nn.initializers.normal(), "Experiment.note.*<locals>"),
    (
      Odd(),
      r"note\[0\]: a tests.identity.test_identity.Odd; a config holds",
    ),
    (ring(), "it holds itself"),
    (np.array([Odd()]), "an array of Python objects"),
    ({"key": Odd()}, r"Experiment.note\[0\]\['key'\]: a "),
  ],
  ids=["lambda", "closure", "object", "ring", "objects", "in_a_dict"],
)
def test_what_has_no_description_is_named_by_its_path(note, message):
  with pytest.raises(ConfigError, match=message):
    identity.digest(samples.Experiment(note=[note]))


def test_differences_name_nested_paths():
  old = example()
  method = dataclasses.replace(
    old.method,
    temperature=2.0,
    student=samples.Network(samples.MLP(features=(2,))),
  )
  new = dataclasses.replace(
    old,
    method=method,
    rates={"a": 3.0, "c": 1.0},
    note=[nn.tanh, *old.note[1:]],
    controls=(samples.Control(method=samples.DKD()),),
  )
  found = identity.difference(identity.describe(old), identity.describe(new))
  assert found == [
    "Experiment.method.student.module.features: (8, 4) -> (2,)",
    "Experiment.method.temperature: 4.0 -> 2.0",
    "Experiment.rates['a']: 2.0 -> 3.0",
    "Experiment.rates['b']: 1.0 -> absent",
    "Experiment.rates['c']: absent -> 1.0",
    "Experiment.controls: () -> (Control(method=DKD(alpha=1.0, beta=8.0),"
    " children=()),)",
    "Experiment.note[0]: relu -> tanh",
  ]


def test_another_class_is_one_difference():
  old = identity.describe(samples.Experiment(method=samples.KD()))
  new = identity.describe(samples.Experiment(method=samples.DKD()))
  (line,) = identity.difference(old, new)
  assert line.startswith("Experiment.method: KD(student=None, ")
  assert line.endswith(" -> DKD(alpha=1.0, beta=8.0)")


def test_a_stored_description_compares_with_a_new_one():
  described = identity.describe(example())
  stored = json.loads(json.dumps(described))
  assert identity.difference(stored, described) == []
  del stored["fields"]["label"]
  assert identity.difference(stored, described) == [
    "Experiment.label: absent -> 'main'"
  ]


def test_descriptions_by_name_compare_by_their_paths():
  old = {"kd": {"method": identity.describe(samples.KD())}, "seeds": [0]}
  new = {"kd": {"method": identity.describe(samples.KD(weight=0.1))}, "b": 1}
  assert identity.difference(old, new) == [
    "kd.method.weight: 0.9 -> 0.1",
    "seeds: [0] -> absent",
    "b: absent -> 1",
  ]
  assert identity.difference(None, 1) == ["config: None -> 1"]


@pytest.mark.parametrize("tag", ["class", "list", "dict", "method", "path"])
def test_a_name_that_is_a_tag_of_descriptions_is_still_a_name(tag):
  old = {tag: identity.describe(samples.KD())}
  new = {tag: identity.describe(samples.KD(weight=0.1))}
  assert identity.difference(old, new) == [f"{tag}.weight: 0.9 -> 0.1"]


def test_importing_config_loads_no_gin():
  script = "import sys; from jaxkd import config; print('gin' in sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", script],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == "False"


def test_a_jitted_function_of_a_module_is_described_by_its_name():
  assert identity.describe(jax.nn.silu) == {"function": "jax.nn.functions.silu"}
