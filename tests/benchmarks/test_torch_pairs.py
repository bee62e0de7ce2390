"""PyTorch's networks and steps are those of jaxkd."""

import jax
import numpy as np
import pytest

from benchmarks import overhead
from benchmarks.pairs import PAIRS, small

torch_pairs = pytest.importorskip("benchmarks.torch_pairs", reason="no torch")
pytestmark = pytest.mark.slow

OPTIONS = {
  "lr": overhead.LR,
  "temperature": overhead.TEMPERATURE,
  "alpha": overhead.ALPHA,
}


@pytest.fixture(autouse=True)
def one_thread():
  """Steps of these sizes gain nothing from more."""
  threads = torch_pairs.torch.get_num_threads()
  torch_pairs.torch.set_num_threads(1)
  yield
  torch_pairs.torch.set_num_threads(threads)


@pytest.mark.parametrize("name", PAIRS)
def test_networks_have_as_many_parameters(name):
  pair = PAIRS[name]
  shapes = jax.eval_shape(lambda: overhead.fresh(pair))
  for role in ("teacher", "student"):
    with torch_pairs.torch.device("meta"):
      net = torch_pairs.network(pair, getattr(pair, role))
    theirs = sum(each.numel() for each in net.parameters())
    ours = sum(each.size for each in jax.tree.leaves(shapes[role]["params"]))
    assert theirs == ours


def falling_losses(name, *, compiled):
  """Three losses of jaxkd's step and of the peer's, on one batch."""
  pair = small(PAIRS[name])
  peer = torch_pairs.TorchKD(
    pair, overhead.fresh(pair), **OPTIONS, compiled=compiled
  )
  ours = overhead.hand_written_step(pair).call
  losses = [(float(ours()), peer.step()) for _ in range(3)]
  assert losses[0][1] > losses[1][1] > losses[2][1]
  return np.transpose(losses)


@pytest.mark.parametrize("name", PAIRS)
def test_steps_compute_the_same_falling_losses(name):
  ours, theirs = falling_losses(name, compiled=False)
  np.testing.assert_allclose(ours, theirs, rtol=2e-5)


def test_the_compiled_step_computes_the_same():
  if error := torch_pairs.compile_error():
    pytest.skip(f"torch.compile does not work here: {error}")
  ours, theirs = falling_losses("mlp", compiled=True)
  np.testing.assert_allclose(ours, theirs, rtol=2e-5)


def test_where_nothing_compiles_the_eager_step_is_left(monkeypatch):
  monkeypatch.setattr(torch_pairs, "compile_error", lambda: "no compiler")
  pair = small(PAIRS["mlp"])
  steps = torch_pairs.steps(pair, overhead.fresh(pair), **OPTIONS)
  assert set(steps) == {"torch"}
  assert torch_pairs.record(1)["compile_error"] == "no compiler"
