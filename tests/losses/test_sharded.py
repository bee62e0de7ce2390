"""Classes on eight devices give the value and gradients of the dense form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxkd import losses

FAMILY = (
  losses.KL(),
  losses.ReverseKL(),
  losses.JSD(0.1),
  losses.SkewKL(),
  losses.AdaptiveKL(),
  losses.TotalVariation(),
  losses.RenyiDivergence(),
)
EVERY = pytest.mark.parametrize("divergence", FAMILY, ids=lambda d: d.name)


@functools.cache
def _mesh(data, tensor):
  return jax.make_mesh(
    (data, tensor),
    ("data", "tensor"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[: data * tensor],
  )


def _logits(*shape, scale=2.0):
  keys = jax.random.split(jax.random.key(sum(shape)))
  return tuple(scale * jax.random.normal(key, shape) for key in keys)


def _agree(divergence, student, teacher, mesh, **options):
  """Compares values and both gradients; returns the sharded function."""

  def sharded(student, teacher):
    return losses.sharded_divergence(
      divergence, student, teacher, mesh=mesh, **options
    )

  def dense(student, teacher):
    return divergence(student, teacher, **options)

  for ours, expected in zip(
    *(
      jax.jit(
        lambda *x, f=f: (f(*x), jax.grad(lambda *y: f(*y).sum(), (0, 1))(*x))
      )(student, teacher)
      for f in (sharded, dense)
    ),
    strict=True,
  ):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
      ours,
      expected,
    )
  return sharded


@EVERY
def test_eight_devices_equal_one(divergence):
  pair = _logits(3, 24)
  options = {"temperature": 2.0, "where": jnp.array([1, 0, 1])}
  _agree(divergence, *pair, _mesh(1, 8), **options)


@pytest.mark.slow  # compiles the family once more
@EVERY
def test_so_they_do_with_caps_standardized_logits_and_padding(divergence):
  student, teacher = _logits(3, 24)
  options = {"soft_cap": (5.0, 4.0), "standardize": True, "vocab_size": 13}
  _agree(divergence, student, teacher, _mesh(1, 8), **options)


@pytest.mark.parametrize(("ours", "theirs"), [(16, 24), (21, 13), (13, 13)])
def test_unequal_padding_that_no_device_count_divides_is_masked(ours, theirs):
  student, teacher = _logits(3, 24)
  student, teacher = student[:, :ours], teacher[:, :theirs]
  student = student.at[:, 13:].set(jnp.nan)
  _agree(losses.kl, student, teacher, _mesh(1, 8), vocab_size=13)


def test_sequences_and_a_temperature_per_token():
  pair = _logits(2, 3, 16)
  temperature = 1 + jnp.arange(6.0).reshape(2, 3)
  _agree(losses.kl, *pair, _mesh(1, 8), temperature=temperature)


def test_slices_stay_on_their_devices_and_the_batch_on_its_own():
  mesh = _mesh(2, 4)
  placed = [
    jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "tensor")))
    for x in _logits(4, 16)
  ]
  sharded = _agree(losses.kl, *placed, mesh)
  run = jax.jit(jax.value_and_grad(lambda *x: sharded(*x).sum()))
  text = run.lower(*placed).compile().as_text()
  assert "all-gather" not in text
  assert "all-to-all" not in text
  _, gradient = run(*placed)
  assert gradient.sharding.spec == PartitionSpec("data", "tensor")
  values = jax.jit(sharded)(*placed)
  assert values.sharding.spec == PartitionSpec("data")


def test_the_same_is_written_inside_of_a_shard_map():
  student, teacher = _logits(3, 16)
  slices = PartitionSpec(None, "tensor")

  def mean(student, teacher):
    over = losses.over_axis("tensor")
    log_q, log_p = (
      losses.log_probabilities(x, 2.0, over=over) for x in (student, teacher)
    )
    return 4.0 * losses.kl.evaluate(log_p, log_q, over).mean()

  run = jax.shard_map(
    jax.value_and_grad(mean),  # inside, where every device has its slice
    mesh=_mesh(1, 8),
    in_specs=(slices, slices),
    out_specs=(PartitionSpec(), slices),
  )
  value, gradient = jax.jit(run)(student, teacher)
  dense = jax.value_and_grad(
    lambda s: losses.kl(s, teacher, temperature=2.0).mean()
  )
  expected, slope = dense(student)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_one_device_and_no_jit_do_as_well():
  student, teacher = _logits(3, 5)
  value = losses.sharded_divergence(
    losses.kl, student, teacher, mesh=_mesh(1, 1)
  )
  np.testing.assert_allclose(value, losses.kl(student, teacher), rtol=1e-6)


def test_huge_and_absent_classes_are_finite():
  student, teacher = (1e4 * jnp.sign(x) for x in _logits(3, 16))
  student, teacher = (
    x.at[:, 5:9].set(-jnp.inf).at[1].set(-jnp.inf) for x in (student, teacher)
  )
  for divergence in FAMILY:

    def total(student, divergence=divergence):
      return losses.sharded_divergence(
        divergence, student, teacher, mesh=_mesh(1, 8)
      ).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(student)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


# What is refused.


def _refused(message, shapes=((2, 8), (2, 8)), **options):
  student, teacher = (jnp.ones(shape) for shape in shapes)
  with pytest.raises(ValueError, match=message):
    losses.sharded_divergence(
      losses.kl, student, teacher, mesh=_mesh(1, 2), **options
    )


def test_arguments_that_do_not_fit_are_refused():
  _refused("axis_name='model'; expected one of data, tensor", axis_name="model")
  _refused("KL: 8 student classes and 6 teacher", shapes=((2, 8), (2, 6)))
  _refused(
    "vocab_size=7; expected 1 to 6, the teacher's",
    shapes=((2, 8), (2, 6)),
    vocab_size=7,
  )
  _refused("KL: temperature=0; expected a value above 0", temperature=0)
  _refused(r"KL: where \(3,\); expected \(2,\)", where=jnp.ones(3))
  _refused(
    r"KL: student logits \(2, 8\), teacher logits \(8,\)", shapes=((2, 8), (8,))
  )
  top = losses.TopK.of(jnp.ones((2, 8)), 2)
  with pytest.raises(ValueError, match="KL: needs access 'white' to the teac"):
    losses.sharded_divergence(
      losses.kl, jnp.ones((2, 8)), top, mesh=_mesh(1, 2)
    )
