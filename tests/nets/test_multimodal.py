"""Networks for any subset of modalities: what is absent is nowhere seen."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import errors, nets
from jaxkd.nets import resnet
from jaxkd.network import Network
from tests import golden_tools
from tests.nets import filling

GOLDEN = golden_tools.section(golden_tools.load("mmanet__mar"), "drop_")
RANDOM = np.random.default_rng(0)
NAMES = ("left", "right", "sums", "available")
MLP = nets.MultimodalMLP(stem_features=(6,), features=(7, 5))
VIEWS = {
  name: jnp.asarray(RANDOM.normal(size=shape), jnp.float32)
  for name, shape in zip(
    NAMES[:3], ((4, 8, 4), (4, 8, 4), (4, 16)), strict=True
  )
}
AVAILABLE = jnp.array([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 1]], jnp.float32)
RESNET = nets.MultimodalResNet(
  stem_widths=(3, 4), widths=(5, 6), reduction=2, num_classes=3
)
MAPS = tuple(
  jnp.asarray(RANDOM.normal(size=(4, 32, 32, c)), jnp.float32)
  for c in (3, 1, 1)
)


@jax.jit
def _run(variables, batch):
  taps = ("stem1", "stem2", "stem3", "masked", "head/trunk")
  network = Network(MLP, inputs=NAMES)
  return network.apply(variables, batch, taps=taps)[0]


def _mlp(**changed):
  """Outputs and taps of the perceptrons."""
  batch = {**VIEWS, "available": AVAILABLE, **changed}
  variables = filling.random_variables(MLP, *(batch[name] for name in NAMES))
  return _run(variables, batch)


def test_maps_of_dropped_modalities_equal_the_reference():
  names = ("rgb", "depth", "ir")
  maps = [np.moveaxis(GOLDEN[f"in_{name}"], 1, -1) for name in names]
  available = jnp.tile(GOLDEN["param_forced"][None], (len(maps[0]), 1))
  joint = nets.MaskedConcat().apply({}, maps, available)
  expected = [np.moveaxis(GOLDEN[f"out_{name}"], 1, -1) for name in names]
  np.testing.assert_array_equal(joint, np.concatenate(expected, -1))


def test_a_dropped_modality_is_exactly_zero_behind_its_stem():
  outputs = _mlp()
  parts = jnp.split(outputs.taps["masked"], 3, axis=-1)
  for i, part in enumerate(parts):
    stem = outputs.taps[f"stem{i + 1}"]
    here = AVAILABLE[:, i] > 0
    np.testing.assert_array_equal(part[~here], 0)
    np.testing.assert_array_equal(part[here], stem[here])
    assert float(jnp.abs(stem[~here]).max()) > 0


def test_an_input_of_zeros_is_no_dropped_modality():
  zeros = {name: jnp.zeros_like(x) for name, x in VIEWS.items()}
  masked = _mlp(**zeros).taps["masked"]
  assert float(jnp.abs(masked[0]).min()) > 0  # the biases of the stems


def test_what_a_dropped_modality_holds_does_not_matter():
  here = AVAILABLE[:, 0] > 0
  poisoned = jnp.where(here[:, None, None], VIEWS["left"], jnp.nan)
  np.testing.assert_array_equal(_mlp(left=poisoned).logits, _mlp().logits)
  other = _mlp(left=VIEWS["left"] + 1).logits
  moved = jnp.abs(other - _mlp().logits).max(1) > 0
  np.testing.assert_array_equal(moved, here)


def test_no_gradient_reaches_the_stem_of_a_modality_that_all_lack():
  available = AVAILABLE.at[:, 1].set(0)
  inputs = (*VIEWS.values(), available)
  variables = filling.random_variables(MLP, *inputs)
  total = lambda params: jnp.sum(MLP.apply({"params": params}, *inputs)[:, 0])
  slopes = jax.jit(jax.grad(total))(variables["params"])
  sizes = {
    stem: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(slopes[stem]))
    for stem in ("stem1", "stem2", "stem3")
  }
  assert sizes["stem2"] == 0
  assert min(sizes["stem1"], sizes["stem3"]) > 0


def test_a_second_head_reads_the_masked_features():
  head = Network(nets.MLPHead(features=MLP.features), inputs=("masked",))
  inputs = (*VIEWS.values(), AVAILABLE)
  variables = filling.random_variables(MLP, *inputs)
  own = {"params": variables["params"]["head"]}
  outputs = _mlp()
  batch = {"masked": outputs.taps["masked"]}
  second, _ = head.apply(own, batch, taps=("trunk",))
  np.testing.assert_allclose(second.logits, outputs.logits, rtol=1e-6)
  np.testing.assert_allclose(
    second.taps["trunk"], outputs.taps["head/trunk"], rtol=1e-6
  )


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (4,)])
def test_a_mask_without_a_column_for_every_modality_is_refused(shape):
  message = r"available of shape .*: expected \(4, 3\)"
  with pytest.raises(errors.ConfigError, match=message):
    MLP.init(jax.random.key(0), *VIEWS.values(), jnp.ones(shape))


def _resnet(train):
  variables = filling.random_variables(RESNET, *MAPS, AVAILABLE)
  run = jax.jit(
    lambda variables, maps: RESNET.apply(
      variables,
      *maps,
      AVAILABLE,
      train=train,
      capture_intermediates=True,
      mutable=["batch_stats", "intermediates"],
    )
  )
  return run(variables, MAPS), variables


def test_stems_of_residual_stages_are_masked_behind_batch_norms():
  (logits, state), _ = _resnet(train=False)
  masked = state["intermediates"]["masked"]["__call__"][0]
  assert logits.shape == (4, 3)
  assert masked.shape == (4, 4, 4, 12)
  for i, part in enumerate(jnp.split(masked, 3, axis=-1)):
    here = AVAILABLE[:, i] > 0
    np.testing.assert_array_equal(part[~here], 0)
    assert (jnp.abs(part[here]).max((1, 2, 3)) > 0).all()


def test_training_moves_the_statistics_of_every_batch_norm():
  (_, state), variables = _resnet(train=True)
  before, after = (
    flax.traverse_util.flatten_dict(tree["batch_stats"], sep="/")
    for tree in (variables, state)
  )
  assert len(after) == 2 * (3 * (1 + 4 + 5) + 10)
  assert all(np.any(after[path] != before[path]) for path in before)


def _shapes(net, *inputs):
  """Shapes of parameters by their first names, and of taps."""
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]

  def run(key, *arrays):
    variables = net.init(key, *arrays)
    state = net.apply(
      variables, *arrays, capture_intermediates=True, mutable=["intermediates"]
    )[1]
    return variables["params"], state["intermediates"]

  params, taps = jax.eval_shape(run, jax.random.key(0), *arrays)
  flat = flax.traverse_util.flatten_dict(taps, sep="/")
  return params, {
    path.removesuffix("/__call__"): x[0].shape for path, x in flat.items()
  }


def _count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_network_of_the_paper_has_the_sizes_of_resnet_18():
  faces = (2, 112, 112, 3)
  params, taps = _shapes(nets.MultimodalResNet(), faces, faces, faces, (2, 3))
  stem, trunk = params["stem1"], params["head"]["trunk"]
  # As published for ResNet-18, whose third stage reads 128 channels, not 384.
  assert _count(stem["layer1"]) == 147_968
  assert _count(stem["layer2"]) == 525_568
  assert _count(trunk["layer3"]) == 2_099_712 + 256 * 256 * (9 + 1)
  assert _count(trunk["layer4"]) == 8_393_728
  assert _count(stem["se"]) == 2 * 128 * 8 + 128 + 8
  assert stem["conv"]["kernel"].shape == (3, 3, 3, 64)
  assert taps["stem2"] == (2, 14, 14, 128)
  assert taps["masked"] == (2, 14, 14, 384)
  assert taps["head/trunk"] == (2, 4, 4, 512)
  assert taps["head"] == (2, 2)
  second, _ = _shapes(nets.ResNetHead(num_classes=2), (2, 14, 14, 384))
  assert jax.tree.map(jnp.shape, second) == jax.tree.map(
    jnp.shape, params["head"]
  )


def test_tap_paths_are_exactly_the_documented_ones():
  _, taps = _shapes(MLP, *(x.shape for x in VIEWS.values()), (4, 3))
  stems = [f"stem{i}{inside}" for i in (1, 2, 3) for inside in ("", "/fc1")]
  head = ["", "/trunk", "/trunk/fc1", "/trunk/fc2", "/classifier"]
  expected = [*stems, "masked", *(f"head{path}" for path in head)]
  assert sorted(taps) == sorted(["__call__", *expected])
  assert taps["masked"] == (4, 18)
  assert taps["head/trunk"] == (4, 5)


def test_a_block_without_a_branch_is_its_input():
  block = resnet.BasicBlock(features=3)
  x = jnp.abs(MAPS[0][:, :8, :8])
  variables = block.init(jax.random.key(0), x, train=False)
  assert variables["params"].keys() == {"conv1", "bn1", "conv2", "bn2"}
  variables["params"]["bn2"]["scale"] *= 0
  np.testing.assert_array_equal(block.apply(variables, x, train=False), x)


def test_excitation_scales_whole_channels():
  net = resnet.SqueezeExcitation(reduction=2)
  x = MAPS[0]
  variables = filling.random_variables(net, x)
  factor = net.apply(variables, x) / x
  assert float(factor.min()) > 0
  assert float(factor.max()) < 1
  spread = factor.max((1, 2)) - factor.min((1, 2))
  np.testing.assert_allclose(spread, 0, atol=1e-5)


@pytest.mark.parametrize("net", [MLP, RESNET])
def test_half_precision_keeps_float32_weights(net):
  inputs = (*(VIEWS.values() if net is MLP else MAPS), AVAILABLE)
  half = net.clone(dtype=jnp.bfloat16)
  shapes = jax.eval_shape(half.init, jax.random.key(0), *inputs)
  assert {x.dtype.name for x in jax.tree.leaves(shapes)} == {"float32"}
  logits = jax.eval_shape(half.apply, shapes, *inputs)
  assert logits.dtype == jnp.bfloat16
