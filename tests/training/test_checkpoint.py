"""A step restores true or is set aside by name; a save is whole or absent."""

import errno
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError, RefusedInput, StorageError
from jaxkd.training import files, treefile
from jaxkd.training.checkpoint import Checkpoints, tree_digest


def state(step):
  draws = np.random.RandomState(step)
  return {
    "step": jnp.int32(step),
    "rng": jax.random.key(step),
    "params": {
      "w": jnp.asarray(draws.randn(64, 32), jnp.float32),
      "half": jnp.asarray(draws.randn(500), jnp.bfloat16),
    },
  }


LIKE = state(0)


def save_all(folder, steps, keep=2):
  with Checkpoints(folder, keep=keep) as checkpoints:
    for step in steps:
      checkpoints.save(step, state(step), meta={"offset": step * 7})


def restored_truly(folder):
  """Restores, and checks that all that comes back is of one saved step."""
  found = Checkpoints(folder).restore(LIKE)
  assert tree_digest(found.state) == tree_digest(state(found.step))
  assert found.meta == {"offset": found.step * 7}
  return found.step


def counter(start=0):
  data = grain.MapDataset.range(100).shuffle(seed=1).repeat().batch(4)
  iterator = iter(data.to_iter_dataset())
  for _ in range(start):
    next(iterator)
  return iterator


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
  folder = tmp_path_factory.mktemp("two") / "checkpoints"
  save_all(folder, [10, 20])
  return folder


def plain_files(folder):
  return sorted(p for p in folder.rglob("*") if p.is_file())


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


def run(program, *args, check=True, **environment):
  return subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program), *map(str, args)],
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
    capture_output=True,
    text=True,
    check=check,
  )


# -- damage -------------------------------------------------------------------


def damaged_copy(two_steps, tmp_path, name):
  folder = tmp_path / name
  shutil.copytree(two_steps, folder)
  return folder


def fall_back_or_truth(folder, caplog):
  """The true newest step without a word, or the older one with a warning."""
  caplog.clear()
  step = restored_truly(folder)
  if step == 20:
    assert not caplog.records
    return False
  assert step == 10
  assert (folder / "20.bad").is_dir()
  assert "checkpoint 20 is damaged" in caplog.text
  assert "using step 10 instead" in caplog.text
  return True


def flip_bits(two_steps, tmp_path, caplog, count):
  draws, found = random.Random(0), 0
  data = max(plain_files(two_steps / "20"), key=lambda p: p.stat().st_size)
  for index in range(count):
    folder = damaged_copy(two_steps, tmp_path, str(index))
    path = folder / data.relative_to(two_steps)
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)
    found += fall_back_or_truth(folder, caplog)
    shutil.rmtree(folder)
  assert found > count // 2  # some bytes of the file are not in use


def test_flipped_bits_are_never_restored(two_steps, tmp_path, caplog):
  flip_bits(two_steps, tmp_path, caplog, 40)


@pytest.mark.slow
def test_200_flipped_bits_are_never_restored(two_steps, tmp_path, caplog):
  flip_bits(two_steps, tmp_path, caplog, 200)


@pytest.mark.parametrize("damage", ["truncate", "zero", "delete", "noise"])
def test_damage_to_any_file_is_survived(two_steps, tmp_path, caplog, damage):
  found = {}
  for index, original in enumerate(plain_files(two_steps / "20")):
    folder = damaged_copy(two_steps, tmp_path, str(index))
    path = folder / original.relative_to(two_steps)
    size = path.stat().st_size
    if damage == "delete":
      path.unlink()
    elif damage == "truncate":
      os.truncate(path, size // 2)
    else:
      fill = random.Random(0).randbytes(size)
      path.write_bytes(bytes(size) if damage == "zero" else fill)
    name = str(path.relative_to(folder / "20"))
    found[name] = fall_back_or_truth(folder, caplog)
  largest = max(plain_files(two_steps / "20"), key=lambda p: p.stat().st_size)
  assert found["manifest.json"]
  assert found[str(largest.relative_to(two_steps / "20"))]
  assert found["state/manifest.ocdbt"]


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ('"offset": 140', '"offset": 141'),
    ('"step": 20', '"step": 21'),
    ('"params/w"', '"params/v"'),
    ('"float32"', '"float16"'),
    ('"format": 1', '"format": 3'),
  ],
)
def test_an_edited_manifest_is_damage(two_steps, tmp_path, caplog, old, new):
  folder = damaged_copy(two_steps, tmp_path, "copy")
  path = folder / "20" / "manifest.json"
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))
  assert fall_back_or_truth(folder, caplog)
  assert "manifest.json differs from its own sha256" in caplog.text


def test_swapped_steps_are_damage(two_steps, tmp_path, caplog):
  folder = damaged_copy(two_steps, tmp_path, "copy")
  shutil.rmtree(folder / "20")
  shutil.copytree(folder / "10", folder / "20")
  assert fall_back_or_truth(folder, caplog)
  assert "its manifest is of step 10" in caplog.text


def test_no_intact_step_stops_and_never_starts_afresh(two_steps, tmp_path):
  folder = damaged_copy(two_steps, tmp_path, "copy")
  for step in ("10", "20"):
    (folder / step / "manifest.json").write_bytes(b"")
  for _ in range(2):  # again by a second start
    with pytest.raises(StorageError, match=r"every checkpoint(.|\n)*20: .*man"):
      Checkpoints(folder).restore(LIKE)
  assert sorted(os.listdir(folder)) == ["10", "20"]
  shutil.rmtree(folder / "10")
  (folder / "20").rename(folder / "20.bad")
  with pytest.raises(StorageError, match="20.bad: set aside"):
    Checkpoints(folder).restore(LIKE)


def test_a_step_set_aside_is_saved_again_and_kept_apart(two_steps, tmp_path):
  folder = damaged_copy(two_steps, tmp_path, "copy")
  for expected in ("20.bad", "20.bad2"):
    (folder / "20" / "manifest.json").unlink()
    with Checkpoints(folder) as checkpoints:
      assert checkpoints.restore(LIKE).step == 10
      assert (folder / expected).is_dir()
      checkpoints.save(20, state(20), meta={"offset": 140})
  assert restored_truly(folder) == 20


# -- kills --------------------------------------------------------------------

SAVER = """
import os, signal, sys
sys.path.insert(0, "tests/training")
import grain, jax
from test_checkpoint import counter, state
from jaxkd.training.checkpoint import Checkpoints

folder, boundary = sys.argv[1], int(sys.argv[2])
calls = 0
def dying(function):
  def call(*args, **kwargs):
    global calls
    calls += 1
    if calls == boundary:
      os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)
  return call

stream = counter()
with Checkpoints(folder) as checkpoints:
  for step in range(1, 2000):
    next(stream)
    if step == 4:  # three steps are there: saves and deletions from here on
      checkpoints.wait()
      for name in ("fsync", "rename", "replace", "rmdir", "unlink", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))
    meta = {"offset": step * 7}
    checkpoints.save(step, state(step), stream=stream, meta=meta)
    print(step - 1, flush=True)
"""


def check_after_kill(folder, acknowledged, caplog):
  """The newest step is whole, true and no older than what was promised."""
  stream = counter()
  with caplog.at_level(logging.WARNING):
    found = Checkpoints(folder).restore(LIKE, stream=stream)
  assert not caplog.records
  assert found.step >= acknowledged
  assert tree_digest(found.state) == tree_digest(state(found.step))
  assert found.meta == {"offset": found.step * 7}
  assert next(stream).tolist() == next(counter(found.step)).tolist()
  assert all(name.isdecimal() for name in os.listdir(folder))


def kill_at_random(folder, seed, caplog):
  child = subprocess.Popen(
    [sys.executable, "-c", SAVER, str(folder), "0"],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
    stdout=subprocess.PIPE,
    text=True,
  )
  while int(child.stdout.readline()) < 1:
    pass
  time.sleep(random.Random(seed).uniform(0, 0.4))
  child.send_signal(signal.SIGKILL)
  acknowledged = [int(line) for line in child.communicate()[0].splitlines()]
  assert child.returncode == -signal.SIGKILL
  check_after_kill(folder, max(acknowledged, default=1), caplog)


@pytest.mark.parametrize("seed", range(4))
def test_killed_inside_a_save_restores_a_true_step(tmp_path, caplog, seed):
  kill_at_random(tmp_path, seed, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 24))
def test_killed_at_more_moments_restores_truly(tmp_path, caplog, seed):
  kill_at_random(tmp_path, seed, caplog)


@pytest.mark.slow
def test_killed_at_each_boundary_of_a_save_and_a_deletion(tmp_path, caplog):
  for boundary in range(1, 61):
    folder = tmp_path / str(boundary)
    child = run(SAVER, folder, boundary, check=False)
    assert child.returncode == -signal.SIGKILL
    check_after_kill(folder, int(child.stdout.split()[-1]), caplog)


def test_leftovers_of_kills_are_removed_and_other_files_are_not(tmp_path):
  save_all(tmp_path, [1])
  for name in (".2.saving", ".0.old", "notes", ".mine.saving"):
    (tmp_path / name).mkdir()
  assert restored_truly(tmp_path) == 1
  assert sorted(os.listdir(tmp_path)) == [".mine.saving", "1", "notes"]


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
