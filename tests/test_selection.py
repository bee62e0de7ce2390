"""Selection: the picks of the released code, in order, and hand-made cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, selection
from tests import golden_tools

CASES = golden_tools.cases("pcoreset__query_selection")
EVERY = pytest.mark.parametrize("case", CASES)


@functools.cache
def _probabilities(case):
  """Mixed probabilities of both heads: of the pool, of the labelled."""
  a = CASES[case]
  share, beta = float(a["param_mix"]), float(a["param_beta"])
  weights = np.array([1 - share, share], np.float32)
  mix = jax.jit(functools.partial(losses.probability_mean, weights=weights))
  found = []
  for which in ("pool", "labeled"):
    heads = a[f"in_{which}_ce_logits"], a[f"in_{which}_kd_logits"] / beta
    found.append(np.exp(mix(np.stack(heads))))
  return found


@functools.cache
def _picked(case):
  """What all strategies pick, compiled together."""
  a = CASES[case]
  pool, labelled = _probabilities(case)
  features = a["in_pool_features"], a["in_labeled_features"]
  count = int(a["param_num_queries"])

  @jax.jit
  def everything(pool, labelled, features):
    return {
      "pcoreset": selection.probability_coreset(pool, labelled, count=count),
      "distance": selection.k_centre(pool, labelled, count=count)[1],
      "coreset": selection.feature_coreset(*features, count=count),
      "uncertainty": selection.uncertainty(pool, count=count),
      "badge": selection.badge(pool, features[0], count=count),
      "one_hot": selection.probability_coreset(
        pool, jax.nn.one_hot(labelled.argmax(-1), pool.shape[-1]), count=count
      ),
      "alone": selection.probability_coreset(pool, labelled[:0], count=count),
    }

  return jax.device_get(everything(pool, labelled, features))


@EVERY
@pytest.mark.parametrize("strategy", ["pcoreset", "coreset", "uncertainty"])
def test_picks_and_their_order_are_those_of_the_released_code(case, strategy):
  expected = CASES[case][f"out_selected_{strategy}"]
  np.testing.assert_array_equal(_picked(case)[strategy], expected)


@EVERY
def test_each_pick_is_as_far_from_the_centres_as_in_the_released_code(case):
  np.testing.assert_allclose(
    _picked(case)["distance"],
    CASES[case]["aux_pcoreset_pick_distance"],
    rtol=1e-3,
    atol=1e-6,
  )


@EVERY
def test_badge_equals_its_greedy_rule_on_the_gradients_in_float64(case):
  f = np.asarray(CASES[case]["in_pool_features"], np.float64)
  p = _probabilities(case)[0].astype(np.float64)
  error = np.eye(p.shape[1])[p.argmax(1)] - p
  g = np.einsum("uc,ud->ucd", error, f).reshape(len(p), -1)
  found, expected = _picked(case)["badge"], [np.linalg.norm(g, axis=1).argmax()]
  g /= np.linalg.norm(g, axis=1, keepdims=True)
  while len(expected) < len(found):
    nearest = (1 - g @ g[expected].T).min(1)
    nearest[expected] = -np.inf
    expected.append(nearest.argmax())
  np.testing.assert_array_equal(found, expected)


def test_without_the_labelled_predictions_as_centres_the_picks_are_others():
  found = _picked("case0")
  for wrong in ("alone", "one_hot"):
    assert (found[wrong] != found["pcoreset"]).any()


BALANCED = jax.jit(selection.class_balanced, static_argnames="count")
LINE = jnp.array([[0.0], [1.0], [4.0], [10.0], [10.0]])


def test_distances_are_updated_after_every_pick():
  picked, distance = selection.k_centre(LINE, LINE[:1], count=3)
  # 10 once; then 4, six from 10 and four from 0, not the second 10.
  np.testing.assert_array_equal(picked, [3, 2, 1])
  np.testing.assert_allclose(distance, [10, 4, 1])


def test_more_picks_than_examples_take_all_of_them_in_greedy_order():
  picked, distance = selection.k_centre(LINE, LINE[:1], count=9)
  np.testing.assert_array_equal(picked, [3, 2, 1, 0, 4])
  np.testing.assert_allclose(distance, [10, 4, 1, 0, 0])
  everything = selection.at_random(jax.random.key(0), 5, count=9)
  assert sorted(everything.tolist()) == list(range(5))


def test_without_centres_the_first_example_is_the_first_pick():
  picked, _ = selection.k_centre(LINE[1:], LINE[:0], count=2)
  np.testing.assert_array_equal(picked, [0, 2])


def test_equally_uncertain_examples_come_in_their_order():
  p = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.9, 0.1]])
  found = selection.uncertainty(p, count=3)
  np.testing.assert_array_equal(found, [1, 2, 3])


def _predicted(classes, counts):
  return jax.nn.one_hot(np.repeat(np.arange(len(counts)), counts), classes)


@pytest.mark.parametrize(
  ("counts", "labels", "count", "expected"),
  [
    # Weights 1/1, 1/2, 1/4 of 7 picks.
    ((9, 9, 9), [1, 2, 2, 2], 7, [4, 2, 1]),
    # The two that rounding leaves go to the classes with fewest labels.
    ((9, 9, 9), [], 8, [3, 3, 2]),
    # A class that is never predicted has no quota.
    ((9, 0, 9), [], 6, [3, 0, 3]),
    # What a class lacks comes from the others.
    ((1, 9, 0), [], 6, [1, 5, 0]),
  ],
)
def test_quotas_are_larger_where_labels_are_few(
  counts, labels, count, expected
):
  p, labels = _predicted(3, counts), jnp.array(labels, int)
  found = BALANCED(jax.random.key(0), p, labels, count=count)
  assert len(set(found.tolist())) == count
  picked = np.bincount(np.asarray(p)[found].argmax(1), minlength=3)
  np.testing.assert_array_equal(picked, expected)


def test_keys_decide_random_picks():
  p = _predicted(2, (30, 30))
  for pick in (
    lambda key: BALANCED(key, p, jnp.array([0]), count=5),
    lambda key: selection.at_random(key, 60, count=5),
  ):
    first, again, other = (pick(jax.random.key(i)).tolist() for i in (0, 0, 1))
    assert first == again != other
