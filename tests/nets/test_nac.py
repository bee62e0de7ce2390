"""Modules of NAC: modulated maps, codes, read-in and read-out.

Golden file: kamanphoebe/m2mKD@067fa1f, float32; tolerance 1e-5 for outputs,
1e-4 for gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets
from tests import golden_tools
from tests.nets import filling, modular_maps

GOLDEN = golden_tools.load("m2mkd__nac_mediator")
MEDIATOR = golden_tools.section(GOLDEN, "mediator_")
IMAGE = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
NET = nets.ModularNAC(width=8, latents=5)


def _weights(arrays):
  return modular_maps.named(golden_tools.section(arrays, "param_"))


def _mediator():
  """A chain whose second module is the file's mediator, and its variables."""
  weights = _weights(MEDIATOR)
  heads = int(weights.pop("num_heads"))
  head_size = int(weights.pop("head_dim"))
  variables = modular_maps.scalar_gains(
    golden_tools.convert(weights, modular_maps.mediator("module1"))
  )
  variables["params"]["module1"]["block1"]["code"] = MEDIATOR["in_codes"]
  net = nets.ModularNAC(
    width=8,
    stitch_width=10,
    heads=heads,
    head_size=head_size,
    code_size=6,
    seed=None,
  )
  return net, variables


def _run(states):
  net, variables = _mediator()
  return net.apply(variables, states, index=1, method="module")


def test_a_modulated_map_equals_the_reference():
  arrays = golden_tools.section(GOLDEN, "modfc_")
  rules = modular_maps.modulated("", "")
  variables = modular_maps.scalar_gains(
    golden_tools.convert(_weights(arrays), rules)
  )
  net = nets.ModulatedLinear(features=3)
  ours = net.apply(variables, arrays["in_x"], arrays["in_codes"])
  np.testing.assert_allclose(ours, arrays["out"], rtol=1e-5, atol=1e-6)


def test_a_mediator_between_its_stitches_equals_the_reference():
  ours = jax.jit(_run)(MEDIATOR["in_states"])
  np.testing.assert_allclose(ours, MEDIATOR["out"], rtol=1e-5, atol=1e-6)


def test_the_gradient_through_a_mediator_equals_the_reference():
  total = lambda states: jnp.mean(_run(states) ** 2)
  slope = jax.jit(jax.grad(total))(MEDIATOR["in_states"])
  expected = MEDIATOR["grad_states_of_mean_square"]
  np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


def test_the_file_has_every_weight_of_a_mediator_and_no_other():
  net, variables = _mediator()
  shapes = jax.eval_shape(net.init, jax.random.key(0), IMAGE)["params"]
  ours = jax.tree.map(jnp.shape, variables["params"]["module1"])
  assert ours == jax.tree.map(jnp.shape, shapes["module1"])


@pytest.mark.parametrize("seed", [0, None])
def test_with_a_seed_codes_and_first_latents_are_no_weights(seed):
  net = NET.clone(seed=seed)
  shapes = jax.eval_shape(net.init, jax.random.key(0), IMAGE)["params"]
  learned = {"module0/stem": 2, "module1/block1": 1, "module2/head": 2}
  for path, count in learned.items():
    module, layer = path.split("/")
    found = {"code", "latents"} & shapes[module][layer].keys()
    assert len(found) == (count if seed is None else 0)


def test_the_seed_alone_decides_codes_and_first_latents():
  net = nets.ReadOut(num_classes=3)
  states = jax.random.normal(jax.random.key(1), (2, 5, 8))
  variables = filling.random_variables(net, states)
  logits = [
    jax.jit(net.clone(seed=seed).apply)(variables, states) for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(logits[0], logits[1])
  assert float(jnp.abs(logits[0] - logits[2]).max()) > 1e-3


def test_modules_have_codes_of_their_own():
  mediators = [nets.Mediator(seed=NET.seed * 3 + i) for i in (1, 2)]
  states = jax.random.normal(jax.random.key(1), (2, 5, 8))
  variables = filling.random_variables(mediators[0], states)
  outputs = [jax.jit(net.apply)(variables, states) for net in mediators]
  assert float(jnp.abs(outputs[0] - outputs[1]).max()) > 1e-3
  chain = nets.ModularNAC(width=8, divided_depths=(0, 1, 1, 0))
  makers = [chain._block(index) for index in (1, 2)]
  assert makers[0].keywords["seed"] != makers[1].keywords["seed"]


def test_a_code_of_zeros_leaves_a_map_unmodulated():
  net = nets.ModulatedLinear(features=3)
  x = jax.random.normal(jax.random.key(2), (2, 4, 5))
  variables = filling.random_variables(net, x, jnp.zeros((1, 6)))
  params = variables["params"]
  expected = x @ params["kernel"] + params["bias"][None, None]
  ours = net.apply(variables, x, jnp.zeros((1, 6)))
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_read_in_and_read_out_have_the_documented_shapes_and_taps():
  states = jax.random.normal(jax.random.key(3), (2, 5, 8))
  for net, inputs, output, outer in (
    (nets.ReadIn(width=8, latents=5), IMAGE, (2, 5, 8), {"tokens"}),
    (nets.ReadOut(num_classes=3), states, (2, 3), {"head"}),
    (nets.Mediator(), states, (2, 5, 8), set()),
  ):
    variables = filling.random_variables(net, inputs)
    value, state = jax.eval_shape(
      lambda net=net, v=variables, x=inputs: net.apply(
        v, x, capture_intermediates=True, mutable=["intermediates"]
      )
    )
    assert value.shape == output
    taps = state["intermediates"].keys() - {"__call__"}
    assert taps == {"attention", "ffn"} | outer
    assert all(tap in type(net).__doc__ for tap in taps)


def test_latents_see_the_image():
  net = nets.ReadIn(width=8)
  variables = filling.random_variables(net, IMAGE)
  total = lambda image: jnp.sum(net.apply(variables, image)[..., 0])
  assert float(jnp.abs(jax.jit(jax.grad(total))(IMAGE)).min()) > 0
