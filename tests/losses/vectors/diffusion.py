"""Noise schedules, steps of the signal, and BOOT's losses.

There is no official code: the numbers are a reading of the paper, computed in
float64. The teacher of the cases is tanh(x A^T + t c).
"""

import functools
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

GOLDEN = "boot__signal_step.derived"
SCHEDULES = {
  "cosine": ("CosineNoise", losses.CosineNoise()),
  "vp_linear": ("LinearNoise", losses.LinearNoise()),
}
WEIGHTINGS = {
  "plain": "none",
  "over_delta_sq": "delta",
  "signal_weight": "signal",
}


def _check(loss: str, name: str, call: Callable, **fields) -> Check:
  """The note states one tolerance for all numbers."""
  return Check(
    loss=loss,
    source="formula",
    name=f"{GOLDEN}/{name}",
    call=call,
    gradient_rtol=1e-5,
    **fields,
  )


def _schedules() -> Iterator[Check]:
  arrays = golden_tools.load(GOLDEN)
  for name, (loss, schedule) in SCHEDULES.items():
    case = golden_tools.section(arrays, f"{name}_")
    delta = float(case["param_delta"])
    outputs = {
      "alpha": lambda t, _s=schedule: _s(t).alpha,
      "sigma": lambda t, _s=schedule: _s(t).sigma,
      "lambda": lambda t, _s=schedule: _s(t).log_ratio,
      "one_minus_exp": lambda t, _s=schedule, _d=delta: losses.step_share(
        _s(t), _s(t - _d)
      ),
    }
    for output, call in outputs.items():
      yield _check(
        "step_share" if output == "one_minus_exp" else loss,
        f"{name}/{output}",
        call,
        inputs={"t": case["in_t"]},
        value=case[f"out_{output}"],
      )


def _levels(case, t):
  """The levels at t and at s."""
  name = "vp_linear" if case["param_schedule_is_vp"] else "cosine"
  schedule = SCHEDULES[name][1]
  return schedule(t), schedule(t - float(case["param_delta"]))


def _teacher(case, x, t):
  along = x @ jnp.asarray(case["param_teacher_A"]).T
  return jnp.tanh(along + jnp.outer(t, case["param_teacher_c"]))


def _x_t(case, noise, student, t):
  return losses.diffuse(student, noise, _levels(case, t)[0])


def _clean(case, noise, student, t):
  return _teacher(case, _x_t(case, noise, student, t), t)


def _share(case, noise, student, t):
  del noise, student
  return losses.step_share(*_levels(case, t))[:, None]


def _target(case, noise, student, t):
  clean = _clean(case, noise, student, t)
  return losses.signal_step(student, clean, *_levels(case, t))


def _heun(case, noise, student, t):
  now, then = _levels(case, t)
  return losses.heun_signal_step(
    student,
    _clean(case, noise, student, t),
    lambda x: _teacher(case, x, t - float(case["param_delta"])),
    noise=noise,
    now=now,
    then=then,
  )


def _ddim(case, noise, student, t):
  return losses.ddim_step(
    _x_t(case, noise, student, t),
    _clean(case, noise, student, t),
    *_levels(case, t),
  )


def _signal_x_s(case, noise, student, t):
  target = _target(case, noise, student, t)
  return losses.diffuse(target, noise, _levels(case, t)[1])


def _signal_of_x_t(case, noise, student, t):
  x = _x_t(case, noise, student, t)
  return losses.clean_from_noise(x, noise, _levels(case, t)[0])


STEPS = {
  "x_t": ("diffuse", _x_t),
  "teacher_x0": ("diffuse", _clean),
  "step_coefficient": ("step_share", _share),
  "target": ("signal_step", _target),
  "target_heun": ("heun_signal_step", _heun),
  "ddim_x_s": ("ddim_step", _ddim),
  "signal_x_s": ("signal_step", _signal_x_s),
}


def _steps(name: str, case: dict[str, np.ndarray]) -> Iterator[Check]:
  inputs = {
    "noise": case["in_noise"],
    "student": case["in_student_at_t"],
    "t": case["in_t"][:, 0],
  }
  for output, (loss, call) in STEPS.items():
    yield _check(
      loss,
      f"{name}/{output}",
      functools.partial(call, case),
      inputs=inputs,
      value=case[f"out_{output}"],
    )
  yield _check(
    "clean_from_noise",
    f"{name}/student_at_t",
    functools.partial(_signal_of_x_t, case),
    inputs=inputs,
    value=case["in_student_at_t"],
  )
  yield _check(
    "guide",
    f"{name}/guided_x0",
    lambda conditional, unconditional: losses.guide(
      conditional, unconditional, scale=float(case["param_guidance"])
    ),
    inputs={
      "conditional": case["out_teacher_x0"],
      "unconditional": case["in_uncond_x0"],
    },
    value=case["out_guided_x0"],
  )


def _losses(name: str, case: dict[str, np.ndarray]) -> Iterator[Check]:
  for output, weighting in WEIGHTINGS.items():

    def boot(later, noise, student, t, weighting=weighting):
      return losses.boot(
        later,
        _target(case, noise, student, t),
        share=losses.step_share(*_levels(case, t)),
        interval=float(case["param_delta"]),
        weighting=weighting,
      ).mean()

    gradient = case.get(f"grad_student_at_s_{output}")
    yield _check(
      "boot",
      f"{name}/loss_{output}",
      boot,
      inputs={
        "later": case["in_student_at_s"],
        "noise": case["in_noise"],
        "student": case["in_student_at_t"],
        "t": case["in_t"][:, 0],
      },
      value=case[f"out_loss_{output}"],
      gradients={} if gradient is None else {"later": gradient},
    )

  def boundary(student, noise):
    t = jnp.full(noise.shape[:1], case["param_tmax"], noise.dtype)
    return losses.denoising(student, _teacher(case, noise, t)).mean()

  yield _check(
    "denoising",
    f"{name}/boundary_loss",
    boundary,
    inputs={"student": case["in_student_at_tmax"], "noise": case["in_noise"]},
    value=case["out_boundary_loss"],
    gradients={"student": case["grad_student_at_tmax"]},
  )


def checks() -> Iterator[Check]:
  """Two schedules, and three cases of a step and its losses."""
  yield from _schedules()
  for name, case in golden_tools.cases(GOLDEN).items():
    yield from _steps(name, case)
    yield from _losses(name, case)
