"""What decides the numbers is recorded, and only that."""

import json
import subprocess

import jax
import numpy as np

from jaxkd.training import environment


def test_environment_is_json_and_names_versions_and_devices():
  found = environment.environment()
  assert json.loads(json.dumps(found)) == found
  assert found["versions"]["jax"] == jax.__version__
  assert found["versions"]["numpy"] == np.__version__
  assert len(found["devices"]) == jax.device_count()
  assert found["x64"] is False


def test_flags_that_leave_the_numbers_alone_do_not_count(monkeypatch):
  flags = "--xla_b=1 --xla_force_host_platform_device_count=8 --xla_a=2"
  monkeypatch.setenv("XLA_FLAGS", flags)
  assert environment.numerics()["xla_flags"] == ["--xla_a=2", "--xla_b=1"]
  assert environment.environment()["XLA_FLAGS"] == flags


def answer(monkeypatch, top, error=None):
  def run(command, **options):
    assert isinstance(command, list)
    assert "shell" not in options
    if error:
      raise error
    return subprocess.CompletedProcess(command, 0, f"{top}\n{'ab' * 20}\n")

  monkeypatch.setattr(subprocess, "run", run)
  return environment.environment()["commit"]


def test_commit_is_that_of_this_checkout_or_unknown(monkeypatch):
  root = environment.Path(environment.__file__).resolve().parents[2]
  assert answer(monkeypatch, root) == "ab" * 20
  assert answer(monkeypatch, root.parent) == "unknown"
  assert answer(monkeypatch, root, FileNotFoundError()) == "unknown"
  failed = subprocess.CalledProcessError(128, "git")
  assert answer(monkeypatch, root, failed) == "unknown"


def test_a_package_that_is_absent_has_an_unknown_version(monkeypatch):
  monkeypatch.setitem(environment._PACKAGES, "absent", "no-such-package")
  assert environment.versions()["absent"] == "unknown"
