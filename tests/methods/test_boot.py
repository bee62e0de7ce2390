"""BOOT: no data, constants where they belong, an anchor, one evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, nets
from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import ConfigError, Preempted
from jaxkd.method import Step
from jaxkd.methods import BOOT
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.training.feeds import examples
from jaxkd.training.phase import Stop
from tests.methods import toys

START = Step(jnp.int32(0), jnp.int32(0))
SIZE = 6


def images(size, seed=0, centre=0.0):
  random = np.random.default_rng(seed)
  return ArraySource(
    {
      "image": random.normal(centre, size=(size, SIZE)).astype(np.float32),
      "noise": random.normal(size=(size, SIZE)).astype(np.float32),
      "label": random.integers(0, 3, size).astype(np.int32),
    }
  )


def splits(**options):
  train, validation, test = (
    images(size, seed, **options) for seed, size in enumerate((24, 8, 8))
  )
  return Splits(train=train, validation=validation, test=test)


def boot(**options):
  inputs = ("x", "t", "condition") if "classes" in options else ("x", "t")
  module = nets.DenoisingMLP(
    features=8, blocks=1, num_classes=options.get("classes")
  )
  defaults = {
    "teacher": Network(module, inputs=inputs),
    "judge": Network(nets.MLP(features=(5, 3))),
    "judge_layer": "fc1",
    "shape": (SIZE,),
    "teacher_steps": 3,
    "judge_steps": 2,
    "steps": 6,
    "sampler_steps": (1, 3),
  }
  return BOOT(**{**defaults, **options})


def view(method, *, copied=False, training=("student",)):
  seen = examples(method, splits(), 8)
  params, collections = initialise(
    method, jax.random.key(0), usage(method, *seen).inputs
  )
  if copied:
    params["student"] = params["teacher"]
  return Nets(
    method.roles,
    params,
    collections,
    rng=jax.random.key(1),
    training=training,
  )


BATCH = {"index": jnp.arange(8), "mask": jnp.ones(8)}


def noise_of(found):
  return jax.random.normal(found.key("noise"), (8, SIZE))


@pytest.mark.slow  # a whole run of all phases
def test_distillation_reads_no_data(tmp_path):
  method = boot()
  found = view(method)
  loss = method.distil(found, BATCH, START)  # index and mask are all there is
  assert np.isfinite(loss.total)
  assert method.phases[-1].stream is None
  trainer = toys.trainer(method, tmp_path, splits=splits())
  before = view(method).params("teacher")
  fitted = trainer.fit()
  change = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), fitted.params["student"], before
  )
  assert max(jax.tree.leaves(change)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_no_gradient_reaches_the_branch_at_t_and_the_teacher(solver):
  method = boot(solver=solver)
  found = view(method)
  noise, t = noise_of(found), jnp.full(8, 0.5)

  def total(params):
    other = found.replaced(params)
    target = method.target(other, noise, t, t - 0.1, None)
    return jnp.sum(target**2)

  params = {name: found.params(name) for name in ("student", "teacher")}
  gradient = jax.grad(total)(params)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_the_target_is_a_step_of_the_teacher_from_the_students_point(solver):
  method = boot(solver=solver)
  found = view(method)
  noise, t, s = noise_of(found), jnp.full(8, 0.6), jnp.full(8, 0.5)
  target = method.target(found, noise, t, s, None)
  now, then = method.schedule(t), method.schedule(s)
  signal = found.student({"x": noise, "t": t}).value
  x = losses.diffuse(signal, noise, now)
  clean = found.teacher({"x": x, "t": t}).value
  after = losses.ddim_step(x, clean, now, then)
  if solver == "heun":
    second = found.teacher({"x": after, "t": s}).value
    after = losses.ddim_step(x, (clean + second) / 2, now, then)
  np.testing.assert_allclose(
    losses.diffuse(target, noise, then), after, rtol=1e-4, atol=1e-5
  )


def test_a_copied_student_meets_the_boundary_exactly():
  method = boot()
  loss = method.distil(view(method, copied=True), BATCH, START)
  total, weight = loss.metrics["boundary"]
  assert total == 0
  assert weight == 8
  loss = method.distil(view(method), BATCH, START)
  assert loss.metrics["boundary"][0] > 0


@pytest.mark.slow  # a whole run of all phases
@pytest.mark.parametrize("copied", [True, False])
def test_the_student_starts_as_the_teacher_unless_told_not_to(tmp_path, copied):
  method = boot(copy_teacher=copied, lr=0.0)
  found = toys.trainer(method, tmp_path, splits=splits()).fit().params
  same = jax.tree.map(np.array_equal, found["student"], found["teacher"])
  assert all(jax.tree.leaves(same)) == copied


def test_no_time_is_before_the_least_one(monkeypatch):
  method = boot(t_min=0.4, t_max=0.5, interval=0.3)
  found, times, run = view(method), [], Nets._run

  def seen(self, role, batch, **options):
    times.extend(np.ravel(batch["t"]).tolist())
    return run(self, role, batch, **options)

  monkeypatch.setattr(Nets, "_run", seen)
  method.distil(found, BATCH, START)
  assert min(times) == pytest.approx(0.4)
  assert max(times) == pytest.approx(0.5)


@pytest.mark.slow  # a whole run of all phases
def test_only_the_boundary_loss_anchors_a_random_student(tmp_path):
  gaps = {}
  for weight in (0.5, 0.0):
    method = boot(
      copy_teacher=False,
      boundary_weight=weight,
      steps=400,
      lr=1e-2,
      teacher_steps=200,
      teacher_lr=1e-2,
    )
    folder = tmp_path / str(weight)
    trainer = toys.trainer(method, folder, splits=splits(centre=2.0))
    fitted = trainer.fit()
    found = Nets(method.roles, fitted.params, rng=jax.random.key(2))
    noise = noise_of(found)
    t = jnp.full(8, method.t_max)
    ours, theirs = (
      found[role]({"x": noise, "t": t}).value for role in ("student", "teacher")
    )
    gaps[weight] = float(jnp.mean((ours - theirs) ** 2))
  assert gaps[0.5] < 0.5 * gaps[0.0]


@pytest.mark.slow
def test_the_loss_is_finite_where_s_is_cut_off_at_t():
  method = boot(t_min=0.98, t_max=0.99, interval=0.5)
  loss = method.distil(view(method), BATCH, START)
  gradient = jax.grad(
    lambda p: (
      method.distil(view(method).replaced({"student": p}), BATCH, START).total
    )
  )(view(method).params("student"))
  assert np.isfinite(loss.total)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_guidance_is_baked_in_and_conditions_are_drawn():
  method = boot(classes=3, guidance=2.0)
  found = view(method)
  x, t, c = noise_of(found), jnp.full(8, 0.5), jnp.zeros(8, jnp.int32)
  run = lambda c: found.teacher({"x": x, "t": t, "condition": c}).value
  expected = run(c + 3) + 2.0 * (run(c) - run(c + 3))
  np.testing.assert_allclose(
    method.guided(found, x, t, c), expected, rtol=1e-4, atol=1e-5
  )
  assert np.isfinite(method.distil(found, BATCH, START).total)


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_other_teachers_are_read_as_predictors_of_the_example(prediction):
  method = boot(prediction=prediction)
  found = view(method)
  x, t = noise_of(found), jnp.full(8, 0.4)
  value = found.teacher({"x": x, "t": t}).value
  alpha, sigma = jnp.cos(0.2 * jnp.pi), jnp.sin(0.2 * jnp.pi)
  expected = {
    "noise": (x - sigma * value) / alpha,
    "velocity": alpha * x - sigma * value,
  }[prediction]
  np.testing.assert_allclose(
    method.guided(found, x, t, None), expected, rtol=1e-4, atol=1e-5
  )


def test_a_sample_takes_one_evaluation():
  method = boot()
  found, batch = view(method), images(8).take(np.arange(8))
  calls = []
  run = Nets._run

  def counted(self, role, *args, **kwargs):
    calls.append(role)
    return run(self, role, *args, **kwargs)

  Nets._run, before = counted, Nets._run
  try:
    method.predict(found, batch)
  finally:
    Nets._run = before
  assert calls == ["student"]


@pytest.mark.slow  # a whole run of all phases
@pytest.mark.parametrize("after", [4, 8])
def test_a_run_resumes_with_the_same_noise(tmp_path, after):
  def fit(folder, **options):
    return toys.trainer(boot(), folder, splits=splits(), **options).fit()

  whole = fit(tmp_path / "whole")
  with pytest.raises(Preempted):
    fit(tmp_path / "cut", stop=Stop(after=after))
  resumed = fit(tmp_path / "cut")
  jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"solver": "euler"}, "BOOT.solver='euler': expected one of ddim, heun"),
    ({"prediction": "score"}, "BOOT.prediction='score'"),
    ({"t_min": 0.5, "t_max": 0.4}, "expected 0 < t_min < t_max < 1"),
  ],
)
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    boot(**options)


def test_the_weighting_is_an_option():
  values = {
    weighting: float(
      method.distil(view(method), BATCH, START).metrics["bootstrap"][0]
    )
    for weighting in ("signal", "delta", "none")
    for method in [dataclasses.replace(boot(), weighting=weighting)]
  }
  assert len(set(values.values())) == 3


@pytest.mark.slow
def test_eight_devices_train_as_one(tmp_path):
  toys.eight_devices_train_as_one(boot(), tmp_path, splits=splits())
