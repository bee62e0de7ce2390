"""A step comes back as it was saved; a save is whole, durable, or absent."""

import errno
import logging
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import pytest

from jaxkd.errors import ConfigError, RefusedInput, StorageError
from jaxkd.training import files, treefile
from jaxkd.training.checkpoint import Checkpoints, tree_digest
from tests.training.checkpoint_tools import (
  LIKE,
  counter,
  restored_truly,
  run,
  save_all,
  state,
)

# -- saving and restoring -----------------------------------------------------


def test_nothing_saved_restores_nothing(tmp_path):
  assert Checkpoints(tmp_path / "absent").restore(LIKE) is None


def test_newest_step_comes_back_and_only_keep_steps_stay(tmp_path):
  save_all(tmp_path, [1, 2, 9, 10], keep=3)
  assert sorted(os.listdir(tmp_path)) == ["10", "2", "9"]
  assert restored_truly(tmp_path) == 10


def test_keep_below_one_and_old_steps_are_refused(tmp_path):
  with pytest.raises(ConfigError, match="keep=0 must be at least 1"):
    Checkpoints(tmp_path, keep=0)
  save_all(tmp_path, [5])
  with pytest.raises(ConfigError, match="cannot save step 5: .*has step 5"):
    Checkpoints(tmp_path).save(5, LIKE, meta={})


def test_buffers_may_be_donated_as_soon_as_save_returns(tmp_path):
  step = jax.jit(
    lambda t: jax.tree.map(lambda x: x * 0 - 1, t), donate_argnums=0
  )
  with Checkpoints(tmp_path) as checkpoints:
    for number in range(1, 5):
      tree = {"w": jnp.full((512, 1024), number, jnp.float32)}
      checkpoints.save(number, tree, meta={})
      for _ in range(3):
        tree = step(tree)
      found = checkpoints.restore(tree)
      assert bool((found.state["w"] == number).all())


def test_stream_position_is_that_of_the_call(tmp_path):
  stream = counter(3)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, LIKE, stream=stream, meta={})
    expected = [next(stream).tolist() for _ in range(60)]
  again = counter(11)
  Checkpoints(tmp_path).restore(LIKE, stream=again)
  assert [next(again).tolist() for _ in range(60)] == expected


def test_stream_positions_in_bytes_are_kept_and_absent_ones_refused(tmp_path):
  class Stream:
    position = b"\x00\xff{"

    def get_state(self):
      return self.position

    def set_state(self, position):
      self.position = position

  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, LIKE, stream=Stream(), meta={})
    other = Stream()
    other.position = b""
    checkpoints.restore(LIKE, stream=other)
    assert other.position == b"\x00\xff{"
    checkpoints.save(2, LIKE, meta={})
    with pytest.raises(RefusedInput, match="holds no stream position"):
      checkpoints.restore(LIKE, stream=other)


def test_another_tree_is_refused_and_nothing_is_set_aside(tmp_path):
  save_all(tmp_path, [1, 2])
  with pytest.raises(RefusedInput, match="not expected: params/half"):
    Checkpoints(tmp_path).restore({**LIKE, "params": {"w": jnp.ones(3)}})
  assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_eight_devices_to_one_and_back(tmp_path):
  program = """
    import sys, jax, jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from jaxkd.training.checkpoint import Checkpoints, tree_digest
    mesh = Mesh(jax.devices(), ("data",))
    assert mesh.size == 8
    def put(x, *spec):
      return jax.device_put(x, NamedSharding(mesh, P(*spec)))
    tree = {"w": put(jnp.arange(64.0).reshape(16, 4) / 3, "data"),
            "b": put(jnp.ones(4)), "rng": put(jax.random.key(1))}
    with Checkpoints(sys.argv[1]) as checkpoints:
      checkpoints.save(1, tree, meta={})
      back = checkpoints.restore(tree).state
    assert back["w"].sharding == tree["w"].sharding
    print(tree_digest(tree), tree_digest(back))
  """
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  first, second = run(program, tmp_path, **flags).stdout.split()
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = {
    "w": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=one),
    "b": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=one),
    "rng": jax.random.key(0),
  }
  here = Checkpoints(tmp_path).restore(like).state
  assert here["w"].sharding == one
  assert first == second == tree_digest(here)


# -- failing disks ------------------------------------------------------------


def test_older_steps_stay_until_the_newer_is_durable(tmp_path, monkeypatch):
  save_all(tmp_path, [1, 2])
  seen, sync = [], files.sync

  def record(path):
    seen.append((path.name, sorted(p for p in os.listdir(tmp_path))))
    return sync(path)

  monkeypatch.setattr(files, "sync", record)
  save_all(tmp_path, [3])
  assert seen[-1] == (tmp_path.name, ["1", "2", "3"])
  assert {name for name, _ in seen} >= {"manifest.json", "_METADATA", "state"}
  assert sorted(os.listdir(tmp_path)) == ["2", "3"]


def test_too_little_space_is_refused_before_writing(tmp_path, monkeypatch):
  save_all(tmp_path, [1])
  usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(StorageError, match="18,4.. bytes needed, 10,000 free"):
    Checkpoints(tmp_path).save(2, LIKE, meta={})
  assert os.listdir(tmp_path) == ["1"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_errors_of_the_disk_surface_and_cost_nothing(
  tmp_path, monkeypatch, code
):
  save_all(tmp_path, [1, 2])

  def refuse(descriptor):
    raise OSError(code, os.strerror(code))

  checkpoints = Checkpoints(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", refuse)
    checkpoints.save(3, state(3), meta={})
    message = rf"checkpoint .*3 \(9,2.. bytes needed\).*{os.strerror(code)}"
    with pytest.raises(StorageError, match=message):
      checkpoints.wait()
  assert sorted(os.listdir(tmp_path)) == ["1", "2"]
  checkpoints.save(3, state(3), meta={"offset": 21})
  checkpoints.close()
  assert restored_truly(tmp_path) == 3


def test_an_array_file_that_cannot_grow_is_a_storage_error(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  checkpoints = Checkpoints(tmp_path)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
  try:
    checkpoints.save(1, state(1), meta={})
    with pytest.raises(StorageError, match="could not write the checkpoint"):
      checkpoints.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert os.listdir(tmp_path) == []


def refuse(*args):
  raise StorageError("no disk")


def test_a_failed_save_surfaces_at_the_next_one(tmp_path, monkeypatch):
  with Checkpoints(tmp_path) as checkpoints:
    with monkeypatch.context() as patch:
      patch.setattr(treefile, "write", refuse)
      checkpoints.save(1, LIKE, meta={})
      with pytest.raises(StorageError, match="no disk"):
        checkpoints.save(2, LIKE, meta={})
    checkpoints.save(2, LIKE, meta={})
  assert checkpoints.steps() == [2]


def test_a_failed_save_does_not_hide_the_error_under_way(tmp_path, monkeypatch):
  monkeypatch.setattr(treefile, "write", refuse)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, LIKE, meta={})
  assert checkpoints.__exit__(KeyError, KeyError(), None) is None
  checkpoints.save(2, LIKE, meta={})
  with pytest.raises(StorageError, match="no disk"):
    checkpoints.__exit__(None, None, None)


def test_saving_says_nothing_on_the_logs_of_others(tmp_path, caplog):
  with caplog.at_level(logging.DEBUG):
    save_all(tmp_path, [1])
    assert restored_truly(tmp_path) == 1
  assert [r for r in caplog.records if "orbax" in r.pathname] == []
