"""An isolated registry with the sample classes, and a folder of configs."""

import pathlib
import textwrap

import gin
import pytest
from flax import linen as nn

from jaxkd import config
from jaxkd.config import building, registry
from tests.config import samples


@pytest.fixture
def empty_registry(monkeypatch):
  monkeypatch.setattr(registry, "_TABLE", {})
  monkeypatch.setattr(registry, "_ROOMS_REGISTERED", True)
  monkeypatch.setattr(building, "_DECLARED", building._DECLARED.copy())
  monkeypatch.setattr(gin.config, "_REGISTRY", gin.config._REGISTRY.copy())


@pytest.fixture
def rooms(empty_registry):
  for cls in samples.ALL:
    config.register(cls, module="jaxkd.samples")
  config.register(nn.relu, module="jaxkd.functions")
  config.register(nn.tanh, module="jaxkd.functions")


class Folder:
  """A folder `experiments`; `write` returns the path relative to its parent."""

  def __init__(self, root: pathlib.Path):
    self.root = root

  def write(self, name: str, text: str | bytes) -> str:
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(text, str):
      text = textwrap.dedent(text).encode()
    path.write_bytes(text)
    return str(pathlib.Path("experiments") / name)


@pytest.fixture
def experiments(rooms, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return Folder(tmp_path / "experiments")
