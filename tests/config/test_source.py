"""Which files a config can include, and in which order they hold."""

import os

import pytest

from jaxkd import config
from jaxkd.config import source
from jaxkd.errors import ConfigError


def test_includes_are_relative_to_the_file_then_to_the_root(experiments):
  experiments.write("base.gin", "Experiment.label = 'root'\n")
  experiments.write("kd/base.gin", "Experiment.label = 'beside'\n")
  experiments.write("nets/mlp.gin", "Experiment.steps = 7\n")
  path = experiments.write(
    "kd/x.gin", "include 'base.gin'\ninclude 'nets/mlp.gin'\n"
  )
  built = config.load(path)
  assert (built.label, built.steps) == ("beside", 7)


def test_includes_may_go_up_within_the_experiments_folder(experiments):
  experiments.write("base.gin", "Experiment.steps = 7\n")
  path = experiments.write("a/b/x.gin", "include '../../base.gin'\n")
  assert config.load(path).steps == 7


def test_an_absolute_include_within_the_folder_is_read(experiments):
  experiments.write("base.gin", "Experiment.steps = 7\n")
  path = experiments.write(
    "x.gin", f"include '{experiments.root / 'base.gin'}'\n"
  )
  assert config.load(path).steps == 7


def test_without_an_experiments_folder_the_root_is_the_files_own(
  rooms, tmp_path
):
  (tmp_path / "base.gin").write_text("Experiment.steps = 7\n")
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "ok.gin").write_text("Experiment.steps = 8\n")
  (tmp_path / "run" / "x.gin").write_text("include '../base.gin'\n")
  (tmp_path / "run" / "y.gin").write_text("include 'ok.gin'\n")
  with pytest.raises(ConfigError, match=r"x.gin:1: .* leaves the folder .*run"):
    config.load(tmp_path / "run" / "x.gin")
  assert config.load(tmp_path / "run" / "y.gin").steps == 8


def test_a_link_out_of_the_folder_is_refused_and_a_link_within_is_not(
  experiments,
):
  (experiments.root.parent / "out.gin").write_text("Experiment.steps = 1\n")
  experiments.write("in.gin", "Experiment.steps = 2\n")
  os.symlink("../out.gin", experiments.root / "a.gin")
  os.symlink("in.gin", experiments.root / "b.gin")
  refused = experiments.write("x.gin", "include 'a.gin'\n")
  with pytest.raises(ConfigError) as error:
    config.load(refused)
  assert str(error.value) == (
    "experiments/x.gin:1: include 'a.gin': leaves the folder experiments"
  )
  assert config.load(experiments.write("y.gin", "include 'b.gin'\n")).steps == 2


def test_a_ring_of_includes_is_named(experiments):
  experiments.write("b.gin", "# b\ninclude 'a.gin'\n")
  path = experiments.write("a.gin", "include 'b.gin'\n")
  with pytest.raises(ConfigError) as error:
    config.load(path)
  assert str(error.value) == (
    "experiments/b.gin:2: include 'a.gin': includes itself"
    " (experiments/a.gin -> experiments/b.gin -> experiments/a.gin)"
  )


def test_includes_nest_at_most_twenty_deep(experiments):
  for i in range(23):
    experiments.write(f"f{i}.gin", f"include 'f{i + 1}.gin'\n")
  experiments.write("f23.gin", "")
  with pytest.raises(ConfigError) as error:
    config.load("experiments/f0.gin")
  assert str(error.value) == (
    "experiments/f20.gin:1: include 'f21.gin': includes nest deeper than 20"
  )
  assert config.load("experiments/f3.gin").steps == 100


def test_a_file_that_two_others_include_keeps_what_the_first_changed(
  experiments,
):
  experiments.write("base.gin", "Experiment.steps = 1\nExperiment.label='b'\n")
  experiments.write("a.gin", "include 'base.gin'\nExperiment.steps = 2\n")
  experiments.write("b.gin", "include 'base.gin'\nExperiment.label = 'c'\n")
  path = experiments.write("x.gin", "include 'a.gin'\ninclude 'b.gin'\n")
  built = config.load(path)
  assert (built.steps, built.label) == (2, "c")


def test_a_missing_file_names_the_nearest_that_exists(experiments):
  experiments.write("kd/digits.gin", "")
  with pytest.raises(ConfigError) as error:
    config.load("experiments/kd/digts.gin")
  assert str(error.value) == (
    "experiments/kd/digts.gin: no such file, did you mean"
    " experiments/kd/digits.gin?"
  )


def test_a_missing_include_names_the_nearest_by_both_ways_to_it(experiments):
  experiments.write("base/kd.gin", "")
  for written, nearest in (
    ("../base/kdd.gin", "../base/kd.gin"),
    ("base/kdd.gin", "base/kd.gin"),
  ):
    path = experiments.write("x/x.gin", f"include '{written}'\n")
    with pytest.raises(ConfigError) as error:
      config.load(path)
    assert str(error.value) == (
      f"experiments/x/x.gin:1: include '{written}': no such file, did you mean"
      f" {nearest}?"
    )


def test_bytes_that_are_not_utf8_are_named_with_their_line(experiments):
  path = experiments.write(
    "x.gin", b"# one\n# two\nExperiment.label = '\xff'\n"
  )
  with pytest.raises(ConfigError, match=r"^experiments/x.gin:3: not UTF-8"):
    config.load(path)


def test_a_file_of_one_megabyte_is_read_and_a_larger_one_is_not(experiments):
  line = "Experiment.steps = 7\n"
  comment = "#" * (source.MAX_BYTES - len(line) - 1) + "\n"
  path = experiments.write("x.gin", comment + line)
  assert config.load(path).steps == 7
  experiments.write("x.gin", comment + "#" + line)
  with pytest.raises(ConfigError, match="x.gin:1: larger than 1000000 bytes"):
    config.load(path)


@pytest.mark.parametrize(
  "text",
  [
    b"\xef\xbb\xbfExperiment.label = 'caf\xc3\xa9'\n",
    b"Experiment.label = 'caf\xc3\xa9'\r\nExperiment.steps = 100\r\n",
    b"Experiment.label = 'caf\xc3\xa9'",
    b"Experiment:\n  label = 'caf\\u00e9'\n",
  ],
  ids=["byte_order_mark", "windows_lines", "no_last_line_end", "block"],
)
def test_a_text_is_read_however_an_editor_left_it(text, experiments):
  path = experiments.write("x.gin", text)
  assert config.load(path).label == "caf\u00e9"


def test_messages_name_files_outside_the_working_directory(
  rooms, tmp_path, monkeypatch
):
  (tmp_path / "experiments").mkdir()
  (tmp_path / "experiments" / "x.gin").write_text("Experiment.stes = 1\n")
  (tmp_path / "x.gin").write_text("Experiment.stes = 1\n")
  monkeypatch.chdir("/")
  monkeypatch.setattr("pathlib.Path.cwd", lambda: tmp_path / "elsewhere")
  with pytest.raises(ConfigError, match=r"^experiments/x.gin:1: "):
    config.load(tmp_path / "experiments" / "x.gin")
  with pytest.raises(ConfigError, match=rf"^{tmp_path}/x.gin:1: "):
    config.load(tmp_path / "x.gin")
