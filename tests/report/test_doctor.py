"""The diagnosis: complete, private, and without importing what it reports."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jaxkd import doctor, extras


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty compile cache, closed to others."""
  old = jax.config.jax_compilation_cache_dir
  monkeypatch.delenv("JAXKD_CACHE", raising=False)
  monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
  folder = tmp_path / "cache"
  folder.mkdir(mode=0o700)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  yield folder
  jax.config.update("jax_compilation_cache_dir", old)


@pytest.fixture
def versions(monkeypatch):
  """Lets a test set the version of a package, None for absent."""
  changed = {}
  real = doctor._version
  monkeypatch.setattr(
    doctor, "_version", lambda n: changed[n] if n in changed else real(n)
  )
  return changed


def test_diagnosis_has_versions_devices_and_every_extra():
  facts = doctor.diagnose()
  assert facts["packages"]["jax"] == importlib.metadata.version("jax")
  assert "cpu" in facts["devices"]
  assert set(facts["extras"]) == set(extras.EXTRAS)


def test_text_names_every_package_and_extra():
  text = doctor.doctor()
  for name in (*doctor.PACKAGES, *extras.EXTRAS):
    assert name in text
  assert text.isascii()


def test_an_extra_says_what_is_missing(monkeypatch):
  missing = extras.Extra(
    modules=("math", "no_such_module"), gives="a thing", what="it"
  )
  monkeypatch.setattr(extras, "EXTRAS", {"thing": missing})
  assert doctor.diagnose()["extras"]["thing"] == {
    "gives": "a thing",
    "present": False,
    "missing": ["no_such_module"],
  }
  assert "thing    no   a thing (missing: no_such_module)" in doctor.doctor()


def test_the_home_directory_is_hidden(cache):
  text = doctor.doctor()
  assert str(cache.parent) not in text
  assert f"~{os.sep}cache (private)" in text


@pytest.mark.parametrize(
  ("mode", "told"),
  [(0o755, "readable by others, mode 755"), (0o777, "not used, mode 777")],
)
def test_a_cache_open_to_others_is_told(cache, mode, told):
  cache.chmod(mode)
  assert told in doctor.diagnose()["compile_cache"]


def test_a_cache_switched_off_is_told(monkeypatch):
  monkeypatch.setenv("JAXKD_CACHE", "0")
  assert doctor.diagnose()["compile_cache"] == "off (JAXKD_CACHE=0)"


def test_a_cache_that_is_not_there_is_no_fault(cache):
  cache.rmdir()
  assert "made at first use" in doctor.diagnose()["compile_cache"]


@pytest.mark.parametrize(
  ("plugin", "verdict"), [("1.2.3", "1.2.3"), ("1.2.2", "does not match")]
)
def test_a_plugin_must_match_jaxlib(versions, plugin, verdict):
  versions |= {"jaxlib": "1.2.3", "jax-cuda12-plugin": plugin}
  found = doctor.diagnose()["plugins"]["jax-cuda12-plugin"]
  assert verdict in found
  assert ("pip install" in found) == (plugin != "1.2.3")


def test_absent_tfds_is_told(versions):
  versions["tensorflow-datasets"] = None
  assert doctor.diagnose()["tfds"].startswith("not installed")


def test_a_protobuf_that_is_too_old_is_told(monkeypatch):
  monkeypatch.setitem(
    sys.modules, "tensorflow_metadata.proto.v0.schema_pb2", None
  )
  assert 'pip install "protobuf>=' in doctor.diagnose()["tfds"]


def test_devices_that_fail_are_told_not_raised(monkeypatch):
  def devices():
    raise RuntimeError("no backend\nmore")

  monkeypatch.setattr(jax, "devices", devices)
  assert doctor.diagnose()["devices"] == "none: RuntimeError: no backend"


def test_the_doctor_imports_no_framework_that_it_reports():
  code = (
    "import sys; from jaxkd import doctor; doctor.doctor();"
    " bad = {'torch', 'tensorflow', 'tensorflow_datasets', 'matplotlib',"
    " 'wandb', 'mlflow'} & set(sys.modules); sys.exit(bool(bad))"
  )
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  root = pathlib.Path(doctor.__file__).parents[1]
  done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env)
  assert done.returncode == 0
