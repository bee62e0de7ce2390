"""The static embedding: a mean over tokens, whatever their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.network import Network

TOKENS = np.array([[3, 1, 4, 1], [5, 2, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.float32)
BATCH = {"tokens": TOKENS, "token_mask": MASK}


def network(**options):
  net = nets.StaticEmbedding(vocabulary_size=7, width=5, **options)
  return Network(net, ("tokens", "token_mask"))


def run(net, batch, *taps):
  variables = net.init(jax.random.key(0), BATCH)
  return net.apply(variables, batch, taps=taps)[0], variables["params"]


def test_a_text_is_the_mean_of_its_tokens():
  found, params = run(network(), BATCH)
  table = params["words"]["embedding"]
  expected = [table[TOKENS[0]].mean(0), table[TOKENS[1, :2]].mean(0)]
  np.testing.assert_allclose(found.value, expected, rtol=1e-5, atol=1e-8)


def test_padding_and_order_make_no_difference():
  net = network(head="classes", num_classes=3)
  other = np.array([[1, 4, 1, 3], [2, 5, 6, 6]], np.int32)
  first, _ = run(net, BATCH)
  second, _ = run(net, {"tokens": other, "token_mask": MASK})
  np.testing.assert_allclose(first.value, second.value, rtol=1e-5, atol=1e-8)


def test_without_a_mask_all_tokens_count():
  net = nets.StaticEmbedding(vocabulary_size=7, width=5)
  variables = net.init(jax.random.key(0), TOKENS)
  np.testing.assert_allclose(
    net.apply(variables, TOKENS),
    net.apply(variables, TOKENS, jnp.ones_like(TOKENS)),
    rtol=1e-6,
  )


def test_a_normalised_text_has_length_1():
  found, _ = run(network(normalised=True), BATCH)
  np.testing.assert_allclose(jnp.linalg.norm(found.value, axis=1), 1, rtol=1e-5)


def test_the_taps_are_its_public_names():
  net = network(head="classes", num_classes=3)
  assert {p: x.shape for p, x in net.paths(BATCH).items()} == {
    "words": (2, 4, 5),
    "pooled": (2, 5),
    "head_dropout": (2, 5),
    "head": (2, 3),
  }
  found, params = run(net, BATCH, "pooled", "head")
  head = params["head"]
  np.testing.assert_allclose(
    found.taps["pooled"] @ head["kernel"] + head["bias"][None],
    found.value,
    rtol=1e-5,
    atol=1e-8,
  )


def test_the_dtype_is_that_of_the_computation():
  variables = network().init(jax.random.key(0), BATCH)
  half = network(dtype=jnp.bfloat16)
  assert half.apply(variables, BATCH)[0].value.dtype == jnp.bfloat16
  assert (
    half.init(jax.random.key(0), BATCH)["params"]["words"]["embedding"].dtype
    == np.float32
  )


@pytest.mark.parametrize(
  ("options", "tokens", "match"),
  [
    ({}, TOKENS.astype(np.float32), "float32 .2, 4.; expected integers"),
    ({}, TOKENS[0], r"int32 \(4,\); expected integers"),
    ({"head": "class"}, TOKENS, "head='class': expected none or classes"),
  ],
)
def test_what_it_cannot_read_is_refused(options, tokens, match):
  net = nets.StaticEmbedding(vocabulary_size=7, **options)
  with pytest.raises(ConfigError, match=match):
    net.init(jax.random.key(0), tokens)
