"""Trains a population in a process of its own; prints what each run left."""

import json
import pathlib
import sys

import jax
import numpy as np

from jaxkd.parallel import Mesh, Placement
from jaxkd.training import population
from jaxkd.training.grid import Grid
from jaxkd.training.phase import Stop
from tests.training import test_population as tools


def main() -> None:
  """Four seeds of two methods, over as many devices as the first word says."""
  devices, root = int(sys.argv[1]), pathlib.Path(sys.argv[2])
  options = {
    "methods": tools.LABELS,
    "seeds": range(4),
    "placement": Placement(Mesh(data=devices)),
  }
  way = population.choose(Grid.of(tools.works(root / "way", **options)))
  made = tools.trainers(root, **options)
  ended = population.fit(made, root / "population", stop=Stop())
  sys.stdout.write(
    json.dumps(
      {
        "devices": jax.device_count(),
        "way": way.name,
        "params": {
          name: [
            np.asarray(x).ravel().tolist()
            for x in jax.tree.leaves(fitted.params)
          ]
          for name, fitted in ended.items()
        },
      }
    )
  )


if __name__ == "__main__":
  main()
