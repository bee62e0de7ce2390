"""Several teachers stand as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxkd import identity
from jaxkd.errors import ConfigError
from jaxkd.network import NNX, Network
from jaxkd.teachers import Checkpoint, Ensemble, InMemory
from tests.teachers import reference

RNG = np.random.default_rng(0)
BATCH = {
  "image": jnp.asarray(RNG.standard_normal((5, 4)), jnp.float32),
  "sound": jnp.asarray(RNG.standard_normal((5, 3)), jnp.float32),
  "asked": jnp.array([0, 1, 1, 0, 1]),
  "trust": jnp.asarray(RNG.uniform(0, 1, (5, 2)), jnp.float32),
}


class Net(linen.Module):
  classes: int = 6

  @linen.compact
  def __call__(self, x, train=False):
    x = linen.Dense(8, name="fc1")(x)
    x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
    return linen.Dense(self.classes, name="fc2")(jax.nn.relu(x))


class Spoken(nnx.Module):
  def __init__(self, rngs):
    self.fc = nnx.Linear(3, 6, rngs=rngs)

  def __call__(self, x):
    return {"logits": self.fc(x), "more": x}


MEMBERS = (Network(Net()), Network(NNX(Spoken), ("sound",)))


def run(ensemble, batch=BATCH, **options):
  variables = ensemble.init(jax.random.key(0), batch)
  outputs, _ = jax.jit(lambda v, b: ensemble.apply(v, b, **options))(
    variables, batch
  )
  alone = []
  for index, member in enumerate(MEMBERS):
    name = f"member_{index + 1}"
    own = {c: tree[name] for c, tree in variables.items() if name in tree}
    alone.append(member.apply(own, batch)[0].logits)
  return outputs, np.stack(alone)


def test_the_mean_of_logits_is_that_of_the_members():
  outputs, alone = run(Ensemble(MEMBERS))
  np.testing.assert_allclose(outputs.logits, alone.mean(0), atol=1e-6)


def test_the_mean_of_probabilities_is_taken_of_softmaxes():
  outputs, alone = run(Ensemble(MEMBERS, combine="probabilities"))
  expected = jax.nn.softmax(alone).mean(0)
  np.testing.assert_allclose(np.exp(outputs.logits), expected, atol=1e-6)


def test_far_apart_members_give_finite_logarithms():
  class Sure(nnx.Module):
    def __init__(self, rngs, sign=1e4):
      del rngs
      self.sign = sign

    def __call__(self, x):
      return jnp.stack([x[:, 0] * 0 + self.sign, x[:, 0] * 0], -1)

  ensemble = Ensemble(
    [Network(NNX(Sure)), Network(NNX(lambda rngs: Sure(rngs, -1e4)))],
    combine="probabilities",
  )
  outputs, _ = ensemble.apply(ensemble.init(jax.random.key(0), BATCH), BATCH)
  np.testing.assert_allclose(outputs.logits, np.log(0.5), atol=1e-6)


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_weights_are_divided_by_their_sum(combine):
  outputs, alone = run(Ensemble(MEMBERS, combine=combine, weights=(1, 3)))
  parts = alone if combine == "logits" else jax.nn.softmax(alone)
  expected = 0.25 * parts[0] + 0.75 * parts[1]
  found = outputs.logits if combine == "logits" else np.exp(outputs.logits)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_example_may_ask_one_member():
  outputs, alone = run(Ensemble(MEMBERS, weights="asked"))
  expected = alone[np.asarray(BATCH["asked"]), np.arange(5)]
  np.testing.assert_allclose(outputs.logits, expected, atol=1e-6)


def test_every_example_may_have_its_weights():
  outputs, alone = run(Ensemble(MEMBERS, weights="trust"))
  share = np.asarray(BATCH["trust"])
  share = share / share.sum(1, keepdims=True)
  expected = np.einsum("bm,mbc->bc", share, alone)
  np.testing.assert_allclose(outputs.logits, expected, atol=1e-6)


def test_tokens_are_weighed_as_their_example_is():
  members = (Network(linen.Dense(6), ("x",)), Network(linen.Dense(6), ("x",)))
  batch = {"x": jnp.ones((2, 3, 4)), "asked": jnp.array([1, 0])}
  ensemble = Ensemble(members, weights="asked")
  variables = ensemble.init(jax.random.key(0), batch)
  logits = ensemble.apply(variables, batch)[0].logits
  assert logits.shape == (2, 3, 6)
  for row, member in enumerate(("member_2", "member_1")):
    own = {"params": variables["params"][member]}
    alone = members[0].apply(own, batch)[0].logits
    np.testing.assert_allclose(logits[row], alone[row], atol=1e-6)


def test_members_start_differently_and_read_their_own_entries():
  ensemble = Ensemble([Network(Net()), Network(Net())])
  params = ensemble.init(jax.random.key(0), BATCH)["params"]
  first, second = (params[f"member_{n}"]["fc1"]["kernel"] for n in (1, 2))
  assert not np.array_equal(first, second)
  assert ensemble.inputs == ("image",)
  assert Ensemble(MEMBERS, weights="trust").inputs == (
    "image",
    "sound",
    "trust",
  )


def test_taps_and_edits_reach_into_members():
  ensemble = Ensemble(MEMBERS)
  assert set(ensemble.paths(BATCH)) >= {
    "member_1",
    "member_1/fc1",
    "member_1/norm",
    "member_2",
    "member_2/fc",
  }
  outputs, alone = run(
    ensemble,
    taps=("member_1", "member_2/fc"),
    edits={"member_1/fc2": lambda x: x + 2.0, "member_2/fc": lambda x: 0 * x},
  )
  np.testing.assert_allclose(outputs.taps["member_1"], alone[0] + 2, atol=1e-6)
  assert not outputs.taps["member_2/fc"].any()
  np.testing.assert_allclose(outputs.logits, (alone[0] + 2) / 2, atol=1e-6)
  with pytest.raises(ConfigError, match="did you mean 'member_1/fc2'"):
    run(ensemble, taps=("member_1/fc3",))


def test_training_changes_the_statistics_of_all_members():
  ensemble = Ensemble(MEMBERS)
  variables = ensemble.init(jax.random.key(0), BATCH)
  _, changed = ensemble.apply(variables, BATCH, train=True)
  assert jax.tree.structure(changed) == jax.tree.structure(
    {k: v for k, v in variables.items() if k != "params"}
  )
  before, after = (
    tree["batch_stats"]["member_1"]["norm"]["mean"]
    for tree in (variables, changed)
  )
  assert not np.array_equal(before, after)
  assert not ensemble.apply(variables, BATCH)[1]


def test_members_load_their_weights_and_others_are_drawn(tmp_path):
  module = Spoken(nnx.Rngs(7))
  drawn = MEMBERS[0].init(jax.random.key(3), BATCH)
  flat = {
    f"{collection}/{layer}/{name}": np.asarray(leaf)
    for collection, layers in drawn.items()
    for layer, leaves in layers.items()
    for name, leaf in leaves.items()
  }
  np.savez(tmp_path / "x.npz", **flat)
  first = Network(Net(), weights=Checkpoint(str(tmp_path / "x.npz")))
  second = Network(NNX(Spoken), ("sound",), weights=InMemory(module))
  ensemble = Ensemble([first, second])
  like = reference.shapes(ensemble, BATCH)
  found = ensemble.weights.load(like)
  own = {c: tree["member_1"] for c, tree in found.items() if "member_1" in tree}
  assert jax.tree.all(jax.tree.map(np.array_equal, own, drawn))
  np.testing.assert_array_equal(
    found["params"]["member_2"]["fc"]["kernel"], module.fc.kernel[...]
  )
  half = Ensemble([first, MEMBERS[1]])
  assert set(half.weights.load(like)["params"]) == {"member_1"}
  assert Ensemble(MEMBERS).weights is None
  digests = {
    Ensemble(members).weights.fingerprint()
    for members in ([first, second], [second, first], [first, MEMBERS[1]])
  }
  assert len(digests) == 3


def test_an_ensemble_is_hashed_and_described():
  first, second = Ensemble(MEMBERS), Ensemble(list(MEMBERS))
  assert first == second
  assert hash(first) == hash(second)
  assert identity.digest(first) == identity.digest(second)
  assert identity.digest(first) != identity.digest(
    Ensemble(MEMBERS, weights=(1, 2))
  )


@pytest.mark.parametrize(
  ("members", "options", "part"),
  [
    (MEMBERS[:1], {}, "1 members; expected 2 or more"),
    (MEMBERS, {"combine": "median"}, "expected one of logits, probabilities"),
    (MEMBERS, {"weights": (1,)}, "expected 2 numbers"),
    (MEMBERS, {"weights": (1, -1)}, "at least 0"),
    (MEMBERS, {"weights": (0, 0)}, "one of them above"),
  ],
)
def test_what_is_no_ensemble_is_refused(members, options, part):
  with pytest.raises(ConfigError, match=part):
    Ensemble(members, **options)


def test_what_does_not_fit_together_is_refused():
  with pytest.raises(ConfigError, match=r"logits are .*; expected one shape"):
    run(Ensemble([MEMBERS[0], Network(Net(classes=3))]))
  with pytest.raises(
    ConfigError, match=r"'image' is float32\[5, 4\]; expected"
  ):
    run(Ensemble(MEMBERS, weights="image"))
  with pytest.raises(ConfigError, match="did you mean 'asked'"):
    run(Ensemble(MEMBERS, weights="askd"))
  ensemble = Ensemble(MEMBERS)
  with pytest.raises(ConfigError, match="no methods"):
    run(ensemble, method="encode")
