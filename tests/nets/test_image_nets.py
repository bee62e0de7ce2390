"""ResNet, EfficientNet and MobileNetV2: sizes, paths, and their parts."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.nets import depthwise, inverted, resnet
from jaxkd.network import Network
from tests.nets import filling

SMALL = {
  "bottleneck": nets.ResNet(
    depths=(1, 2), features=(8, 16), stem_features=4, num_classes=3
  ),
  "basic": nets.ResNet(
    depths=(1,), features=(8,), bottleneck=False, stem_features=4, num_classes=3
  ),
  "efficientnet": nets.EfficientNet(
    width=0.25, stages=((1, 3, 1, 1, 16), (2, 5, 2, 4, 24)), num_classes=3
  ),
  "lite": nets.EfficientNet(
    width=0.1,
    stages=((2, 3, 2, 2, 16),),
    squeeze=0.0,
    activation="relu6",
    fixed_ends=True,
    num_classes=3,
  ),
}
# And a block of each.
BLOCKS = {"basic": "stage1/block1", "lite": "block2"}
NORMED = ("conv", "bn")
COUNTS = {  # published numbers of parameters
  "resnet18": (lambda: nets.resnet_variant(18), 11_689_512),
  "resnet34": (lambda: nets.resnet_variant(34), 21_797_672),
  "resnet50": (lambda: nets.resnet_variant(50), 25_557_032),
  "resnet101": (lambda: nets.resnet_variant(101), 44_549_160),
  "resnet152": (lambda: nets.resnet_variant(152), 60_192_808),
  "mobilenet_v2": (lambda: nets.MobileNetV2(), 3_504_872),
  "b0": (lambda: nets.efficientnet_variant("b0"), 5_288_548),
  "b4": (lambda: nets.efficientnet_variant("b4"), 19_341_616),
  "lite0": (lambda: nets.efficientnet_variant("lite0"), 4_652_008),
  "lite4": (lambda: nets.efficientnet_variant("lite4"), 13_006_568),
}


def image(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def shapes(net, batch):
  init = Network(net).init
  return jax.eval_shape(lambda: init(jax.random.key(0), {"image": batch}))


def run(net, variables, batch, **options):
  call = jax.jit(lambda v, x: Network(net).apply(v, {"image": x}, **options))
  return call(variables, batch)


def taps(net, *shape):
  return Network(net).paths({"image": jnp.zeros(shape)})


def under(parent, *children):
  return [parent, *(f"{parent}/{child}" for child in children)]


# Whole networks.


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_net_has_its_number_of_parameters(name):
  make, count = COUNTS[name]
  params = shapes(make(), jnp.zeros((1, 64, 64, 3)))["params"]
  assert sum(x.size for x in jax.tree.leaves(params)) == count


def test_the_paths_of_resnet():
  convs = [f"{kind}{i}" for i in (1, 2, 3) for kind in NORMED]
  first = [*convs, "shortcut", "shortcut_bn"]
  found = taps(SMALL["bottleneck"], 1, 64, 48, 3)
  assert set(found) == {
    *under("stem", *NORMED),
    *under("stage1", *under("block1", *first)),
    *under("stage2", *under("block1", *first), *under("block2", *convs)),
    "pool",
    "fc",
  }
  assert found["stem"].shape == (1, 16, 12, 4)
  assert found["stage1"].shape == (1, 16, 12, 8)
  assert found["stage2"].shape == (1, 8, 6, 16)


def test_the_paths_of_efficientnet():
  found = taps(SMALL["efficientnet"], 1, 64, 48, 3)
  slim = [*under("depthwise", *NORMED), *under("project", *NORMED)]
  gate = under("gate", "reduce", "expand")
  wide = [*under("expand", *NORMED), *slim, *gate]
  assert set(found) == {
    *under("stem", *NORMED),
    *under("block1", *slim, *gate),
    *under("block2", *wide),
    *under("block3", *wide),
    *under("head", *NORMED),
    "pool",
    "fc",
  }
  assert found["block1"].shape == (1, 32, 24, 8)
  assert found["block3"].shape == (1, 16, 12, 8)
  assert found["block3/gate/reduce"].shape == (1, 1, 1, 2)
  assert found["head"].shape == (1, 16, 12, 320)


def test_blocks_end_the_maps_that_the_docstring_says():
  sides = (32, 16, 8, 4, 2)
  for net, ends in (
    (nets.efficientnet_variant("lite0"), (1, 3, 5, 11, 16)),
    (nets.MobileNetV2(), (1, 3, 6, 13, 17)),
  ):
    found = taps(net, 1, 64, 64, 3)
    for block, side in zip(ends, sides, strict=True):
      assert found[f"block{block}"].shape[1] == side
      if f"block{block + 1}" in found:
        assert found[f"block{block + 1}"].shape[1] in (side, side // 2)
    assert f"block{ends[-1] + 1}" not in found


def test_bottlenecks_step_in_their_middle_convolution():
  found = taps(nets.resnet_variant(50), 1, 64, 64, 3)
  assert found["stage2/block1/conv1"].shape == (1, 16, 16, 128)
  assert found["stage2/block1/conv2"].shape == (1, 8, 8, 128)
  assert found["stage2/block1/conv3"].shape == (1, 8, 8, 512)


@pytest.mark.slow  # compiles every gradient twice
@pytest.mark.parametrize("name", BLOCKS)
def test_recomputed_blocks_change_neither_gradient_nor_taps(name):
  net, tap = SMALL[name], BLOCKS[name]
  batch = image(2, 16, 16, 3)
  variables = filling.random_variables(net, batch)

  def loss(params, state, batch, remat):
    outputs, changed = Network(net.clone(remat=remat)).apply(
      {**state, "params": params}, {"image": batch}, train=True, taps=(tap,)
    )
    return (outputs.logits**2).sum(), (outputs.taps, changed)

  grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=3)
  params = variables.pop("params")
  kept, again = (grad(params, variables, batch, x) for x in (False, True))
  assert set(again[1][0]) == {tap}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    kept,
    again,
  )


@pytest.mark.parametrize("name", BLOCKS)
def test_without_classes_the_pooled_feature_comes_out(name):
  net, batch = SMALL[name], image(2, 16, 16, 3)
  variables = filling.random_variables(net, batch)
  outputs, _ = run(net, variables, batch, taps=("pool",))
  del variables["params"]["fc"]
  plain, _ = run(net.clone(num_classes=None), variables, batch)
  np.testing.assert_allclose(plain.value, outputs.taps["pool"], rtol=1e-6)


@pytest.mark.parametrize("name", ["basic", "efficientnet"])
def test_half_precision_keeps_parameters_and_statistics_whole(name):
  net, batch = SMALL[name].clone(dtype=jnp.bfloat16), image(2, 16, 16, 3)
  variables = filling.random_variables(net, batch)
  kept = {x.dtype.name for x in jax.tree.leaves(shapes(net, batch))}
  assert kept == {"float32"}
  outputs, _ = run(net, variables, batch, taps=("pool",))
  assert outputs.logits.dtype == outputs.taps["pool"].dtype == jnp.bfloat16
  full = run(SMALL[name], variables, batch)[0].logits
  np.testing.assert_allclose(
    np.float32(outputs.logits), full, atol=0.1 * np.abs(full).max()
  )


# Parts.


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("strides", [1, 2])
def test_margins_are_those_of_tensorflow_and_of_torch(
  size, kernel_size, strides
):
  (same,) = jax.lax.padtype_to_pads((size,), (kernel_size,), (strides,), "SAME")
  found = depthwise.margins(size, kernel_size, strides, "same")
  assert found == tuple(same)
  half = kernel_size // 2
  found = depthwise.margins(size, kernel_size, strides, "symmetric")
  assert found == (half, half)


@pytest.mark.slow  # compiles many convolutions
@pytest.mark.parametrize(
  ("kernel_size", "strides", "padding"),
  [(3, 1, "same"), (3, 2, "symmetric"), (5, 2, "same")],
)
def test_filters_of_every_channel_are_a_grouped_convolution(
  kernel_size, strides, padding
):
  layer = depthwise.DepthwiseConv(
    kernel_size=kernel_size, strides=strides, padding=padding
  )
  x = image(2, 7, 10, 6)
  variables = layer.init(jax.random.key(1), x)
  around = [
    depthwise.margins(n, kernel_size, strides, padding) for n in (7, 10)
  ]

  def expected(variables, x):
    kernel = variables["params"]["kernel"]
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (strides, strides),
      around,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=6,
    )

  def both(f):
    gradient = jax.grad(lambda *given: (f(*given) ** 2).sum(), (0, 1))
    return jax.jit(lambda v, x: (f(v, x), gradient(v, x)))(variables, x)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    both(layer.apply),
    both(expected),
  )


def test_the_first_block_of_a_stage_has_no_residual_and_the_second_has():
  net, batch = SMALL["lite"], image(2, 16, 16, 3)
  paths = ("block1", "block1/project", "block2", "block2/project")
  found = run(net, filling.random_variables(net, batch), batch, taps=paths)[
    0
  ].taps
  np.testing.assert_array_equal(found["block1"], found["block1/project"])
  np.testing.assert_allclose(
    found["block2"], found["block2/project"] + found["block1"], rtol=1e-6
  )


def test_a_block_of_one_width_has_a_shortcut_only_where_it_steps():
  for strides, there in ((1, False), (2, True)):
    block = resnet.Bottleneck(features=8, strides=strides)
    found = jax.eval_shape(
      lambda block=block: block.init(
        jax.random.key(0), jnp.zeros((1, 1, 1, 8)), train=False
      )
    )
    assert ("shortcut" in found["params"]) == there


def test_widths_are_rounded_to_eights_and_never_by_more_than_a_tenth():
  widths = {0.5: 8, 11: 16, 12: 16, 17.6: 16, 19: 24, 44.8: 48, 1792: 1792}
  assert {x: inverted.divisible(x) for x in widths} == widths


def test_lite_leaves_stem_head_and_the_ends_depths():
  found = taps(nets.efficientnet_variant("lite4"), 1, 64, 64, 3)
  assert found["stem"].shape[-1] == 32
  assert found["head"].shape[-1] == 1280
  flat = nets.efficientnet_variant("lite4").scaled_stages()
  assert [stage.repeats for stage in flat] == [1, 4, 4, 6, 6, 8, 1]
  full = nets.efficientnet_variant("b4").scaled_stages()
  assert [stage.repeats for stage in full] == [2, 4, 4, 6, 6, 8, 2]


def test_statistics_move_in_training_alone():
  net, batch = SMALL["lite"], image(4, 16, 16, 3)
  variables = filling.random_variables(net, batch)
  _, none = run(net, variables, batch)
  _, some = run(net, variables, batch, train=True)
  assert not none
  before = flax.traverse_util.flatten_dict(variables["batch_stats"])
  after = flax.traverse_util.flatten_dict(some["batch_stats"])
  assert all((before[path] != after[path]).any() for path in before)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: nets.efficientnet_variant("lite9"), "did you mean 'lite"),
    (lambda: nets.resnet_variant(20), "depth 20; expected one of 18, 34"),
    (
      lambda: taps(nets.MobileNetV2(activation="relu"), 1, 32, 32, 3),
      "activation='relu'.*did you mean 'relu6'",
    ),
    (
      lambda: taps(nets.EfficientNet(padding="valid"), 1, 32, 32, 3),
      "padding='valid': expected one of same, symmetric",
    ),
    (
      lambda: taps(nets.ResNet(depths=(1, 1)), 1, 32, 32, 3),
      r"depths=\(1, 1\).*as many of both",
    ),
  ],
)
def test_what_is_not_known_is_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()
