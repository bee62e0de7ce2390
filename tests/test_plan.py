"""What a run would take is known before it, and is what the compiler says."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from jaxkd import cli, plan
from jaxkd.errors import ConfigError
from jaxkd.experiment import Experiment
from jaxkd.method import label_loss
from jaxkd.parallel import Mesh
from tests.methods import toys

ROOT = pathlib.Path(__file__).parents[1]
GIN = str(ROOT / "experiments/mst_distill/no_kd.gin")
# Prints the plans of one experiment on three meshes; JAX starts in it once.
MESHES = """
import sys
from jaxkd import cli
for mesh in ("data=8", "fsdp=8", "data=2,fsdp=2,tensor=2"):
  assert cli.main(["plan", sys.argv[1], "--mesh", mesh, "--json"]) == 0
  print("----")
"""


@dataclasses.dataclass(frozen=True)
class Task:
  """The toys' data."""

  name: str = "toy"
  num_classes: int = toys.CLASSES
  batch_size: int = 8

  def splits(self, seed):
    del seed
    return toys.splits()


def planned(method, batch_size=8, **options):
  """The plans of a method on the toys by phase."""
  task = Task(batch_size=batch_size)
  experiment = Experiment(method=method, task=task)
  return {p.phase: p for p in plan.plan(experiment, **options)}


def parts_of(found):
  return {part["name"]: part["bytes"] for part in found["parts"]}


def wide(**options):
  """A student of which parameters are most, with momentum."""
  return toys.supervised(student=toys.mlp(64, 64, toys.CLASSES), **options)


def test_the_parts_of_a_perceptron_add_up_to_what_the_compiler_says():
  found = planned(wide())["supervise"]
  student = 4 * (13 * 64 + 65 * 64 + 65 * toys.CLASSES)
  parts = {part.name: part.bytes for part in found.parts}
  assert parts["student parameters (trained)"] == student
  assert parts["best snapshot"] == student + 3 * 4
  assert parts["batch"] == 4 * 8 * (12 + 1 + 1)  # image, label, mask
  assert parts["arguments that the step does not read"] == 4 * 8 * (8 + 1)
  inside = [part for part in found.parts if part.in_step]
  assert found.step_peak == sum(part.bytes for part in inside)
  assert found.step_peak == pytest.approx(found.reported, rel=0.02)
  assert found.peak - found.step_peak == sum(
    part.bytes for part in found.parts if part not in inside
  )
  assert found.flops > 6 * 8 * student / 4  # forward, and twice back
  assert found.collectives == ()


@pytest.mark.slow  # compiles five steps
@pytest.mark.parametrize("make", [toys.kd, toys.mst_distill])
def test_the_parts_of_methods_add_up_too(make):
  for found in planned(make()).values():
    assert found.step_peak == pytest.approx(found.reported, rel=0.1)


def test_frozen_roles_are_told_from_trained_ones():
  found = planned(toys.kd(teacher_epochs=0))["distil"]
  kinds = {part.name: part.kind for part in found.parts}
  assert kinds["student parameters (trained)"] == "trained"
  # Its targets are cached: the step does not read it.
  assert "teacher parameters (frozen)" not in kinds
  method = toys.Toy(
    networks={"student": toys.mlp(), "teacher": toys.teacher()},
    updates=(toys.update(loss=imitate),),
  )
  (found,) = planned(method).values()
  frozen = next(part for part in found.parts if part.kind == "frozen")
  assert frozen.name == "teacher parameters (frozen)"
  assert "best" not in {part.kind for part in found.parts}


def imitate(nets, batch, step):
  """Labels, and the distance to a teacher that is run live."""
  del step
  logits = nets.student(batch).logits
  loss, gap = label_loss(logits, batch), nets.teacher(batch).logits - logits
  return dataclasses.replace(loss, total=loss.total + (gap**2).sum())


def again(nets, batch, step):
  """Runs both networks a second time, on other images."""
  mirrored = {**batch, "image": -batch["image"]}
  first, second = imitate(nets, batch, step), imitate(nets, mirrored, step)
  return dataclasses.replace(first, total=first.total + second.total)


def test_a_step_is_held_against_its_networks_alone():
  roles = {"student": toys.mlp(64, 64, 4), "teacher": toys.mlp(64, 64, 4)}
  right, wrong = (
    planned(
      toys.Toy(networks=roles, updates=(toys.update(loss=loss),)),
      batch_size=512,
    )["toy"]
    for loss in (imitate, again)
  )
  products = 2 * 512 * (12 * 64 + 64 * 64 + 64 * 4)
  # Forward twice; back, but not to the images.
  least = 4 * products - 2 * 512 * 12 * 64
  assert right.ideal == wrong.ideal
  assert right.ideal.flops == pytest.approx(least, rel=0.1)
  assert 0.95 < right.flops_ratio < 1.1
  assert 1.9 < wrong.flops_ratio / right.flops_ratio < 2.1
  assert right.temporaries_ratio > 0
  assert f"{wrong.flops_ratio:.2f} x the FLOPs of its" in wrong.text()


def test_what_does_not_fit_is_named_with_what_would_help():
  peak = planned(wide())["supervise"].peak
  assert planned(wide(), device_memory=peak)["supervise"].fits is True
  found = planned(wide(), device_memory=peak - 1)["supervise"]
  assert found.fits is False
  biggest = max(found.parts, key=lambda part: part.bytes)
  first, *ways = found.advice
  assert first.startswith("1 B too much")
  assert ways[0].startswith(biggest.name)
  assert any("fsdp above 1" in way for way in ways)
  assert any("accumulate above 1" in way for way in ways)
  assert "DOES NOT FIT" in found.text()
  assert all(way in found.text() for way in found.advice)


def test_a_plan_is_printed_and_nothing_is_written(
  capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  code = cli.main(["plan", GIN, "--device-memory", "0.1KiB"])
  shown = capsys.readouterr().out
  assert code == 0
  for text in ("main: phase", "student parameters (trained)", "FLOPs a step"):
    assert text in shown
  assert "DOES NOT FIT in 102 B" in shown
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    (("--mesh", "data=8,fdsp=2"), ("'fdsp=2'", "data, fsdp, tensor")),
    (("--mesh", "data=two"), ("'data=two'",)),
    (("--mesh", "data=2,data=2"), ("'data=2'",)),
    (("--mesh", "data=0"), ("Mesh.data=0",)),
    (("--mesh", "data=4096"), ("needs 4096 devices, there are",)),
    (("--device-memory", "16GiBs"), ("16GiBs", "such as 16GiB")),
    (("--device-memory", "0GB"), ("0GB", "such as 16GiB")),
    (("--set", "Supervised.epoch = 3"), ("did you mean epochs?",)),
  ],
)
def test_a_wrong_option_is_named(capsys, options, expected):
  _ = Mesh().devices  # JAX has started: it gets no more devices
  assert cli.main(["plan", GIN, *options]) == 2
  message = capsys.readouterr().err
  for part in expected:
    assert part in message


def test_units_of_bytes():
  assert plan.bytes_of("16GiB") == 16 * 2**30
  assert plan.bytes_of("1.5 KB") == 1500
  assert plan.bytes_of("7") == 7
  assert plan.size_text(1536) == "1.5 KiB"
  assert plan.size_text(80 * 2**30) == "80.0 GiB"
  with pytest.raises(ConfigError, match="--device-memory nan"):
    plan.bytes_of("nan")


@pytest.mark.slow  # a process of its own
def test_eight_devices_are_planned_without_having_them():
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  done = subprocess.run(
    [sys.executable, "-c", MESHES, GIN],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  texts = done.stdout.split("----")[:-1]
  phases = [json.loads(text)["phases"][0] for text in texts]
  for found in phases:
    assert found["step_peak"] == pytest.approx(found["reported"], rel=0.1)
    assert found["step_peak"] == sum(
      part["bytes"] for part in found["parts"] if part["in_step"]
    )
  data, fsdp, both = (parts_of(found) for found in phases)
  student = "student parameters (trained)"
  assert data[student] == 2 * both[student] > 4 * fsdp[student]
  assert data["batch"] == fsdp["batch"] == both["batch"] / 2
  kinds = [{one["kind"] for one in found["collectives"]} for found in phases]
  assert kinds[0] == {"all-reduce"}
  assert all("all-gather" in found for found in kinds[1:])
  gradients = max(one["bytes"] for one in phases[0]["collectives"])
  assert gradients >= data[student]
