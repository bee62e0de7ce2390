"""Models of transformers in golden files, and our nets with their weights."""

import dataclasses
import functools
import json

import flax
import jax
import numpy as np

from jaxkd.network import Network
from jaxkd.teachers.load import load
from jaxkd.teachers.tensors import Tensor
from tests import golden_tools


@dataclasses.dataclass(frozen=True)
class Reference:
  """A model as its golden file holds it.

  Attributes:
    config: of the model, a dict.
    weights: by their names.
    inputs: by our names.
    outputs: by their names.
  """

  config: dict
  weights: dict
  inputs: dict
  outputs: dict


def read(name):
  """The model of `tests/golden/transformers__<name>.npz`."""
  arrays = golden_tools.load(f"transformers__{name}")
  return Reference(
    config=json.loads(arrays["config"].tobytes()),
    **{
      f"{kind}s": golden_tools.section(arrays, f"{kind}:")
      for kind in ("weight", "input", "output")
    },
  )


def network(family, config, **options):
  """Our network of a config."""
  return Network(*family.build(config, **options))


def shapes(network, batch):
  """Shapes of the network's variables."""
  return jax.eval_shape(lambda: network.init(jax.random.key(0), batch))


def tensors(weights):
  """Arrays as the tensors of a file."""
  return {
    name: Tensor(weight.shape, weight.dtype, functools.partial(np.copy, weight))
    for name, weight in weights.items()
  }


def loaded(family, reference, **options):
  """Our network of a reference's config, and its variables."""
  net = network(family, reference.config, **options)
  names = family.names
  if options.get("scan_layers"):
    names = names.stacked("block{i+1}", "blocks")
  like = shapes(net, reference.inputs)
  return net, load(tensors(reference.weights), names, like)


def run(net, variables, inputs, **options):
  """The network's compiled output for a batch."""
  return jax.jit(lambda v, b: net.apply(v, b, **options)[0])(variables, inputs)


def flat(variables):
  """Leaves by collection and path."""
  return flax.traverse_util.flatten_dict(variables, sep="/")
