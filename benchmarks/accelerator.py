"""KD's step at the sizes of an accelerator, beside PyTorch.

    python -m benchmarks.accelerator [--quick] [--networks NAME ...]
      [--batch N] [--peak-tflops X] [--output FILE]

ResNet-50 from ResNet-101, ViT-B/16 from ViT-L/16, and a decoder of Llama 3.2's
1B shape from one of its 3B shape: random weights and data, all computation in
bfloat16, frozen teachers kept in it, students and Adam in float32. The step is
jaxkd's as a run compiles it. If torch and transformers can be imported, the
same step of the same shapes there (`torch_accelerator`) is timed in turns with
it, as it is and by `torch.compile`.

`model_flops` are those of the mathematics: the teacher's forward pass once, the
student's three times, nothing computed again. `mfu` is their share of what the
device can do in a step's time, where its peak is known or given. `peak_bytes`
is what the allocator held at most, `planned_bytes` what the compiler said
before. Every network has a process of its own; the last line printed is one
JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import jax
from flax import linen as nn

from benchmarks import harness, overhead
from benchmarks.pairs import Pair
from jaxkd import allocator, nets
from jaxkd.network import Network
from jaxkd.parallel import Frozen, Mesh, Placement

try:
  from benchmarks import torch_accelerator
except ImportError:
  torch_accelerator = None

Numbers = tuple[int, ...]

# Dense bfloat16 in TFLOP/s, by a part of the device's name; data sheets.
PEAKS = {
  "H200": 989.0,
  "H100 80GB HBM3": 989.0,
  "A100": 312.0,
  "TPU v4": 275.0,
  "TPU v5 lite": 197.0,
  "TPU v6 lite": 918.0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Large(Pair):
  """A teacher and a student given as modules.

  Attributes:
    teacher: the module.
    student: the module.
  """

  teacher: nn.Module
  student: nn.Module

  def network(self, size: nn.Module) -> Network:
    """The network of a module."""
    inputs = ("tokens",) if self.kind == "decoder" else ("image",)
    return Network(size, inputs)


def _resnet(depth: int, width: int, classes: int) -> nn.Module:
  """A ResNet whose stem has so many channels."""
  return nets.resnet_variant(
    depth, stem_features=width, num_classes=classes, dtype="bfloat16"
  ).clone(features=tuple(4 * width * 2**n for n in range(4)))


def _vit(
  width: int, depth: int, heads: int, extent: int, classes: int
) -> nn.Module:
  """A ViT of patches of 16."""
  return nets.VisionTransformer(
    image_size=extent,
    width=width,
    depth=depth,
    heads=heads,
    hidden=4 * width,
    num_classes=classes,
    scan_layers=True,
    dtype="bfloat16",
  )


def _decoder(
  width: int, depth: int, heads: int, hidden: int, classes: int
) -> nn.Module:
  """A decoder of Llama's kind, three or four heads to a key."""
  return nets.CausalDecoder(
    vocabulary_size=classes,
    width=width,
    depth=depth,
    heads=heads,
    key_value_heads=heads // (3 if heads % 3 == 0 else 4),
    hidden=hidden,
    rotary_base=5e5,
    epsilon=1e-5,
    tied=True,
    scan_layers=True,
    dtype="bfloat16",
  )


def _large(
  kind: str, teacher: Numbers, student: Numbers, *, classes: int, **options: int
) -> Large:
  """The pair of two networks of a kind, by the numbers of its maker."""
  make = {"resnet": _resnet, "vit": _vit, "decoder": _decoder}[kind]
  both = {
    "teacher": make(*teacher, classes),
    "student": make(*student, classes),
  }
  return Large(kind=kind, classes=classes, **both, **options)


FULL = {
  "resnet50": _large(
    "resnet", (101, 64), (50, 64), classes=1000, batch_size=256, extent=224
  ),
  "vit_b16": _large(
    "vit",
    (1024, 24, 16, 224),
    (768, 12, 12, 224),
    classes=1000,
    batch_size=128,
    extent=224,
  ),
  "decoder_1b": _large(
    "decoder",
    (3072, 28, 24, 8192),
    (2048, 16, 32, 8192),
    classes=128_256,
    batch_size=4,
    extent=1024,
  ),
}
_TINY = {"batch_size": 4, "extent": 32}
QUICK = {
  "resnet50": _large("resnet", (50, 8), (50, 4), classes=10, **_TINY),
  "vit_b16": _large("vit", (32, 2, 4, 32), (24, 2, 3, 32), classes=10, **_TINY),
  "decoder_1b": _large(
    "decoder", (48, 2, 6, 64), (32, 2, 4, 48), classes=256, **_TINY
  ),
}


def forward_flops(pair: Large, module: nn.Module) -> float:
  """FLOPs of a batch's forward pass, as its operations say; nothing runs.

  Args:
    pair: has the batch.
    module: the network; its layers are counted one by one.
  """
  if getattr(module, "scan_layers", False):
    module = module.clone(scan_layers=False)
  network = pair.network(module)
  batch = jax.eval_shape(lambda: dict(pair.arrays(pair.batch_size)))
  variables = jax.eval_shape(network.init, jax.random.key(0), batch)
  lowered = jax.jit(lambda v, b: network.apply(v, b)[0].logits).lower(
    variables, batch
  )
  return (lowered.cost_analysis() or {}).get("flops", 0.0)


def peak_tflops(given: float | None) -> float | None:
  """What the device can do, in TFLOP/s of bfloat16."""
  kind = jax.devices()[0].device_kind
  known = [peak for name, peak in PEAKS.items() if name in kind]
  return given or (known[0] if known else None)


def allocated() -> int | None:
  """Bytes that the device's allocator held at most; None if it does not say."""
  found = jax.devices()[0].memory_stats() or {}
  return found.get("peak_bytes_in_use")


def measure(
  pair: Large, repetitions: int, peak: float | None
) -> dict[str, Any]:
  """The record of one network.

  Args:
    pair: teacher and student.
    repetitions: rounds.
    peak: of the device, TFLOP/s.
  """
  teacher, student = (
    forward_flops(pair, module) for module in (pair.teacher, pair.student)
  )
  flops = teacher + 3 * student
  placement = Placement(Mesh(), frozen={"teacher": Frozen(dtype="bfloat16")})
  step = overhead.library_step(pair, placement=placement)
  calls = {"jaxkd": step.call}
  first = {"jaxkd": overhead.mean(step.call())}
  planned = sum(step.memory.values())
  memory = {"jaxkd": {"peak_bytes": allocated(), "planned_bytes": planned}}
  if torch_accelerator is not None:
    peers = torch_accelerator.steps(
      pair,
      lr=overhead.LR,
      temperature=overhead.TEMPERATURE,
      alpha=overhead.ALPHA,
    )
    for name, peer in peers.items():
      calls[name] = peer.step
      first[name] = peer.step()
      memory[name] = {"peak_bytes": peer.peak_bytes()}
  samples = harness.interleave(calls, repetitions=repetitions, warm_up=3)
  units = pair.batch_size * (pair.extent if pair.kind == "decoder" else 1)

  def row(name):
    seconds = samples.median(name)
    return {
      "step_ms": round(1e3 * seconds, 3),
      "fastest_ms": round(1e3 * samples.fastest(name), 3),
      "per_second": round(units / seconds, 1),
      "mfu": round(flops / seconds / (1e12 * peak), 4) if peak else None,
      "first_loss": first[name],
      "memory": memory[name],
    }

  return {
    "batch_size": pair.batch_size,
    "extent": pair.extent,
    "unit": "tokens" if pair.kind == "decoder" else "images",
    "parameters": {
      role: parameters(pair, module)
      for role, module in (("teacher", pair.teacher), ("student", pair.student))
    },
    "model_flops": flops,
    "steps": {name: row(name) for name in calls},
    "over": {
      name: {
        "ratio": round(samples.ratio("jaxkd", name), 4),
        "interval": samples.interval("jaxkd", name),
      }
      for name in calls
      if name != "jaxkd"
    },
  }


def parameters(pair: Large, module: nn.Module) -> int:
  """How many a network has."""
  batch = jax.eval_shape(lambda: dict(pair.arrays(1)))
  made = jax.eval_shape(pair.network(module).init, jax.random.key(0), batch)
  return sum(leaf.size for leaf in jax.tree.leaves(made["params"]))


def alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
  """The record of one network, from a process of its own."""
  command = [sys.executable, "-m", "benchmarks.accelerator", "--alone", name]
  command += ["--quick"] * options.quick
  for flag in ("batch", "peak_tflops", "repetitions"):
    if getattr(options, flag) is not None:
      value = str(getattr(options, flag))
      command += ["--" + flag.replace("_", "-"), value]
  done = subprocess.run(
    command,
    env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
  """Parses the command line and prints the record."""
  allocator.keep()  # as `jaxkd run` does
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--quick", action="store_true", help="tiny networks")
  parser.add_argument("--networks", nargs="+", choices=FULL, default=list(FULL))
  parser.add_argument("--batch", type=int, help="examples in a step")
  parser.add_argument(
    "--peak-tflops", type=float, help="of the device, dense bfloat16"
  )
  parser.add_argument("--repetitions", type=int, default=10)
  parser.add_argument("--alone", choices=FULL, help=argparse.SUPPRESS)
  harness.add_output(parser)
  options = parser.parse_args(arguments)
  if options.alone:
    pair = (QUICK if options.quick else FULL)[options.alone]
    if options.batch:
      pair = dataclasses.replace(pair, batch_size=options.batch)
    peak = peak_tflops(options.peak_tflops)
    found = measure(pair, 2 if options.quick else options.repetitions, peak)
    versions = torch_accelerator.versions() if torch_accelerator else {}
    print(json.dumps({"versions": versions, "peak_tflops": peak, **found}))
    return
  networks = {name: alone(name, options) for name in options.networks}
  head = {"benchmark": "accelerator", **harness.record()}
  harness.emit({**head, "networks": networks}, options.output)


if __name__ == "__main__":
  main()
