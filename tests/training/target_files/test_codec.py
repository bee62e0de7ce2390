"""Top-k in rows of bytes: class numbers are exact, the rest is nearly so."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.training.target_files import codec
from jaxkd.training.target_files.codec import Rows, TopKCodec

VOCABULARIES = (32_000, 50_257, 65_536, 128_256, 151_936)


def peaked(n, classes, seed=0):
  """Logits [n, classes]: powers of the rank, of which one stands out."""
  random = np.random.default_rng(seed)
  steepness = random.uniform(1.0, 2.5, (n, 1))
  logits = -steepness * np.log(np.arange(1, classes + 1))
  logits += random.normal(0, 0.3, (n, classes))
  logits[:, 0] += random.uniform(0, 5, n)
  return random.permuted(logits, axis=-1).astype(np.float64)


def top(logits, k):
  """The rows of logits, in float64 and then rounded to float32."""
  largest = logits.max(-1, keepdims=True)
  lse = largest + np.log(np.sum(np.exp(logits - largest), -1, keepdims=True))
  log_p = logits - lse
  ids = np.argsort(-log_p, -1, kind="stable")
  ids, rest = ids[:, :k], ids[:, k:]
  with np.errstate(divide="ignore"):
    tail = np.log(np.exp(np.take_along_axis(log_p, rest, -1)).sum(-1))
  return Rows(
    ids=ids.astype(np.int32),
    log_probs=np.take_along_axis(log_p, ids, -1).astype(np.float32),
    logsumexp=lse[:, 0].astype(np.float32),
    log_tail=tail.astype(np.float32),
  )


def by_id(rows):
  order = np.argsort(rows.ids, -1)
  return (
    np.take_along_axis(rows.ids, order, -1),
    np.take_along_axis(rows.log_probs, order, -1),
  )


@pytest.mark.parametrize("classes", VOCABULARIES)
def test_128_classes_take_at_most_300_bytes_and_come_back(classes):
  made = TopKCodec.fitting(classes, 128)
  assert made.row_bytes <= 300
  wider = dataclasses.replace(made, bits=made.bits + 1)
  assert made.bits == 8 or wider.row_bytes > 300
  rows = top(peaked(5, classes), 128)
  data = made.encode(rows)
  assert data.dtype == np.uint8
  assert data.shape == (5, made.row_bytes)
  found = made.decode(data)
  np.testing.assert_array_equal(by_id(found)[0], by_id(rows)[0])
  np.testing.assert_array_equal(found.logsumexp, rows.logsumexp)
  width = np.ptp(rows.log_probs, axis=-1).max()
  step = width / (2**made.bits - 2)
  # Half a step, and what the common shift moves.
  np.testing.assert_allclose(by_id(found)[1], by_id(rows)[1], atol=1.01 * step)
  np.testing.assert_allclose(
    np.exp(found.log_probs, dtype=np.float64).sum(-1),
    1 - np.exp(found.log_tail),
    atol=1e-6,
  )


@given(st.data())
def test_class_numbers_are_exact_whatever_they_are(data):
  classes = data.draw(st.integers(1, 3000), "classes")
  k = data.draw(st.integers(1, min(classes, 40)), "k")
  bits = data.draw(st.integers(2, 16), "bits")
  seed = data.draw(st.integers(0, 2**32 - 1), "seed")
  random = np.random.default_rng(seed)
  kind = data.draw(st.sampled_from(["any", "first", "last"]))
  chosen = {
    "any": lambda: random.choice(classes, k, replace=False),
    "first": lambda: np.arange(k),
    "last": lambda: np.arange(classes - k, classes),
  }[kind]
  ids = np.stack([chosen() for _ in range(3)]).astype(np.int32)
  log_probs = random.normal(-8, 3, (3, k)).astype(np.float32)
  tail = np.full(3, -0.5, np.float32)
  made = TopKCodec(classes=classes, k=k, bits=bits)
  rows = Rows(ids, log_probs, tail, tail)
  found = made.decode(made.encode(rows))
  np.testing.assert_array_equal(by_id(found)[0], by_id(rows)[0])
  assert (np.diff(found.log_probs, axis=-1) <= 0).all()


def test_more_bits_lose_less():
  rows = top(peaked(50, 4000), 64)
  lost = []
  for bits in (4, 6, 8, 12, 16):
    made = TopKCodec(classes=4000, k=64, bits=bits)
    found = by_id(made.decode(made.encode(rows)))[1]
    true = by_id(rows)[1].astype(np.float64)
    lost.append(np.mean(np.sum(np.exp(true) * (true - found), -1)))
  assert all(b < a / 8 for a, b in zip(lost, lost[1:-1], strict=False))
  assert lost[2] < 2e-5
  assert lost[-1] < 1e-6


def test_all_classes_leave_no_mass_outside():
  rows = top(peaked(4, 10), 10)
  made = TopKCodec(classes=10, k=10, bits=16)
  found = made.decode(made.encode(rows))
  assert np.isneginf(found.log_tail).all()
  np.testing.assert_allclose(found.log_probs, rows.log_probs, atol=1e-3)


def test_what_is_not_returned_stays_so_and_far_classes_join_it():
  log_probs = np.log([[0.5, 0.3, 0.2 - 1e-6, 1e-30, 1.0]])
  log_probs[0, 4] = -np.inf
  rows = Rows(
    np.int32([[3, 1, 4, 0, 2]]),
    log_probs.astype(np.float32),
    np.float32([7.5]),
    np.float32([np.log(1e-6)]),
  )
  made = TopKCodec(classes=8, k=5, bits=8)
  found = made.decode(made.encode(rows))
  assert found.ids[0, :3].tolist() == [3, 1, 4]
  assert np.isfinite(found.log_probs[0]).tolist() == [True] * 3 + [False] * 2
  assert found.logsumexp[0] == 7.5


def test_one_class_keeps_its_probability():
  rows = Rows(
    np.int32([[5]]), np.log(np.float32([[0.25]])), np.zeros(1, np.float32),
    np.log(np.float32([0.75])),
  )  # fmt: skip
  found = TopKCodec(classes=9, k=1, bits=8)
  found = found.decode(found.encode(rows))
  np.testing.assert_allclose(np.exp(found.log_probs), [[0.25]], rtol=1e-3)


@pytest.mark.parametrize("bits", [0, 1, 7, 8, 9, 13, 17])
def test_planes_come_back(bits):
  values = np.random.default_rng(bits).integers(0, 2**bits, (3, 21))
  data = codec.to_planes(values, bits)
  assert data.shape == (3, codec.plane_bytes(21, bits))
  np.testing.assert_array_equal(codec.from_planes(data, 21, bits), values)
