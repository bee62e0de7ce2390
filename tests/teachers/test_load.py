"""Tensors go to their places, and what does not fit is told in one error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd.errors import RefusedInput
from jaxkd.network import NNX, Network
from jaxkd.teachers.load import OwnNames, fingerprint, load
from jaxkd.teachers.names import NameMap, Rule, linear, norm, under
from jaxkd.teachers.tensors import Tensor

RNG = np.random.default_rng(0)
WEIGHTS = {
  **{
    f"layers.{i}.{name}": RNG.standard_normal(shape).astype(np.float32)
    for i in range(3)
    for name, shape in (("fc.weight", (6, 4)), ("fc.bias", (6,)))
  },
  "scale": np.float32(2.5).reshape(()),
  "steps": np.array([3, 4], np.int64),
}
NAMES = NameMap(
  (
    *under("layers.{i}", "block{i+1}", linear("fc", "fc1")),
    Rule("scale", "params/scale"),
    Rule("steps", "counts/steps"),
  ),
  ignored=("cache",),
)


def tensors(weights, storage=None):
  return {
    name: Tensor(
      x.shape,
      x.dtype,
      functools.partial(np.copy, x),
      storage=(storage or {}).get(name),
    )
    for name, x in weights.items()
  }


def leaf(*shape, dtype=jnp.float32, sharding=None):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def like(blocks=None):
  return {
    "params": {
      **(
        blocks
        or {
          f"block{i}": {"fc1": {"kernel": leaf(4, 6), "bias": leaf(6)}}
          for i in (1, 2, 3)
        }
      ),
      "scale": leaf(),
    },
    "counts": {"steps": leaf(2, dtype=jnp.int32)},
    "empty": {},
  }


def test_every_tensor_is_in_its_place():
  found = load(tensors(WEIGHTS), NAMES, like())
  for i in range(3):
    layer = found["params"][f"block{i + 1}"]["fc1"]
    np.testing.assert_array_equal(
      layer["kernel"], WEIGHTS[f"layers.{i}.fc.weight"].T
    )
    np.testing.assert_array_equal(layer["bias"], WEIGHTS[f"layers.{i}.fc.bias"])
  assert found["params"]["scale"] == 2.5
  assert found["counts"]["steps"].dtype == jnp.int32
  assert found["empty"] == {}
  assert jax.tree.structure(found) == jax.tree.structure(like())


def test_a_dtype_is_for_floating_point_numbers():
  found = load(tensors(WEIGHTS), NAMES, like(), dtype=jnp.bfloat16)
  assert found["params"]["scale"].dtype == jnp.bfloat16
  assert found["counts"]["steps"].dtype == jnp.int32
  np.testing.assert_array_equal(
    found["params"]["block1"]["fc1"]["bias"],
    WEIGHTS["layers.0.fc.bias"].astype(jnp.bfloat16),
  )


@pytest.fixture
def mesh():
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices")
  return jax.make_mesh(
    (4, 2), ("fsdp", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


def stack_like(kernel=None, bias=None):
  return like(
    {
      "blocks": {
        "fc1": {
          "kernel": leaf(3, 4, 6, sharding=kernel),
          "bias": leaf(3, 6, sharding=bias),
        }
      }
    }
  )


def check_stack(found):
  layer = found["params"]["blocks"]["fc1"]
  for i in range(3):
    np.testing.assert_array_equal(
      layer["kernel"][i], WEIGHTS[f"layers.{i}.fc.weight"].T
    )
    np.testing.assert_array_equal(
      layer["bias"][i], WEIGHTS[f"layers.{i}.fc.bias"]
    )


def test_stacks_are_put_together_of_several_tensors():
  names = NAMES.stacked("block{i+1}", "blocks")
  backwards = dict(reversed(WEIGHTS.items()))
  check_stack(load(tensors(backwards), names, stack_like()))


@pytest.mark.parametrize(
  "spec", [(), ("fsdp",), (None, "data"), (("fsdp", "data"),)]
)
def test_leaves_lie_as_they_are_asked_to(mesh, spec):
  place = NamedSharding(mesh, PartitionSpec(*spec))
  weights = {"a.weight": RNG.standard_normal((8, 16)).astype(np.float32)}
  wanted = {"params": {"a": {"kernel": leaf(16, 8, sharding=place)}}}
  names = NameMap(linear("a", "a", bias=False))
  array = load(tensors(weights), names, wanted)["params"]["a"]["kernel"]
  assert array.sharding == place
  np.testing.assert_array_equal(array, weights["a.weight"].T)


@pytest.mark.parametrize(
  "spec", [(), (None, "fsdp"), (None, None, "data"), (None, "data", None)]
)
def test_stacks_lie_as_they_are_asked_to(mesh, spec):
  place = NamedSharding(mesh, PartitionSpec(*spec))
  names = NAMES.stacked("block{i+1}", "blocks")
  found = load(tensors(WEIGHTS), names, stack_like(place))
  assert found["params"]["blocks"]["fc1"]["kernel"].sharding == place
  check_stack(found)


def test_stacks_are_cut_between_blocks_too(mesh):
  place = NamedSharding(mesh, PartitionSpec("data", "fsdp"))
  weights = {
    f"layers.{i}.fc.weight": np.full((2, 4), i) * 1.0 for i in range(4)
  }
  names = NameMap(
    under("layers.{i}", "block{i+1}", linear("fc", "fc", bias=False))
  ).stacked("block{i+1}", "blocks")
  wanted = {
    "params": {"blocks": {"fc": {"kernel": leaf(4, 4, 2, sharding=place)}}}
  }
  found = load(tensors(weights), names, wanted)
  array = found["params"]["blocks"]["fc"]["kernel"]
  assert array.sharding == place
  np.testing.assert_array_equal(array[:, 0, 0], range(4))


def message(weights, wanted=None, names=NAMES, **options):
  with pytest.raises(RefusedInput) as caught:
    load(tensors(weights), names, wanted or like(), **options)
  return str(caught.value)


def test_all_that_does_not_fit_is_told_at_once():
  weights = dict(WEIGHTS)
  weights["layers.0.fc.wieght"] = weights.pop("layers.0.fc.weight")
  weights["layers.1.fc.weight"] = np.zeros((6, 5), np.float32)
  weights["layers.2.fc.bias"] = np.zeros((6, 1), np.float32)
  weights["steps"] = np.zeros(2, np.float32)
  weights["layers.3.fc.bias"] = np.zeros(6, np.float32)
  weights["cache"] = np.zeros(1)
  del weights["scale"]
  head, *lines = message(weights).split("\n  ")
  assert head == (
    "the checkpoint does not fit the network: 6 tensors have a place, 2 are "
    "unused, 2 are missing, 3 have another shape, kind or a double:"
  )
  assert lines == [
    "mis-shaped: layers.1.fc.weight is [6, 5], expected [6, 4] for "
    "params/block2/fc1/kernel",
    "mis-shaped: layers.2.fc.bias is [6, 1], expected [6] for "
    "params/block3/fc1/bias",
    "mistyped: steps is float32, expected int32 for counts/steps",
    "unused: layers.0.fc.wieght [6, 4], did you mean 'layers.0.fc.weight'?",
    "unused: layers.3.fc.bias [6], did you mean 'layers.0.fc.weight'?",
    "missing: layers.0.fc.weight, for params/block1/fc1/kernel, did you mean "
    "'layers.0.fc.wieght'?",
    "missing: scale, for params/scale",
  ]


def test_nothing_is_read_before_all_fits():
  def unread():
    raise AssertionError

  bad = {n: Tensor(x.shape, x.dtype, unread) for n, x in WEIGHTS.items()}
  bad.pop("scale")
  with pytest.raises(RefusedInput, match="1 are missing"):
    load(bad, NAMES, like())


def test_missing_entries_of_a_stack_are_told():
  weights = dict(WEIGHTS)
  del weights["layers.1.fc.weight"]
  weights["layers.3.fc.weight"] = np.zeros((6, 4), np.float32)
  names = NAMES.stacked("block{i+1}", "blocks")
  text = message(weights, stack_like(), names)
  assert "missing: layers.1.fc.weight, for params/blocks/fc1/kernel[1]" in text
  assert "unused: layers.3.fc.weight [6, 4]" in text
  bare = {name: x for name, x in WEIGHTS.items() if "layers" not in name}
  text = message(bare, stack_like(), names)
  assert text.count("missing: ") == 6


def test_a_tensor_that_is_there_twice_is_told():
  names = NameMap(NAMES.rules, prefixes=("", "model."))
  weights = {**WEIGHTS, "model.scale": WEIGHTS["scale"]}
  assert "twice: scale and model.scale are both params/scale" in message(
    weights, names=names
  )


def test_tied_tensors_are_one():
  weights = {**WEIGHTS, "head": WEIGHTS["scale"]}
  ties = {"scale": ("a", 0), "head": ("a", 0)}
  found = load(tensors(weights, ties), NAMES, like())
  assert found["params"]["scale"] == 2.5
  with pytest.raises(RefusedInput, match="unused: head"):
    load(tensors(weights), NAMES, like())


def test_numbers_that_the_dtype_cannot_hold_are_refused():
  weights = {**WEIGHTS, "scale": np.float32(1e5).reshape(())}
  text = message(weights, dtype=jnp.float16)
  assert text.startswith("tensor scale has numbers that float16 cannot hold")
  text = message({**WEIGHTS, "steps": np.array([1, 2**40])})
  assert text.startswith("tensor steps has numbers that int32 cannot hold")


def test_infinite_weights_are_kept():
  weights = {**WEIGHTS, "scale": np.float32(-np.inf).reshape(())}
  found = load(tensors(weights), NAMES, like(), dtype=jnp.float16)
  assert found["params"]["scale"] == -np.inf


def test_parts_are_left_out_where_the_network_lacks_them():
  weights = {**WEIGHTS, "head.weight": np.zeros((2, 6), np.float32)}
  names = NameMap((*NAMES.rules, *linear("head", "head")))
  assert "unused: head.weight" in message(weights, names=names)
  load(tensors(weights), names, like(), without=("head",))
  # A part that is there is loaded all the same.
  bare = {name: x for name, x in WEIGHTS.items() if "layers.0" not in name}
  assert "missing" in message(bare, without=("block1",))


def test_parts_that_are_drawn_are_neither_loaded_nor_missed():
  weights = {**WEIGHTS, "layers.2.fc.bias": np.zeros(99, np.float32)}
  found = load(tensors(weights), NAMES, like(), drawn=("block3", "scale"))
  assert set(found["params"]) == {"block1", "block2"}


class Model(nnx.Module):
  def __init__(self, rngs):
    self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    for block in self.blocks:
      x = block(x)
    return self.dropout(self.norm(x))


def test_an_nnx_module_is_loaded():
  network = Network(NNX(Model))
  batch = {"image": jnp.ones((2, 4))}
  wanted = jax.eval_shape(lambda: network.init(jax.random.key(0), batch))
  weights = {
    f"h.{i}.{name}": RNG.standard_normal(shape).astype(np.float32)
    for i in range(2)
    for name, shape in (("weight", (4, 4)), ("bias", (4,)))
  }
  weights |= {
    f"bn.{name}": np.full(4, i + 1, np.float32)
    for i, name in enumerate(("weight", "bias", "running_mean", "running_var"))
  }
  names = NameMap(
    (
      *linear("h.{i}", "blocks/{i}"),
      *norm("bn", "norm"),
      Rule("bn.running_mean", "state/norm/mean"),
      Rule("bn.running_var", "state/norm/var"),
    )
  )
  variables = load(tensors(weights), names, wanted)
  assert jax.tree.structure(variables) == jax.tree.structure(wanted)
  outputs, _ = network.apply(variables, batch)
  x = np.ones((2, 4))
  for i in range(2):
    x = x @ weights[f"h.{i}.weight"].T + weights[f"h.{i}.bias"]
  expected = (x - 3) / np.sqrt(4 + 1e-5) + 2
  np.testing.assert_allclose(outputs.value, expected, atol=1e-5)


def test_own_names_load_what_was_written_under_them():
  network = Network(linen.Dense(3))
  batch = {"image": jnp.ones((2, 4))}
  drawn = network.init(jax.random.key(0), batch)
  flat = {f"params/{k}": np.asarray(x) for k, x in drawn["params"].items()}
  found = load(tensors(flat), OwnNames(), drawn)
  assert jax.tree.all(jax.tree.map(np.array_equal, found, drawn))


def test_a_fingerprint_is_of_names_shapes_dtypes_and_bytes():
  tree = {"params": {"a": jnp.arange(6.0), "b": jnp.ones(())}}
  first = fingerprint(tree)
  assert len(first) == 64
  assert first == fingerprint(
    {"params": dict(reversed(tree["params"].items()))}
  )
  assert first == fingerprint(jax.tree.map(np.asarray, tree))
  for other in (
    {"params": {"a": jnp.arange(6.0).at[3].set(9), "b": jnp.ones(())}},
    {"params": {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(())}},
    {"params": {"a": jnp.arange(6), "b": jnp.ones(())}},
    {"params": {"c": jnp.arange(6.0), "b": jnp.ones(())}},
    {"params": {"a": jnp.arange(6.0)}},
    {"a": jnp.arange(6.0), "b": jnp.ones(())},
  ):
    assert fingerprint(other) != first


def test_a_fingerprint_does_not_depend_on_where_leaves_lie(mesh):
  array = jnp.arange(16.0)
  place = NamedSharding(mesh, PartitionSpec("fsdp"))
  assert fingerprint({"a": jax.device_put(array, place)}) == fingerprint(
    {"a": array}
  )
