"""Subclasses: what their targets do not see, and how they sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses

RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(6, 2)).astype(np.float32)
EMBEDDINGS = RANDOM.normal(size=(30, 6)).astype(np.float32)
LABELS = np.arange(30, dtype=np.int32) % 2


def _directions(**options):
  return losses.subclass_directions(
    EMBEDDINGS, LABELS, classes=2, subclasses=3, kernel=KERNEL, **options
  )


def _targets(embeddings, **options):
  return losses.subclass_log_probs(
    embeddings @ KERNEL, embeddings, _directions(), kernel=KERNEL, **options
  )


def test_the_projector_hides_what_the_last_layer_sees():
  projector = losses.null_projector(KERNEL)
  np.testing.assert_allclose(projector @ KERNEL, 0, atol=1e-5)
  np.testing.assert_allclose(projector @ projector, projector, atol=1e-5)


def test_directions_are_orthonormal_and_of_descending_variance():
  found = _directions()
  gram = jnp.einsum("cds,cdt->cst", found.directions, found.directions)
  np.testing.assert_allclose(gram, np.stack([np.eye(3)] * 2), atol=1e-5)
  assert (jnp.diff(found.variances) <= 0).all()


def test_subclasses_sum_to_the_class():
  log_p = _targets(EMBEDDINGS, temperature=2.0)
  sums = jnp.exp(log_p).reshape(30, 2, 3).sum(-1)
  expected = jax.nn.softmax(EMBEDDINGS @ KERNEL / 2.0)
  np.testing.assert_allclose(sums, expected, rtol=1e-5)


def test_a_move_that_the_last_layer_sees_leaves_the_subclasses():
  moved = EMBEDDINGS + np.array([[0.5, -1.0]], np.float32) @ KERNEL.T

  def within(embeddings):
    log_p = _targets(embeddings).reshape(30, 2, 3)
    return jax.nn.log_softmax(log_p)

  np.testing.assert_allclose(within(moved), within(EMBEDDINGS), atol=1e-4)


def test_a_rotation_keeps_the_plane_of_the_directions():
  found = _directions()
  rotations = jnp.stack([jnp.eye(3)[::-1]] * 2)
  rotated = found.rotated(rotations)
  np.testing.assert_allclose(rotated.directions, found.directions[..., ::-1])


def test_the_sum_of_subclasses_decides_not_the_largest_of_them():
  student = jnp.log(jnp.array([[0.4, 0.0, 0.3, 0.3]]) + 1e-9)
  assert jnp.argmax(student) // 2 == 0
  assert jnp.argmax(losses.class_log_probs(student, 2)) == 1


def test_a_number_of_subclasses_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match="5 logits, subclasses=2; expected"):
    losses.class_log_probs(jnp.zeros((1, 5)), 2)


def test_logits_of_another_number_of_classes_are_refused():
  message = r"teacher logits \(30, 3\), embeddings \(30, 6\), 2 classes"
  with pytest.raises(ValueError, match=message):
    losses.subclass_log_probs(
      jnp.zeros((30, 3)), EMBEDDINGS, _directions(), kernel=KERNEL
    )
