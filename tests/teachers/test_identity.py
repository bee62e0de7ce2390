"""A run belongs to the weights that it starts from."""

import numpy as np

from jaxkd import data, methods, nets
from jaxkd.experiment import Experiment
from jaxkd.identity import difference
from jaxkd.network import Network
from jaxkd.teachers import Checkpoint


def experiment(path):
  student = Network(nets.MLP(features=(8, 10)))
  teacher = Network(nets.MLP(features=(8, 10)), weights=Checkpoint(str(path)))
  method = methods.KD(student=student, teacher=teacher, teacher_epochs=0)
  return Experiment(method=method, task=data.Digits())


def test_other_bytes_under_the_same_name_are_another_run(tmp_path):
  path = tmp_path / "teacher.npz"
  found = []
  for value in (0.0, 0.0, 1.0):
    np.savez(path, **{"params/fc1/bias": np.full(8, value, np.float32)})
    found.append(experiment(path).identity)
  assert found[0] == found[1]
  (line,) = difference(found[1], found[2])
  assert "main/teacher" in line
  assert found[2]["weights"]["main/teacher"] in line


def test_drawn_networks_leave_the_identity_as_it_was():
  student = Network(nets.MLP(features=(8, 10)))
  method = methods.Supervised(student=student)
  described = Experiment(method=method, task=data.Digits()).identity
  assert "weights" not in described
