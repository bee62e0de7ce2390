"""Optional packages: one message, one way to import them."""

import math
import sys

import pytest

from jaxkd import extras
from jaxkd.errors import ConfigError


def test_need_returns_the_module():
  assert extras.need("math", extra="report") is math


def test_need_says_what_needs_it_and_the_command(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(extras.MissingExtra) as error:
    extras.need("matplotlib", extra="report")
  assert str(error.value) == (
    'this plot needs matplotlib: pip install "jaxkd[report]"'
  )


def test_the_error_is_a_config_error_and_an_import_error():
  with pytest.raises(ImportError):
    extras.need("no_such_module", extra="hub")
  with pytest.raises(ConfigError, match="the Hub needs no_such_module"):
    extras.need("no_such_module.sub", extra="hub")


def test_a_broken_package_is_told_apart_from_an_absent_one(
  tmp_path, monkeypatch
):
  (tmp_path / "broken_package.py").write_text("import no_such_module")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(extras.MissingExtra, match="No module named 'no_such"):
    extras.need("broken_package", extra="audio")


def test_an_unknown_extra_is_refused_with_the_nearest():
  with pytest.raises(ConfigError, match="did you mean 'report'"):
    extras.need("matplotlib", extra="reports")
