"""A role of a finished run is the weights of a network."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxkd import identity
from jaxkd.errors import RefusedInput, StorageError
from jaxkd.network import Network
from jaxkd.teachers import fingerprint
from jaxkd.training import files
from jaxkd.training.teacher import OrbaxRun
from jaxkd.training.workdir import Workdir
from tests.methods import toys


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A workdir of teacher and student, and their final variables."""
  root = tmp_path_factory.mktemp("runs") / "kd"
  fitted = {}
  with Workdir.open(
    root, kind="experiment", digest="0", describe={}
  ) as workdir:
    for seed in (3, 4):
      trainer = toys.trainer(
        toys.kd(), workdir.run("main", seed).root, seed=seed
      )
      fitted[seed] = trainer.fit()
    files.write_json(workdir.summary, {})
  return root, fitted


def variables(fitted, role):
  return {"params": fitted.params[role], **fitted.collections[role]}


def assert_equal(first, second):
  assert jax.tree.structure(first) == jax.tree.structure(second)
  assert jax.tree.all(jax.tree.map(np.array_equal, first, second))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_role_is_loaded_as_it_was_left(finished, role):
  root, fitted = finished
  expected = variables(fitted[3], role)
  weights = OrbaxRun(str(root), role)
  assert_equal(weights.load(expected), expected)
  other = OrbaxRun(str(root), role, seed=4)
  assert_equal(other.load(expected), variables(fitted[4], role))
  assert weights.fingerprint() != other.fingerprint()
  flat = {
    f"{collection}/{path}": leaf
    for collection, tree in expected.items()
    for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()
  }
  assert weights.fingerprint() == fingerprint(flat)


def test_a_role_is_loaded_in_the_dtype_asked_for(finished):
  root, fitted = finished
  weights = OrbaxRun(str(root), "teacher", dtype="bfloat16")
  loaded = weights.load(variables(fitted[3], "teacher"))
  assert jax.tree.leaves(loaded["params"])[0].dtype == jnp.bfloat16


def test_a_run_that_does_not_fit_is_refused(finished, tmp_path):
  root, fitted = finished
  like = variables(fitted[3], "teacher")
  cases = {
    OrbaxRun(str(root), "techer"): "did you mean 'teacher'",
    OrbaxRun(str(root), "teacher", seed=9): "seeds are 3, 4",
    OrbaxRun(str(root), "teacher", label="no_kd"): "'no_kd'.*seeds are none",
    OrbaxRun(str(tmp_path), "teacher"): "not a jaxkd workdir",
  }
  for weights, part in cases.items():
    with pytest.raises(RefusedInput, match=part):
      weights.load(like)
  with pytest.raises(RefusedInput, match="missing: params/other"):
    OrbaxRun(str(root), "teacher").load(
      {**like, "params": {**like["params"], "other": jnp.ones(2)}}
    )
  with Workdir.open(
    tmp_path / "new", kind="experiment", digest="0", describe={}
  ):
    pass
  with pytest.raises(RefusedInput, match="not finished"):
    OrbaxRun(str(tmp_path / "new"), "teacher").load(like)


def test_a_damaged_run_is_told_by_its_leaf(finished, tmp_path):
  root, fitted = finished
  files.copy_folder(root, tmp_path / "copy")
  for folder, _, names in os.walk(tmp_path / "copy"):
    for name in names:
      path = os.path.join(folder, name)
      if "/d/" in path and "stages" in path:
        with open(path, "r+b") as file:
          file.truncate(os.path.getsize(path) // 2)
  weights = OrbaxRun(str(tmp_path / "copy"), "teacher")
  with pytest.raises(StorageError, match="leaf params/teacher"):
    weights.load(variables(fitted[3], "teacher"))


def test_networks_with_a_run_are_hashed_and_described(finished):
  root, _ = finished
  network = Network(toys.kd().roles["teacher"].module, ("image",))
  taught = Network(
    network.module, network.inputs, OrbaxRun(str(root), "teacher")
  )
  assert hash(taught) != hash(network)
  assert identity.digest(taught) != identity.digest(network)
