"""The latency of encoders: the networks of the experiment, and the record."""

import json

import pytest

from benchmarks import encoder_latency
from jaxkd import nets

pytestmark = pytest.mark.slow  # full-size networks


@pytest.fixture(scope="module")
def record(tmp_path_factory):
  path = tmp_path_factory.mktemp("latency") / "record.json"
  encoder_latency.main(["--quick", "--output", str(path)])
  return json.loads(path.read_text())


def test_the_record_says_where_and_how_much(record):
  keys = {"machine", "cores", "versions", "commit", "repetitions", "length"}
  assert keys <= set(record)
  assert record["benchmark"] == "encoder_latency"
  assert record["weights"] == "drawn"


def test_every_network_has_its_size_and_its_latency(record):
  sizes = {n: v["parameters"] for n, v in record["networks"].items()}
  assert sizes == {
    "teacher": 22_565_376 + 770,
    "encoder_student": 4_312_322,
    "static_student": 3_907_074,
  }
  for values in record["networks"].values():
    assert values["bytes"] == 4 * values["parameters"]
    assert 0 < values["batch1_fastest_ms"] <= values["batch1_ms"]
    assert values["batch4_ms"] > 0
  assert record["networks"]["static_student"]["parameters_without_words"] == 258


def test_students_are_faster_than_the_teacher(record):
  assert min(record["teacher_time_over"]["batch4"].values()) > 1


def test_the_teacher_is_minilms_size():
  net = encoder_latency.teacher(None).module
  assert isinstance(net, nets.BERT)
  assert (net.depth, net.width, net.heads, net.hidden) == (6, 384, 12, 1536)
