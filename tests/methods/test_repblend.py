"""RepBlend: pairs that lead where data led, blended below the heads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, nets
from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import ConfigError, Preempted
from jaxkd.method import Step
from jaxkd.methods import RepBlend
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.training.feeds import examples
from jaxkd.training.phase import Stop
from tests.methods import toys

START = Step(jnp.int32(0), jnp.int32(0))
BATCH = {"index": jnp.arange(8), "mask": jnp.ones(8)}
IMAGE, EMBEDDED, TEXT, SPACE = 12, 6, 5, 4


def data(size, seed=0):
  """Images of a label, and two captions that tell the label."""
  random = np.random.default_rng(seed)
  means = np.random.default_rng(99)
  label = random.integers(0, 3, size).astype(np.int32)
  image, text = means.normal(size=(3, IMAGE)), means.normal(size=(3, TEXT))
  noise = random.normal(size=(size, IMAGE))
  captions = random.normal(size=(size, 2, TEXT)) + 2 * text[label][:, None]
  return ArraySource(
    {
      "image": (2 * image[label] + noise).astype(np.float32),
      "caption_features": captions.astype(np.float32),
      "label": label,
      "item": np.arange(size, dtype=np.int32),
    }
  )


def splits():
  return Splits(train=data(24), validation=data(8, 1), test=data(8, 2))


def repblend(**options):
  head = nets.ProjectionHead(features=SPACE, dropout=0.1)
  towers = nets.TwoTowers(image=head, text=head, learned_scale=False)
  defaults = {
    "encoder": Network(nets.MLP(features=(EMBEDDED, 3))),
    "encoder_layer": "fc1",
    "heads": Network(towers, inputs=("embedded", "text")),
    "shape": (IMAGE,),
    "dimensions": (EMBEDDED, TEXT),
    "pairs": 8,
    "rank": 2,
    "encode_epochs": 1,
    "experts": 2,
    "expert_epochs": 2,
    "steps": 6,
    "inner_steps": 3,
    "inner_batch": 4,
    "image_lr": 1e-3,
    "text_lr": 1e-3,
    "similarity_lr": 1e-3,
    "rate_lr": 1e-6,
    "student_epochs": 4,
  }
  return RepBlend(**{**defaults, **options})


@functools.cache
def fitted(folder, **options):
  trainer = toys.trainer(repblend(**options), folder, splits=splits())
  return trainer.fit()


def view(method, *, expert_moves=True):
  """The roles, with trajectories that go somewhere."""
  seen = examples(method, splits(), 8)
  params, collections = initialise(
    method, jax.random.key(0), usage(method, *seen).inputs
  )
  leaves, tree = jax.tree.flatten(method.memory["trajectories"])
  keys = jax.random.split(jax.random.key(3), len(leaves))
  step = 0.3 if expert_moves else 0.0
  moved = [
    step * jax.random.normal(key, leaf.shape) + 0.1
    for key, leaf in zip(keys, leaves, strict=True)
  ]
  return Nets(
    method.roles,
    params,
    collections,
    rng=jax.random.key(1),
    memory={"trajectories": jax.tree.unflatten(tree, moved)},
  )


def gradient(method, found):
  def total(pairs):
    other = found.replaced({"synthetic": pairs})
    return method.match(other, BATCH, START).total

  return jax.grad(total)(found.params("synthetic"))


@pytest.mark.slow  # a whole run of all phases
def test_experts_leave_trajectories_from_starts_of_their_own(tmp_path):
  kept = fitted(tmp_path).memory["trajectories"]
  assert set(kept) == {"image", "text"}  # both ways have an expert
  for way in ("image", "text"):
    leaf = kept[way]["projection"]["kernel"]
    assert leaf.shape[:2] == (2, 3)
    assert not np.array_equal(leaf[0, 0], leaf[1, 0])
    for number in range(2):
      for epoch in range(2):
        assert not np.array_equal(leaf[number, epoch], leaf[number, epoch + 1])
  last = fitted(tmp_path).params["expert"]
  jax.tree.map(
    lambda k, p: np.testing.assert_array_equal(k[1, 2], p), kept, last
  )


@pytest.mark.slow  # differentiates unrolled steps twice
def test_all_that_is_learned_gets_a_gradient():
  method = repblend(blend=1.0)
  found = gradient(method, view(method))
  for name in ("image", "text", "diagonal", "right", "rate_image", "rate_text"):
    assert np.any(found[name]), name
  assert not np.any(found["left"])  # R = 0 at the start
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.slow  # a whole run of all phases
def test_the_encoder_and_the_experts_are_left_alone(tmp_path):
  method = repblend()
  phases = {phase.name: phase for phase in method.phases}
  assert phases["distil"].trains(method.roles) == ("synthetic",)
  assert phases["distil"].stream is None
  assert phases["student"].stream is None
  found = fitted(tmp_path)
  assert not np.array_equal(found.params["synthetic"]["text"], 0)


@pytest.mark.slow
def test_partners_and_shares_are_those_of_both_ways():
  method = repblend()
  drawn = method.draws(jax.random.key(0))
  assert drawn["chosen"].shape == drawn["order"].shape == (3, 4)
  assert len(set(np.ravel(drawn["share"]).tolist())) == 3
  for row in drawn["order"]:
    assert sorted(row.tolist()) == [0, 1, 2, 3]
  seen = {}

  def heads(given):
    seen.update(given)
    u = {"image": jnp.ones((4, 2)), "text": jnp.ones((4, 2))}
    return dataclasses.make_dataclass("Found", ["value"])(u)

  own = view(method)
  pairs = method._pairs(own)
  chosen, order, share = (drawn[n][0] for n in ("chosen", "order", "share"))
  method._loss(heads, pairs, chosen, order, share)
  for name in ("embedded", "text"):
    x = pairs[name][chosen]
    expected = share * x + (1 - share) * x[order]
    np.testing.assert_allclose(seen[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_blending_is_after_the_encoder_and_leaves_targets_as_they_are():
  method = repblend(blend=1.0, learn_similarity=True)
  found = view(method)
  pairs = method._pairs(found)
  chosen, order = jnp.arange(4), jnp.roll(jnp.arange(4), 1)
  run = functools.partial(found.expert, train=False)
  value = method._loss(run, pairs, chosen, order, 0.3)
  x = {n: pairs[n][chosen] for n in ("embedded", "text")}
  mixed = {n: 0.3 * v + 0.7 * v[order] for n, v in x.items()}
  out = found.expert(mixed).value
  scores = out["image"] @ out["text"].T / 0.07
  expected = losses.balanced_similarity_bce(scores, jnp.eye(4))
  np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_similarities_of_a_mini_batch_are_low_rank():
  method = repblend(similarity_scale=3.0)
  found = view(method)
  right = jax.random.normal(jax.random.key(2), (8, 2))
  pairs = {**method._pairs(found), "right": right}
  chosen = jnp.array([6, 1, 4, 3])
  run = functools.partial(found.expert, train=False)
  value = method._loss(run, pairs, chosen, jnp.arange(4), 1.0)
  out = found.expert({n: pairs[n][chosen] for n in ("embedded", "text")}).value
  scores = out["image"] @ out["text"].T / 0.07
  whole = jnp.diag(pairs["diagonal"]) + 3 / 2 * pairs["left"] @ right.T
  expected = losses.balanced_similarity_bce(scores, whole[chosen][:, chosen])
  np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.slow  # a whole run of all phases
def test_experts_see_one_caption_of_an_image_at_a_time_and_all_in_turn():
  method = repblend()
  found = view(method)
  batch = examples(method, splits(), 8)[1]["expert_0"]
  batch = {**batch, "embedded": method.embed(found, batch)}

  def total(captions):
    given = {**batch, "caption_features": captions}
    return method.contrast(found, given, START).total

  slopes = jax.grad(total)(jnp.asarray(batch["caption_features"]))
  seen = np.any(slopes, axis=2)
  np.testing.assert_array_equal(seen.sum(1), 1)
  assert np.all(seen.any(0))


@pytest.mark.slow
def test_examples_of_inner_steps_come_from_shuffled_lists():
  method = repblend(inner_steps=5, inner_batch=4)
  chosen = method.draws(jax.random.key(0))["chosen"]
  assert sorted(np.ravel(chosen[:2]).tolist()) == list(range(8))
  assert sorted(np.ravel(chosen[2:4]).tolist()) == list(range(8))
  method = repblend(inner_steps=4, inner_batch=5)
  for row in method.draws(jax.random.key(0))["chosen"]:
    assert len(set(row.tolist())) == 5


def test_without_blending_shares_are_one():
  drawn = repblend(blend=0.0).draws(jax.random.key(0))
  np.testing.assert_array_equal(drawn["share"], 1.0)


def test_the_first_trajectory_is_met_where_it_begins():
  """A start that is its own end has nothing to match: the loss is 0."""
  method = repblend()
  loss = method.match(view(method, expert_moves=False), BATCH, START)
  np.testing.assert_allclose(loss.total, 0.0)


@pytest.mark.slow  # four compiled matches
def test_the_unrolled_gradient_is_another_one():
  plain = repblend(blend=0.0)
  whole = dataclasses.replace(plain, through_parameters=True)
  found = view(plain)
  a, b = gradient(plain, found), gradient(whole, found)
  assert np.any(a["text"])
  assert not np.allclose(a["text"], b["text"], rtol=1e-3)
  single = dataclasses.replace(plain, inner_steps=1)
  one, other = (
    gradient(dataclasses.replace(single, through_parameters=through), found)
    for through in (False, True)
  )
  np.testing.assert_allclose(one["text"], other["text"], rtol=1e-3, atol=1e-7)


@pytest.mark.slow  # two compiled matches
def test_dropout_is_resampled_for_the_data_on_request():
  kept = repblend()
  again = dataclasses.replace(kept, resample_dropout=True)
  found = view(kept)
  totals = [m.match(found, BATCH, START).total for m in (kept, again)]
  np.testing.assert_array_equal(*totals)
  a, b = gradient(kept, found), gradient(again, found)
  assert not np.allclose(a["text"], b["text"], rtol=1e-3)


@pytest.mark.slow  # two compiled matches
def test_the_second_pass_differs_in_dropout_alone():
  head = nets.ProjectionHead(features=SPACE, dropout=0.0)
  towers = nets.TwoTowers(image=head, text=head, learned_scale=False)
  kept = repblend(heads=Network(towers, inputs=("embedded", "text")))
  again = dataclasses.replace(kept, resample_dropout=True)
  found = view(kept)
  a, b = gradient(kept, found), gradient(again, found)
  np.testing.assert_allclose(a["text"], b["text"], rtol=1e-4, atol=1e-6)


def test_both_heads_count_alike_unless_merged():
  method = repblend(blend=0.0)
  found = view(method)
  apart = method.match(found, BATCH, START).total
  merged = dataclasses.replace(method, merged=True)
  together = merged.match(found, BATCH, START).total
  assert 0 < together < apart


@pytest.mark.slow  # a whole run of all phases
@pytest.mark.parametrize("learned", [True, False])
def test_similarities_are_learned_unless_fixed_on_request(tmp_path, learned):
  found = fitted(tmp_path, learn_similarity=learned).params["synthetic"]
  assert np.any(found["right"] != 0) == learned
  assert np.any(found["diagonal"] != 1) == learned


@pytest.mark.slow  # a whole run of all phases
def test_pairs_start_as_real_ones(tmp_path):
  rates = ("image_lr", "text_lr", "similarity_lr", "rate_lr")
  still = dict.fromkeys(rates, 0.0)
  found = fitted(tmp_path, **still).params["synthetic"]
  train = splits().train
  for image, text in zip(found["image"], found["text"], strict=True):
    distance = np.abs(train.arrays["image"] - image[None]).max(1)
    row = int(distance.argmin())
    assert distance[row] == 0
    np.testing.assert_array_equal(
      train.arrays["caption_features"][row, 0], text
    )


@pytest.mark.slow
def test_fresh_heads_descend_at_the_learned_rates():
  method = repblend(student_decay=0.0)
  found = view(method)

  def total(params, rate):
    pairs = {**found.params("synthetic"), "rate_image": jnp.float32(rate)}
    other = found.replaced({"student": params, "synthetic": pairs})
    loss = method.fit(other, BATCH, START)
    return loss.total / loss.weight

  params = found.params("student")
  slow, fast = (jax.grad(total)(params, rate) for rate in (0.1, 0.3))
  for way, factor in (("image", 3.0), ("text", 1.0)):
    a, b = (g[way]["fc"]["kernel"] for g in (slow, fast))
    np.testing.assert_allclose(b, factor * a, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(total(params, 0.1), total(params, 0.3), rtol=1e-6)


@pytest.mark.slow  # a whole run of all phases
def test_the_heads_that_learn_from_the_pairs_are_fresh(tmp_path):
  still = {"rate": 0.0, "rate_lr": 0.0}
  trainer = toys.trainer(repblend(**still), tmp_path, splits=splits())
  found, start = trainer.fit().params, trainer._start()[0]
  jax.tree.map(
    np.testing.assert_array_equal, found["student"], start["student"]
  )
  for way in ("image", "text"):
    ours, expert = (
      found[role][way]["projection"]["kernel"] for role in ("student", "expert")
    )
    assert np.any(ours != expert)


@pytest.mark.slow  # a whole run of all phases
@pytest.mark.parametrize("after", [2, 8, 14, 18])
def test_a_run_resumes_between_experts_and_amid_outer_steps(tmp_path, after):
  whole = fitted(tmp_path / "whole")
  cut = functools.partial(
    toys.trainer, repblend(), tmp_path / "cut", splits=splits()
  )
  with pytest.raises(Preempted):
    cut(stop=Stop(after=after)).fit()
  resumed = cut().fit()
  jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
  jax.tree.map(np.testing.assert_array_equal, resumed.memory, whole.memory)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"inner_loss": "ce"}, "RepBlend.inner_loss='ce': expected one of wbce"),
    ({"max_start": 3}, "RepBlend.max_start=3: expected 1 to expert_epochs=2"),
    ({"inner_batch": 9}, "RepBlend.inner_batch=9: expected 1 to pairs=8"),
  ],
)
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    repblend(**options)


@pytest.mark.slow  # trains experts first
def test_more_pairs_than_examples_are_refused(tmp_path):
  with pytest.raises(ConfigError, match="at most the 24 examples"):
    fitted(tmp_path, pairs=25)
