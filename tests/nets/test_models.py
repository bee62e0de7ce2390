"""All networks of MST-Distill equal the official ones.

Golden file: Gray-OREO/MST-Distill@093b2fe, float32, evaluation mode, weights
and inputs from a formula; tolerance 2e-4 of the largest value.

FuseNet runs in float64 here: its unpooling is discontinuous where two values of
a window nearly tie, and float32 rounding (1e-6) decides such a tie.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import flax
import jax
import numpy as np
import pytest

from jaxkd import nets
from tests import golden_tools
from tests.nets import name_maps

TOLERANCE = 2e-4  # of the largest value
GOLDEN = golden_tools.load("mst_distill__models")
AUDIO, VISUAL = (256, 5), (24, 1, 28, 28)  # last maps of RAVDESS
VGGS_AUDIO, VGGS_VISUAL = (64, 4), (64, 2, 1, 1)  # and of VGGSound


@dataclasses.dataclass(frozen=True)
class Case:
  """One network of the file, with inputs in PyTorch's shapes."""

  net: Callable
  rules: tuple[golden_tools.Rule, ...]
  inputs: tuple[tuple[int, ...], ...]
  taps: Mapping[str, str]  # PyTorch name -> path here
  flattened: tuple[int, ...] | None = None  # map behind a flattened tap
  stride: int = 1  # every how many pixels the logits are stored
  double: bool = False  # whether the comparison needs float64


MLP_TAPS = {"fc1": "fc1", "fc2": "fc2"}
CASES = {
  "avmnist_lenet5": Case(
    nets.LeNet5(),
    name_maps.LENET5,
    ((2, 1, 28, 28),),
    {name: name for name in ("conv1", "conv2", "conv3", "fc1")},
  ),
  "avmnist_threelayercnn": Case(
    nets.ThreeLayerCNN(),
    name_maps.THREE_LAYER_CNN,
    ((2, 1, 112, 112),),
    {name: name for name in ("conv2", "conv3", "fc1")},
  ),
  "avmnist_cnn_i": Case(
    nets.CNNI(),
    name_maps.CNN_I,
    ((2, 1, 28, 28), (2, 1, 112, 112)),
    {"concat_identity": "concat", "fc1": "fc1"},
  ),
  "ravdess_audio": Case(
    nets.BranchNet(branch=nets.RAVDESS_AUDIO),
    name_maps.branch_net(AUDIO),
    ((2, 15, 156),),
    {"audio_branch": "branch"} | MLP_TAPS,
    flattened=AUDIO,
  ),
  "ravdess_visual": Case(
    nets.BranchNet(branch=nets.RAVDESS_VISUAL),
    name_maps.branch_net(VISUAL),
    ((1, 3, 15, 224, 224),),
    {"visual_branch": "branch"} | MLP_TAPS,
    flattened=VISUAL,
  ),
  "ravdess_dscnn_i": Case(
    nets.DSCNNI(),
    name_maps.dscnn(AUDIO, VISUAL),
    ((1, 3, 15, 224, 224), (1, 15, 156)),
    MLP_TAPS,
  ),
  "vggs_audio": Case(
    nets.BranchNet(branch=nets.VGGSOUND_AUDIO, features=(320, 160, 141)),
    name_maps.branch_net(VGGS_AUDIO),
    ((2, 10, 128),),
    {"audio_branch": "branch"} | MLP_TAPS,
    flattened=VGGS_AUDIO,
  ),
  "vggs_visual": Case(
    nets.BranchNet(branch=nets.VGGSOUND_VISUAL, features=(320, 160, 141)),
    name_maps.branch_net(VGGS_VISUAL),
    ((1, 512, 10, 7, 7),),
    {"visual_branch": "branch"} | MLP_TAPS,
    flattened=VGGS_VISUAL,
  ),
  "vggs_dscnn_i": Case(
    nets.DSCNNI(
      visual=nets.VGGSOUND_VISUAL,
      audio=nets.VGGSOUND_AUDIO,
      features=(320, 160, 141),
    ),
    name_maps.dscnn(VGGS_AUDIO, VGGS_VISUAL),
    ((1, 512, 10, 7, 7), (1, 10, 128)),
    MLP_TAPS,
  ),
  "cmmd_mlp_vb": Case(
    nets.MLP(features=(1024, 512, 8)), name_maps.MLP, ((2, 2048),), MLP_TAPS
  ),
  "cmmd_mlp_tb": Case(
    nets.MLP(features=(1024, 512, 8)), name_maps.MLP, ((2, 768),), MLP_TAPS
  ),
  "cmmd_mlp_i": Case(
    nets.MLPI(), name_maps.MLP_I, ((2, 2048), (2, 768)), MLP_TAPS
  ),
  "nyu_fusenet_rgb": Case(
    nets.FuseNetBranch(),
    name_maps.FUSENET_BRANCH,
    ((1, 3, 64, 64),),
    {"CBR5_RGB_ENC": "encoder5", "CBR5_RGB_DEC": "decoder5"},
    stride=8,
    double=True,
  ),
  "nyu_fusenet_d": Case(
    nets.FuseNetBranch(),
    name_maps.FUSENET_BRANCH,
    ((1, 1, 64, 64),),
    {"CBR5_DEPTH_ENC": "encoder5", "CBR5_D_DEC": "decoder5"},
    stride=8,
    double=True,
  ),
  "nyu_fusenet_i": Case(
    nets.FuseNet(),
    name_maps.FUSENET,
    ((1, 3, 64, 64), (1, 1, 64, 64)),
    {"after_fusion_identity": "bottleneck", "CBR5_RGBD_DEC": "decoder5"},
    stride=8,
    double=True,
  ),
}


def _inputs(case: Case) -> list[np.ndarray]:
  """Returns the formula's inputs, channels last."""
  phase = float(GOLDEN["param_phase"])
  arrays = []
  for offset, shape in zip((0.0, 0.3), case.inputs, strict=False):
    values = golden_tools.formula(int(np.prod(shape)), 0, phase + offset + 5)
    values = values.reshape(shape).astype(np.float32)
    arrays.append(np.moveaxis(values, 1, -1))
  return arrays


@functools.cache
def _run(tag: str):
  """Returns the logits and the case's taps by path."""
  case = CASES[tag]
  names_shapes = GOLDEN[f"{tag}_param_names_shapes"].item()
  weights = golden_tools.formula_weights(
    names_shapes, float(GOLDEN["param_phase"])
  )
  variables = golden_tools.convert(weights, case.rules)
  inputs = _inputs(case)
  apply = functools.partial(
    case.net.apply, capture_intermediates=True, mutable=["intermediates"]
  )
  if case.double:
    with golden_tools.double_precision():
      doubles = jax.tree.map(np.float64, (variables, *inputs))
      logits, state = jax.jit(apply)(*doubles)
  else:
    logits, state = jax.jit(apply)(variables, *inputs)
  flat = flax.traverse_util.flatten_dict(state["intermediates"], sep="/")
  taps = {
    path.removesuffix("/__call__"): value[0] for path, value in flat.items()
  }
  return logits, {path: taps[path] for path in case.taps.values()}


def _torch_layout(case: Case, path: str, array) -> np.ndarray:
  """Returns a tap in PyTorch's order of axes and of flattened features."""
  if path == "branch":
    order = golden_tools.flatten_order(case.flattened)
    return np.asarray(array)[:, np.argsort(order)]
  return np.moveaxis(np.asarray(array), -1, 1)


@pytest.mark.parametrize("tag", CASES)
def test_logits_equal_the_reference(tag):
  case = CASES[tag]
  logits, _ = _run(tag)
  logits = np.moveaxis(np.asarray(logits), -1, 1)
  logits = logits[(..., *[slice(None, None, case.stride)] * (logits.ndim - 2))]
  expected = GOLDEN[f"{tag}_out_logits"]
  scale = np.abs(expected).max()
  np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize("tag", CASES)
def test_tapped_features_equal_the_reference(tag):
  case = CASES[tag]
  _, taps = _run(tag)
  for name, path in case.taps.items():
    expected = golden_tools.section(GOLDEN, f"{tag}_feat_{name}_")
    feature = _torch_layout(case, path, taps[path])
    assert feature.shape == tuple(expected["shape"])
    atol = TOLERANCE * np.abs(feature).max()
    np.testing.assert_allclose(
      feature.reshape(-1)[:16], expected["first16"], rtol=0, atol=atol
    )
    np.testing.assert_allclose(
      feature.mean(), expected["mean"], rtol=0, atol=atol
    )


@pytest.mark.parametrize("tag", CASES)
def test_a_fresh_net_has_the_reference_count_of_weights(tag):
  case = CASES[tag]
  variables = jax.eval_shape(case.net.init, jax.random.key(0), *_inputs(case))
  count = sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert count == GOLDEN[f"{tag}_param_count"]


def test_every_network_of_the_file_is_checked():
  tags = {
    key.removesuffix("_out_logits")
    for key in GOLDEN
    if key.endswith("_out_logits")
  }
  assert tags == set(CASES)
