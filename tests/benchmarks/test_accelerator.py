"""The accelerator's benchmark: it runs, and its shapes are what they say."""

import json

import pytest

from benchmarks import accelerator
from benchmarks.accelerator import FULL, QUICK


@pytest.mark.slow
def test_the_quick_run_prints_its_record(capfd):
  accelerator.main(["--quick", "--peak-tflops", "1"])
  record = json.loads(capfd.readouterr().out.splitlines()[-1])
  assert list(record["networks"]) == list(QUICK)
  for found in record["networks"].values():
    ours = found["steps"]["jaxkd"]
    seconds = ours["step_ms"] / 1e3
    expected = found["model_flops"] / seconds / 1e12
    assert ours["mfu"] == pytest.approx(expected, abs=1e-3)
    assert ours["memory"]["planned_bytes"] > 4 * found["parameters"]["student"]


# Of the papers and of the model cards, in millions.
PUBLISHED = {
  "resnet50": (44.5, 25.6),
  "vit_b16": (304.3, 86.6),
  "decoder_1b": (3212.7, 1235.8),
}


@pytest.mark.parametrize("name", FULL)
def test_the_networks_have_the_published_sizes(name):
  pair = FULL[name]
  found = [
    accelerator.parameters(pair, module) / 1e6
    for module in (pair.teacher, pair.student)
  ]
  assert found == pytest.approx(PUBLISHED[name], abs=0.06)


@pytest.mark.parametrize("name", QUICK)
def test_the_flops_are_those_of_the_large_products(name):
  pair = QUICK[name]
  found = accelerator.forward_flops(pair, pair.student)
  size = accelerator.parameters(pair, pair.student)
  if name == "decoder_1b":  # every weight once a token, and attention
    tokens = pair.batch_size * pair.extent
    assert 2 * size * tokens < found < 3 * 2 * size * tokens
  assert found > 0


@pytest.mark.parametrize("name", QUICK)
def test_the_peer_has_as_many_parameters(name):
  reason = "the peer is made of torch and transformers"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  from benchmarks import torch_accelerator

  pair = QUICK[name]
  peer = torch_accelerator.network(pair.kind, pair.student, pair.classes)
  found = sum(weight.numel() for weight in peer.parameters())
  assert found == accelerator.parameters(pair, pair.student)
