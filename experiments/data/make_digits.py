"""Makes `jaxkd/data/digits.npz` from the digits that scikit-learn carries.

Source: `sklearn.datasets.load_digits`, the 1,797 test images of "Optical
Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine
Learning Repository, 1998, doi 10.24432/C50P49), 8x8 cells with ink 0..16.
Licence: Creative Commons Attribution 4.0.

Run from the root of the repository, with scikit-learn installed:
  python -m experiments.data.make_digits
"""

import pathlib

import numpy as np
from sklearn import datasets

from experiments.data import archive

_FILE = pathlib.Path(__file__).parents[2] / "jaxkd" / "data" / "digits.npz"


def main() -> None:
  """Writes image uint8 [1797, 8, 8] and label uint8 [1797]."""
  digits = datasets.load_digits()
  archive.write(
    _FILE,
    {
      "image": digits.images.astype(np.uint8),
      "label": digits.target.astype(np.uint8),
    },
  )


if __name__ == "__main__":
  main()
