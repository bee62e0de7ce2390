"""Workdirs that the tests of the report share."""

import pytest

from jaxkd.report import style
from tests.report import fabricate


@pytest.fixture
def workdir(tmp_path):
  return fabricate.experiment(tmp_path / "experiment")


@pytest.fixture
def study_dir(tmp_path):
  return fabricate.study(tmp_path / "study")


@pytest.fixture
def unpainted(monkeypatch):
  """Figures are made but not painted, for tests of the page's text."""

  def save(figure, path):
    path.write_bytes(b"\x89PNG")
    return path

  monkeypatch.setattr(style, "save", save)
