"""Leaves have unique names, digests of every bit, and go back unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.training import trees

BASE = {"w": jnp.arange(6.0).reshape(2, 3), "rng": jax.random.key(3)}


def test_dotted_and_nested_names_do_not_collide():
  names = trees.named_leaves({"a.b": 1, "a": {"b": 0}, "a/b": 2, "": 3})
  assert len(names) == 4
  assert names["a/b"] == 0


def test_two_leaves_of_one_name_are_refused():
  with pytest.raises(ConfigError, match="the name '%00'"):
    trees.named_leaves({"": 1, "\0": 2})


@pytest.mark.parametrize(
  "change",
  [
    {"w": BASE["w"].at[1, 2].set(5.0000005)},
    {"w": BASE["w"].at[0, 0].set(-0.0)},
    {"w": BASE["w"].reshape(3, 2)},
    {"w": BASE["w"].astype(jnp.bfloat16)},
    {"w": BASE["w"].view(jnp.int32)},
    {"rng": jax.random.key(4)},
    {"rng": jax.random.key_data(BASE["rng"])},
  ],
)
def test_digest_sees_every_bit_dtype_shape_and_key(change):
  assert trees.tree_digest({**BASE, **change}) != trees.tree_digest(BASE)


def test_digest_sees_names_and_key_implementations():
  value = BASE["w"]
  data = jnp.zeros(4, jnp.uint32)
  rbg, unsafe = (
    trees.tree_digest(jax.random.wrap_key_data(data, impl=impl))
    for impl in ("rbg", "unsafe_rbg")
  )
  assert trees.tree_digest({"a": value}) != trees.tree_digest({"b": value})
  assert rbg != unsafe


def test_digest_ignores_where_the_values_are_and_the_order_of_keys():
  moved = {"rng": BASE["rng"], "w": np.asfortranarray(BASE["w"])}
  assert trees.tree_digest(moved) == trees.tree_digest(BASE)


def test_host_copy_does_not_keep_the_step_from_donating():
  array = jnp.arange(1000.0) + 0
  leaves = trees.to_host({"w": array})
  jax.jit(lambda x: x * 2, donate_argnums=0)(array)
  assert array.is_deleted()
  np.testing.assert_array_equal(leaves["w"].value, np.arange(1000.0))


def test_a_leaf_that_is_no_array_is_refused_by_name():
  with pytest.raises(ConfigError, match="leaf a/b is a str, expected an arr"):
    trees.to_host({"a": {"b": "text"}})


@pytest.mark.parametrize(
  "value", [{1: 2}, (1, 2), float("nan"), {"a": object()}, np.zeros(2)]
)
def test_what_json_would_bend_is_refused(value):
  with pytest.raises(ConfigError, match="meta is not plain JSON"):
    trees.plain({"x": value}, "meta")


def test_numpy_numbers_become_plain_ones():
  plain = trees.plain({"offset": np.int64(3), "loss": np.float32(0.1)}, "meta")
  assert type(plain["offset"]) is int
  assert plain["loss"] == np.float32(0.1)


def test_nested_dicts_come_back_from_names():
  tree = {"a.b": np.ones(2), "a": {"b": np.zeros(1), "": np.ones(1)}}
  back = trees.nest(trees.to_host(tree))
  jax.tree.map(np.testing.assert_array_equal, back, tree)
