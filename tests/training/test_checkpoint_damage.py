"""What was not written is never restored: damage falls back, by name."""

import os
import random
import shutil

import pytest

from jaxkd.errors import StorageError
from jaxkd.training.checkpoint import Checkpoints
from tests.training.checkpoint_tools import (
  LIKE,
  restored_truly,
  save_all,
  state,
)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
  folder = tmp_path_factory.mktemp("two") / "checkpoints"
  save_all(folder, [10, 20])
  return folder


def plain_files(folder):
  return sorted(p for p in folder.rglob("*") if p.is_file())


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
