"""Several teachers that stand as one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import Adapter, Probe, Variables
from jaxkd.errors import ConfigError
from jaxkd.network import Network, Outputs, Weights

Array = jax.Array
_MEANS = {
  "logits": losses.logit_mean,
  "probabilities": losses.probability_mean,
}


def Ensemble(
  members: Sequence[Network],
  *,
  combine: Literal["logits", "probabilities"] = "logits",
  weights: Sequence[float] | str | None = None,
) -> Network:
  """Several networks as one, whose logits are a mean of theirs.

  The members may read different batch entries, such as other modalities of the
  same examples. Their variables lie under `member_1`, `member_2`, ... of every
  collection; taps and edits reach into them by the same names, and `member_1`
  alone is what the first returned. Members that have weights are loaded, the
  others are drawn.

  Args:
    members: networks with logits of one shape, [B, ..., C].
    combine: `logits`, or `probabilities`: the logarithm of the mean of the
      softmaxes.
    weights: of the members: numbers, equal if not given; or the name of a batch
      entry that holds them for every example, [B, members], or the number of
      the member to be asked, integers [B] from 0.

  Returns:
    A network that returns logits [B, ..., C], float32 at least.

  Raises:
    ConfigError: if there are fewer than two members, or the weights do not
      fit them.
  """
  members = tuple(members)
  if len(members) < 2:
    raise ConfigError(f"Ensemble: {len(members)} members; expected 2 or more")
  if combine not in _MEANS:
    raise ConfigError(
      f"Ensemble: combine={combine!r}; expected one of {', '.join(_MEANS)}"
    )
  if weights is not None and not isinstance(weights, str):
    weights = tuple(float(weight) for weight in weights)
    if len(weights) != len(members) or min(weights) < 0 or not sum(weights):
      raise ConfigError(
        f"Ensemble: weights={weights}; expected {len(members)} numbers of at "
        "least 0, one of them above"
      )
  sources = tuple(member.weights for member in members)
  joint = Joint(members, combine, weights)
  loaded = (
    JointWeights(sources)
    if any(source is not None for source in sources)
    else None
  )
  return Network(joint, joint.inputs, loaded)


def _name(index: int) -> str:
  return f"member_{index + 1}"


@dataclasses.dataclass(frozen=True)
class Joint(Adapter):
  """Runs the members of an ensemble side by side; see `Ensemble`."""

  members: tuple[Network, ...]
  combine: str
  weights: tuple[float, ...] | str | None

  @property
  def inputs(self) -> tuple[str, ...]:
    """All that the members read, and the weights if they are an entry."""
    names = [name for member in self.members for name in member.inputs]
    if isinstance(self.weights, str):
      names.append(self.weights)
    return tuple(dict.fromkeys(names))

  def init(self, rng: Array, inputs: Sequence[Any]) -> Variables:
    """Returns fresh variables by collection, then by member."""
    batch = dict(zip(self.inputs, inputs, strict=True))
    drawn = {
      _name(index): member.init(jax.random.fold_in(rng, index), batch)
      for index, member in enumerate(self.members)
    }
    return _by_collection(drawn)

  def apply(
    self,
    variables: Variables,
    inputs: Sequence[Any],
    *,
    train: bool,
    rngs: Mapping[str, Array],
    probe: Probe,
    method: str | None,
  ) -> tuple[Any, Variables]:
    """Returns the logits and the collections that the pass changed."""
    if method is not None:
      raise ConfigError(f"method={method!r}: an ensemble has no methods")
    batch = dict(zip(self.inputs, inputs, strict=True))
    logits, after = [], {}
    for index, member in enumerate(self.members):
      name = _name(index)
      own = _of_member(variables, name)
      inside = _inside(probe, name)
      value, changed = member.adapter.apply(
        own,
        [batch[entry] for entry in member.inputs],
        train=train,
        rngs={k: jax.random.fold_in(key, index) for k, key in rngs.items()},
        probe=inside,
        method=None,
      )
      _take_over(probe, inside, name)
      logits.append(Outputs(probe.visit(name, value)).logits)
      own = {k: v for k, v in own.items() if k != "params"}
      after[name] = {**own, **changed} if train else {}
    return self._mean(logits, batch), _by_collection(after)

  def _mean(self, logits: list[Array], batch: Mapping[str, Array]) -> Array:
    shapes = [jnp.shape(one) for one in logits]
    if len(set(shapes)) > 1:
      raise ConfigError(
        f"Ensemble: the members' logits are {shapes}; expected one shape"
      )
    stacked = jnp.stack(logits)
    weights = self.weights
    if isinstance(weights, str):
      weights = self._of_examples(weights, batch[weights], stacked)
    elif weights is not None:
      weights = jnp.asarray(weights)
    return _MEANS[self.combine](stacked, weights=weights)

  def _of_examples(self, name: str, given: Array, stacked: Array) -> Array:
    """Weights [members, B, ...] from a batch entry."""
    count, size = stacked.shape[:2]
    if jnp.issubdtype(given.dtype, jnp.integer) and given.shape == (size,):
      given = jax.nn.one_hot(given, count)
    if given.shape != (size, count):
      raise ConfigError(
        f"Ensemble: batch entry {name!r} is {given.dtype}{list(given.shape)}; "
        f"expected weights [{size}, {count}], or integers [{size}]"
      )
    inner = (1,) * (stacked.ndim - 3)
    weights = given.T.reshape(count, size, *inner)
    return jnp.broadcast_to(weights, stacked.shape[:-1])


def _by_collection(trees: Mapping[str, Variables]) -> dict[str, Any]:
  """Variables by member as variables by collection."""
  found: dict[str, Any] = {}
  for name, variables in trees.items():
    for collection, tree in variables.items():
      found.setdefault(collection, {})[name] = tree
  return found


def _of_member(variables: Variables, name: str) -> dict[str, Any]:
  return {
    collection: tree[name]
    for collection, tree in variables.items()
    if name in tree
  }


def _inside(probe: Probe, name: str) -> Probe:
  """The taps and edits below a member."""
  start = f"{name}/"
  return Probe(
    [tap.removeprefix(start) for tap in probe.taps if tap.startswith(start)],
    {
      path.removeprefix(start): edit
      for path, edit in probe.edits.items()
      if path.startswith(start)
    },
  )


def _take_over(probe: Probe, inside: Probe, name: str) -> None:
  probe.seen.update({f"{name}/{p}": x for p, x in inside.seen.items()})
  probe.taken.update({f"{name}/{p}": x for p, x in inside.taken.items()})


@dataclasses.dataclass(frozen=True)
class JointWeights:
  """The weights of an ensemble's members.

  Attributes:
    members: theirs, in order; None for one that is drawn.
  """

  members: tuple[Weights | None, ...]

  @property
  def dtype(self) -> str | None:
    """That in which all members keep their leaves; None if they differ."""
    kept = {getattr(weights, "dtype", None) for weights in self.members}
    return kept.pop() if len(kept) == 1 else None

  def load(self, like: Variables) -> dict[str, Any]:
    """Loads all members, one after the other."""
    return _by_collection(
      {
        _name(index): weights.load(_of_member(like, _name(index)))
        for index, weights in enumerate(self.members)
        if weights is not None
      }
    )

  def fingerprint(self) -> str:
    """A digest of the members' digests, in their order."""
    digests = [
      weights.fingerprint() if weights is not None else "drawn"
      for weights in self.members
    ]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
