"""Emoji: small drawings in several styles, with names, keywords and groups.

The packaged file `emoji.npz` holds the emoji of Emoji 16.0 but for flags and
variants, in two styles, 32 by 32 on white; `experiments/data/make_emoji.py`
makes it again. The drawings are Google's Noto Emoji (Apache License 2.0) and
Twemoji, copyright Twitter, Inc and other contributors (CC BY 4.0); names and
keywords are of Unicode CLDR (Unicode License v3) by way of emojibase-data
(MIT). `emoji.md` beside the file has the notices in full and says what was
changed. Apple's drawings may not be passed on: they are read from a folder.
"""

import dataclasses
import functools
import os
import pathlib
from typing import ClassVar

import numpy as np

from jaxkd.data import captions, checks, emoji_folder, partition, randomness
from jaxkd.data.source import ArraySource, Splits

PACKAGED = ("google", "twitter")
_FILE = pathlib.Path(__file__).with_name("emoji.npz")
_MEAN, _DEVIATION = 0.7688, 0.2842  # of the packaged drawings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emoji:
  """Drawings with captions; all drawings of an emoji are in one part.

  `image` is float32 [size, size, 3], mean 0 and deviation 1 over the packaged
  file; `style` int32, place in `all_styles`; `emoji` int32, which emoji of the
  collection. Every emoji has several captions, drawn by the seed from its name,
  keywords and groups: `captions` int32 [captions, words], ids of words, 0 where
  there is none; `caption_features` float32 [captions, text_dimensions], their
  frozen embeddings of length 1. `text` [words] and `text_features`
  [text_dimensions] are one of these, another one for each drawing.

  With `picture_size` there is a second image for networks from elsewhere:
  `picture` float32 [picture_size, picture_size, 3], the drawing enlarged, its
  colours from -1 to 1.

  Attributes:
    folder: Local folder with npm packages; None for the packaged drawings.
    styles: Drawing styles, of google and twitter, and with a folder apple.
    test_styles: Those of the test part; `styles` if not given.
    picture_size: Height and width of `picture`; None for no such entry.
    label: What `label` is: `group` (8 classes) or the finer `subgroup`.
    size: Height and width of the drawings, 32 or 16.
    captions: Captions of an emoji.
    words: Most words of a caption.
    vocabulary: Ids of words, padding and the id of rare words included.
    text_dimensions: Size of a caption's embedding.
    train_size: Emoji left for training after the split; None for all.
    validation_fraction: Share of emoji in the validation part.
    test_fraction: Share of emoji in the test part.
    batch_size: Examples in a training batch.
  """

  name: ClassVar[str] = "emoji"

  folder: str | os.PathLike[str] | None = None
  styles: tuple[str, ...] = PACKAGED
  test_styles: tuple[str, ...] = ()
  picture_size: int | None = None
  label: str = "group"
  size: int = 32
  captions: int = 5
  words: int = 12
  vocabulary: int = 4096
  text_dimensions: int = 128
  train_size: int | None = None
  validation_fraction: float = 0.15
  test_fraction: float = 0.2
  batch_size: int = 64

  def __post_init__(self):
    """Raises `ConfigError` for a field out of range."""
    owner = type(self).__name__
    valid = PACKAGED if self.folder is None else emoji_folder.STYLES
    where = " without a folder" if self.folder is None else ""
    for field, least in (("styles", 1), ("test_styles", 0)):
      styles = tuple(getattr(self, field))
      object.__setattr__(self, field, styles)
      known = len(styles) >= least and set(styles) <= set(valid)
      checks.require(
        known and len(set(styles)) == len(styles),
        f"{owner}.{field}",
        styles,
        f"some of {', '.join(valid)}{where}, each once",
      )
    partition.check_fractions(
      owner, self.validation_fraction, self.test_fraction
    )
    for field, value, choices in (
      ("label", self.label, ("group", "subgroup")),
      ("size", self.size, (emoji_folder.SIDE, emoji_folder.SIDE // 2)),
    ):
      expected = " or ".join(map(str, choices))
      checks.require(value in choices, f"{owner}.{field}", value, expected)
    for field, least in (
      ("captions", 1),
      ("words", 1),
      ("vocabulary", 3),
      ("text_dimensions", 1),
      ("batch_size", 1),
    ):
      checks.require_integer(f"{owner}.{field}", getattr(self, field), least)
    for field, least in (("train_size", 1), ("picture_size", 32)):
      if getattr(self, field) is not None:
        checks.require_integer(f"{owner}.{field}", getattr(self, field), least)

  @property
  def all_styles(self) -> tuple[str, ...]:
    """The styles of all parts, each once."""
    return tuple(dict.fromkeys((*self.styles, *self.test_styles)))

  @property
  def num_classes(self) -> int:
    """Number of groups, or of subgroups."""
    return len(self.class_names)

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes, as the captions have them."""
    drawings = self._drawings()
    return getattr(drawings, f"{self.label}s")

  def class_captions(self) -> dict[str, np.ndarray]:
    """Returns `captions` [C, 1, words] and `caption_features` [C, 1, D]."""
    encoded = self._encoded(list(self.class_names))
    return {name: array[:, None] for name, array in encoded.items()}

  def splits(self, seed: int) -> Splits:
    """Returns the three parts for a seed.

    Raises:
      ConfigError: `train_size` exceeds the training part, or a part is empty.
      RefusedInput: A file of the folder is absent or damaged; says the remedy.
    """
    drawings = self._drawings()
    train, *others = partition.three_way(
      len(drawings.name),
      validation=self.validation_fraction,
      test=self.test_fraction,
      seed=seed,
      purpose="emoji",
    )
    train = partition.cut(train, self.train_size, "Emoji.train_size")
    tables = self._tables(drawings, seed)
    parts = {
      "train": (train, self.styles),
      "validation": (others[0], self.styles),
      "test": (others[1], self.test_styles or self.styles),
    }
    return Splits(
      **{
        name: self._source(*part, drawings, tables, seed)
        for name, part in parts.items()
      }
    )

  def _drawings(self) -> emoji_folder.Drawings:
    if self.folder is None:
      return _chosen(self.all_styles)
    return _from_folder(os.fspath(self.folder), self.all_styles)

  def _tables(
    self, drawings: emoji_folder.Drawings, seed: int
  ) -> dict[str, np.ndarray]:
    """Returns images [E S, ...], captions and features [E, K, ...]."""
    generator = randomness.generator(seed=seed, purpose="captions")
    texts = []
    for name, keywords, subgroup in zip(
      drawings.name, drawings.keywords, drawings.subgroup, strict=True
    ):
      kind = drawings.subgroups[subgroup]
      texts += captions.compose(name, keywords, kind, self.captions, generator)
    tables = {"image": drawings.image.reshape(-1, *drawings.image.shape[2:])}
    for name, array in self._encoded(texts).items():
      tables[name] = array.reshape(-1, self.captions, array.shape[-1])
    return tables

  def _encoded(self, texts: list[str]) -> dict[str, np.ndarray]:
    ids = _vocabulary(self._drawings(), self.vocabulary)
    return {
      "captions": captions.encode(texts, ids, self.words),
      "caption_features": captions.hashed_features(texts, self.text_dimensions),
    }

  def _source(
    self,
    part: np.ndarray,
    styles: tuple[str, ...],
    drawings: emoji_folder.Drawings,
    tables: dict[str, np.ndarray],
    seed: int,
  ) -> ArraySource:
    """Returns every emoji of a part in each of some styles."""
    places = [drawings.styles.index(style) for style in styles]
    emoji, style = np.repeat(part, len(places)), np.tile(places, len(part))
    drawing = emoji * len(drawings.styles) + style
    draws = randomness.generator(seed=seed, purpose="caption of a drawing")
    chosen = draws.random(len(tables["image"])) * self.captions
    caption = emoji, chosen.astype(int)[drawing]
    picture, decode = (
      {},
      {"image": functools.partial(_standardised, size=self.size)},
    )
    if self.picture_size:
      picture = {"picture": drawing}
      decode["picture"] = functools.partial(_enlarged, size=self.picture_size)
    return ArraySource(
      {
        **picture,
        "image": drawing,
        "label": getattr(drawings, self.label)[emoji],
        "style": style.astype(np.int32),
        "emoji": emoji.astype(np.int32),
        "captions": emoji,
        "caption_features": emoji,
        "text": tables["captions"][caption],
        "text_features": tables["caption_features"][caption],
      },
      tables=tables | {name: tables["image"] for name in picture},
      decode=decode,
    )


@functools.lru_cache(maxsize=1)
def _packaged() -> emoji_folder.Drawings:
  with np.load(_FILE) as file:
    return emoji_folder.Drawings(
      image=file["image"],
      styles=PACKAGED,
      code=tuple(file["code"].tolist()),
      name=tuple(file["name"].tolist()),
      keywords=tuple(
        tuple(filter(None, x.split("|"))) for x in file["keywords"].tolist()
      ),
      group=file["group"].astype(np.int32),
      subgroup=file["subgroup"].astype(np.int32),
      groups=tuple(file["groups"].tolist()),
      subgroups=tuple(file["subgroups"].tolist()),
    )


@functools.lru_cache(maxsize=4)
def _chosen(styles: tuple[str, ...]) -> emoji_folder.Drawings:
  drawings = _packaged()
  places = [drawings.styles.index(style) for style in styles]
  return dataclasses.replace(
    drawings, styles=styles, image=drawings.image[:, places]
  )


@functools.lru_cache(maxsize=1)
def _from_folder(folder: str, styles: tuple[str, ...]) -> emoji_folder.Drawings:
  return emoji_folder.read(folder, styles)


def _vocabulary(drawings: emoji_folder.Drawings, size: int) -> dict[str, int]:
  keywords = (word for words in drawings.keywords for word in words)
  texts = (*drawings.name, *keywords, *drawings.subgroups)
  return captions.vocabulary(texts, size)


def _standardised(stored: np.ndarray, size: int) -> np.ndarray:
  """Returns float32 [B, size, size, 3] from uint8 [B, 32, 32, 3]."""
  pictures = stored.astype(np.float32) / 255
  if size < stored.shape[1]:
    shape = (len(stored), size, 2, size, 2, 3)
    pictures = pictures.reshape(shape).mean((2, 4))
  return (pictures - np.float32(_MEAN)) / np.float32(_DEVIATION)


def _enlarged(stored: np.ndarray, size: int) -> np.ndarray:
  """Returns float32 [B, size, size, 3] in [-1, 1], bilinear in between."""
  weights = _between(stored.shape[1], size)
  pictures = stored.astype(np.float32) / np.float32(127.5) - 1
  wide = weights @ pictures.reshape(*pictures.shape[:2], -1)
  wide = wide.reshape(len(stored), size, -1, 3).swapaxes(1, 2)
  tall = weights @ wide.reshape(len(stored), -1, size * 3)
  return tall.reshape(len(stored), size, size, 3).swapaxes(1, 2)


@functools.lru_cache(maxsize=4)
def _between(old: int, new: int) -> np.ndarray:
  """Weights float32 [new, old] of pixels between whose centres new ones lie."""
  place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
  nearness = 1 - np.abs(place[:, None] - np.arange(old)[None])
  return np.maximum(nearness, 0).astype(np.float32)
