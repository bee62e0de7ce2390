"""A phase in shapes is lowered to the program of a run."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxkd.method import Phase, Stream
from jaxkd.network import Network
from jaxkd.parallel import Mesh, Placement, held
from jaxkd.teachers import InMemory
from jaxkd.training.outline import Outliner
from jaxkd.training.phase import Settings
from jaxkd.training.program import Programs
from tests.methods import toys


def outlines(method, **settings):
  """The outlines of a method by phase."""
  outliner = Outliner(
    method=method,
    splits=toys.splits(),
    batch_size=8,
    settings=Settings(evaluation_batch_size=8, **settings),
    placement=Placement(Mesh()),
  )
  return {made.phase.name: made for made in outliner.outlines()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside(toys.Toy):
  """A second stream whose examples have targets too."""

  @property
  def phases(self):
    return (
      Phase(
        name="toy",
        updates=(toys.update(),),
        steps=4,
        beside={"more": Stream("validation", batch_size=4)},
        targets={"seen": lambda nets, batch: nets.teacher(batch).logits},
        validate=toys.validate,
      ),
    )


def beside():
  counts = {"seen": np.arange(3), "mean": np.float64(0.5)}
  roles = {"student": toys.mlp(), "teacher": toys.teacher()}
  return Beside(networks=roles, first_memory=counts)


@pytest.mark.parametrize("cache_targets", [True, False])
@pytest.mark.parametrize(
  "make",
  [
    pytest.param(toys.kd, marks=pytest.mark.slow),
    pytest.param(toys.mst_distill, marks=pytest.mark.slow),
    beside,
  ],
)
def test_the_program_is_that_of_a_run(make, cache_targets, tmp_path):
  method = make()
  programs = Programs(method)
  settings = {"max_steps": 1, "cache_targets": cache_targets}
  trainer = toys.trainer(method, tmp_path, programs=programs, settings=settings)
  trainer.fit()
  found = outlines(method, **settings)
  assert set(found) == set(programs.phases)
  for name, outline in found.items():
    assert outline.steps == 1
    assert outline.program.fingerprint == programs.phases[name].fingerprint


def test_a_large_network_is_outlined_without_an_array():
  method = toys.supervised(student=toys.mlp(60_000, 60_000, toys.CLASSES))
  before = sum(x.nbytes for x in jax.live_arrays())
  found = outlines(method)["supervise"]
  size = held(found.state.params)
  assert size > 4 * 60_000**2
  assert sum(x.nbytes for x in jax.live_arrays()) - before < 2**20


def test_the_dtype_of_loaded_weights_counts():
  class Halved(InMemory):
    dtype = "bfloat16"

  weights = Halved({"params": {}})
  teacher = Network(toys.teacher().module, ("image", "audio"), weights)
  method = toys.kd(teacher=teacher, teacher_epochs=0)
  full = outlines(toys.kd())["distil"].frozen["params"]
  half = outlines(method)["distil"].frozen["params"]
  assert held(half) == held(full) / 2
