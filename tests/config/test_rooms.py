"""The rooms of jaxkd as configs see them."""

import dataclasses
import inspect
import pickle
from typing import Any

import pytest

from jaxkd import catalog, config, identity, losses, methods
from jaxkd.config import building, registry

EXPERIMENT = """\
CLASSES = 10
Experiment:
  method = @KD()
  task = @AVDigits()
  controls = {'no_kd': @Supervised()}
  seeds = (0, 1)
  settings = @Settings()
Settings.max_steps = 3
KD.student = @student/Network()
KD.teacher = @teacher/Network()
KD.lr = 1e-3
Supervised.student = @student/Network()
Network.module = @MLP()
student/MLP.features = (18, %CLASSES)
teacher/MLP.features = (64, 36, 18, %CLASSES)
teacher/Network.inputs = ('audio',)
"""


@dataclasses.dataclass(frozen=True)
class Holder:
  loss: Any


@pytest.fixture
def real_rooms(empty_registry, monkeypatch):
  monkeypatch.setattr(registry, "_ROOMS_REGISTERED", False)
  config.register_all()
  return config.registered()


def test_every_public_method_and_the_experiment_is_registered(real_rooms):
  names = {"Experiment", "Network", "AVDigits", "Settings", "Mesh"}
  assert names | set(methods.__all__) <= set(real_rooms)


def test_registering_twice_changes_nothing(real_rooms):
  config.register_all()
  assert config.registered() == real_rooms


def test_gin_can_build_every_registered_class(real_rooms):
  for name, obj in real_rooms.items():
    assert building._declare(name) == registry.entry(name).selector
    if inspect.isclass(obj):
      assert registry.parameters(obj).keys() <= {
        field.name for field in dataclasses.fields(obj)
      }


def test_every_loss_is_registered_under_its_public_name(real_rooms):
  for name in catalog.public():
    assert real_rooms[name] is getattr(losses, name)
  assert {"KL", "kl", "JSD"} <= real_rooms.keys()
  assert "TopK" not in real_rooms


@pytest.mark.parametrize(
  ("text", "made"),
  [
    ("@JSD()\nJSD.beta = 0.25", losses.JSD(beta=0.25)),
    ("@kl", losses.kl),
    ("@kl\nkl.temperature = 4", building.Bound(losses.kl, temperature=4)),
  ],
)
def test_a_loss_is_built_or_bound(real_rooms, tmp_path, text, made):
  path = tmp_path / "x.gin"
  path.write_text(f"Holder.loss = {text}\n")
  config.register(Holder, module="jaxkd.samples")
  built = config.load(path, root="Holder").loss
  assert built == made
  assert pickle.loads(pickle.dumps(built)) == made
  assert identity.digest(built) == identity.digest(made)


def test_a_real_experiment_is_built_described_and_restored(
  real_rooms, tmp_path
):
  path = tmp_path / "x.gin"
  path.write_text(EXPERIMENT)
  built = config.load(path)
  assert type(built.method) is methods.KD
  assert built.method.teacher.inputs == ("audio",)
  assert built.controls["no_kd"].student == built.method.student
  assert built.settings.max_steps == 3
  stored = tmp_path / "config.gin"
  stored.write_text(config.operative_text(config.resolve(path)))
  assert config.load(stored) == built
  assert identity.digest(config.load(stored)) == identity.digest(built)
