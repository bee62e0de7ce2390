"""Dense outputs (LAD), patches of two images (DistillDIFT), inputs (HARD)."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

LAD = "skyshoumeng/Label_Assisted_Distillation@cd08406"
DIFT = "CompVis/distilldift@e21076e train/train.py"


def _last(array):
  return np.moveaxis(array, 1, -1)


def checks() -> Iterator[Check]:
  """All cases of the five files."""
  yield from _lad_losses()
  yield from _lad_objectives()
  yield from _correspondence()
  yield from _refinement()
  yield from _hard()


def _lad_losses() -> Iterator[Check]:
  arrays = golden_tools.load("lad__losses")
  temperature = float(arrays["loss_param_pixel_kd_temperature"])
  calls = {
    "cwd": lambda student, teacher: losses.cwd(student, teacher).mean(),
    "dist": lambda student, teacher: losses.dist(student, teacher),
    "pixel_kd": lambda student, teacher: losses.kl(
      student, teacher, temperature=temperature
    ).mean(),
  }
  files = {
    "cwd": "train_baseline.py:CriterionCWD",
    "dist": "train_baseline.py:DIST",
    "pixel_kd": "losses/kd.py:CriterionKD",
  }
  for case in ("loss0", "loss1"):
    for name, call in calls.items():
      yield Check(
        loss="kl" if name == "pixel_kd" else name,
        source=f"{LAD} {files[name]}",
        name=f"lad__losses/{case}/{name}",
        call=call,
        inputs={
          "student": _last(arrays[f"{case}_in_student_logits"]),
          "teacher": _last(arrays[f"{case}_in_teacher_logits"]),
        },
        value=arrays[f"{case}_out_{name}"],
        gradients={
          "student": _last(arrays[f"{case}_grad_student_logits_{name}"])
        },
        atol=0,
      )


def _resized(logits, shape):
  """Linear interpolation along both axes whose corners coincide."""
  for axis, size in enumerate(shape, start=1):
    old = logits.shape[axis]
    place = np.arange(size) * (old - 1) / (size - 1)
    low = np.minimum(place.astype(int), old - 2)
    full = [size if i == axis else 1 for i in range(logits.ndim)]
    share = jnp.asarray((place - low).reshape(full), jnp.float32)
    logits = (1 - share) * jnp.take(logits, low, axis) + share * jnp.take(
      logits, low + 1, axis
    )
  return logits


def _task(logits, labels):
  where = labels >= 0
  logits = _resized(logits, labels.shape[1:])
  values = losses.cross_entropy(logits, labels, where=where)
  return values.sum() / where.sum()


def _teacher_objective(labels):
  stop = jax.lax.stop_gradient

  def terms(main1, main2, aux1, aux2):
    task = sum(_task(x, labels) for x in (main1, main2))
    task += 0.4 * sum(_task(x, labels) for x in (aux1, aux2))
    both = losses.cwd(main1, stop(main2)) + losses.cwd(main2, stop(main1))
    return {
      "task": task,
      "consistency": both.mean(),
      "loss": task + 5 * both.mean(),
    }

  return terms


def _student_objective(labels):
  def terms(main, aux, teacher):
    task = _task(main, labels) + 0.02 * _task(aux, labels)
    cwd = losses.cwd(main, teacher).mean()
    return {"task": task, "cwd": cwd, "loss": task + 3 * cwd}

  return terms


def _lad_objectives() -> Iterator[Check]:
  arrays = golden_tools.load("lad__losses")
  labels = arrays["teacher_in_labels"]
  student_labels = arrays.get("student_in_labels", labels)
  given = {
    "teacher": {
      "main1": "main_logits_path1",
      "main2": "main_logits_path2",
      "aux1": "aux_logits_path1",
      "aux2": "aux_logits_path2",
    },
    "student": {
      "main": "main_logits",
      "aux": "aux_logits",
      "teacher": "teacher_logits",
    },
  }
  terms = {
    "teacher": _teacher_objective(labels),
    "student": _student_objective(student_labels),
  }
  for who, names in given.items():
    for output in ("task", "cwd", "consistency", "loss"):
      if f"{who}_out_{output}" not in arrays:
        continue
      gradients = {
        argument: _last(arrays[f"{who}_grad_{name}"])
        for argument, name in names.items()
        if output == "loss" and f"{who}_grad_{name}" in arrays
      }
      yield Check(
        loss="cwd" if output != "task" else "cross_entropy",
        source=f"{LAD} train_baseline.py:Trainer.train",
        name=f"lad__losses/{who}/{output}",
        call=lambda terms=terms[who], output=output, **maps: terms(**maps)[
          output
        ],
        inputs={a: _last(arrays[f"{who}_in_{n}"]) for a, n in names.items()},
        value=arrays[f"{who}_out_{output}"],
        gradients=gradients,
        atol=0,
      )


def _pairs(features):
  """[2B, C, H, W], sources first, to [B, 2, H, W, C]."""
  return np.stack(np.split(_last(features), 2), axis=1)


def _numbers(arrays, shape):
  """The patches of source points (y, x) in pixels."""
  if "in_source_points_yx" not in arrays:
    return None
  scale = np.asarray(shape) / arrays["param_image_size"]
  place = np.round(arrays["in_source_points_yx"] * scale.astype(np.float32))
  place = np.minimum(place, np.asarray(shape) - 1)  # points on the border
  return (place[..., 0] * shape[1] + place[..., 1]).astype(np.int32)


def _correspondence() -> Iterator[Check]:
  files = {
    "diffusion_features__losses": True,
    "diffusion_features__ce_target_axis.derived": False,
  }
  for file, released in files.items():
    for case, arrays in golden_tools.cases(file).items():
      student = _pairs(arrays["in_student_features"])
      teacher = _pairs(arrays["in_teacher_features"])
      source = _numbers(arrays, student.shape[2:4])
      temperature = float(arrays["param_temperature"])
      yield Check(
        loss="patch_correspondence",
        source=f"{DIFT}:distill_epoch" if released else "formula",
        name=f"{file}/{case}/loss",
        call=lambda student, teacher, n=source, t=temperature, r=released: (
          losses.patch_correspondence(
            student, teacher, source=n, temperature=t, over_sources=r
          ).mean()
        ),
        inputs={"student": student, "teacher": teacher},
        value=arrays["out_loss"],
        gradients={"student": _pairs(arrays["grad_student_features"])},
        atol=0,
        gradient_rtol=1e-4,
      )
      if released:
        yield from _similarities(
          f"{file}/{case}", arrays, student, teacher, source
        )


def _similarities(name, arrays, student, teacher, source) -> Iterator[Check]:
  temperature = float(arrays["param_temperature"])
  shape = (*teacher.shape[:2], *student.shape[2:4], teacher.shape[-1])

  def resized(features):
    return jax.image.resize(features, shape, "bilinear", antialias=False)

  def similar(features):
    return losses.patch_similarities(features, source)

  def likely(features):
    return jax.nn.softmax(similar(features) / temperature)

  for output, features, call in (
    ("student_similarity", student, similar),
    (
      "teacher_similarity",
      teacher,
      lambda features: similar(resized(features)),
    ),
    ("prediction", student, likely),
    ("target", teacher, lambda features: likely(resized(features))),
  ):
    yield Check(
      loss="patch_similarities",
      source=f"{DIFT}:distill_epoch",
      name=f"{name}/{output}",
      call=call,
      inputs={"features": features},
      value=arrays[f"out_{output}"],
    )


def _refinement() -> Iterator[Check]:
  everything = golden_tools.load("diffusion_features__losses")
  for case in ("refine0", "refine1"):
    arrays = golden_tools.section(everything, f"{case}_")
    student = _pairs(arrays["in_features"])
    source = _numbers(arrays, student.shape[2:4])
    sharpness = float(arrays["param_beta"])
    scale = np.asarray(student.shape[2:4]) / arrays["param_image_size"]
    target = arrays["in_target_points_yx"] * scale + arrays["in_noise"]
    target = target.astype(np.float32)
    common = dict(source=f"{DIFT}:train_epoch", inputs={"student": student})

    def found(student, source=source, sharpness=sharpness):
      scores = losses.patch_similarities(student, source)
      scores = scores.reshape(*source.shape, *student.shape[2:4])
      return losses.soft_argmax(scores, sharpness)

    def loss(student, source=source, target=target, sharpness=sharpness):
      return losses.point_regression(
        student, source, target, sharpness=sharpness
      ).mean()

    yield Check(
      loss="soft_argmax",
      name=f"diffusion_features__losses/{case}/prediction",
      call=found,
      value=arrays["out_prediction_yx"],
      rtol=1e-3 if sharpness == 1000 else 1e-5,
      **common,
    )
    yield Check(
      loss="point_regression",
      name=f"diffusion_features__losses/{case}/loss",
      call=loss,
      value=arrays["out_loss"],
      gradients={"student": _pairs(arrays["grad_features"])},
      # At 1000 the gradients are 1e-12; rounding of similarities is magnified.
      gradient_atol=5e-5 if sharpness == 1000 else 1e-6,
      rtol=1e-3 if sharpness == 1000 else 1e-5,
      **common,
    )


def _hard() -> Iterator[Check]:
  for case, arrays in golden_tools.cases("hard__objective.derived").items():
    temperature = float(arrays["param_temperature"])
    weights = [
      float(arrays[f"param_weight_{name}"])
      for name in ("student_teacher", "teacher_teacher")
    ]
    inputs = {
      name: arrays[f"in_{name}"]
      for name in ("x", "delta", "teacher_w", "student_w")
    }

    def terms(x, delta, teacher_w, student_w, t=temperature, w=weights):
      changed = x + delta
      first = losses.kl(changed @ student_w, changed @ teacher_w, temperature=t)
      second = losses.kl(changed @ teacher_w, x @ teacher_w, temperature=t)
      return {
        "student_teacher": first.mean(),
        "teacher_teacher": second.mean(),
        "augmentor_objective": (w[1] * second - w[0] * first).mean(),
      }

    for output, argument in (
      ("student_teacher", "student_w"),
      ("teacher_teacher", "delta"),
      ("augmentor_objective", "delta"),
    ):
      yield Check(
        loss="kl",
        source="formula",
        name=f"hard__objective.derived/{case}/{output}",
        call=lambda terms=terms, output=output, **given: terms(**given)[output],
        inputs=inputs,
        value=arrays[f"out_{output}"],
        gradients={argument: arrays[f"grad_{argument}__{output}"]},
        gradient_rtol=1e-5,
      )
