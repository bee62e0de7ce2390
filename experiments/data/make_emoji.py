"""Makes `jaxkd/data/emoji.npz` from the npm packages of two drawing styles.

`jaxkd/data/emoji.md` names the authors and licences. The packaged file was
made of emoji-datasource-google 16.0.0, emoji-datasource-twitter 16.0.0 and
emojibase-data 17.0.0; the same versions give the same bytes.

Run from the root of the repository, with Pillow installed:
  npm install --prefix emoji emoji-datasource-google@16.0.0
  npm install --prefix emoji emoji-datasource-twitter@16.0.0
  npm install --prefix emoji emojibase-data@17.0.0
  python -m experiments.data.make_emoji emoji/node_modules
"""

import pathlib
import sys

import numpy as np

from experiments.data import archive
from jaxkd.data import emoji, emoji_folder

_FILE = pathlib.Path(__file__).parents[2] / "jaxkd" / "data" / "emoji.npz"
_LEVELS = 32  # of a colour, so that the archive has half the size


def arrays(drawings: emoji_folder.Drawings) -> dict[str, np.ndarray]:
  """Returns what is packaged of drawings."""
  return {
    "image": _coarse(drawings.image),
    "code": np.array(drawings.code),
    "name": np.array(drawings.name),
    "keywords": np.array(["|".join(words) for words in drawings.keywords]),
    "group": drawings.group.astype(np.uint8),
    "subgroup": drawings.subgroup.astype(np.uint8),
    "groups": np.array(drawings.groups),
    "subgroups": np.array(drawings.subgroups),
  }


def _coarse(image: np.ndarray) -> np.ndarray:
  """Returns colours rounded to evenly spaced levels, black and white kept."""
  step = 255 / (_LEVELS - 1)
  return np.round(np.round(image / step) * step).astype(np.uint8)


def main() -> None:
  """Writes the archive from the folder that the command line names."""
  folder = pathlib.Path(sys.argv[1])
  archive.write(_FILE, arrays(emoji_folder.read(folder, emoji.PACKAGED)))


if __name__ == "__main__":
  main()
