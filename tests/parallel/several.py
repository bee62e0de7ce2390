"""Trains methods on four devices of one process or of several.

usage: python -m tests.parallel.several FOLDER PORT COUNT RANK [METHOD...]

A script, since processes are fixed when JAX starts. Beside the runs it leaves
`digests_RANK.json`, of what every method left in this process.
"""

import json
import pathlib
import sys

from jaxkd.parallel import Mesh, Placement, processes


def cases():
  """Methods, each with its data and its mesh."""
  from tests.methods import (
    test_dho,
    test_mmanet,
    test_pcoreset,
    test_repblend,
    toys,
  )

  mst = toys.mst_distill(teacher_layers=("fc1",), aux_layers=("fc1",))
  views = test_mmanet.TASK.splits(0)
  return {
    "mst_distill": (mst, toys.splits(), Mesh(data=2, fsdp=2)),
    "dho": (test_dho.dho(), test_dho.splits(), Mesh(fsdp=4)),
    "mmanet": (test_mmanet.mmanet(), views, Mesh(fsdp=4)),
    "pcoreset": (
      test_pcoreset.pcoreset(),
      test_pcoreset.splits(),
      Mesh(fsdp=2, tensor=2),
    ),
    "repblend": (
      test_repblend.repblend(),
      test_repblend.splits(),
      Mesh(data=4),
    ),
  }


def main():
  folder, port, count, rank, *names = sys.argv[1:]
  if int(count) > 1:
    processes.start(f"127.0.0.1:{port}", int(count), int(rank))
  # These compute when they are imported.
  from jaxkd.training import trees
  from tests.methods import toys

  found = {}
  for name, (method, splits, mesh) in cases().items():
    if names and name not in names:
      continue
    fitted = toys.trainer(
      method,
      pathlib.Path(folder) / name,
      splits=splits,
      placement=Placement(mesh),
      settings={"log_every_steps": 1},
    ).fit()
    found[name] = trees.tree_digest([fitted.params, fitted.memory])
  digests = pathlib.Path(folder) / f"digests_{rank}.json"
  digests.write_text(json.dumps(found))
  processes.leave(0)


if __name__ == "__main__":
  main()
