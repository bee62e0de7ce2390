"""Losses at the boxes of a bird's-eye view (UniDistill)."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

FILE = "unidistill__bev_losses"
SOURCE = (
  "megvii-research/CVPR2023-UniDistill@32f02b4 "
  "BEVFusion_nuscenes_centerhead_camera_exp_distill_lidar.py:"
)
TOLERANCE = dict(rtol=1e-4, atol=2e-6, gradient_rtol=1e-4, gradient_atol=2e-6)
REGRESSED = ("reg", "height", "dim", "rot", "vel", "iou")


def _last(array):
  return np.moveaxis(array, 1, -1)


def _points(boxes):
  return losses.box_points(boxes[..., :2], boxes[..., 3:5], boxes[..., 6])


def _cells(metres, start, cell):
  """Metres as cells of the map."""
  full = (1,) * (metres.ndim - 1) + (2,)
  return (metres - start.reshape(full)) / cell.reshape(full)


def checks() -> Iterator[Check]:
  """Geometry, key points and response."""
  arrays = golden_tools.load(FILE)
  start = arrays["param_pc_range"][:2]
  cell = arrays["param_voxel_size"][:2] * int(arrays["param_out_size_factor"])
  yield from _geometry(arrays, start, cell)
  # The released code gives the rows' coordinates to the columns.
  places = jnp.asarray(arrays["out_nine_points_grid_xy"][..., ::-1])
  where = jnp.asarray(arrays["in_valid"])
  for kind, name, loss in (
    ("feature", "FeatureDistillLoss", losses.point_features),
    ("relation", "BEVDistillLoss", losses.point_relations),
  ):
    yield Check(
      loss=loss.__name__,
      source=SOURCE + name,
      name=f"{FILE}/{kind}",
      call=lambda student, teacher, loss=loss: loss(
        student, teacher, places, where=where
      ),
      inputs={
        who: _last(arrays[f"{kind}_in_{who}"]) for who in ("student", "teacher")
      },
      value=arrays[f"{kind}_out_loss"],
      gradients={"student": _last(arrays[f"{kind}_grad_student"])},
      **TOLERANCE,
    )
  yield from _response(arrays)


def _geometry(arrays, start, cell) -> Iterator[Check]:
  boxes = {"boxes": arrays["in_boxes"]}

  def mask(boxes):
    sizes = _cells(boxes[..., 3:5], 0 * start, cell)
    radii = losses.gaussian_radius(sizes)
    return losses.gaussian_mask(
      _cells(boxes[..., :2], start, cell), radii, (16, 16)
    )

  for output, loss, call, inputs in (
    (
      "corners_world",
      "box_points",
      lambda boxes: _points(boxes)[..., :4, :],
      boxes,
    ),
    (
      "corners_grid",
      "box_points",
      lambda boxes: _cells(_points(boxes)[..., :4, :], start, cell),
      boxes,
    ),
    (
      "nine_points_grid_xy",
      "box_points",
      lambda boxes: _cells(_points(boxes), start, cell),
      boxes,
    ),
    ("gaussian_mask", "gaussian_mask", mask, boxes),
    (
      "radius",
      "gaussian_radius",
      losses.gaussian_radius,
      {"sizes": arrays["radius_in_sizes"]},
    ),
  ):
    key = {
      "gaussian_mask": "response_out_gaussian_mask",
      "radius": "radius_out",
    }.get(output, f"out_{output}")
    yield Check(
      loss=loss,
      source=SOURCE + "center_to_corner_box2d, calculate_box_mask_gaussian",
      name=f"{FILE}/{output}",
      call=call,
      inputs=inputs,
      value=arrays[key],
      **TOLERANCE,
    )


def _response(arrays) -> Iterator[Check]:
  mask = jnp.asarray(arrays["response_out_gaussian_mask"])
  heads = {
    who: {
      f"{who}_{part}_{task}": _last(arrays[f"response_in_{who}_{task}_{part}"])
      for task in ("task0", "task1")
      for part in ("hm", *REGRESSED)
    }
    for who in ("student", "teacher")
  }
  inputs = heads["student"] | heads["teacher"]

  def joined(given, who, parts):
    return jnp.concatenate(
      [given[k] for k in heads[who] if k.split("_")[1] in parts], -1
    )

  def classes(least=1e-4, **given):
    certain = joined(given, "teacher", ("hm",)) / 2
    certain = jnp.clip(jax.nn.sigmoid(certain), least, 1 - least)
    student = joined(given, "student", ("hm",))
    return losses.foreground_l1(
      student.max(-1, keepdims=True), certain.max(-1, keepdims=True), mask
    )

  def regression(**given):
    return losses.foreground_l1(
      joined(given, "student", REGRESSED),
      joined(given, "teacher", REGRESSED),
      mask,
    )

  for output, call, part in (
    ("loss_cls", classes, "hm"),
    ("loss_cls_fusion_variant", lambda **given: classes(1e-3, **given), None),
    ("loss_reg", regression, "reg"),
  ):
    yield Check(
      loss="foreground_l1",
      source=SOURCE + "ResponseDistillLoss",
      name=f"{FILE}/response/{output}",
      call=call,
      inputs=inputs,
      value=arrays[f"response_out_{output}"],
      gradients={
        f"student_{part}_{task}": _last(
          arrays[f"response_grad_student_{task}_{part}"]
        )
        for task in ("task0", "task1")
        if part
      },
      **TOLERANCE,
    )
