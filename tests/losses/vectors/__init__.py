"""Reference vectors of the losses, one family a file, and how they are run.

Every module of this package has `checks() -> Iterable[Check]`. A check says
which public loss it proves, how the reference's convention becomes a call of
ours, and what the reference gave. `test_vectors.py` runs every check plainly,
under jit and under vmap; `table.py` writes the worst errors into the docs.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
  """One output of a reference implementation.

  Attributes:
    loss: public name in `jaxkd.losses` or `jaxkd.nets`.
    source: whose code computed it, such as `megvii-research/mdistiller@a08d46f
      KD.py:kd_loss`; `formula` where it was computed from the paper's text.
    name: unique: golden file, case and output.
    call: `call(**inputs)` gives what the reference gave; the conversion of
      conventions is written here.
    inputs: float arrays by argument.
    value: what the reference gave, a scalar or an array.
    gradients: of the value, or of its sum, by argument; {} if the reference
      has none.
    rtol: relative tolerance of the value, as the golden file's note states.
    atol: absolute tolerance of the value.
    gradient_rtol: relative tolerance of the gradients.
    gradient_atol: absolute tolerance of the gradients.
    batched: whether it runs under vmap; False needs a reason beside it.
  """

  loss: str
  source: str
  name: str
  call: Callable[..., Array]
  inputs: Mapping[str, np.ndarray]
  value: np.ndarray
  gradients: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  rtol: float = 1e-5
  atol: float = 1e-6
  gradient_rtol: float = 1e-4
  gradient_atol: float = 1e-6
  batched: bool = True

  def run(self, how: str = "plain") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The value and the gradients of ours.

    Args:
      how: `plain`, `jit`, or `vmap` (compiled, beside a second example).

    Returns:
      The value and the gradients by argument, as the reference has them.
    """
    watched = {name: jnp.asarray(self.inputs[name]) for name in self.gradients}
    rest = {
      name: jnp.asarray(array)
      for name, array in self.inputs.items()
      if name not in watched
    }

    def both(watched, rest):
      def total(watched):
        value = self.call(**watched, **rest)
        return jnp.sum(value), value

      if not watched:
        return total(watched)[1], {}
      gradients, value = jax.grad(total, has_aux=True)(watched)
      return value, gradients

    if how == "vmap":
      doubled = jax.tree.map(
        lambda x: jnp.stack([x, jnp.roll(x, 1, axis=-1) if x.ndim else x]),
        (watched, rest),
      )
      answer = jax.jit(jax.vmap(both))(*doubled)
      return jax.tree.map(lambda x: np.asarray(x[0]), answer)
    run = jax.jit(both) if how == "jit" else both
    return jax.tree.map(np.asarray, run(watched, rest))

  def error(self) -> float:
    """Worst error of value and gradients, relative to their largest entry."""
    value, gradients = self.run("jit")
    pairs = [(value, self.value)]
    pairs += [(gradients[name], g) for name, g in self.gradients.items()]
    return max(_relative(ours, theirs) for ours, theirs in pairs)


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
  theirs = np.asarray(theirs, np.float64)
  scale = np.max(np.abs(theirs), initial=0.0)
  gap = np.max(np.abs(np.asarray(ours, np.float64) - theirs), initial=0.0)
  return float(gap / scale) if scale > 1e-6 else float(gap)


def all_checks() -> Iterator[Check]:
  """The checks of all families."""
  for module in pkgutil.iter_modules(__path__):
    yield from importlib.import_module(f"{__name__}.{module.name}").checks()
