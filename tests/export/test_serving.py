"""An export is run as it lies there, and says when it has changed."""

import json
import pathlib

import numpy as np
import pytest

from jaxkd import cli, export
from jaxkd.errors import ConfigError, RefusedInput
from tests.export import made


def edit(folder, **changes):
  path = folder / "export.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("batch", [None, 1, 7])
def test_an_export_agrees_with_what_was_trained(exported, batch):
  found = export.serve_check(exported, batch=batch, repetitions=3)
  assert found["agrees"] is True
  assert found["relative"] <= 1e-5
  assert found["batch"] == (batch or 8)
  assert 0 < found["latency_ms"] < found["first_ms"]


def test_safetensors_are_served_from_the_tensors_on_disk(workdir, tmp_path):
  from safetensors.numpy import load_file, save_file

  out = tmp_path / "out"
  export.export(made.experiment(), workdir, format="safetensors", out=out)
  assert export.serve_check(out, repetitions=1)["agrees"] is True
  tensors = load_file(out / "model.safetensors")
  tensors["params/fc3/bias"] = tensors["params/fc3/bias"] + 1
  save_file(tensors, out / "model.safetensors")
  found = export.serve_check(out, repetitions=1)
  assert found["agrees"] is False
  assert found["difference"] == pytest.approx(1, rel=1e-3)


def test_another_platform_is_not_judged(exported):
  facts = json.loads((exported / "export.json").read_text())
  edit(exported, difference={**facts["difference"], "platform": "tpu"})
  assert export.serve_check(exported, repetitions=1)["agrees"] is None


def test_the_verb_prints_one_line_of_json(exported, capsys):
  code = cli.main(
    ["serve-check", str(exported), "--batch", "3", "--repetitions", "2"]
  )
  assert code == 0
  (line,) = capsys.readouterr().out.splitlines()
  found = json.loads(line)
  assert (found["batch"], found["repetitions"]) == (3, 2)
  assert found["format"] == "stablehlo"


def test_the_verb_fails_where_the_numbers_have_changed(exported, capsys):
  with np.load(exported / "parity.npz") as arrays:
    changed = {name: arrays[name] + 1 for name in arrays.files}
  np.savez(exported / "parity.npz", **changed)
  assert cli.main(["serve-check", str(exported), "--repetitions", "1"]) == 3
  printed = capsys.readouterr()
  assert json.loads(printed.out)["agrees"] is False
  assert "gives something else than at export" in printed.err


def test_a_tree_is_nothing_to_run(workdir):
  made_ = export.export(made.experiment(), workdir, format="orbax")
  with pytest.raises(RefusedInput, match="'orbax', which holds nothing to run"):
    export.serve_check(made_.folder)


@pytest.mark.parametrize("option", ["batch", "repetitions"])
def test_a_number_below_one_is_named(exported, option):
  with pytest.raises(ConfigError, match=f"--{option} 0: expected at least 1"):
    export.serve_check(exported, **{option: 0})


@pytest.mark.parametrize(
  ("name", "content", "expected"),
  [
    ("export.json", None, "is no export: it has no export.json"),
    ("export.json", "{", "is damaged"),
    ("export.json", "[]", "is damaged"),
    ("export.json", '{"version": 1}', "is damaged"),
    ("parity.npz", None, "cannot be read"),
    ("parity.npz", "PK", "cannot be read"),
    ("model.stablehlo", "x", "cannot be read"),
  ],
)
def test_a_damaged_folder_is_refused(exported, name, content, expected):
  path = pathlib.Path(exported) / name
  path.unlink()
  if content is not None:
    path.write_text(content)
  with pytest.raises(RefusedInput, match=expected):
    export.serve_check(exported)


def test_a_later_version_is_refused(exported):
  edit(exported, version=2)
  with pytest.raises(RefusedInput, match="version 2, this jaxkd reads 1"):
    export.serve_check(exported)


def test_inputs_of_another_shape_are_refused(exported):
  with np.load(exported / "parity.npz") as arrays:
    held = dict(arrays)
  held["input:image"] = held["input:image"][:, :5]
  np.savez(exported / "parity.npz", **held)
  with pytest.raises(RefusedInput, match="cannot be run"):
    export.serve_check(exported)
