"""Numbers that are not finite: what a step keeps, what a run says and saves."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses
from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import NonFinite
from jaxkd.method import Loss
from jaxkd.network import Network
from jaxkd.training.step import first_failure
from tests.methods import toys
from tests.training.step_tools import Watched, host, make, run, toy

# Steps.


@jax.custom_vjp
def _trap(x, armed):
  """The identity, with a NaN gradient where armed."""
  del armed
  return x


_trap.defvjp(
  lambda x, armed: (x, armed),
  lambda armed, g: (jnp.where(armed, jnp.nan, g), jnp.zeros_like(armed)),
)


def _failing(kind):
  """Returns a method whose step 2 is not finite, and its batches."""

  def loss(view, batch, step):
    logits = view.student(batch).logits
    bad = (step.index == 2).astype(jnp.float32)
    if kind == "gradient":
      logits = _trap(logits, bad)
    task = losses.cross_entropy(logits, batch["label"])
    if kind == "loss":
      task = task + jnp.log(1 - bad)
    seen = view.memory["seen"] + 1
    return Loss.mean(task, where=batch["mask"], memory={"seen": seen})

  method = toy(
    toys.update(loss=loss, optimizer=optax.adam(1e-2)),
    networks={"student": Network(Watched())},
    first_memory={"seen": jnp.float32(0)},
  )
  batches = [toys.batch(8) for _ in range(5)]
  if kind == "batch":
    batches[2]["image"][3, 5] = np.nan
  return method, batches


@pytest.fixture(params=["cpu", "elsewhere"])
def platform(request, monkeypatch):
  """Also has the CPU do what is meant for other devices."""
  if request.param == "elsewhere":
    monkeypatch.setattr(
      jax.lax, "platform_dependent", lambda *, default, **_: default()
    )


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("kind", ["batch", "loss", "gradient"])
def test_nothing_of_a_step_that_is_not_finite_is_kept(kind):
  method, batches = _failing(kind)
  step, state, frozen = make(method, batches[0])
  seen, finite = [], []
  for batch in batches:
    state, metrics = step(state, frozen, batch)
    seen.append(host(state))
    finite.append(bool(metrics["finite"]))
  assert [int(s.step) for s in seen] == [1, 2, 3, 4, 5]
  assert [int(s.failed) for s in seen] == [-1, -1, 2, 2, 2]
  assert finite[:3] == [True, True, False]
  assert seen[1].memory["seen"] == 2
  for later in seen[2:]:
    chex.assert_trees_all_equal(
      later.replace(step=0, failed=0), seen[1].replace(step=0, failed=0)
    )


def _shooting(scale):
  """SGD whose learning rate at step 2 is so large."""
  return optax.sgd(lambda count: jnp.where(count == 2, scale, 0.1))


@pytest.mark.parametrize("every", [1, 2])
def test_parameters_that_overflow_are_found_by_the_next_update(every):
  update = toys.update(
    optimizer=optax.chain(optax.trace(0.9), _shooting(jnp.inf)), every=every
  )
  method = toy(update)
  step, state, frozen = make(method, toys.batch(8))
  seen, finite, looked = [], [], []
  for _ in range(3 * every + 3):
    state, metrics = step(state, frozen, toys.batch(8))
    seen.append(host(state))
    looked.append(int(first_failure(method.phases[0], state)))
    finite.append(bool(metrics["finite"]))
  bad, found = 2 * every, 3 * every
  assert finite == [True] * found + [False] * 3
  assert [int(s.failed) for s in seen] == [-1] * found + [found] * 3
  assert looked[: bad + 1] == [-1] * bad + [bad]
  for later in seen[found + 1 :]:  # and nothing is moved any more
    chex.assert_trees_all_equal(
      later.replace(step=0), seen[found].replace(step=0)
    )


def test_large_parameters_are_finite_though_their_sum_is_not():
  method, batch = toy(toys.update()), toys.batch(4)
  step, state, frozen = make(method, batch)
  bias = state.params["student"]["fc3"]["bias"]
  large = jax.tree.map(lambda x: x, state.params)
  large["student"]["fc3"]["bias"] = jnp.full_like(bias, 3e38)
  state, metrics = step(state.replace(params=large), frozen, batch)
  assert metrics["finite"]
  assert first_failure(method.phases[0], state) == -1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_entry_of_a_large_array_is_found_whatever_the_others_are(dtype):
  method, batch = toy(toys.update()), toys.batch(4)
  _, state, _ = make(method, batch)
  largest = float(jnp.finfo(dtype).max)
  large = np.full((7, 30, 100), largest, dtype)
  look = jax.jit(functools.partial(first_failure, method.phases[0]))

  def failed(array):
    params = {"student": {"kernel": array}}
    return look(state.replace(step=jnp.int32(5), params=params))

  for signs in (1, np.where(np.arange(7) % 2, -1, 1)[:, None, None]):
    array = (large * signs).astype(dtype)
    assert failed(array) == -1
    for bad in (np.nan, np.inf, -np.inf):
      changed = array.copy()
      changed[3, 17, 51] = bad
      assert failed(changed) == 4


def test_a_nan_in_padding_does_not_stop_a_phase():
  def loss(view, batch, step):
    del step
    task = losses.cross_entropy(
      view.student(batch).logits, batch["label"], where=batch["mask"]
    )
    noted = jnp.where(batch["mask"] > 0, 1.0, jnp.nan)
    return Loss.mean(task * noted, where=batch["mask"])

  state, _ = run(toy(toys.update(loss=loss)), [toys.batch(8, real=5)])
  assert state.failed == -1


# Runs.


def _poisoned(entry="image", row=13):
  splits = toys.splits()
  arrays = {k: v.copy() for k, v in splits.train.arrays.items() if k != "index"}
  arrays[entry][row, 2] = np.nan
  train = ArraySource(arrays)
  return Splits(train=train, validation=splits.validation, test=splits.test)


@pytest.mark.parametrize("every", [1, 50])
def test_a_nan_in_the_data_is_traced_to_entry_and_example(tmp_path, every):
  trainer = toys.trainer(
    toys.supervised(epochs=3),
    tmp_path,
    splits=_poisoned(),
    settings={"log_every_steps": every},
  )
  message = (
    r"phase 'supervise', step [012]: batch entry 'image' of training example 13"
    r" not finite is\. Metrics of the step: .*loss=nan.* checkpoint: none"
  )
  with pytest.raises(NonFinite, match=message):
    trainer.fit()
  assert not (tmp_path / "stages" / "0_supervise").exists()


def test_a_loss_that_is_not_finite_is_told_from_bad_data(tmp_path):
  def loss(view, batch, step):
    task = toys.label(view, batch, step)
    bad = jnp.where(step.index == 4, jnp.inf, 0.0)
    return task.replace(total=task.total + bad)

  def rare(view, batch, step):
    return toys.label(view, batch, step).replace(metrics={})

  rarely = toys.update(loss=rare, name="rare", every=3)  # not made at step 4
  method = toys.Toy(
    networks=toys.student(),
    updates=(toys.update(loss=loss), rarely),
    options={"epochs": 2},
  )
  trainer = toys.trainer(
    method, tmp_path, settings={"checkpoint_every_steps": 3}
  )
  message = (
    "phase 'toy', step 4: a loss or parameter is not finite, though the data "
    "are.*last checkpoint: step 3 of this phase"
  )
  with pytest.raises(NonFinite, match=message):
    trainer.fit()


def _overflowing(step):
  """A method of six steps, one of which takes its parameters too far."""

  def rate(count):
    return jnp.where(count == step, jnp.inf, 0.1)

  return toys.Toy(
    networks=toys.student(),
    updates=(toys.update(optimizer=optax.sgd(rate)),),
    options={"epochs": 2},
  )


@pytest.mark.parametrize(
  ("every", "last", "found"), [(1, 4, 4), (3, 3, 5), (50, None, 5)]
)
def test_parameters_that_overflow_are_never_saved(tmp_path, every, last, found):
  settings = {"checkpoint_every_steps": every}
  message = f"step {found}: a loss or parameter .*last checkpoint: "
  message += f"step {last} of" if last else "none"
  for _ in range(2):  # started again it ends there again
    with pytest.raises(NonFinite, match=message):
      toys.trainer(_overflowing(4), tmp_path, settings=settings).fit()


def test_parameters_that_overflow_at_the_last_step_are_found(tmp_path):
  message = "step 5: a loss or parameter is not finite"
  with pytest.raises(NonFinite, match=message):
    toys.trainer(_overflowing(5), tmp_path).fit()
  assert not (tmp_path / "stages").exists()
