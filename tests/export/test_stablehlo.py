"""A file of StableHLO computes what was trained, anywhere, for any batch."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.export import exporting, stablehlo
from jaxkd.network import NNX, Pure
from tests.export import made

BERT = {
  "vocabulary_size": 50,
  "width": 16,
  "depth": 2,
  "heads": 2,
  "hidden": 32,
  "length": 32,
}
NETS = {
  "mlp": (nets.MLP(features=(8, 4)), "pixels"),
  "lenet": (nets.LeNet5(num_classes=4), "image"),
  "stages": (nets.StageCNN(num_classes=4), "picture"),
  "resnet": (
    nets.ResNet(
      depths=(1, 1), features=(8, 16), bottleneck=False, num_classes=4
    ),
    "picture",
  ),
  "vit": (
    nets.VisionTransformer(
      image_size=32, patch=16, width=16, depth=2, heads=2, hidden=32
    ),
    "picture",
  ),
  "decoder": (made.decoder(), "tokens"),
  "masked decoder": (made.decoder(), "tokens", "token_mask"),
  "scanned decoder": (made.decoder(scan_layers=True, remat=True), "tokens"),
  "recurrent": (nets.GRUDecoder(vocabulary_size=50, width=16), "tokens"),
  "bert": (nets.BERT(**BERT, pooling="mean"), "tokens", "token_mask"),
}
QUICK = {"mlp", "lenet", "decoder"}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow)  # seconds to compile
    if name not in QUICK
    else name
    for name in NETS
  ],
)
def test_a_net_is_exported_for_any_batch_size(name, tmp_path):
  facts = exporting.write(made.trained(*NETS[name]), "stablehlo", tmp_path)
  found = facts["difference"]
  assert found["batches"] == [1, 7, 8]
  assert 0 <= found["relative"] <= 1e-5


def test_the_file_runs_where_there_is_no_jaxkd(tmp_path, capsys):
  trained = made.trained(made.decoder(), "tokens")
  exporting.write(trained, "stablehlo", tmp_path)
  differences = made.alone(stablehlo.USE, tmp_path, trained)
  made.tell(capsys, f"differences {differences}")
  assert len(differences) == 2
  assert max(differences) <= 1e-5


def test_the_graph_is_for_one_device_all_platforms_and_gives_nothing_away(
  tmp_path,
):
  facts = stablehlo.write(made.perceptron(), tmp_path)
  exported = stablehlo.deserialized(tmp_path / stablehlo.FILE)
  assert jax.device_count() > 1
  assert exported.nr_devices == 1
  assert facts["platforms"] == ["cpu", "cuda", "tpu"]
  assert exported.platforms == ("cpu", "cuda", "tpu")
  assert "donor" not in exported.mlir_module()
  assert "aliasing" not in exported.mlir_module()
  assert str(exported.in_avals[0].shape[0]) == "batch"
  # The variables are inside: the batch is the only argument.
  assert len(exported.in_avals) == 1


def test_random_streams_of_nnx_modules_do_not_stand_in_the_way(tmp_path):
  from flax import nnx

  class Net(nnx.Module):
    def __init__(self, rngs):
      self.fc = nnx.Linear(12, 4, rngs=rngs)
      self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
      return self.dropout(self.fc(x))

  network = made.Network(NNX(Net), ("pixels",))
  examples = made.batch("pixels")
  plain = dataclasses.replace(
    made.perceptron(),
    network=network,
    variables=jax.device_get(network.init(jax.random.key(0), examples)),
    apply=lambda v, b: network.apply(v, b)[0].value,
  )
  for format in ("stablehlo", "safetensors"):
    facts = exporting.write(plain, format, tmp_path)
    assert facts["difference"]["relative"] <= 1e-5


def test_a_graph_of_one_batch_size_is_refused(tmp_path):
  pure = Pure(
    lambda rng, x: {"params": {"scale": np.ones(1, np.float32)}},
    lambda variables, x: x * variables["params"]["scale"] * int(x.shape[0]),
  )
  with pytest.raises(ConfigError, match="student cannot be exported for any"):
    stablehlo.write(made.trained(pure, "pixels"), tmp_path)


def test_variables_above_the_limit_of_the_format_are_refused(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(stablehlo, "LARGEST", 100)
  with pytest.raises(ConfigError, match="holds 100; export it as safetensors"):
    stablehlo.write(made.perceptron(), tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"hello", "half"])
def test_a_damaged_file_is_refused(content, tmp_path):
  stablehlo.write(made.perceptron(), tmp_path)
  path = tmp_path / stablehlo.FILE
  if content == "half":
    content = path.read_bytes()[: path.stat().st_size // 2]
  path.write_bytes(content)
  with pytest.raises(RefusedInput, match=r"model\.stablehlo cannot be read"):
    stablehlo.read(tmp_path)
