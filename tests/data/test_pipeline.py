"""The stream: every order is a function of seed and position alone."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxkd.data import ArraySource, pipeline
from jaxkd.data.pipeline import Feed
from jaxkd.errors import ConfigError


def source(count: int = 10) -> ArraySource:
  values = np.arange(count, dtype=np.float32)
  return ArraySource({"image": values[:, None], "label": np.arange(count) % 3})


def stream(examples, *, batch_size=4, seed=0, **options):
  return pipeline.stream(Feed(examples, batch_size, seed), **options)


def indices(steps: int, count: int = 10, **options) -> np.ndarray:
  """Returns the example numbers [steps, batch] of a fresh stream."""
  iterator = stream(source(count), **options)
  return np.stack([next(iterator)["index"] for _ in range(steps)])


def assert_same(left: dict, right: dict):
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name])
    assert left[name].dtype == right[name].dtype


def test_every_epoch_shows_every_example_exactly_once():
  iterator = pipeline.stream(Feed(source(), 4, 0))
  for _ in range(5):
    epoch = [next(iterator) for _ in range(3)]
    seen = np.concatenate([b["index"][b["mask"] == 1] for b in epoch])
    assert sorted(seen) == list(range(10))


def test_the_last_batch_wraps_around_to_the_first_with_mask_zero():
  iterator = pipeline.stream(Feed(source(), 4, 0))
  first, _, last = (next(iterator) for _ in range(3))
  np.testing.assert_array_equal(last["mask"], [1, 1, 0, 0])
  np.testing.assert_array_equal(last["index"][2:], first["index"][:2])
  assert last["mask"].dtype == np.float32


def test_a_batch_larger_than_the_data_repeats_it_masked():
  batch = next(pipeline.stream(Feed(source(3), 8, 0)))
  np.testing.assert_array_equal(batch["mask"], [1] * 3 + [0] * 5)
  np.testing.assert_array_equal(batch["index"][:3], batch["index"][3:6])


def test_entries_of_a_batch_belong_to_the_same_example():
  batch = next(pipeline.stream(Feed(source(), 4, 0)))
  np.testing.assert_array_equal(batch["image"][:, 0], batch["index"])
  np.testing.assert_array_equal(batch["label"], batch["index"] % 3)


def test_epochs_are_reshuffled():
  order = indices(4, batch_size=10)
  assert len(np.unique(order, axis=0)) == 4


def test_the_same_seed_gives_the_same_order():
  np.testing.assert_array_equal(indices(9, seed=3), indices(9, seed=3))


def test_another_seed_gives_another_order():
  assert not np.array_equal(indices(9, seed=3), indices(9, seed=4))


def test_the_order_does_not_depend_on_versions_or_machines():
  np.testing.assert_array_equal(
    indices(2, batch_size=10, seed=7),
    [[1, 7, 3, 8, 4, 9, 6, 2, 5, 0], [0, 8, 7, 5, 4, 1, 3, 2, 9, 6]],
  )


def test_a_shuffle_is_uniform_over_positions():
  order = indices(2000, batch_size=10)
  counts = np.bincount(order[:, 0], minlength=10)
  assert counts.min() > 140  # 200 expected, deviation 13.4
  assert counts.max() < 260


def test_parts_of_all_processes_concatenate_to_the_single_batch():
  whole = indices(7, batch_size=6)
  parts = [
    indices(7, batch_size=6, process_index=p, process_count=3) for p in range(3)
  ]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_masks_of_all_processes_concatenate_to_the_single_mask():
  streams = [
    stream(source(5), batch_size=6, process_index=p, process_count=2)
    for p in range(2)
  ]
  mask = np.concatenate([next(each)["mask"] for each in streams])
  np.testing.assert_array_equal(mask, [1, 1, 1, 1, 1, 0])


def test_a_fresh_iterator_resumes_at_every_position():
  iterator = pipeline.stream(Feed(source(), 4, 5))
  states, expected = [], []
  for _ in range(10):
    states.append(json.loads(json.dumps(iterator.get_state())))
    expected.append(next(iterator))
  for position, state in enumerate(states):
    resumed = pipeline.stream(Feed(source(), 4, 5))
    resumed.set_state(state)
    for batch in expected[position:]:
      assert_same(next(resumed), batch)


def test_a_used_iterator_goes_back_to_a_position():
  iterator = pipeline.stream(Feed(source(), 4, 5))
  next(iterator)
  state = iterator.get_state()
  expected = [next(iterator) for _ in range(5)]
  iterator.set_state(state)
  for batch in expected:
    assert_same(next(iterator), batch)


RESUME = """
import json, sys
import numpy as np
from jaxkd.data import ArraySource, pipeline
from jaxkd.data.pipeline import Feed
values = np.arange(10, dtype=np.float32)
source = ArraySource({"image": values[:, None], "label": np.arange(10) % 3})
found = []
for state in json.loads(sys.argv[1]):
  iterator = pipeline.stream(Feed(source, 4, 5))
  iterator.set_state(state)
  found.append([next(iterator)["index"].tolist() for _ in range(4)])
print(json.dumps(found))
"""


def test_a_new_process_resumes_at_every_position():
  iterator = pipeline.stream(Feed(source(), 4, 5))
  states, order = [], []
  for _ in range(12):
    states.append(iterator.get_state())
    order.append(next(iterator)["index"].tolist())
  run = subprocess.run(
    [sys.executable, "-c", RESUME, json.dumps(states[:8])],
    capture_output=True,
    check=True,
    text=True,
  )
  found = json.loads(run.stdout.splitlines()[-1])
  assert found == [order[k : k + 4] for k in range(8)]


def test_a_position_holds_for_another_number_of_processes():
  single = pipeline.stream(Feed(source(), 4, 5))
  next(single)
  half = stream(source(), seed=5, process_index=1, process_count=2)
  half.set_state(single.get_state())
  np.testing.assert_array_equal(next(half)["index"], next(single)["index"][2:])


def test_streams_beside_keep_their_own_epochs_and_names():
  beside = {"few": Feed(source(3), 2, 1)}
  joined = pipeline.stream(Feed(source(), 4, 5), beside=beside)
  alone, few = stream(source(), seed=5), stream(source(3), batch_size=2, seed=1)
  for _ in range(5):
    batch, main, other = next(joined), next(alone), next(few)
    assert_same(
      batch, {**main, **{f"few/{name}": rows for name, rows in other.items()}}
    )


def test_batches_drawn_with_replacement_are_full_and_even():
  iterator = pipeline.stream(Feed(source(3), 8, 5, replace=True))
  batches = [next(iterator) for _ in range(300)]
  assert all(np.all(batch["mask"] == 1) for batch in batches)
  drawn = np.stack([batch["index"] for batch in batches])
  assert len(np.unique(drawn, axis=0)) > 250
  counts = np.bincount(drawn.ravel(), minlength=3)
  assert np.all(abs(counts - 800) < 5 * np.sqrt(2400 * 2 / 9))


@pytest.mark.parametrize("replace", [False, True])
def test_processes_share_every_stream_alike(replace):
  beside = {"few": Feed(source(4), 2, 1, replace)}
  main = Feed(source(), 4, 5, replace)
  whole = next(pipeline.stream(main, beside=beside))
  parts = [
    next(
      pipeline.stream(
        main,
        beside=beside,
        process_index=p,
        process_count=2,
      )
    )
    for p in range(2)
  ]
  for name in ("index", "few/index"):
    joined = np.concatenate([part[name] for part in parts])
    np.testing.assert_array_equal(joined, whole[name])


def test_a_subset_keeps_the_numbers_of_its_examples():
  chosen = source().subset([7, 2, 2])
  assert len(chosen) == 3
  rows = chosen.take([0, 1, 2])
  np.testing.assert_array_equal(rows["index"], [7, 2, 2])
  np.testing.assert_array_equal(rows["image"][:, 0], [7, 2, 2])
  with pytest.raises(ConfigError, match="a subset of 0 examples"):
    source().subset([])


def test_an_ordered_pass_shows_all_examples_then_padding():
  passed = list(pipeline.batches(source(), 4))
  np.testing.assert_array_equal(
    np.concatenate([b["index"] for b in passed]), [*range(10), 0, 1]
  )
  np.testing.assert_array_equal(
    np.concatenate([b["mask"] for b in passed]), [1] * 10 + [0] * 2
  )


@pytest.mark.parametrize(("batch_size", "steps"), [(5, 2), (4, 3), (20, 1)])
def test_an_epoch_has_the_rounded_up_number_of_batches(batch_size, steps):
  assert pipeline.steps_per_epoch(source(), batch_size) == steps
  assert len(list(pipeline.batches(source(), batch_size))) == steps


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch_size": 0}, "batch_size = 0: expected an integer of at least 1"),
    ({"batch_size": 2.0}, "batch_size = 2.0"),
    ({"seed": -1}, "seed = -1"),
    ({"process_count": 3}, "a multiple of process_count = 3"),
    ({"process_index": 2, "process_count": 2}, "process_index = 2.*at most 1"),
  ],
)
def test_wrong_arguments_are_refused_by_name(options, message):
  with pytest.raises(ConfigError, match=message):
    stream(source(), **options)


def variants() -> dict[str, ArraySource]:
  a, b = np.arange(4, dtype=np.float32), np.zeros(4, np.int32)
  rows, table = {"a": b}, np.arange(3)
  return {
    "name": ArraySource({"c": a, "b": b}),
    "value": ArraySource({"a": a + 1, "b": b}),
    "dtype": ArraySource({"a": a.astype(np.float64), "b": b}),
    "shape": ArraySource({"a": a[:, None], "b": b}),
    "order": ArraySource({"a": a[::-1], "b": b}),
    "table": ArraySource(rows, tables={"a": table}),
    "other table": ArraySource(rows, tables={"a": table + 1}),
    "plain": ArraySource({"a": a, "b": b}),
  }


def test_any_change_of_the_data_changes_the_fingerprint():
  prints = {pipeline.fingerprint(source) for source in variants().values()}
  assert len(prints) == len(variants())


def test_the_fingerprint_ignores_memory_layout_and_order_of_entries():
  a, b = np.arange(6.0).reshape(2, 3), np.zeros(2)
  left = ArraySource({"a": a, "b": b})
  right = ArraySource({"b": b, "a": np.asfortranarray(a)})
  assert pipeline.fingerprint(left) == pipeline.fingerprint(right)


def test_the_fingerprint_is_the_one_of_earlier_releases():
  values = np.array([[1, 2], [3, 4]], "<f4")
  assert pipeline.fingerprint(ArraySource({"a": values})).startswith("7b934e60")
