"""A source gathers rows, looks up shared ones and refuses wrong arrays."""

import numpy as np
import pytest

from jaxkd.data import ArraySource
from jaxkd.errors import ConfigError


def source() -> ArraySource:
  return ArraySource(
    {"image": np.arange(12.0).reshape(4, 3), "label": np.array([0, 1, 0, 1])}
  )


def test_one_example_equals_its_row_of_a_gather():
  example, rows = source()[2], source().take([3, 2])
  assert set(example) == {"image", "label", "index"}
  for name in example:
    np.testing.assert_array_equal(example[name], rows[name][1])


def test_index_is_the_number_of_the_example():
  rows = source().take([3, 0])
  np.testing.assert_array_equal(rows["index"], [3, 0])
  assert rows["index"].dtype == np.int32


def test_shared_rows_are_looked_up_before_decoding():
  table = np.array([[10, 20], [30, 40]], np.uint8)
  shared = ArraySource(
    {"audio": np.array([1, 0, 1])},
    tables={"audio": table},
    decode={"audio": lambda rows: rows / 10},
  )
  np.testing.assert_allclose(shared.take([0, 1])["audio"], [[3, 4], [1, 2]])


def test_an_added_entry_is_gathered_with_the_rest_and_leaves_the_source():
  first = source()
  second = first.with_entry("target", np.arange(4) * 10)
  np.testing.assert_array_equal(second.take([2, 1])["target"], [20, 10])
  assert "target" not in first.arrays


def test_an_added_entry_keeps_tables_and_decode_functions():
  shared = ArraySource(
    {"audio": np.array([1, 0])},
    tables={"audio": np.array([5, 7])},
    decode={"audio": lambda rows: rows + 1},
  ).with_entry("target", np.zeros(2))
  np.testing.assert_array_equal(shared.take([0, 1])["audio"], [8, 6])


def test_an_added_entry_may_not_replace_another():
  with pytest.raises(ConfigError, match="'label' is taken"):
    source().with_entry("label", np.zeros(4))


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"a": np.zeros(3), "b": np.zeros(4)}, "'a': 3, 'b': 4"),
    ({"a": np.zeros(0)}, "at least 1"),
    ({}, "at least 1"),
    ({"a": np.array(1.0)}, "no example axis"),
    ({"a": np.array([{}, None])}, "Python objects"),
    ({"a": np.zeros(2), "mask": np.ones(2)}, "'mask' is reserved"),
    ({"index": np.array([1, 0])}, "'index' is reserved"),
  ],
)
def test_wrong_arrays_are_refused_by_name(arrays, message):
  with pytest.raises(ConfigError, match=message):
    ArraySource(arrays)


def test_a_row_number_outside_its_table_is_refused():
  with pytest.raises(ConfigError, match=r"0\.\.3: expected 0\.\.2"):
    ArraySource({"a": np.array([0, 3])}, tables={"a": np.zeros((3, 2))})


def test_row_numbers_must_be_integers():
  with pytest.raises(ConfigError, match="integer row"):
    ArraySource({"a": np.array([0.0])}, tables={"a": np.zeros((3, 2))})


def test_a_table_without_an_entry_is_refused():
  with pytest.raises(ConfigError, match="'b'.*'a'"):
    ArraySource({"a": np.zeros(2)}, decode={"b": np.abs})
