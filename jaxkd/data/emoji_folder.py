"""Drawings of emoji, and their names, from a folder of npm packages.

The packages are `emojibase-data` (names, keywords, groups) and, for a drawing
style, `emoji-datasource-<style>`. Its sheet without fallbacks is read, in which
no drawing is another vendor's; emoji that a style lacks are left out.

Of emoji that differ in skin tone, gender or direction alone, the plain one is
kept. Flags are left out: no drawing tells the name of a country.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd import extras
from jaxkd.errors import RefusedInput

STYLES = ("apple", "google", "twitter")
SIDE = 32
_BORDER = 1  # of every drawing in a sheet
_LEFT_OUT = ("component", "flags")  # groups
_VARIANTS = ("200D-2640", "200D-2642", "200D-27A1")  # woman, man, to the right
_PEOPLE = ("1F468-200D", "1F469-200D")  # man and woman, joined with a thing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawings:
  """E emoji in S drawing styles.

  Attributes:
    image: uint8 [E, S, 32, 32, 3], on white.
    styles: the styles' names.
    code: code points of each emoji, hexadecimal, joined by `-`.
    name: of each emoji.
    keywords: of each emoji.
    group: int32 [E], places in `groups`.
    subgroup: int32 [E], places in `subgroups`.
    groups: names of the groups.
    subgroups: names of the subgroups, each with its group's before it.
  """

  image: np.ndarray
  styles: tuple[str, ...]
  code: tuple[str, ...]
  name: tuple[str, ...]
  keywords: tuple[tuple[str, ...], ...]
  group: np.ndarray
  subgroup: np.ndarray
  groups: tuple[str, ...]
  subgroups: tuple[str, ...]


class _Damaged(Exception):
  """What is wrong with a file: its path and the problem."""


def read(
  folder: str | pathlib.Path, styles: Sequence[str] = STYLES
) -> Drawings:
  """Returns the emoji that all styles draw, in the order of Unicode.

  Args:
    folder: Where the packages lie, each in a folder of its name, as in a
      `node_modules`.
    styles: Some of `STYLES`.

  Raises:
    RefusedInput: The folder or a file is absent or damaged; says the remedy.
    MissingExtra: Pillow is not installed.
  """
  folder, styles = pathlib.Path(folder), tuple(styles)
  try:
    texts = _texts(folder / "emojibase-data")
    sheets = [_Sheet(folder, style) for style in styles]
    kept = [x for x in texts if all(x["code"] in s.places for s in sheets)]
    if not kept:
      raise _Damaged(folder, "no emoji that all styles draw")
    drawn = [[s.drawing(x["code"]) for s in sheets] for x in kept]
  except _Damaged as damaged:
    path, problem = damaged.args
    raise RefusedInput(
      f"emoji: {path}: {problem}; {_how_to_fill(styles)}"
    ) from damaged.__cause__
  groups = list(dict.fromkeys(x["group"] for x in kept))
  subgroups = list(dict.fromkeys(x["subgroup"] for x in kept))
  return Drawings(
    image=np.array(drawn),
    styles=styles,
    code=tuple(x["code"] for x in kept),
    name=tuple(x["name"] for x in kept),
    keywords=tuple(x["keywords"] for x in kept),
    group=np.array([groups.index(x["group"]) for x in kept], np.int32),
    subgroup=np.array([subgroups.index(x["subgroup"]) for x in kept], np.int32),
    groups=tuple(groups),
    subgroups=tuple(subgroups),
  )


def _how_to_fill(styles: Sequence[str]) -> str:
  names = [f"emoji-datasource-{style}" for style in styles]
  names = " ".join([*names, "emojibase-data"])
  return (
    f"expected the npm packages {names}: run `npm install --prefix emoji "
    f"{names}` and give the folder emoji/node_modules"
  )


def _json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise _Damaged(path, "no such file") from error
  except (OSError, ValueError) as error:
    raise _Damaged(path, f"not readable ({error})") from error


def _texts(package: pathlib.Path) -> list[dict[str, Any]]:
  """Returns code, name, keywords, group and subgroup of the emoji kept."""
  path = package / "en" / "data.json"
  entries, meta = _json(path), _json(package / "meta" / "groups.json")
  found = []
  try:
    groups, subgroups = meta["groups"], meta["subgroups"]
    for entry in entries:
      code = _plain(entry["hexcode"])
      group = groups[str(entry["group"])] if "group" in entry else "component"
      if group in _LEFT_OUT or _is_variant(code):
        continue
      subgroup = f"{group} {subgroups[str(entry['subgroup'])]}"
      found.append(
        {
          "order": entry["order"],
          "code": code,
          "name": entry["label"],
          "keywords": tuple(entry.get("tags", ())),
          "group": group,
          "subgroup": subgroup,
        }
      )
  except (KeyError, TypeError) as error:
    raise _Damaged(path, f"an entry lacks {error}") from error
  return sorted(found, key=lambda entry: entry["order"])


def _plain(code: str) -> str:
  """Returns code points without the one that asks for a coloured drawing."""
  return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def _is_variant(code: str) -> bool:
  return code.startswith(_PEOPLE) or any(part in code for part in _VARIANTS)


class _Sheet:
  """All drawings of one style, and where each lies."""

  def __init__(self, folder: pathlib.Path, style: str):
    package = folder / f"emoji-datasource-{style}"
    path = package / "emoji.json"
    try:
      self.places = {
        _plain(entry["unified"]): (entry["sheet_x"], entry["sheet_y"])
        for entry in _json(path)
        if entry[f"has_img_{style}"]
      }
    except (KeyError, TypeError) as error:
      raise _Damaged(path, f"an entry lacks {error}") from error
    self._path = package / "img" / style / "sheets-clean" / f"{SIDE}.png"
    self._pixels = _on_white(self._path)

  def drawing(self, code: str) -> np.ndarray:
    """Returns one drawing, uint8 [32, 32, 3]."""
    x, y = (
      place * (SIDE + 2 * _BORDER) + _BORDER for place in self.places[code]
    )
    drawing = self._pixels[y : y + SIDE, x : x + SIDE]
    if drawing.shape != (SIDE, SIDE, 3):
      raise _Damaged(self._path, f"too small, expected {code} at {x}, {y}")
    return drawing


def _on_white(path: pathlib.Path) -> np.ndarray:
  """Returns a picture on white, uint8 [H, W, 3]."""
  image = extras.need("PIL.Image", extra="vision", what="reading emoji")
  try:
    with image.open(path) as file:
      pixels = np.asarray(file.convert("RGBA")).astype(np.uint16)
  except FileNotFoundError as error:
    raise _Damaged(path, "no such file") from error
  except (OSError, ValueError) as error:
    raise _Damaged(path, f"not readable ({error})") from error
  colour, alpha = pixels[..., :3], pixels[..., 3:]
  return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
