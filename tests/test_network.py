"""Networks of three libraries: variables, taps, edits, modes and messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.network import NNX, Network, Outputs, Pure, tap

KEY = jax.random.key(0)
BATCH = {"image": jax.random.normal(jax.random.key(1), (6, 8))}


class Normed(nn.Module):
  """A net with batch statistics, dropout and a second entry point."""

  def setup(self):
    self.fc1 = nn.Dense(8)
    self.bn = nets.BatchNorm()
    self.dropout = nn.Dropout(0.5)
    self.fc2 = nn.Dense(3)

  def __call__(self, x, *, train=False):
    return {"logits": self.fc2(self.encode(x, train=train)), "width": 8}

  def encode(self, x, *, train=False):
    x = self.bn(self.fc1(x), train=train)
    return self.dropout(nn.relu(x), deterministic=not train)


class Block(nn.Module):
  """A residual block, as `nn.scan` takes it."""

  @nn.compact
  def __call__(self, x):
    return x + nn.relu(nn.Dense(x.shape[-1], name="fc")(x))


class ScanBlock(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return Block(name="block")(x), None


class Lifted(nn.Module):
  """A rematerialised and a scanned block."""

  carried: tuple[str, ...] = ("intermediates",)

  @nn.compact
  def __call__(self, x):
    x = nn.remat(Block)(name="once")(x)
    scanned = nn.scan(
      ScanBlock,
      variable_axes=dict.fromkeys(("params", *self.carried), 0),
      split_rngs={"params": True},
      length=3,
    )
    return scanned(name="layers")(x, None)[0]


class Stack(nnx.Module):
  """Linear layers in a list, with batch norm and dropout."""

  def __init__(self, rngs, classes=3):
    self.stem = nnx.Linear(8, 8, rngs=rngs)
    self.bn = nnx.BatchNorm(8, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    blocks = [nnx.Linear(8, 8, rngs=rngs) for _ in range(2)]
    self.blocks = nnx.List(blocks) if hasattr(nnx, "List") else blocks
    self.head = nnx.Linear(8, classes, rngs=rngs)

  def __call__(self, x):
    x = self.dropout(nnx.relu(self.bn(self.stem(x))))
    for block in self.blocks:
      x = nnx.relu(block(x))
    return self.head(x)

  def features(self, x):
    return self.stem(x)


def _pure_init(rng, x):
  return {"params": {"w": jax.random.normal(rng, (x.shape[-1], 3))}}


def _pure_apply(variables, x):
  hidden = tap("hidden", x @ variables["params"]["w"])
  return tap("logits", 2 * hidden)


NETWORKS = {
  "linen": (Network(nets.MLP(features=(8, 6, 3))), "fc2"),
  "nnx": (Network(NNX(Stack)), "blocks/0"),
  "pure": (Network(Pure(_pure_init, _pure_apply)), "hidden"),
}
EACH = pytest.mark.parametrize("kind", NETWORKS)


@functools.cache
def _made(kind):
  """Returns a network, one of its paths, and variables."""
  network, path = NETWORKS[kind]
  return network, path, network.init(KEY, BATCH)


@functools.cache
def _normed():
  network = Network(Normed())
  return network, network.init(KEY, BATCH)


@EACH
def test_a_tap_reads_a_submodule_and_changes_nothing(kind):
  network, path, variables = _made(kind)
  plain, changed = network.apply(variables, BATCH)
  tapped, _ = network.apply(variables, BATCH, taps=(path,))
  assert plain.taps == {}
  assert changed == {}
  assert list(tapped.taps) == [path]
  assert tapped.taps[path].shape == network.paths(BATCH)[path].shape
  np.testing.assert_array_equal(plain.logits, tapped.logits)


@EACH
def test_an_edit_replaces_the_output_and_the_tap_reads_it(kind):
  network, path, variables = _made(kind)
  run = functools.partial(network.apply, variables, BATCH, taps=(path,))
  plain, _ = run()
  doubled, _ = run(edits={path: lambda x: 2 * x})
  np.testing.assert_allclose(doubled.taps[path], 2 * plain.taps[path])
  assert not np.allclose(doubled.logits, plain.logits)
  replaced, _ = run(edits={path: lambda x: plain.taps[path]})
  np.testing.assert_allclose(replaced.logits, plain.logits, rtol=1e-6)


@EACH
def test_an_edit_is_gone_after_its_call(kind):
  network, path, variables = _made(kind)
  before, _ = network.apply(variables, BATCH)
  with pytest.raises(ZeroDivisionError):
    network.apply(variables, BATCH, edits={path: lambda x: 1 / 0})
  after, _ = network.apply(variables, BATCH)
  np.testing.assert_array_equal(before.logits, after.logits)


@EACH
def test_gradients_flow_through_frozen_parameters_to_an_edit(kind):
  network, path, variables = _made(kind)

  @jax.jit
  def gradients(variables, factor):
    def objective(factor):
      outputs, _ = network.apply(
        variables, BATCH, edits={path: lambda x: x * factor}
      )
      return jnp.sum(outputs.logits**2)

    return jax.grad(objective)(factor)

  gradient = gradients(variables, jnp.ones(network.paths(BATCH)[path].shape))
  assert float(jnp.abs(gradient).max()) > 1e-3


@EACH
def test_equal_keys_draw_equal_variables(kind):
  network, _, variables = _made(kind)
  chex.assert_trees_all_equal(variables, network.init(KEY, BATCH))
  other = network.init(jax.random.key(7), BATCH)["params"]
  first, second = (jax.tree.leaves(x) for x in (variables["params"], other))
  assert any((a != b).any() for a, b in zip(first, second, strict=True))


@EACH
def test_a_tap_that_does_not_exist_is_refused_with_the_nearest_name(kind):
  network, path, variables = _made(kind)
  message = rf"tap path '{path}x': no such submodule, did you mean '{path}'\?"
  with pytest.raises(ConfigError, match=message):
    network.apply(variables, BATCH, taps=(f"{path}x",))


def test_an_edit_that_does_not_exist_is_refused_with_the_paths_there_are():
  network, _, variables = _made("linen")
  message = r"edit path 'head': no such submodule.*has fc1, fc2, fc3"
  with pytest.raises(ConfigError, match=message):
    network.apply(variables, BATCH, edits={"head": lambda x: x})


@EACH
def test_a_batch_without_the_input_is_refused_by_name(kind):
  network, _, variables = _made(kind)
  message = r"no entry 'image', did you mean 'images'\? \(has images\); it is"
  with pytest.raises(
    ConfigError, match=f"{message} an input of {network.name}"
  ):
    network.apply(variables, {"images": BATCH["image"]})


def test_inputs_are_given_in_the_order_of_their_names():
  network = Network(nets.FusionMLP(features=(3,)), inputs=["b", "a"])
  batch = {"a": jnp.zeros((2, 4)), "b": jnp.ones((2, 2)), "c": None}
  variables = network.init(KEY, batch)
  outputs, _ = network.apply(variables, batch, taps=("concat",))
  np.testing.assert_array_equal(outputs.taps["concat"][0], [1, 1, 0, 0, 0, 0])


def test_paths_are_those_of_the_module():
  paths = _made("nnx")[0].paths(BATCH)
  assert set(paths) == {
    *("stem", "bn", "dropout", "blocks/0", "blocks/1", "head")
  }
  assert list(_made("pure")[0].paths(BATCH)) == ["hidden", "logits"]
  assert paths["head"].shape == (6, 3)


def test_logits_are_the_value_or_its_entry():
  network, variables = _normed()
  outputs, _ = network.apply(variables, BATCH)
  assert outputs.logits is outputs.value["logits"]
  with pytest.raises(ConfigError, match="no 'logits' but features, mask"):
    _ = Outputs(value={"features": 1, "mask": 2}).logits


def test_batch_statistics_move_in_training_only():
  network, variables = _normed()
  _, changed = network.apply(variables, BATCH)
  assert changed == {}
  _, changed = network.apply(
    variables, BATCH, train=True, rngs={"dropout": KEY}, taps=("fc1",)
  )
  assert list(changed) == ["batch_stats"]
  assert changed["batch_stats"]["bn"]["mean"].any()


def test_nnx_statistics_move_and_dropout_acts_in_training_only():
  network, _, variables = _made("nnx")
  first, changed = network.apply(variables, BATCH)
  second, _ = network.apply(variables, BATCH, rngs={"dropout": KEY})
  np.testing.assert_array_equal(first.logits, second.logits)
  assert changed == {}
  train = functools.partial(network.apply, variables, BATCH, train=True)
  first, changed = train(rngs={"dropout": KEY})
  again, _ = train(rngs={"dropout": KEY})
  other, _ = train(rngs={"dropout": jax.random.key(1)})
  np.testing.assert_array_equal(first.logits, again.logits)
  assert not np.allclose(first.logits, other.logits)
  assert changed["state"]["bn"]["mean"].any()
  chex.assert_trees_all_equal_shapes_and_dtypes(
    changed["state"], variables["state"]
  )


def test_nnx_parameters_given_are_the_ones_used():
  network, _, variables = _made("nnx")
  params = dict(variables["params"])
  params["head"] = jax.tree.map(jnp.zeros_like, params["head"])
  outputs, _ = network.apply({**variables, "params": params}, BATCH)
  np.testing.assert_array_equal(outputs.logits, np.zeros((6, 3)))


@pytest.mark.parametrize(
  ("network", "method", "path"),
  [
    (Network(Normed()), "encode", "fc1"),
    (Network(NNX(Stack)), "features", "stem"),
  ],
  ids=["linen", "nnx"],
)
def test_a_named_part_can_be_run(network, method, path):
  variables = network.init(KEY, BATCH)
  outputs, _ = network.apply(variables, BATCH, method=method, taps=(path,))
  assert outputs.value.shape == (6, 8)
  assert outputs.taps[path].shape == (6, 8)
  with pytest.raises(ConfigError, match="tap path"):
    network.apply(variables, BATCH, method=method, taps=("fc2",))


def test_a_plain_function_has_no_parts():
  network, _, variables = _made("pure")
  with pytest.raises(ConfigError, match="method='encode': a plain function"):
    network.apply(variables, BATCH, method="encode")


def test_rematerialised_and_scanned_modules_can_be_tapped_and_edited():
  network = Network(Lifted())
  variables = network.init(KEY, BATCH)
  taps = ("once/fc", "layers/block/fc")

  @jax.jit
  def run(variables, factor):
    edits = {"once/fc": lambda x: factor * x, taps[1]: lambda x: factor * x}
    outputs, _ = network.apply(variables, BATCH, taps=taps, edits=edits)
    return jnp.sum(outputs.logits), outputs

  gradient, outputs = jax.grad(run, argnums=1, has_aux=True)(variables, 1.0)
  assert outputs.taps["once/fc"].shape == (6, 8)
  assert outputs.taps["layers/block/fc"].shape == (3, 6, 8)
  assert abs(float(gradient)) > 1e-3
  plain, _ = network.apply(variables, BATCH)
  np.testing.assert_allclose(outputs.logits, plain.logits, rtol=1e-5)


def test_a_tap_that_cannot_leave_its_loop_is_refused():
  network = Network(Lifted(carried=()))
  variables = network.init(KEY, BATCH)
  with pytest.raises(ConfigError, match="'layers/block/fc': .*'intermediates'"):
    network.apply(variables, BATCH, taps=("layers/block/fc",))


def test_a_module_called_twice_gives_both_outputs():
  class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
      layer = nn.Dense(8, name="fc")
      return layer(layer(x))

  network = Network(Twice())
  outputs, _ = network.apply(network.init(KEY, BATCH), BATCH, taps=("fc",))
  first, second = outputs.taps["fc"]
  np.testing.assert_array_equal(second, outputs.logits)
  assert not np.allclose(first, second)


def test_a_pure_function_with_a_train_keyword_returns_collections():
  def init(rng, x):
    return {"params": {}, "state": {"count": jnp.zeros(())}}

  def apply(variables, x, *, train):
    return x, {"state": {"count": variables["state"]["count"] + 1}}

  network = Network(Pure(init, apply))
  variables = network.init(KEY, BATCH)
  assert network.apply(variables, BATCH)[1] == {}
  _, changed = network.apply(variables, BATCH, train=True)
  assert changed["state"]["count"] == 1


@pytest.mark.parametrize(
  ("module", "message"),
  [
    ("resnet", "module='resnet': expected a Linen module, NNX"),
    (nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "Linear is an NNX module .* give NNX"),
  ],
  ids=["text", "nnx"],
)
def test_what_is_no_module_is_refused(module, message):
  with pytest.raises(ConfigError, match=message):
    Network(module)
