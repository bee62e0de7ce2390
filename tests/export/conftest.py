"""A finished run and an export of it, made once."""

import shutil

import pytest

from jaxkd import export
from tests.export import made


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
  return made.finished(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="session")
def kept_export(kept, tmp_path_factory):
  out = tmp_path_factory.mktemp("exported") / "student"
  export.export(made.experiment(), kept, format="stablehlo", out=out)
  return out


@pytest.fixture
def workdir(kept, tmp_path):
  return shutil.copytree(kept, tmp_path / "run")


@pytest.fixture
def exported(kept_export, tmp_path):
  return shutil.copytree(kept_export, tmp_path / "student")
