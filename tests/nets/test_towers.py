"""Two towers: RepBlend's head by its vectors, common space, zero-shot use."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.network import Network
from tests import golden_tools as tools
from tests.nets import filling

HEADS = tools.load("repblend__head_and_blend")
HEAD_MAP = (
  *tools.layer("(projection|fc)", r"\1", tools.linear),
  tools.Rule(r"layer_norm\.weight", "params/norm/scale"),
  tools.Rule(r"layer_norm\.bias", "params/norm/bias"),
)
IMAGE = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
TEXT = jnp.array([[5, 6, 0], [7, 0, 0], [8, 9, 4], [5, 2, 3]])
TOWERS = nets.TwoTowers(
  image=nets.ImageTower(features=8, widths=(4, 6)),
  text=nets.TextTower(features=8, width=10, vocabulary=12),
)


def _variables(net, *inputs):
  return filling.random_variables(net, *inputs)


def _apply(net, variables, *inputs, **options):
  return jax.jit(functools.partial(net.apply, **options))(variables, *inputs)


def _golden_head(i):
  a = tools.section(HEADS, f"head{i}_")
  weights = {
    f"{layer}.{kind}": a[f"weight_{layer}_{kind}"]
    for layer in ("projection", "fc", "layer_norm")
    for kind in ("weight", "bias")
  }
  return a, tools.convert(weights, HEAD_MAP)


@pytest.mark.parametrize("i", [0, 1])
def test_the_head_equals_the_released_one_in_value_and_gradient(i):
  a, variables = _golden_head(i)
  head = nets.ProjectionHead(features=a["out_y"].shape[-1])

  def total(x):
    y = head.apply(variables, x)
    return jnp.sum(y * a["in_cotangent"]), y

  gradient, value = jax.jit(jax.grad(total, has_aux=True))(a["in_x"])
  np.testing.assert_allclose(value, a["out_y"], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, a["grad_x"], rtol=1e-4, atol=1e-5)


def test_the_head_drops_out_in_training_alone():
  head, x = nets.ProjectionHead(features=64, dropout=0.5), jnp.ones((4, 5))
  variables = _variables(head, x)
  run = lambda train, key: head.apply(
    variables, x, train=train, rngs={"dropout": jax.random.key(key)}
  )
  np.testing.assert_array_equal(run(False, 0), run(False, 1))
  np.testing.assert_array_equal(run(True, 0), run(True, 0))
  assert float(jnp.abs(run(True, 0) - run(True, 1)).max()) > 0.01


def test_embeddings_have_length_one_and_logits_are_their_scaled_cosines():
  variables = _variables(TOWERS, IMAGE, TEXT)
  variables["params"]["log_scale"] = jnp.log(7.0)
  out = _apply(TOWERS, variables, IMAGE, TEXT)
  for way in ("image", "text"):
    lengths = np.linalg.norm(out[way], axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
  np.testing.assert_allclose(
    out["logits"], 7 * out["image"] @ out["text"].T, rtol=1e-4, atol=1e-5
  )
  assert out["logits"].shape == (3, 4)


def test_several_captions_of_an_image_are_beside_each_other():
  variables = _variables(TOWERS, IMAGE, TEXT)
  grouped = jnp.stack([TEXT, TEXT[::-1], TEXT])  # [3, 4, L]
  out = _apply(TOWERS, variables, IMAGE, grouped)
  assert out["text"].shape == (3, 4, 8)
  alone = _apply(TOWERS, variables, IMAGE, TEXT[::-1])["logits"]
  np.testing.assert_allclose(out["logits"][:, 4:8], alone, rtol=1e-5)


def test_padding_changes_nothing_and_order_neither():
  variables = _variables(TOWERS, IMAGE, TEXT)
  encode = lambda text: _apply(
    TOWERS, variables, jnp.array(text), method="encode_text"
  )
  short = encode([[5, 6, 7]])
  np.testing.assert_allclose(encode([[5, 6, 7, 0, 0]]), short, rtol=1e-5)
  np.testing.assert_allclose(encode([[0, 7, 5, 6]]), short, rtol=1e-4)
  assert np.isfinite(encode([[0, 0]])).all()


@pytest.mark.parametrize("learned", [True, False])
def test_the_scale_starts_as_given_and_is_learned_on_request(learned):
  net = nets.TwoTowers(
    image=nets.ProjectionHead(features=4),
    text=nets.TextTower(features=4, width=4, vocabulary=12),
    scale=5.0,
    learned_scale=learned,
  )
  run = jax.jit(functools.partial(net.init_with_output, jax.random.key(0)))
  out, variables = run(TEXT[:2] * 1.0, TEXT)
  expected = 5 * out["image"] @ out["text"].T
  np.testing.assert_allclose(out["logits"], expected, rtol=1e-4, atol=1e-5)
  assert ("log_scale" in variables["params"]) == learned


def test_the_learned_scale_stays_at_most_100():
  variables = _variables(TOWERS, IMAGE, TEXT)
  variables["params"]["log_scale"] = jnp.asarray(9.0)
  out = _apply(TOWERS, variables, IMAGE, TEXT)
  expected = 100 * out["image"] @ out["text"].T
  np.testing.assert_allclose(out["logits"], expected, rtol=1e-4, atol=1e-3)


CLASSES = jnp.array([[[5, 6, 0], [6, 7, 0]], [[8, 0, 0], [9, 4, 0]]])


def test_classes_are_the_mean_embeddings_of_their_texts():
  variables = _variables(TOWERS, IMAGE, TEXT)
  variables["params"]["log_scale"] = jnp.log(3.0)
  logits = _apply(TOWERS, variables, IMAGE, CLASSES, method="classify")
  image = _apply(TOWERS, variables, IMAGE, method="encode_image")
  names = _apply(TOWERS, variables, CLASSES, method="encode_text").mean(1)
  names /= jnp.linalg.norm(names, axis=-1, keepdims=True)
  np.testing.assert_allclose(logits, 3 * image @ names.T, rtol=1e-4, atol=1e-5)


def test_a_prototype_classifier_of_the_image_tower_classifies_as_both():
  variables = _variables(TOWERS, IMAGE, TEXT)
  variables["params"]["log_scale"] = jnp.log(100.0)
  names = _apply(TOWERS, variables, CLASSES, method="encode_text").mean(1)
  teacher = nets.PrototypeClassifier(encoder=TOWERS.image, num_classes=2)
  frozen = {
    "params": {"encoder": variables["params"]["image"], "prototypes": names},
    "batch_stats": {"encoder": variables["batch_stats"]["image"]},
  }
  found, _ = Network(teacher).apply(frozen, {"image": IMAGE})
  expected = _apply(TOWERS, variables, IMAGE, CLASSES, method="classify")
  np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-4)


STAGES = [
  f"{stage}{part}"
  for stage in ("stage1", "stage2")
  for part in ("", "/conv", "/norm")
]
TOWER_TAPS = [*STAGES, "pooled", "projection"]
TEXT_TAPS = ["words", "fc", "projection"]
TAPS = {
  "ProjectionHead": (
    nets.ProjectionHead(features=4),
    (TEXT * 1.0,),
    ["projection", "fc", "dropout", "norm"],
  ),
  "ImageTower": (TOWERS.image, (IMAGE,), TOWER_TAPS),
  "TextTower": (TOWERS.text, (TEXT,), TEXT_TAPS),
  "TwoTowers": (
    TOWERS,
    (IMAGE, TEXT),
    [
      *("image", "text"),
      *(f"image/{tap}" for tap in TOWER_TAPS),
      *(f"text/{tap}" for tap in TEXT_TAPS),
    ],
  ),
  "PrototypeClassifier": (
    nets.PrototypeClassifier(encoder=TOWERS.image),
    (IMAGE,),
    ["encoder", *(f"encoder/{tap}" for tap in TOWER_TAPS)],
  ),
}


@pytest.mark.parametrize("name", TAPS)
def test_tap_paths_are_exactly_the_documented_ones(name):
  net, inputs, paths = TAPS[name]
  shapes = jax.eval_shape(
    lambda: net.init_with_output(
      jax.random.key(0), *inputs, capture_intermediates=True
    )[1]["intermediates"]
  )
  flat = flax.traverse_util.flatten_dict(shapes, sep="/")
  found = {p.removesuffix("/__call__") for p in flat if p.endswith("__call__")}
  assert found - {"__call__"} == set(paths)
  documented = type(net).__doc__
  assert all(path.split("/")[0].rstrip("12") in documented for path in paths)


def test_every_weight_learns_from_a_contrast_of_pairs():
  variables = _variables(TOWERS, IMAGE, TEXT[:3])

  def loss(params):
    out, _ = TOWERS.apply(
      {**variables, "params": params},
      IMAGE,
      TEXT[:3],
      train=True,
      mutable=["batch_stats"],
    )
    return -jnp.diagonal(jax.nn.log_softmax(out["logits"])).mean()

  slopes = jax.jit(jax.grad(loss))(variables["params"])
  for path, slope in flax.traverse_util.flatten_dict(slopes).items():
    assert np.isfinite(slope).all(), path
    assert float(jnp.abs(slope).max()) > 0, path
