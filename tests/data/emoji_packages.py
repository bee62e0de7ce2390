"""Small folders in the layout of the npm packages that emoji are read from."""

import json
import pathlib

import numpy as np
from PIL import Image

SIDE, CELL = 32, 34
# Code points, name, keywords, group, subgroup of emojibase-data.
ENTRIES = (
  ("1F600", "grinning face", ["grin", "happy"], 0, 0),
  ("1F44D", "thumbs up", ["yes"], 1, 1),
  ("1F44D-1F3FB-FE0F", "thumbs up: light skin tone", ["yes"], None, None),
  ("1F3C3-200D-2640-FE0F", "woman running", ["run"], 1, 2),
  ("1F468-200D-1F33E", "man farmer", ["farm"], 1, 2),
  ("2764-FE0F", "red heart", [], 0, 3),
  ("1F1EA-1F1F8", "flag: Spain", ["ES"], 9, 4),
  ("1F34E", "red apple", ["fruit", "red"], 4, 5),
)
KEPT = ("1F600", "1F44D", "2764", "1F34E")
GROUPS = {"0": "smileys", "1": "people", "2": "component", "4": "food"}
SUBGROUPS = {
  str(i): name
  for i, name in enumerate(
    ("face-smiling", "hand", "activity", "heart", "flags", "fruit")
  )
}


def write(folder: pathlib.Path, styles: tuple[str, ...]) -> pathlib.Path:
  """Fills a folder; the drawing of emoji i in style s has colour (i, s, 9).

  The first pixel is transparent, the second half so. Google lacks the apple.
  """
  base = folder / "emojibase-data"
  _json(
    base / "en" / "data.json",
    [
      {"hexcode": code, "label": name, "tags": tags, "order": 99 - i}
      | ({} if group is None else {"group": group, "subgroup": subgroup})
      for i, (code, name, tags, group, subgroup) in enumerate(ENTRIES)
    ],
  )
  groups = {**GROUPS, "9": "flags"}
  _json(
    base / "meta" / "groups.json", {"groups": groups, "subgroups": SUBGROUPS}
  )
  for s, style in enumerate(styles):
    package = folder / f"emoji-datasource-{style}"
    places = [
      {
        "unified": code,
        "sheet_x": i % 3,
        "sheet_y": i // 3,
        f"has_img_{style}": (code, style) != ("1F34E", "google"),
      }
      for i, (code, *_) in enumerate(ENTRIES)
    ]
    _json(package / "emoji.json", places)
    _sheet(package / "img" / style / "sheets-clean" / "32.png", s)
  return folder


def _sheet(path: pathlib.Path, style: int) -> None:
  pixels = np.zeros((3 * CELL, 3 * CELL, 4), np.uint8)
  for i in range(len(ENTRIES)):
    y, x = (CELL * place + 1 for place in divmod(i, 3))
    drawing = pixels[y : y + SIDE, x : x + SIDE]
    drawing[:] = (i, style, 9, 255)
    drawing[0, 0, 3], drawing[0, 1, 3] = 0, 128
  path.parent.mkdir(parents=True)
  Image.fromarray(pixels, "RGBA").save(path)


def _json(path: pathlib.Path, content: object) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))
