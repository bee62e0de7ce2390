"""Networks that are cut: modules make the whole, stitches come and go."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import errors, nets
from jaxkd.nets import blocks
from jaxkd.network import Network
from tests.nets import filling

IMAGE = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
MLP = nets.ModularMLP(width=12, divided_depths=(2, 1, 2))
MOE = nets.ModularMLP(width=6, stitch_width=12, experts=2)
VIT = nets.ModularViT(
  width=8, heads=2, hidden_factor=2, divided_depths=(1, 1, 1)
)
VMOE = VIT.clone(width=6, stitch_width=8, experts=2)
NAC = nets.ModularNAC(width=6, stitch_width=8, latents=3, patch=4, seed=None)
NETS = {"mlp": MLP, "moe": MOE, "vit": VIT, "vmoe": VMOE, "nac": NAC}
EVERY = pytest.mark.parametrize("name", NETS)
STITCHED = pytest.mark.parametrize("name", ["moe", "vmoe", "nac"])


@functools.cache
def _variables(name):
  return filling.random_variables(NETS[name], IMAGE)


@functools.cache
def _compiled(name, method, keep_stitches=False):
  """The method of a net, of its variables and an input."""
  net = NETS[name].clone(keep_stitches=keep_stitches)
  return jax.jit(functools.partial(net.apply, method=method))


def _flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep="/")


def _stitches(tree, factor):
  """The tree with the weights of the stitches times a factor."""
  flat = {
    path: factor * x if "_stitch" in path else x
    for path, x in _flat(tree).items()
  }
  return flax.traverse_util.unflatten_dict(flat, sep="/")


@EVERY
def test_prefix_module_and_suffix_are_the_network_with_its_stitches(name):
  @jax.jit
  def run(variables):
    apply = functools.partial(NETS[name].apply, variables)
    chains = []
    for index in (0, 1, 2, -1):
      x = apply(IMAGE, index=index, method="prefix")
      x = apply(x, index=index, method="module")
      chains.append(apply(x, index=index, method="suffix"))
    return apply(IMAGE, method="stitched"), chains

  expected, chains = run(_variables(name))
  assert expected.shape == (3, 10)
  for logits in chains:
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_behind_the_last_module_nothing_follows():
  run = functools.partial(MLP.apply, _variables("mlp"))
  logits = jnp.arange(30.0).reshape(3, 10)
  same = run(logits, index=-1, method="suffix")
  np.testing.assert_array_equal(same, logits)
  np.testing.assert_array_equal(run(IMAGE, index=0, method="prefix"), IMAGE)


@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_a_network_without_stitches_is_its_modules_in_a_row(name):
  assert not [path for path in _flat(_variables(name)) if "stitch" in path]
  plain, stitched = (
    _compiled(name, method)(_variables(name), IMAGE)
    for method in ("__call__", "stitched")
  )
  np.testing.assert_allclose(plain, stitched, rtol=1e-6)


@STITCHED
def test_deployed_without_stitches_their_weights_do_not_matter(name):
  drawn, moved = _variables(name), _stitches(_variables(name), 3.0)
  run = _compiled(name, "__call__")
  np.testing.assert_array_equal(run(moved, IMAGE), run(drawn, IMAGE))
  kept = _compiled(name, "__call__", keep_stitches=True)
  gap = kept(moved, IMAGE) - kept(drawn, IMAGE)
  assert float(jnp.abs(gap).max()) > 1e-3
  stitched = _compiled(name, "stitched")(moved, IMAGE)
  np.testing.assert_allclose(kept(moved, IMAGE), stitched, rtol=1e-6)


@STITCHED
def test_the_tree_is_the_same_whether_stitches_are_kept_or_not(name):
  net = NETS[name]
  shapes = [
    jax.eval_shape(net.clone(keep_stitches=kept).init, jax.random.key(0), IMAGE)
    for kept in (False, True)
  ]
  assert shapes[0] == shapes[1]
  stitches = {
    "/".join(path.split("/")[1:3])
    for path in _flat(shapes[0])
    if "_stitch" in path
  }
  assert stitches == {
    "module0/post_stitch",
    "module1/pre_stitch",
    "module1/post_stitch",
    "module2/pre_stitch",
  }


@STITCHED
def test_gradient_reaches_a_module_through_the_frozen_suffix(name):
  meta_name = {"moe": "mlp"}.get(name, "vit")
  index = 1 if name == "vmoe" else 0

  def total(params, frozen):
    run = functools.partial(NETS[meta_name].apply, frozen, index=index)
    x = run(IMAGE, method="prefix")
    x = NETS[name].apply({"params": params}, x, index=index, method="module")
    return jnp.sum(run(x, method="suffix")[:, 0])

  run = jax.jit(jax.grad(total))
  slopes = _flat(run(_variables(name)["params"], _variables(meta_name)))
  for path, slope in slopes.items():
    if path.startswith(f"module{index}/post_stitch"):
      assert float(jnp.abs(slope).max()) > 0, path
    if not path.startswith(f"module{index}/"):
      np.testing.assert_array_equal(slope, 0, err_msg=path)


@pytest.mark.parametrize(
  ("net", "layer", "epsilon"),
  [
    (blocks.Stitch(features=2), "norm", 1e-5),
    (blocks.ResidualBlock(hidden=2), "norm2", 1e-6),
    (blocks.ClassHead(num_classes=2), "norm", 1e-6),
  ],
)
def test_the_norm_of_a_stitch_has_another_epsilon(net, layer, epsilon):
  x = 1e-2 * jnp.array([[-1.0, 1.0]])  # variance 1e-4
  variables = net.init(jax.random.key(0), x)
  _, state = net.apply(
    variables, x, capture_intermediates=True, mutable=["intermediates"]
  )
  normed = state["intermediates"][layer]["__call__"][0]
  np.testing.assert_allclose(normed, x / np.sqrt(1e-4 + epsilon), rtol=1e-5)


def test_a_vision_transformer_reads_patches_row_by_row():
  stem = blocks.PatchStem(width=16, patch=4)
  variables = filling.random_variables(stem, IMAGE)
  kernel = jnp.eye(16).reshape(4, 4, 1, 16)
  zeros = jax.tree.map(jnp.zeros_like, variables["params"])
  zeros["patches"]["kernel"] = kernel
  tokens = stem.apply({"params": zeros}, IMAGE)
  assert tokens.shape == (3, 5, 16)
  np.testing.assert_array_equal(tokens[:, 0], 0)
  expected = IMAGE[:, :4, 4:, 0].reshape(3, 16)  # the second patch
  np.testing.assert_allclose(tokens[:, 2], expected)


BLOCK = ["norm2", "mlp", "mlp/fc1", "mlp/fc2"]
TAPS = [
  *("module0", "module0/stem", "module0/stem/fc"),
  *("module1", "module2", "module2/head", "module2/head/norm"),
  "module2/head/fc",
  *(
    f"{block}{inside}"
    for block in (
      "module0/block1",
      "module0/block2",
      "module1/block1",
      "module2/block1",
      "module2/block2",
    )
    for inside in ("", *(f"/{path}" for path in BLOCK))
  ),
]


def test_tap_paths_of_a_cut_perceptron_are_the_documented_ones():
  paths = Network(MLP).paths({"image": IMAGE})
  assert sorted(paths) == sorted(TAPS)
  assert paths["module0"].shape == paths["module1"].shape == (3, 12)
  assert paths["module2"].shape == (3, 10)


def test_tap_paths_of_a_stitched_run_have_the_stitches():
  paths = Network(VMOE.clone(keep_stitches=True)).paths({"image": IMAGE})
  assert paths["module0"].shape == (3, 5, 8)
  assert paths["module1/pre_stitch"].shape == (3, 5, 6)
  assert {"module1/block1/moe/expert2", "module1/block1/attention/query"} <= (
    paths.keys()
  )
  assert "module0/pre_stitch" not in paths
  assert "module2/post_stitch" not in paths


@pytest.mark.parametrize("index", [3, -4])
def test_a_module_that_is_not_there_is_refused(index):
  with pytest.raises(errors.ConfigError, match=r"expected -3 to 2"):
    MLP.apply(_variables("mlp"), IMAGE, index=index, method="module")


@pytest.mark.parametrize("depths", [(), (2, -1)])
def test_impossible_divisions_are_refused(depths):
  with pytest.raises(errors.ConfigError, match="ModularMLP.divided_depths"):
    MLP.clone(divided_depths=depths).init(jax.random.key(0), IMAGE)


def test_images_that_no_patches_fill_are_refused():
  with pytest.raises(errors.ConfigError, match="multiples of 3"):
    VIT.clone(patch=3).init(jax.random.key(0), IMAGE)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"meta": {"divided_depths": (1, 2, 1)}}, "expected 1 everywhere"),
    ({"student": {"divided_depths": (2, 2)}}, "student: .*expected 3 modules"),
    ({"student": {"stitch_width": 16}}, "student: stitch_width = 16"),
    ({"teacher": {"width": 24}}, "teacher: width = 24: expected 12"),
  ],
)
def test_networks_that_do_not_fit_into_the_harness_are_refused(change, message):
  roles = {
    "meta": MLP.clone(divided_depths=(1, 1, 1)),
    "teacher": MLP,
    "student": MOE,
  }
  nets.check_harness(**roles)
  changed = {
    role: net.clone(**change.get(role, {})) for role, net in roles.items()
  }
  with pytest.raises(errors.ConfigError, match=message):
    nets.check_harness(**changed)


@EVERY
def test_half_precision_keeps_float32_weights(name):
  net = NETS[name].clone(dtype=jnp.bfloat16)
  shapes = jax.eval_shape(net.init, jax.random.key(0), IMAGE)
  assert {x.dtype.name for x in jax.tree.leaves(shapes)} == {"float32"}
  logits = jax.eval_shape(net.apply, shapes, IMAGE.astype(jnp.bfloat16))
  assert logits.dtype == jnp.bfloat16
