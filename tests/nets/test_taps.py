"""Tap paths are public: these lists change only on purpose."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd import nets
from tests.nets import filling


def _names(stem, *numbers):
  return [f"{stem}{number}" for number in numbers]


def _under(parent, *children):
  return [parent, *(f"{parent}/{child}" for child in children)]


def _blocks(stem, depths):
  """Returns the paths of numbered blocks of convolution and batch norm."""
  paths = []
  for stage, depth in depths.items():
    inside = [f"{kind}{i + 1}" for i in range(depth) for kind in ("conv", "bn")]
    paths += _under(f"{stem}{stage}", *inside)
  return paths


CONVS = _names("conv", 1, 2, 3)
CONV_BN = CONVS + _names("bn", 1, 2, 3)
ENCODER = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
DECODER = [
  *_blocks("decoder", {5: 3, 4: 3, 3: 3, 2: 2, 1: 1}),
  "decoder1/conv2",
  *_names("decoder_dropout", 3, 4, 5),
  "bottleneck",
]
MASK = [
  "embed",
  *_under("attention", "query", "key", "value", "out"),
  "fc",
]

# net, shapes of its inputs, paths
NETS = {
  "LeNet5": (nets.LeNet5(), [(2, 28, 28, 1)], [*CONVS, "fc1", "fc2"]),
  "ThreeLayerCNN": (
    nets.ThreeLayerCNN(),
    [(2, 112, 112, 1)],
    [*CONVS, "fc1"],
  ),
  "CNNI": (
    nets.CNNI(),
    [(2, 28, 28, 1), (2, 112, 112, 1)],
    [
      *_under("image_branch", *CONVS, "fc1"),
      *_under("audio_branch", *_names("conv", 1, 2, 3, 4, 5)),
      *("concat", "fc1", "fc2"),
    ],
  ),
  "MLP": (nets.MLP(), [(2, 8, 8, 1)], _names("fc", 1, 2, 3, 4)),
  "FusionMLP": (
    nets.FusionMLP(),
    [(2, 8, 8, 1), (2, 64)],
    ["concat", *_names("fc", 1, 2, 3)],
  ),
  "MLPI": (
    nets.MLPI(),
    [(2, 2048), (2, 768)],
    [
      *_under("visual_branch", "fc1", "fc2"),
      *_under("text_branch", "fc1", "fc2"),
      *("concat", "fc1", "fc2", "fc3"),
    ],
  ),
  "BranchNet": (
    nets.BranchNet(),
    [(2, 156, 15)],
    [*_under("branch", *CONV_BN), *_names("fc", 1, 2, 3)],
  ),
  "DSCNNI": (
    nets.DSCNNI(),
    [(2, 15, 224, 224, 3), (2, 156, 15)],
    [
      *_under("visual_branch", *CONV_BN),
      *_under("audio_branch", *CONV_BN),
      *("concat", "fc1", "fc2", "fc3"),
    ],
  ),
  "FuseNetBranch": (
    nets.FuseNetBranch(),
    [(2, 64, 64, 3)],
    [
      *_blocks("encoder", ENCODER),
      *_names("encoder_dropout", 3, 4, 5),
      *DECODER,
    ],
  ),
  "FuseNet": (
    nets.FuseNet(),
    [(2, 64, 64, 3), (2, 64, 64, 1)],
    [
      *_blocks("rgb_encoder", ENCODER),
      *_blocks("depth_encoder", ENCODER),
      *_names("rgb_dropout", 3, 4, 5),
      *_names("depth_dropout", 3, 4),
      *DECODER,
    ],
  ),
  "GateNet": (nets.GateNet(ways=4), [(2, 10)], ["fc1", "fc2"]),
  "DenseGateNet": (
    nets.DenseGateNet(ways=4),
    [(2, 8, 8, 41)],
    ["pointwise", "depthwise", "fc"],
  ),
  "MaskNet1d": (nets.MaskNet1d(), [(2, 18)], MASK),
  "MaskNet2d": (
    nets.MaskNet2d(),
    [(2, 8, 8, 18)],
    [
      *_under("spatial_reduce", "depthwise", "pointwise", "bn"),
      *_under("vector_mask", *MASK),
    ],
  ),
}


def _trace(net, shapes, dtype=jnp.float32):
  """Returns the shapes of variables, output and taps, without computing."""
  inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]

  def run(key, *inputs):
    variables = net.init(key, *inputs)
    output, state = net.apply(
      variables, *inputs, capture_intermediates=True, mutable=["intermediates"]
    )
    return variables, output, state["intermediates"]

  return jax.eval_shape(run, jax.random.key(0), *inputs)


@pytest.mark.parametrize("name", NETS)
def test_tap_paths_are_exactly_the_documented_ones(name):
  net, shapes, paths = NETS[name]
  _, _, taps = _trace(net, shapes)
  del taps["__call__"]
  flat = flax.traverse_util.flatten_dict(taps, sep="/")
  assert all(len(calls) == 1 for calls in flat.values())
  found = [path.removesuffix("/__call__") for path in flat]
  assert sorted(found) == sorted(paths)
  documented = type(net).__doc__
  assert all(path.split("/")[0].rstrip("12345") in documented for path in found)


@pytest.mark.parametrize("name", NETS)
def test_half_precision_keeps_float32_weights(name):
  net, shapes, _ = NETS[name]
  net = net.clone(dtype=jnp.bfloat16)
  variables, output, taps = _trace(net, shapes)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
  assert output.dtype == jnp.bfloat16
  layers = {key: tap for key, tap in taps.items() if key != "concat"}
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(layers))


def test_half_precision_is_close_to_float32():
  image = jax.random.uniform(jax.random.key(0), (4, 28, 28, 1))
  variables = filling.random_variables(nets.LeNet5(), image)
  exact, rough = (
    jax.jit(nets.LeNet5(dtype=dtype).apply)(variables, image)
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  scale = float(jnp.abs(exact).max())
  np.testing.assert_allclose(
    rough.astype(jnp.float32), exact, atol=0.03 * scale
  )


def _apply_edited(net, variables, inputs, path, edit):
  """Applies `net` with `edit` on the output of the submodule at `path`."""

  def interceptor(call, args, kwargs, context):
    output = call(*args, **kwargs)
    here = "/".join(context.module.path) == path
    return (
      edit(output) if here and context.method_name == "__call__" else output
    )

  with nn.intercept_methods(interceptor):
    return net.apply(variables, *inputs)


@pytest.mark.parametrize(
  ("name", "path"),
  [("FusionMLP", "concat"), ("FuseNetBranch", "bottleneck")],
)
def test_an_edit_of_a_junction_reaches_the_output(name, path):
  net, shapes, _ = NETS[name]
  if name == "FuseNetBranch":
    net = net.clone(widths=((4,), (4,)), num_classes=3)
  inputs = [np.ones(shape, np.float32) for shape in shapes]
  variables = filling.random_variables(net, *inputs)

  @jax.jit
  def run(variables, inputs):
    edited = _apply_edited(net, variables, inputs, path, lambda x: 2 * x)
    return net.apply(variables, *inputs), edited

  plain, edited = run(variables, inputs)
  assert float(jnp.abs(edited - plain).max()) > 1e-3


def test_lenet_takes_a_squeezed_feature_from_an_edit_of_conv3():
  net = nets.LeNet5()
  image = jax.random.uniform(jax.random.key(0), (2, 28, 28, 1))
  variables = filling.random_variables(net, image)
  mask = jnp.ones((2, 120))
  edited = _apply_edited(
    net, variables, [image], "conv3", lambda x: nets.apply_mask(x, mask)
  )
  plain = net.apply(variables, image)
  np.testing.assert_allclose(edited, plain, rtol=1e-6, atol=1e-6)
