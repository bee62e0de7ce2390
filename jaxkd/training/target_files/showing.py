"""The role at work: its outputs on examples, as records, and what they lose."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource
from jaxkd.errors import ConfigError, NonFinite, did_you_mean
from jaxkd.method import Method
from jaxkd.parallel import Placement
from jaxkd.roles import Nets
from jaxkd.training.target_files.codec import Rows, TopKCodec
from jaxkd.training.target_files.records import Layout

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
  """What is cached of a role.

  Attributes:
    role: the role.
    split: the split.
    k: its most probable classes; None for all logits as they are.
    bits: of a log-probability of them, 2 to 16; as many as 300 bytes for 128
      classes allow, 8 at most, if not given.
    taps: paths of submodule outputs.
    where: a batch entry; positions where it is 0 are left out, and read as NaN.
    temperatures: at which the error of top-k is measured.
    shard_mib: size of a file, about; what a kill may cost.
  """

  role: str = "teacher"
  split: str = "train"
  k: int | None = None
  bits: int | None = None
  taps: tuple[str, ...] = ()
  where: str = ""
  temperatures: tuple[float, ...] = (1.0,)
  shard_mib: float = 64.0

  def __post_init__(self):
    """Checks the numbers."""
    if self.bits is not None and (self.k is None or not 2 <= self.bits <= 16):
      raise ConfigError(
        f"bits={self.bits}, k={self.k}: expected 2 to 16 bits, of top-k only"
      )
    if not self.temperatures or min(self.temperatures) <= 0:
      raise ConfigError(
        f"temperatures={self.temperatures}: expected numbers above 0"
      )
    if not self.shard_mib > 0:
      raise ConfigError(f"shard_mib={self.shard_mib}: expected it above 0")


@dataclasses.dataclass(frozen=True)
class Shown:
  """Records of some examples, and the error of what they hold.

  Attributes:
    records: by example.
    tokens: positions stored.
    errors: [temperature, total or rounding, positions stored], nats.
  """

  records: list[bytes]
  tokens: int
  errors: np.ndarray


class Shower:
  """The role at work: outputs, records and what they lose."""

  def __init__(
    self, wanted: Wanted, method: Method, given: Any, placement: Placement
  ):
    self._wanted, self._given, self._placement = wanted, given, placement

    def outputs(given, batch):
      nets = Nets(method.roles, given["params"], given["collections"])
      found = nets[wanted.role](batch, taps=wanted.taps)
      return found.value, dict(found.taps)

    self._outputs = jax.jit(outputs)
    self._top = jax.jit(functools.partial(_top, wanted.k))
    self._errors = jax.jit(
      functools.partial(_errors, tuple(wanted.temperatures))
    )

  def layout(self, source: ArraySource, batch_size: int) -> Layout:
    """What records hold, from shapes alone."""
    wanted = self._wanted
    batch = next(pipeline.batches(source, batch_size))
    value, taps = jax.eval_shape(self._outputs, self._given, batch)
    mapping = isinstance(value, Mapping)
    logits = value["logits"] if mapping else value
    *positions, classes = logits.shape[1:]
    if wanted.where and wanted.where not in batch:
      raise ConfigError(
        f"where={wanted.where!r}: no entry of the split"
        f"{did_you_mean(wanted.where, batch)} (has {', '.join(sorted(batch))})"
      )
    if wanted.where and batch[wanted.where].shape[1:] != tuple(positions):
      raise ConfigError(
        f"where={wanted.where!r}: {batch[wanted.where].shape}; expected an "
        f"entry with a value for every position, {logits.shape[:-1]}"
      )
    codec = None
    if wanted.k is not None:
      if not 1 <= wanted.k <= classes:
        raise ConfigError(f"k={wanted.k}: expected 1 to {classes}, the classes")
      codec = TopKCodec.fitting(classes, wanted.k)
      if wanted.bits is not None:
        codec = dataclasses.replace(codec, bits=wanted.bits)
    return Layout(
      classes=classes,
      positions=tuple(positions),
      dtype=str(logits.dtype),
      codec=codec,
      taps={p: (tuple(x.shape[1:]), str(x.dtype)) for p, x in taps.items()},
      where=wanted.where,
      mapping=mapping,
    )

  def batches(
    self, source: ArraySource, layout: Layout, batch_size: int, examples: range
  ) -> Iterator[Shown]:
    """The records of some examples, a batch at a time."""
    chosen = source.subset(np.asarray(examples))
    for batch in pipeline.batches(chosen, batch_size):
      count = int(batch["mask"].sum())
      placed = self._placement.put_batch(batch)
      value, taps = self._outputs(self._given, placed)
      logits = value["logits"] if layout.mapping else value
      stored = np.ones((count, layout.count), bool)
      if layout.where:
        stored = batch[layout.where][:count].reshape(count, -1) != 0
      rows, errors = self._rows(logits, layout, batch["index"][:count])
      yield Shown(
        layout.encode(
          batch["index"][:count].tolist(),
          0,
          rows[:count],
          {path: np.asarray(tap)[:count] for path, tap in taps.items()},
          stored,
        ),
        int(stored.sum()),
        errors[..., :count, :][..., stored],
      )

  def _rows(self, logits, layout, examples) -> tuple[np.ndarray, np.ndarray]:
    """Rows of bytes [B, positions, bytes], and errors [.., B, positions]."""
    count = len(self._wanted.temperatures)
    if layout.codec is None:
      host = np.asarray(logits)
      _check_finite(np.max(host, -1).astype(np.float32), examples)
      errors = np.zeros((count, 2, len(host), layout.count))
      return layout.rows(host), errors
    top = Rows(*map(np.asarray, self._top(logits)))
    _check_finite(top.logsumexp, examples)
    rows = layout.rows(top)
    kept = layout.logits(rows)
    errors = np.asarray(self._errors(logits, *kept), np.float64)
    return rows, np.moveaxis(errors, 0, 2).reshape(count, 2, len(rows), -1)


def _check_finite(numbers: np.ndarray, examples: np.ndarray) -> None:
  """Refuses logits of which one is NaN or infinite, or all are -inf."""
  rows = numbers[: len(examples)].reshape(len(examples), -1)
  bad = ~np.isfinite(rows).all(-1)
  if bad.any():
    raise NonFinite(
      f"the logits of example {examples[bad][0]} are not finite; nothing of "
      "this shard was kept"
    )


def _top(k: int, logits: Array) -> tuple[Array, ...]:
  """The fields of `codec.Rows`, an example after the other."""

  def one(logits):
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    top = losses.TopK.of(logits, k)
    rest = jnp.put_along_axis(logits, top.ids, -jnp.inf, -1, inplace=False)
    lse = jax.nn.logsumexp(logits, axis=-1)
    return top.ids, top.log_probs, lse, jax.nn.logsumexp(rest, axis=-1) - lse

  return jax.lax.map(one, logits)


def _errors(
  temperatures: tuple[float, ...], logits: Array, ids, log_probs, lse, log_tail
) -> Array:
  """Divergences of the cached representation from the full distribution.

  The representation has the log-probabilities that are read back, and what is
  left evenly on all other classes. The second one leaves out what the others'
  order is worth: of the k classes and the sum of the rest, what rounding costs.

  Returns:
    KL(full || representation) and that of rounding, [B, temperature, 2, ...].
  """
  del lse

  def one(given):
    logits, ids, log_probs, log_tail = given
    k, classes = ids.shape[-1], logits.shape[-1]
    away = jnp.sum(log_probs == -jnp.inf, -1) + classes - k
    share = log_tail - jnp.log(jnp.maximum(away, 1).astype(jnp.float32))
    kept = jnp.broadcast_to(share[..., None], logits.shape)
    log_probs = jnp.where(log_probs > -jnp.inf, log_probs, share[..., None])
    kept = jnp.put_along_axis(kept, ids, log_probs, -1, inplace=False)
    top = losses.TopK.of(logits, k)
    pairs = [
      [losses.kl(kept, p, temperature=t) / t**2 for p in (logits, top)]
      for t in temperatures
    ]
    return jnp.stack([jnp.stack(pair) for pair in pairs])

  return jax.lax.map(one, (logits, ids, log_probs, log_tail))
