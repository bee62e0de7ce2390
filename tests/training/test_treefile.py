"""A tree in a folder is read as it was written, or refused by name."""

import os
import shutil

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from jaxkd.errors import RefusedInput, StorageError
from jaxkd.training import checkpoint, treefile, trees


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  rng: jax.Array
  optimizer: tuple


def make():
  return State(
    step=jnp.int32(7),
    params={
      "student": {"w": jnp.linspace(-1, 1, 300).reshape(100, 3)},
      "half": jnp.asarray([0.1, jnp.nan, -0.0, jnp.inf], jnp.bfloat16),
      "a.b": jnp.int32(1),
      "a": {"b": jnp.int32(0)},
      "ids": np.arange(5, dtype=np.int64),
      "mask": jnp.asarray([True, False]),
      "empty": jnp.zeros((0, 4)),
    },
    rng=jax.random.key(5, impl="rbg"),
    optimizer=((jnp.ones(3), None), [jax.random.split(jax.random.key(1), 2)]),
  )


def roundtrip(path, tree, like=None):
  checkpoint.save_tree(path, tree, meta={"phase": "distil"})
  return checkpoint.load_tree(path, tree if like is None else like)[0]


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
  tree = make()
  back = roundtrip(tmp_path / "stage", tree)
  assert jax.tree.structure(back) == jax.tree.structure(tree)
  assert trees.tree_digest(back) == trees.tree_digest(tree)
  same = jax.tree.map(lambda a, b: type(a) is type(b), back, tree)
  assert all(jax.tree.leaves(same))


def test_abstract_target_gives_the_same_values(tmp_path):
  tree = {"w": jnp.ones((2, 3)), "rng": jax.random.key(0)}
  like = jax.eval_shape(lambda: tree)
  assert isinstance(like["rng"], jax.ShapeDtypeStruct)
  back = roundtrip(tmp_path / "stage", tree, like)
  assert trees.tree_digest(back) == trees.tree_digest(tree)


def test_python_numbers_and_weak_scalars_stay_what_they_are(tmp_path):
  tree = {"n": 3, "x": 0.1, "on": True, "weak": jnp.asarray(0.3)}
  back = roundtrip(tmp_path / "stage", tree)
  assert [back["n"], back["x"], back["on"]] == [3, 0.1, True]
  assert [type(back[k]) for k in ("n", "x", "on")] == [int, float, bool]
  assert back["weak"].weak_type
  assert back["weak"] == tree["weak"]


def test_without_a_target_nested_arrays_and_meta_come_back(tmp_path):
  tree = {"a": {"b.c": np.arange(3)}, "rng": jax.random.key(2)}
  checkpoint.save_tree(tmp_path / "t", tree, meta={"steps": 3})
  back, meta = checkpoint.load_tree(tmp_path / "t")
  assert meta == {"steps": 3}
  assert trees.tree_digest(back) == trees.tree_digest(tree)


def test_orbax_alone_can_read_the_arrays(tmp_path):
  checkpoint.save_tree(tmp_path / "t", {"a": {"w": np.ones(3)}}, meta={})
  with ocp.PyTreeCheckpointer() as orbax:
    restored = orbax.restore(tmp_path / "t" / "state")
  np.testing.assert_array_equal(restored["a/w"], np.ones(3))


def test_saving_again_replaces_the_tree_and_leaves_nothing_else(tmp_path):
  for value in (1, 2):
    back = roundtrip(tmp_path / "stage", {"w": jnp.full(3, value, jnp.int32)})
  assert back["w"].tolist() == [2, 2, 2]
  assert os.listdir(tmp_path) == ["stage"]


@pytest.mark.parametrize(
  ("like", "message"),
  [
    ({"w": jnp.ones(3, jnp.bfloat16)}, r"w: stored float32\[3\], expected bf"),
    ({"w": jnp.ones(3, jnp.int32)}, r"w: stored float32\[3\], expected int32"),
    ({"w": jnp.ones(4)}, r"w: stored float32\[3\], expected float32\[4\]"),
    ({"w": jax.random.key(0)}, r"expected a 'threefry2x32' key of uint32\[2\]"),
    ({"v": jnp.ones(3)}, r"missing: v(.|\n)*not expected: w"),
  ],
)
def test_another_tree_is_refused_by_leaf(tmp_path, like, message):
  with pytest.raises(RefusedInput, match=message):
    roundtrip(tmp_path / "stage", {"w": jnp.ones(3)}, like)


def test_missing_leaf_names_the_nearest(tmp_path):
  tree = {"params": {"student": jnp.ones(2)}}
  like = {"params": {"studnt": jnp.ones(2)}}
  with pytest.raises(RefusedInput, match="did you mean 'params/student'"):
    roundtrip(tmp_path / "stage", tree, like)


def test_another_key_implementation_is_refused_with_both_names(tmp_path):
  tree = {"rng": jax.random.key(0, impl="rbg")}
  like = {"rng": jax.random.key(0, impl="unsafe_rbg")}
  with pytest.raises(RefusedInput, match="'rbg' key .*expected a 'unsafe_rbg'"):
    roundtrip(tmp_path / "stage", tree, like)


def test_64_bit_leaves_are_not_cut_to_32(tmp_path):
  tree = {"w": np.arange(3, dtype=np.int64)}
  like = {"w": jax.ShapeDtypeStruct((3,), np.int64)}
  with pytest.raises(RefusedInput, match="leaf w is int64, .*JAX_ENABLE_X64"):
    roundtrip(tmp_path / "stage", tree, like)


def test_links_and_special_files_are_refused(tmp_path):
  checkpoint.save_tree(tmp_path / "t", {"w": np.ones(3)}, meta={})
  data = tmp_path / "t" / "state" / "d"
  shutil.move(data, tmp_path / "elsewhere")
  data.symlink_to(tmp_path / "elsewhere")
  with pytest.raises(RefusedInput, match="d is a link"):
    checkpoint.load_tree(tmp_path / "t")
  data.unlink()
  os.mkfifo(data)
  with pytest.raises(RefusedInput, match="d is a link or a special file"):
    checkpoint.load_tree(tmp_path / "t")


def test_newer_format_and_absent_folder_are_refused(tmp_path, monkeypatch):
  with pytest.raises(RefusedInput, match="no saved tree at"):
    checkpoint.load_tree(tmp_path / "absent")
  with monkeypatch.context() as patch:
    patch.setattr(treefile, "FORMAT", 2)
    patch.setattr(treefile, "_check_structure", lambda path: None)
    checkpoint.save_tree(tmp_path / "t", {"w": np.ones(3)}, meta={})
  with pytest.raises(RefusedInput, match="format 2, this version.*format 1"):
    checkpoint.load_tree(tmp_path / "t")


def test_damage_is_a_storage_error_that_names_the_leaf(tmp_path):
  checkpoint.save_tree(tmp_path / "t", {"w": np.ones(3)}, meta={})
  checkpoint.save_tree(tmp_path / "u", {"w": np.zeros(3)}, meta={})
  shutil.rmtree(tmp_path / "t" / "state")
  shutil.copytree(tmp_path / "u" / "state", tmp_path / "t" / "state")
  with pytest.raises(StorageError, match="t is damaged: leaf w differs from"):
    checkpoint.load_tree(tmp_path / "t")


def test_unreadable_is_not_taken_for_damage(tmp_path, monkeypatch):
  checkpoint.save_tree(tmp_path / "t", {"w": np.ones(3)}, meta={})

  def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(ts, "open", refuse)
  with pytest.raises(StorageError, match="cannot read .*Permission denied"):
    treefile.read(tmp_path / "t", None)
