"""ONNX is written where jax2onnx is, and refused in one line elsewhere."""

import importlib.util
import logging

import pytest

from jaxkd import extras, nets
from jaxkd.errors import ConfigError
from jaxkd.export import exporting, onnx
from tests.export import made

INSTALLED = all(
  importlib.util.find_spec(name) for name in extras.EXTRAS["onnx"].modules
)


@pytest.mark.skipif(INSTALLED, reason="jax2onnx is installed")
def test_without_jax2onnx_the_message_says_what_to_install(tmp_path):
  with pytest.raises(ConfigError, match=r'pip install "jaxkd\[onnx\]"'):
    onnx.write(made.perceptron(), tmp_path)
  assert not list(tmp_path.iterdir())


def test_what_cannot_be_converted_is_named(tmp_path, monkeypatch):
  class Fake:
    @staticmethod
    def to_onnx(*arguments, **options):
      raise NotImplementedError("no such primitive")

  monkeypatch.setattr(extras, "need", lambda *_, **__: Fake)
  with pytest.raises(ConfigError, match="cannot convert student: no such prim"):
    onnx.write(made.perceptron(), tmp_path)


@pytest.mark.slow  # imports every converter
@pytest.mark.skipif(not INSTALLED, reason="jax2onnx is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  ("module", "name"),
  [
    (nets.MLP(features=(8, 4)), "pixels"),
    (nets.LeNet5(num_classes=4), "image"),
    (made.decoder(), "tokens"),
  ],
)
def test_onnx_gives_what_was_trained(module, name, tmp_path, capsys):
  logging.getLogger("jax2onnx").setLevel(logging.ERROR)
  facts = exporting.write(made.trained(module, name), "onnx", tmp_path)
  made.tell(capsys, f"{facts['difference']['relative']:.1e}")
  assert facts["difference"]["relative"] <= 1e-5
