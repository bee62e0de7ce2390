"""Wrong arguments are refused when a loss is traced, each in the one form.

The contract's entries say how a loss is called; here one argument of that call
is spoilt. A new loss is covered by its entry and its signature.
"""

import functools
import inspect
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import catalog, losses
from tests.losses.entries import entries

ENTRIES = entries()
PUBLIC = catalog.public()
SPEAKERS = PUBLIC.keys() | {type(loss).__name__ for loss in PUBLIC.values()}
NAMES = sorted(ENTRIES.keys() & PUBLIC.keys())


@functools.cache
def usual(name):
  """The loss and the arguments that the contract calls it with, by name."""
  entry, loss = ENTRIES[name], PUBLIC[name]
  random = np.random.default_rng(0)
  arrays = [
    jnp.asarray(random.normal(size=entry.shape), jnp.float32) for _ in "st"
  ]
  if isinstance(loss, type):
    needed = catalog.entry(name).required
    loss = loss(**dict.fromkeys(needed, 2))
  if isinstance(loss, losses.Divergence):
    return loss, dict(zip(("student", "teacher"), arrays, strict=True))
  code, called = inspect.unwrap(loss).__code__, []
  names = inspect.signature(loss).parameters

  def watch(frame, event, _):
    if event == "call" and frame.f_code is code:
      called.append({key: frame.f_locals[key] for key in names})

  sys.setprofile(watch)
  try:
    jax.eval_shape(lambda *given: entry.call(*given, None), *arrays)
  finally:
    sys.setprofile(None)
  return loss, jax.tree.map(untraced, called[0])


def untraced(x):
  """Zeros in place of what is only traced: a shape and a type are enough."""
  if not isinstance(x, jax.core.Tracer):
    return x
  return jnp.asarray(np.zeros(x.shape, x.dtype))


def message(name, **spoilt):
  """What the loss says, while it is traced, to arguments that are wrong."""
  loss, given = usual(name)
  given = given | spoilt
  traced = {
    key: value
    for key, value in given.items()
    if isinstance(value, jax.Array | losses.TopK)
  }
  rest = {key: given[key] for key in given.keys() - traced.keys()}
  with pytest.raises(ValueError) as caught:
    jax.eval_shape(lambda traced: loss(**traced, **rest), traced)
  text = str(caught.value)
  # A loss that is made of another one may leave the check to it.
  assert text.partition(": ")[0] in SPEAKERS, text
  assert "expected" in text or "needs access" in text, text
  return text


def which(condition):
  """The losses of which the condition holds; a broken entry fails its test."""

  def holds(name):
    try:
      return condition(name, *usual(name))
    except Exception:
      return True

  return pytest.mark.parametrize("name", [n for n in NAMES if holds(n)])


def takes(loss, argument):
  return argument in inspect.signature(loss).parameters


def reads_logits(name, given):
  """Whether `student` and `teacher` are logits of the same classes."""
  needs = catalog.parse(name, inspect.getdoc(PUBLIC[name]))["needs"]
  own_classes = "features" in needs or name == "uld"  # two tokenizers
  return (
    "logits" in needs
    and not own_classes
    and all(
      isinstance(given.get(who), jax.Array) for who in ("student", "teacher")
    )
  )


def white(name):
  return "access white" in inspect.getdoc(PUBLIC[name])


@which(lambda name, loss, given: takes(loss, "temperature"))
@pytest.mark.parametrize("temperature", [0, 0.0, -2.0])
def test_a_temperature_is_above_0(name, temperature):
  text = message(name, temperature=temperature)
  assert f"temperature={temperature}" in text


@which(lambda name, loss, given: "student" in given and "teacher" in given)
def test_student_and_teacher_have_the_same_examples(name):
  student = usual(name)[1]["student"]
  text = message(name, student=jax.tree.map(lambda x: x[:-1], student))
  assert re.search(r"\(5,|\b5\b", text), text


@which(lambda name, loss, given: reads_logits(name, given))
def test_student_and_teacher_have_the_same_classes(name):
  student = usual(name)[1]["student"]
  text = message(name, student=student[..., :-1])
  assert str(student.shape[-1] - 1) in text


@which(lambda name, loss, given: reads_logits(name, given) and white(name))
def test_a_top_k_teacher_is_refused_where_all_classes_are_read(name):
  teacher = usual(name)[1]["teacher"]
  text = message(name, teacher=losses.TopK.of(teacher, 2))
  assert "'white'" in text
  assert "k=2" in text


@which(lambda name, loss, given: isinstance(given.get("labels"), jax.Array))
@pytest.mark.parametrize("how", ["float", "shape"])
def test_labels_are_integers_of_the_examples(name, how):
  labels = usual(name)[1]["labels"]
  spoilt = labels[:-1] if how == "shape" else labels.astype(jnp.float32)
  text = message(name, labels=spoilt)
  assert "labels" in text
  assert str(spoilt.shape if how == "shape" else spoilt.dtype) in text


@which(lambda name, loss, given: takes(loss, "where"))
def test_where_has_the_shape_of_the_examples(name):
  where = jnp.ones((17,))
  assert "(17,)" in message(name, where=where)
