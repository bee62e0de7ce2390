"""TGeo-KD: the state, the controller, both losses, and the hypergradient."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxkd import losses, nets
from tests import golden_tools
from tests.losses.vectors import Check

TGEO = "Chengming0501/TGeo-KD@5a69cbe"
LAYERS = [f"fc{i}_{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")]


def controlled(state, **weights):
  """The controller's share, of weights in PyTorch's layout."""
  params = {
    f"fc{i}": {
      "kernel": weights[f"fc{i}_weight"].T,
      "bias": weights[f"fc{i}_bias"],
    }
    for i in (1, 2, 3)
  }
  return nets.Controller().apply({"params": params}, state)


def _weights(a):
  return {name: a[f"weight_{name}"] for name in LAYERS}


def _state() -> Iterator[Check]:
  golden = "tgeo_kd__state"
  for case, a in golden_tools.cases(golden).items():
    labels = jnp.asarray(a["in_labels"])
    logits = {
      "student": a["in_student_logits"],
      "teacher": a["in_teacher_logits"],
    }
    make = functools.partial(Check, inputs=logits)

    def state(student, teacher, _y=labels):
      means = losses.class_mean_probabilities(teacher, _y)
      return losses.trilateral_state(student, teacher, _y, means)

    temperature = float(a["param_temperature"])
    share = jnp.asarray(a["out_alpha"])

    def kd(student, teacher, _a=share, _y=labels, _t=temperature, **options):
      return losses.trilateral_kd(
        student, teacher, _y, _a, temperature=_t, **options
      )

    yield make(
      loss="trilateral_state",
      source=f"{TGEO} fusion_ratio_bilevel.py:state_design",
      name=f"{golden}/{case}/state",
      call=state,
      value=a["out_state"],
    )
    yield make(
      loss="Controller",
      source=f"{TGEO} network.py:Controller",
      name=f"{golden}/{case}/alpha",
      call=controlled,
      inputs={"state": a["out_state"], **_weights(a)},
      value=a["out_alpha"],
    )
    yield from _losses(make, f"{golden}/{case}", a, kd, temperature)


def _losses(make, name, a, kd, temperature) -> Iterator[Check]:
  """The terms one by one, and their weighted mean in both forms."""
  make = functools.partial(
    make,
    loss="trilateral_kd",
    source=f"{TGEO} fusion_ratio_bilevel.py:student_train",
  )
  ones = jnp.ones(len(a["out_alpha"]))
  yield make(
    name=f"{name}/kl",
    call=lambda **x: kd(**x, _a=ones) / temperature**2,
    value=a["out_kl_per_sample"],
  )
  for output, loss, on_probabilities in (
    ("ce_on_probs_per_sample", "lower_loss_code", True),
    ("ce_on_logits_per_sample", "lower_loss_logits_ce", False),
  ):
    options = {"ce_on_probabilities": on_probabilities}
    yield make(
      name=f"{name}/{output}",
      call=lambda _o=options, **x: kd(**x, _a=0 * ones, **_o),
      value=a[f"out_{output}"],
    )
    yield make(
      name=f"{name}/{loss}",
      call=lambda _o=options, **x: kd(**x, **_o).mean(),
      value=a[f"out_{loss}"],
      gradients={"student": a[f"grad_student_logits__{loss}"]},
    )


class Bilevel:
  """One case: a linear student, its steps, and what comes of them."""

  def __init__(self, a):
    """Keeps the case's arrays."""
    self.x, self.x_val, self.teacher, self.y, self.y_val = (
      jnp.asarray(a[f"in_{name}"])
      for name in (
        "x_train",
        "x_val",
        "teacher_logits_train",
        "labels_train",
        "labels_val",
      )
    )
    self.start = (
      jnp.asarray(a["in_student_w"]),
      jnp.asarray(a["in_student_b"]),
    )
    self.temperature = float(a["param_temperature"])
    self.rate = float(a["param_inner_lr"])
    self.steps = int(a["param_inner_steps"])
    self.means = losses.class_mean_probabilities(self.teacher, self.y)

  def share(self, student, **weights):
    """The controller's answer to a student."""
    w, b = student
    z = self.x @ w + b[None]
    state = losses.trilateral_state(z, self.teacher, self.y, self.means)
    return controlled(state, **weights)

  def lower(self, student, share):
    """What the student minimises."""
    w, b = student
    z = self.x @ w + b[None]
    return losses.trilateral_kd(
      z, self.teacher, self.y, share, temperature=self.temperature
    ).mean()

  def after(self, nudge=None, **weights):
    """The student after its steps; the first step's share may be nudged."""
    student = self.start
    for step in range(self.steps):
      share = self.share(student, **weights)
      if nudge is not None and step == 0:
        share = share + nudge
      slopes = jax.grad(self.lower)(student, share)
      student = jax.tree.map(
        lambda x, slope: x - self.rate * slope, student, slopes
      )
    return student

  def upper(self, **inputs):
    """What the controller minimises."""
    w, b = self.after(**inputs)
    return losses.cross_entropy(self.x_val @ w + b[None], self.y_val).mean()


def _bilevel() -> Iterator[Check]:
  golden = "tgeo_kd__bilevel.derived"
  for case, a in golden_tools.cases(golden).items():
    run, weights = Bilevel(a), _weights(a)
    make = functools.partial(
      Check, source="formula", inputs=weights, rtol=1e-4, loss="trilateral_kd"
    )
    yield make(
      loss="class_mean_probabilities",
      name=f"{golden}/{case}/class_means",
      call=lambda teacher, _y=run.y: losses.class_mean_probabilities(
        teacher, _y
      ),
      inputs={"teacher": a["in_teacher_logits_train"]},
      value=a["out_class_mean_teacher_probs"],
    )
    yield make(
      loss="Controller",
      name=f"{golden}/{case}/alpha",
      call=functools.partial(run.share, run.start),
      value=a["out_alpha_step0"],
    )
    yield make(
      name=f"{golden}/{case}/lower",
      call=lambda _r=run, **w: _r.lower(_r.start, _r.share(_r.start, **w)),
      value=a["out_lower_loss"],
    )
    for i, part in enumerate("wb"):
      yield make(
        name=f"{golden}/{case}/student_{part}",
        call=lambda _r=run, _i=i, **w: _r.after(**w)[_i],
        value=a[f"out_student_{part}_after"],
      )
    yield make(
      name=f"{golden}/{case}/hypergradient",
      call=run.upper,
      value=a["out_upper_loss"],
      gradients={w: a[f"grad_{w}__upper_loss"] for w in weights},
    )
    yield make(
      name=f"{golden}/{case}/hypergradient_of_alpha",
      call=functools.partial(run.upper, **weights),
      inputs={"nudge": 0 * a["out_alpha_step0"]},
      value=a["out_upper_loss"],
      gradients={"nudge": a["grad_alpha_step0__upper_loss"]},
    )


def checks() -> Iterator[Check]:
  """Values, gradients, and gradients through one and several steps."""
  yield from _state()
  yield from _bilevel()
