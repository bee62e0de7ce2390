"""Training on what was cached is training on the teacher."""

import dataclasses

import chex
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.data.source import Splits
from jaxkd.errors import ConfigError
from jaxkd.methods import Distill
from jaxkd.terms import Features, Labels, Logits
from tests.methods import toys
from tests.training.target_files import tools

LIVE = {"cache_targets": False}


def distill(**options):
  defaults = {
    "student": toys.mlp(),
    "teachers": {"teacher": toys.teacher()},
    "teacher_epochs": 0,
    "epochs": 2,
    "lr": 1e-2,
    "terms": (Labels(), Logits(loss=losses.kl)),
  }
  return Distill(**{**defaults, **options})


def compare(method, folder, *, close=1e-6, splits=None, **wanted):
  """Trains live and on targets; returns the metrics of both."""
  splits = splits or toys.splits()
  tools.write(method, folder / "targets", splits, **wanted)
  found = []
  for name, settings in (
    ("live", LIVE),
    ("cached", {"targets": str(folder / "targets")}),
  ):
    found.append(
      tools.train(method, folder / name, splits=splits, settings=settings)
    )
  (live, first), (cached, second) = found
  if close is not None:
    for name in first:
      np.testing.assert_allclose(first[name], second[name], atol=close)
    chex.assert_trees_all_close(live.params, cached.params, atol=10 * close)
  return first, second


def test_all_logits_of_a_classifier_train_as_the_teacher_does(tmp_path):
  compare(toys.kd(teacher_epochs=0), tmp_path)


@pytest.mark.slow
def test_all_logits_of_a_decoder_do_so_with_no_target_in_the_method(tmp_path):
  compare(tools.taid(), tmp_path, splits=tools.texts())


@pytest.mark.slow
def test_tokens_that_do_not_count_need_not_be_cached(tmp_path):
  all_of_them = tools.write(tools.taid(), tmp_path / "all", tools.texts())
  compare(tools.taid(), tmp_path, splits=tools.texts(), where="token_mask")
  (path,) = (tmp_path / "targets").glob("*/*")
  counted = int(tools.text(20).arrays["token_mask"].sum())
  assert type(all_of_them).read(path).index["tokens"] == counted < 120


@pytest.mark.slow
def test_top_k_of_a_decoder_trains_within_the_error_that_was_measured(tmp_path):
  networks = {
    "student": tools.decoder(8),
    "teachers": {"teacher": tools.decoder(16)},
    "terms": (Logits(loss=losses.kl),),
  }
  live = distill(access="topk", k=32, **networks)
  targets = tools.write(live, tmp_path / "targets", tools.texts(), k=32)
  (error,) = targets.index["kl"]
  assert 0 < error["rounding_mean"] < error["mean"] < error["max"] < 0.05
  first, cached = compare(
    live, tmp_path, splits=tools.texts(), close=None, k=32
  )
  # Pinsker, where log-ratios of teacher and student are below 1.
  bound = np.sqrt(2 * error["rounding_mean"])
  assert 0 < np.abs(first["KL"] - cached["KL"]).max() < bound < 1e-3
  whole = tools.train(
    distill(**networks), tmp_path / "all", splits=tools.texts(), settings=LIVE
  )[1]
  # To merge the classes outside hides a part of the divergence, never adds.
  gap = whole["KL"][0] - cached["KL"][0]
  assert 0 < gap < 0.1 * whole["KL"][0]


def test_top_k_with_every_class_trains_as_all_logits_do(tmp_path):
  compare(toys.kd(teacher_epochs=0), tmp_path, k=4, bits=16, close=1e-4)


def test_taps_and_labels_are_read_too(tmp_path):
  terms = (
    Labels(of="teacher"),
    Features(
      loss=losses.fitnet, student=("fc1",), teacher=("fc1",), name="hint"
    ),
  )
  compare(distill(terms=terms), tmp_path, taps=("fc1",), close=1e-5)


@pytest.mark.slow
def test_a_teacher_of_k_classes_gives_fewer_of_them_too(tmp_path):
  method = distill(access="topk", k=2)
  compare(method, tmp_path, k=3, bits=16, close=1e-4)


def test_labels_of_a_top_k_teacher_are_its_first_class(tmp_path):
  compare(distill(terms=(Labels(of="teacher"),)), tmp_path, k=1, close=1e-5)


def test_every_stream_has_its_targets(tmp_path):
  splits = toys.splits()
  splits = Splits(
    train=splits.train,
    validation=splits.validation,
    test=splits.test,
    others={"more": toys.source(24, 5)},
  )
  method = distill(unlabelled="more")
  tools.write(method, tmp_path / "targets", splits, split="more")
  compare(method, tmp_path, splits=splits)


def test_micro_batches_share_the_entries(tmp_path):
  method = toys.kd(teacher_epochs=0)
  phase = method.phases[-1]
  update = dataclasses.replace(phase.updates[0], accumulate=4)
  split = toys.Toy(
    networks=method.roles,
    updates=(update,),
    options={"targets": dict(phase.targets)},
  )
  whole = dataclasses.replace(split, updates=phase.updates)
  tools.write(split, tmp_path / "targets", k=2)
  found = [
    tools.train(
      each, tmp_path / name, settings={"targets": str(tmp_path / "targets")}
    )[1]
    for name, each in (("whole", whole), ("split", split))
  ]
  np.testing.assert_allclose(found[0]["kd"], found[1]["kd"], rtol=1e-5)


# What the folder cannot answer.


def refused(method, folder, match, splits=None, **wanted):
  splits = splits or toys.splits()
  tools.write(method, folder / "targets", splits, **wanted)
  settings = {"targets": str(folder / "targets")}
  with pytest.raises(ConfigError, match=match):
    tools.train(method, folder / "run", splits=splits, settings=settings)
  assert not (folder / "run").exists()


def test_a_loss_that_needs_all_logits_refuses_top_k_by_name(tmp_path):
  method = distill(terms=(Logits(loss=losses.dist),))
  refused(method, tmp_path, "dist: needs access 'white'.*k=2", k=2)
  message = "taid: needs access 'white'"
  refused(tools.taid(), tmp_path / "text", message, tools.texts(), k=8)


def test_more_classes_than_were_kept_are_refused(tmp_path):
  method = distill(access="topk", k=3)
  refused(method, tmp_path, "k=3; expected 1 to 2.*this teacher gives", k=2)


def test_a_tap_that_is_not_there_is_refused(tmp_path):
  hint = Features(loss=losses.fitnet, student=("fc1",), teacher=("fc1",))
  method = distill(terms=(hint,))
  refused(method, tmp_path, "no tap 'fc1'.*has fc2.*--tap", taps=("fc2",))


def other_run(loss):
  networks = {"student": toys.mlp(), "teacher": toys.teacher()}
  return toys.Toy(networks=networks, updates=(toys.update(loss=loss),))


def noisy(nets, batch, step):
  seen = {**batch, "image": batch["image"] + 1}
  nets.teacher(seen)
  return toys.label(nets, batch, step)


def edited(nets, batch, step):
  nets.teacher(batch, edits={"fc1": lambda x: 0 * x})
  return toys.label(nets, batch, step)


def training(nets, batch, step):
  nets.teacher(batch, train=True)
  return toys.label(nets, batch, step)


def parameters(nets, batch, step):
  nets.teacher(batch)
  nets.params("teacher")
  return toys.label(nets, batch, step)


@pytest.mark.parametrize(
  ("loss", "match"),
  [
    (noisy, "other image, audio than those of the data"),
    (edited, "a run with edits="),
    (training, "a run with train=True"),
    (parameters, "has no parameters in this phase"),
  ],
)
def test_another_run_of_the_teacher_is_refused(tmp_path, loss, match):
  refused(other_run(loss), tmp_path, match)


def replaced(nets, batch, step):
  """A copy of the student teaches: not what was cached."""
  loss = toys.label(nets, batch, step)
  nets.teacher(batch)
  copied = nets.replaced({"teacher": nets.params("student")})
  return loss.replace(total=copied.teacher(batch).logits.sum())


def test_a_role_with_other_parameters_is_run(tmp_path):
  networks = {"student": toys.mlp(), "teacher": toys.mlp()}
  update = toys.update(loss=replaced)
  method = toys.Toy(networks=networks, updates=(update,))
  tools.write(method, tmp_path / "targets")
  settings = {"targets": str(tmp_path / "targets")}
  runs = [
    tools.train(method, tmp_path / name, settings=chosen)[1]
    for name, chosen in (("a", settings), ("b", LIVE))
  ]
  np.testing.assert_array_equal(runs[0]["loss"], runs[1]["loss"])
