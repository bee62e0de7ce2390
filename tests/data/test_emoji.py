"""Emoji: parts by emoji, entries, the packaged file, folders of packages."""

import jax
import numpy as np
import pytest

from experiments.data import make_emoji
from jaxkd.data import Emoji, Task, emoji, emoji_folder
from jaxkd.errors import ConfigError, RefusedInput
from tests.data import emoji_packages

PARTS = ("train", "validation", "test")


def _rows(source):
  return source.take(range(len(source)))


@pytest.fixture(scope="module")
def parts():
  splits = Emoji().splits(0)
  return {name: _rows(splits.part(name)) for name in PARTS}


def test_the_task_has_what_a_task_needs():
  assert isinstance(Emoji(), Task)
  assert Emoji().num_classes == len(Emoji().class_names) == 8
  assert Emoji(label="subgroup").num_classes > 60


def test_no_emoji_is_in_two_parts_and_every_style_is_in_the_same(parts):
  found = {name: set(rows["emoji"].tolist()) for name, rows in parts.items()}
  assert not found["train"] & found["validation"]
  assert not (found["train"] | found["validation"]) & found["test"]
  assert len(set.union(*found.values())) == len(emoji._packaged().name)
  for rows in parts.values():
    for style in (0, 1):
      drawn = rows["emoji"][rows["style"] == style]
      assert sorted(drawn) == sorted(set(rows["emoji"]))


def test_no_caption_text_of_the_name_form_is_in_two_parts(parts):
  names = [
    {row.tobytes() for row in parts[name]["captions"][:, 0]} for name in PARTS
  ]
  assert len(names[0] & names[2]) <= 1


def test_entries_are_standardised_drawings_labels_and_several_captions(parts):
  rows = parts["train"]
  count = len(rows["label"])
  assert rows["image"].shape == (count, 32, 32, 3)
  assert rows["captions"].shape == (count, 5, 12)
  assert rows["caption_features"].shape == (count, 5, 128)
  assert {rows[k].dtype for k in ("image", "caption_features")} == {
    np.dtype(np.float32)
  }
  assert {
    rows[k].dtype for k in ("label", "style", "emoji", "captions", "text")
  } == {np.dtype(np.int32)}
  assert set(rows["label"]) == set(range(8))
  whole = np.concatenate([parts[name]["image"] for name in PARTS])
  assert abs(whole.mean()) < 1e-2
  assert abs(whole.std() - 1) < 1e-2


def test_the_text_is_one_of_the_captions_with_its_own_features(parts):
  rows = parts["train"]
  same = (rows["captions"] == rows["text"][:, None]).all(-1)
  assert same.any(1).all()
  chosen = rows["caption_features"][np.arange(len(same)), same.argmax(1)]
  np.testing.assert_allclose(chosen, rows["text_features"], atol=1e-6)
  assert len(set(same.argmax(1))) == 5  # all forms are used
  np.testing.assert_allclose(
    np.linalg.norm(rows["text_features"], axis=1), 1, rtol=1e-5
  )


def test_nearly_all_words_have_an_id_of_their_own(parts):
  captions = parts["train"]["captions"]
  assert captions.max() < 4096
  assert (captions == 1).mean() < 0.01 * (captions > 0).mean()


def test_everything_follows_the_seed():
  first, again, other = (_rows(Emoji().splits(s).test) for s in (0, 0, 1))
  for name, array in first.items():
    np.testing.assert_array_equal(array, again[name])
  assert (first["emoji"] != other["emoji"]).any()
  source = Emoji().splits(1)
  everything = [_rows(source.part(name)) for name in PARTS]
  captions = {
    int(e): row.tobytes()
    for rows in everything
    for e, row in zip(rows["emoji"], rows["captions"], strict=True)
  }
  here = [captions[int(e)] for e in first["emoji"]]
  assert here != [row.tobytes() for row in first["captions"]]


def test_a_small_drawing_is_the_mean_of_the_large_one():
  large, small = (Emoji(size=s).splits(0).test.take([3]) for s in (32, 16))
  expected = large["image"].reshape(1, 16, 2, 16, 2, 3).mean((2, 4))
  np.testing.assert_allclose(small["image"], expected, atol=1e-5)


def test_styles_can_be_chosen_and_keep_their_drawings():
  both = _rows(Emoji().splits(0).test)
  one = _rows(Emoji(styles=("twitter",)).splits(0).test)
  assert set(one["style"]) == {0}
  np.testing.assert_array_equal(one["image"], both["image"][both["style"] == 1])


def test_the_size_of_training_leaves_the_other_parts(parts):
  small = Emoji(train_size=20).splits(0)
  assert len(small.train) == 40
  np.testing.assert_array_equal(
    _rows(small.test)["emoji"], parts["test"]["emoji"]
  )


def test_classes_have_captions_in_the_words_of_the_captions():
  for label in ("group", "subgroup"):
    task = Emoji(label=label)
    found = task.class_captions()
    assert found["captions"].shape == (task.num_classes, 1, 12)
    assert found["caption_features"].shape == (task.num_classes, 1, 128)
    assert (found["captions"] != 1).all()


def test_the_packaged_file_is_small_and_names_every_label():
  assert emoji._FILE.stat().st_size <= 2_000_000
  drawings = emoji._packaged()
  assert drawings.image.shape == (len(drawings.name), 2, 32, 32, 3)
  assert len(set(drawings.code)) == len(drawings.code)
  assert drawings.group.max() + 1 == len(drawings.groups)
  for group, subgroup in zip(drawings.group, drawings.subgroup, strict=True):
    assert drawings.subgroups[subgroup].startswith(drawings.groups[group])


def test_authors_and_licences_are_named_beside_the_file():
  notice = emoji._FILE.with_suffix(".md").read_text()
  for part in ("Apache License", "CC BY 4.0", "Twitter, Inc", "Google"):
    assert part in notice
    assert part.split(",")[0] in emoji.__doc__
  assert "UNICODE LICENSE V3" in notice
  assert "Miles Johnson" in notice
  assert "apple" not in np.load(emoji._FILE).files


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"styles": ("apple",)}, "some of google, twitter without a folder"),
    ({"styles": ("google", "google")}, "each once"),
    ({"styles": ()}, "Emoji.styles = ..: expected some"),
    ({"label": "name"}, "expected group or subgroup"),
    ({"size": 64}, "expected 32 or 16"),
    ({"captions": 0}, "Emoji.captions = 0"),
    ({"test_fraction": 0.9}, "a number below 1"),
  ],
)
def test_a_field_out_of_range_is_refused(changed, message):
  with pytest.raises(ConfigError, match=message):
    Emoji(**changed)


@pytest.fixture
def folder(tmp_path):
  return emoji_packages.write(tmp_path, emoji_folder.STYLES)


def test_a_folder_gives_the_plain_emoji_without_flags_in_their_order(folder):
  drawings = emoji_folder.read(folder, ("apple", "twitter"))
  assert drawings.code == tuple(reversed(emoji_packages.KEPT))
  assert drawings.name[0] == "red apple"
  assert drawings.keywords[0] == ("fruit", "red")
  assert drawings.keywords[1] == ()
  assert drawings.groups == ("food", "smileys", "people")
  assert drawings.subgroups[drawings.subgroup[0]] == "food fruit"


def test_an_emoji_that_a_style_lacks_is_left_out_of_all(folder):
  drawings = emoji_folder.read(folder)
  assert drawings.code == ("2764", "1F44D", "1F600")


def test_drawings_are_cut_from_the_sheet_and_put_on_white(folder):
  drawings = emoji_folder.read(folder, ("apple", "twitter"))
  places = [code for code, *_ in emoji_packages.ENTRIES]
  for e, code in enumerate(drawings.code):
    i = next(i for i, c in enumerate(places) if c.startswith(code))
    for s, style in enumerate((0, 2)):
      drawing = drawings.image[e, s]
      assert (drawing[0, 0] == 255).all()
      half = (np.array([i, style, 9]) * 128 + 255 * 127) / 255
      np.testing.assert_allclose(drawing[0, 1], half, atol=0.5)
      rest = drawing.reshape(-1, 3)[2:]
      np.testing.assert_array_equal(rest, np.tile([i, style, 9], (1022, 1)))


def test_a_task_reads_apples_drawings_from_a_folder_alone(folder):
  task = Emoji(
    folder=folder,
    styles=("apple",),
    validation_fraction=0.25,
    test_fraction=0.25,
  )
  assert task.class_names == ("food", "smileys", "people")
  assert len(task.splits(0).train) == 2


def test_what_is_packaged_is_what_is_read_again(folder, tmp_path, monkeypatch):
  drawings = emoji_folder.read(folder, emoji.PACKAGED)
  path = tmp_path / "emoji.npz"
  np.savez(path, **make_emoji.arrays(drawings))
  monkeypatch.setattr(emoji, "_FILE", path)
  again = emoji._packaged.__wrapped__()
  for field in ("code", "name", "keywords", "groups", "subgroups", "styles"):
    assert getattr(again, field) == getattr(drawings, field)
  for field in ("group", "subgroup"):
    np.testing.assert_array_equal(
      getattr(again, field), getattr(drawings, field)
    )
  np.testing.assert_allclose(again.image, drawings.image * 1.0, atol=4.2)
  assert (again.image == 255).sum() == (drawings.image == 255).sum()


def test_an_absent_package_is_named_with_the_command(tmp_path):
  with pytest.raises(RefusedInput, match="npm install --prefix") as error:
    Emoji(folder=tmp_path, styles=("apple",)).splits(0)
  assert "emoji-datasource-apple emojibase-data" in str(error.value)
  assert "no such file" in str(error.value)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("emojibase-data/en/data.json", "[{]", "data.json: not readable"),
    ("emojibase-data/en/data.json", '[{"label": 1}]', "lacks 'hexcode'"),
    ("emojibase-data/en/data.json", "[]", "no emoji that all styles draw"),
    ("emoji-datasource-google/emoji.json", "[{}]", "lacks 'has_img_google'"),
    ("emoji-datasource-google/emoji.json", "[3]", "an entry lacks"),
    (
      "emoji-datasource-google/img/google/sheets-clean/32.png",
      "no picture",
      "32.png: not readable",
    ),
  ],
)
def test_a_damaged_file_is_named(folder, name, content, message):
  (folder / name).write_text(content)
  with pytest.raises(RefusedInput, match=message):
    emoji_folder.read(folder)


def test_the_test_part_can_be_in_another_style():
  whole, apart = (
    Emoji(**options).splits(3)
    for options in ({}, {"styles": ["twitter"], "test_styles": ("google",)})
  )
  for name, style in (("train", 1), ("validation", 1), ("test", 0)):
    both, one = (_rows(splits.part(name)) for splits in (whole, apart))
    chosen = both["style"] == style
    for entry in ("image", "label", "emoji"):
      np.testing.assert_array_equal(one[entry], both[entry][chosen])
    # Places in `all_styles`, where twitter is the first.
    assert set(one["style"]) == {1 - style}
  with pytest.raises(
    ConfigError, match=r"Emoji.test_styles = .*google, twitter"
  ):
    Emoji(test_styles=("apple",))


def test_pictures_are_the_drawings_enlarged():
  source = Emoji(picture_size=96, styles=("google",)).splits(0).test
  rows = source.take(range(8))
  small = rows["image"] * emoji._DEVIATION + emoji._MEAN  # 0 to 1
  expected = jax.image.resize(small, (8, 96, 96, 3), "bilinear") * 2 - 1
  np.testing.assert_allclose(rows["picture"], expected, atol=1e-4)
  assert rows["picture"].dtype == np.float32
  assert np.abs(rows["picture"]).max() <= 1
  assert "picture" not in Emoji().splits(0).test.take([0])
