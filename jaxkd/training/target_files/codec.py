"""The k most probable classes of a position, in about two bytes each.

A row holds one position: logsumexp (float32), the logarithm of the mass outside
of the k classes (float16), the range R of the kept log-probabilities (float16),
their class numbers in ascending order, and one code of b bits for each.

* Class numbers are written as Elias and Fano did: of each its low l bits, and
  the high ones together as a bit string of at most 2k + 1 bits, in which the
  i-th bit that is set, at place h_i + i, says that the i-th number has the high
  part h_i. l = log2(C / k) leaves about 2 + l bits a number, half a bit above
  what k of C numbers without an order hold. Nothing is lost.
* Log-probabilities are rounded to 2^b - 1 even steps between the largest and R
  below it; the last code says that a class was not returned (-inf). Their sum
  is known from the mass outside, to which they are normalised when read: an
  error common to all of them is undone. What is left costs about
  (R / 2^b)^2 / 24 nats of KL divergence.

Numbers of b bits lie as planes: whole bytes first, then the bits left over, the
bits of one place of all numbers together. So everything is a few operations on
whole arrays.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

ROW_BYTES = 300  # of up to 128 classes, when the bits of a code are not given
MOST_BITS, FEWEST_BITS = 8, 4  # that are then chosen
FARTHEST = 64.0  # nats below the largest: what is farther is not returned
_HEAD = np.dtype([("lse", "<f4"), ("log_tail", "<f2"), ("range", "<f2")])


class Rows(NamedTuple):
  """n positions.

  Attributes:
    ids: class numbers, int32 [n, k], most probable first.
    log_probs: at temperature 1, float32 [n, k]; -inf where not returned.
    logsumexp: of the logits, float32 [n].
    log_tail: logarithm of the mass outside of the k classes, float32 [n].
  """

  ids: np.ndarray
  log_probs: np.ndarray
  logsumexp: np.ndarray
  log_tail: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKCodec:
  """Rows of bytes, all equally long.

  Attributes:
    classes: C.
    k: classes kept, 1 to C.
    bits: of a log-probability, 2 to 16.
  """

  classes: int
  k: int
  bits: int

  @classmethod
  def fitting(cls, classes: int, k: int) -> TopKCodec:
    """The most bits, 8 at most, with which 128 classes take 300 bytes.

    Args:
      classes: C.
      k: classes kept; of more than 128 each may take what one of 128 does.
    """
    limit = ROW_BYTES * max(1.0, k / 128)
    for bits in range(MOST_BITS, FEWEST_BITS, -1):
      codec = cls(classes=classes, k=k, bits=bits)
      if codec.row_bytes <= limit:
        return codec
    return cls(classes=classes, k=k, bits=FEWEST_BITS)

  @property
  def low_bits(self) -> int:
    """Bits of a class number that are written as they are."""
    return max(0, math.floor(math.log2(self.classes / self.k)))

  @property
  def parts(self) -> tuple[int, ...]:
    """Bytes of head, low bits, high bits and codes."""
    high = self.k + ((self.classes - 1) >> self.low_bits)
    return (
      _HEAD.itemsize,
      plane_bytes(self.k, self.low_bits),
      -(-high // 8),
      plane_bytes(self.k, self.bits),
    )

  @property
  def row_bytes(self) -> int:
    """Bytes of a position."""
    return sum(self.parts)

  def encode(self, rows: Rows) -> np.ndarray:
    """Writes positions.

    Args:
      rows: n positions, in any order of the classes.

    Returns:
      Bytes, uint8 [n, row_bytes].
    """
    order = np.argsort(rows.ids, -1)
    ids = np.take_along_axis(rows.ids, order, -1).astype(np.int64)
    log_probs = np.take_along_axis(rows.log_probs, order, -1)
    below, away = _below(log_probs)
    head = np.zeros(len(ids), _HEAD)
    head["lse"], head["log_tail"] = rows.logsumexp, rows.log_tail
    head["range"] = _not_below(np.max(below, -1))
    codes = np.rint(below * self._codes_in(head))
    codes = np.where(away, self._steps + 1, codes)
    high = np.zeros((len(ids), 8 * self.parts[2]), bool)
    places = (ids >> self.low_bits) + np.arange(self.k)
    np.put_along_axis(high, places, True, -1)
    return np.concatenate(
      [
        head.view(np.uint8).reshape(len(ids), -1),
        to_planes(ids & ((1 << self.low_bits) - 1), self.low_bits),
        np.packbits(high, -1),
        to_planes(codes.astype(np.int64), self.bits),
      ],
      -1,
    )

  def decode(self, data: np.ndarray) -> Rows:
    """Reads positions.

    Args:
      data: what `encode` returned, uint8 [n, row_bytes].

    Returns:
      n positions.
    """
    ends = np.cumsum(self.parts)[:-1]
    head, low, high, codes = np.split(data, ends, -1)
    head = np.ascontiguousarray(head).view(_HEAD)[:, 0]
    places = np.flatnonzero(np.unpackbits(high, axis=-1)).astype(np.int64)
    begins = 8 * self.parts[2] * np.arange(len(data))[:, None]
    ids = places.reshape(len(data), self.k) - begins - np.arange(self.k)
    ids = (ids << self.low_bits) + from_planes(low, self.k, self.low_bits)
    codes = from_planes(codes, self.k, self.bits).astype(np.int64)
    both = np.sort(codes << 32 | ids, -1)  # most probable first
    codes, ids = both >> 32, both.astype(np.int32)
    log_tail = head["log_tail"].astype(np.float32)
    steps = np.float32(1) / self._codes_in(head)
    return Rows(
      ids=ids,
      log_probs=_normalised(codes, steps, self._steps, log_tail),
      logsumexp=head["lse"].astype(np.float32),
      log_tail=log_tail,
    )

  @property
  def _steps(self) -> int:
    """Steps between the largest and the smallest code of a number."""
    return (1 << self.bits) - 2

  def _codes_in(self, head: np.ndarray) -> np.ndarray:
    """Codes in a nat, [n, 1]."""
    width = head["range"].astype(np.float32)[:, None]
    return self._steps / np.where(width > 0, width, 1).astype(np.float32)


def _below(log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """How far each is below the largest, and which are not returned."""
  largest = np.max(log_probs, -1, keepdims=True)
  below = largest - log_probs
  away = ~(below <= FARTHEST)
  return np.where(away, 0.0, below), away


def _not_below(values: np.ndarray) -> np.ndarray:
  """Numbers as float16, rounded up: no code is beyond the last one."""
  rounded = values.astype(np.float16)
  return np.where(
    rounded < values, np.nextafter(rounded, np.float16(np.inf)), rounded
  )


def _normalised(
  codes: np.ndarray, steps: np.ndarray, last: int, log_tail: np.ndarray
) -> np.ndarray:
  """Log-probabilities whose sum leaves the mass outside."""
  returned = codes <= last
  values = np.where(returned, -codes * steps, -np.inf).astype(np.float32)
  mass = np.sum(np.exp(values, dtype=np.float64), -1)
  inside = np.log1p(-np.minimum(np.exp(log_tail, dtype=np.float64), 1 - 1e-7))
  return values + (inside - np.log(mass)).astype(np.float32)[:, None]


def plane_bytes(count: int, bits: int) -> int:
  """Bytes of `count` numbers of so many bits, as planes."""
  return count * (bits // 8) + (bits % 8) * -(-count // 8)


def to_planes(values: np.ndarray, bits: int) -> np.ndarray:
  """Numbers [n, m] below 2^bits as bytes [n, plane_bytes(m, bits)]."""
  parts = [
    (values >> (8 * place)).astype(np.uint8) for place in range(bits // 8)
  ]
  parts += [
    np.packbits((values >> place & 1).astype(bool), -1)
    for place in range(bits - bits % 8, bits)
  ]
  empty = np.zeros((len(values), 0), np.uint8)
  return np.concatenate([empty, *parts], -1)


def from_planes(data: np.ndarray, count: int, bits: int) -> np.ndarray:
  """The numbers [n, count] of `to_planes`, int32."""
  values = np.zeros((len(data), count), np.int32)
  whole, width = bits // 8, -(-count // 8)
  for place in range(whole):
    part = data[:, place * count : (place + 1) * count]
    values |= part.astype(np.int32) << (8 * place)
  for place in range(bits % 8):
    begin = whole * count + place * width
    part = data[:, begin : begin + width]
    bit = np.unpackbits(part, axis=-1, count=count).astype(np.int32)
    values |= bit << (8 * whole + place)
  return values
