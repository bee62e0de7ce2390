"""Loading: every tensor of a checkpoint into its place in a network.

A checkpoint is first held against the variables that are wanted, by names,
shapes and dtypes alone; one error tells all that does not fit. Then one tensor
after the other is read, transposed, cast and put on its shards: beside the
shards the host holds one tensor. A stack of blocks is put together on the host,
shard by shard.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import RefusedInput, did_you_mean
from jaxkd.teachers import positions
from jaxkd.teachers.names import Place
from jaxkd.teachers.placing import Piece, assemble, kind_of
from jaxkd.teachers.tensors import Tensor

Variables = Mapping[str, Any]
_logger = logging.getLogger("jaxkd")
# Above that many comparisons no nearest names are looked for.
_COMPARISONS = 20_000


class Names(Protocol):
  """What a name map does."""

  def ignores(self, name: str) -> bool:
    """Whether a tensor of theirs holds nothing to load."""

  def ours(self, name: str) -> Place | None:
    """Where a tensor of theirs lies here."""

  def theirs(self, path: str, index: int | None = None) -> Place | None:
    """What they call a leaf of ours, or its entry."""


class OwnNames:
  """The name map of files that call tensors as we do."""

  def ignores(self, name: str) -> bool:
    """Nothing is left out."""
    del name
    return False

  def ours(self, name: str) -> Place:
    """The same path."""
    return Place(name, None)

  def theirs(self, path: str, index: int | None = None) -> Place | None:
    """The same name, for a whole leaf."""
    return Place(path, None) if index is None else None


def load(
  tensors: Mapping[str, Tensor],
  names: Names,
  like: Variables,
  *,
  dtype: Any = None,
  without: Sequence[str] = (),
  drawn: Sequence[str] = (),
  interpolated: Sequence[str] = (),
) -> dict[str, Any]:
  """Loads a checkpoint into the variables of a network.

  Args:
    tensors: by their names.
    names: where they lie.
    like: the variables, as arrays or `jax.ShapeDtypeStruct`s by collection;
      one with a sharding says where its leaf is put.
    dtype: of the leaves that are floating-point numbers; that of `like` if not
      given.
    without: parts of the network that it may lack on purpose, such as `head`:
      their tensors are then left out.
    drawn: parts that are not loaded, such as a `head` for other classes; paths
      without the collection.
    interpolated: leaves that are positions on a square grid, `stem/positions`,
      and are interpolated where the checkpoint has another one; which were is
      logged.

  Returns:
    Variables like `like`, without those that are to be drawn.

  Raises:
    RefusedInput: tensors are unused, missing, of another shape or kind. The
      message lists every one of them.
  """
  wanted = flax.traverse_util.flatten_dict(
    dict(like), sep="/", keep_empty_nodes=True
  )
  wanted = {p: x for p, x in wanted.items() if not _under(p, drawn)}
  leaves = {path: x for path, x in wanted.items() if hasattr(x, "shape")}
  started = random_streams(leaves)
  leaves = {path: x for path, x in leaves.items() if path not in started}
  absent = [p for p in without if not any(_under(x, [p]) for x in leaves)]
  paths = [path.partition("/")[2] for path in leaves]
  for part in interpolated:
    if part not in paths:
      raise RefusedInput(
        f"interpolated: the network has no {part!r}{did_you_mean(part, paths)}"
      )
  pieces = _plan(tensors, names, leaves, [*absent, *drawn], interpolated)
  loaded = dict(started)
  for path, parts in pieces.items():
    leaf = _typed(leaves[path], dtype)
    loaded[path] = assemble(parts, leaf)
  return flax.traverse_util.unflatten_dict(
    {path: loaded.get(path, empty) for path, empty in wanted.items()}, sep="/"
  )


def fingerprint(variables: Mapping[str, Any]) -> str:
  """A digest of names, shapes, dtypes and bytes.

  Args:
    variables: nested mappings of arrays, or the tensors of a file; one at a
      time is brought to the host.

  Returns:
    64 hexadecimal digits.
  """
  digest = hashlib.sha256()
  for path, leaf in sorted(_leaves(variables)):
    if hasattr(leaf, "read"):
      value = leaf.read()
    elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      value = np.asarray(jax.random.key_data(leaf))
    else:
      value = np.asarray(leaf)
    digest.update(f"{path!r} {value.dtype} {list(value.shape)}\n".encode())
    digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
  return digest.hexdigest()


def _leaves(
  tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, (*path, str(name)))
    else:
      yield (*path, str(name)), value


def random_streams(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Keys of random layers and the counts beside them, which begin anew.

  Args:
    leaves: of a network, by path.

  Returns:
    Those of them that are no weights, as they begin.
  """
  found = {}
  for path, leaf in leaves.items():
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      found[path] = jax.random.key(0)
      count = path.rpartition("/")[0] + "/count"
      if count in leaves:
        found[count] = jnp.zeros(leaves[count].shape, leaves[count].dtype)
  return found


def _plan(
  tensors: Mapping[str, Tensor],
  names: Names,
  leaves: Mapping[str, Any],
  left_out: Sequence[str],
  interpolated: Sequence[str],
) -> dict[str, list[Piece]]:
  """Finds the pieces of every leaf, or says all that does not fit."""
  pieces: dict[tuple[str, int | None], Piece] = {}
  unused: dict[str, Tensor] = {}
  wrong, changed = [], []
  for name, tensor in tensors.items():
    if names.ignores(name):
      continue
    place = names.ours(name)
    if place is not None and _under(place.name, left_out):
      continue
    if place is None or not _has(leaves, place):
      unused[name] = tensor
      continue
    leaf = leaves[place.name]
    if _under(place.name, interpolated):
      fitting = positions.resized(tensor, leaf.shape)
      if fitting is not None:
        sizes = f"{list(tensor.shape)} -> {list(leaf.shape)}"
        changed.append(f"interpolated: {name} {sizes}, for {place.name}")
        tensor = fitting
    piece = Piece(name, tensor, place.name, place.axes, place.index)
    first = pieces.setdefault((place.name, place.index), piece)
    if first is not piece and not _same(first.tensor, tensor):
      wrong.append(f"twice: {first.name} and {name} are both {place.name}")
    wrong += _misfit(piece, leaf)
  taken = {piece.tensor.storage for piece in pieces.values()} - {None}
  unused = {n: t for n, t in unused.items() if t.storage not in taken}
  missing = _missing(names, leaves, pieces)
  source = getattr(tensors, "source", "the checkpoint")
  if unused or missing or wrong:
    raise RefusedInput(
      _report(source, len(pieces), unused, missing, wrong, changed)
    )
  for line in changed:
    _logger.info("%s: %s", source, line)
  found: dict[str, list[Piece]] = {path: [] for path in leaves}
  for piece in pieces.values():
    found[piece.path].append(piece)
  return found


def _under(path: str, parts: Iterable[str]) -> bool:
  """Whether a path, without its collection, begins with one of these."""
  inner = path.partition("/")[2]
  return any(inner == part or inner.startswith(f"{part}/") for part in parts)


def _has(leaves: Mapping[str, Any], place: Place) -> bool:
  if place.name not in leaves:
    return False
  if place.index is None:
    return True
  shape = leaves[place.name].shape
  return bool(shape) and 0 <= place.index < shape[0]


def _same(first: Tensor, second: Tensor) -> bool:
  return first.storage is not None and first.storage == second.storage


def _misfit(piece: Piece, leaf: Any) -> list[str]:
  """What is wrong with a tensor's shape and kind, in words."""
  expected = tuple(leaf.shape if piece.index is None else leaf.shape[1:])
  axes, shape = piece.axes, piece.tensor.shape
  if axes is not None and len(axes) == len(expected):
    back = sorted(range(len(axes)), key=axes.__getitem__)
    expected = tuple(expected[axis] for axis in back)
  found = []
  if shape != expected or (axes is not None and len(axes) != len(shape)):
    line = (
      f"mis-shaped: {piece.name} is {list(shape)}, expected {list(expected)} "
      f"for {piece.path}"
    )
    if piece.path.endswith("positions") and positions.resized(
      piece.tensor, expected
    ):
      line += " (it can be `interpolated`)"
    found.append(line)
  if kind_of(piece.tensor.dtype) != kind_of(leaf.dtype):
    found.append(
      f"mistyped: {piece.name} is {piece.tensor.dtype}, expected "
      f"{jnp.dtype(leaf.dtype)} for {piece.path}"
    )
  return found


def _missing(
  names: Names,
  leaves: Mapping[str, Any],
  pieces: Iterable[tuple[str, int | None]],
) -> dict[str, str]:
  """Leaves, or entries, without a tensor: what they would be called."""
  there, found = set(pieces), {}
  stacked = {path for path, index in there if index is not None}
  for path, leaf in leaves.items():
    if path in stacked or names.theirs(path, 0) and not names.theirs(path):
      entries: Sequence[int | None] = range(leaf.shape[0])
    else:
      entries = (None,)
    for index in entries:
      if (path, index) not in there:
        place = names.theirs(path, index)
        ours = path if index is None else f"{path}[{index}]"
        found[ours] = place.name if place else ""
  return found


def _report(
  source: str,
  fitting: int,
  unused: Mapping[str, Tensor],
  missing: Mapping[str, str],
  wrong: Sequence[str],
  changed: Sequence[str],
) -> str:
  """All that does not fit, and what is changed so that it does, by name."""
  near = len(unused) * len(missing) <= _COMPARISONS
  called = [name for name in missing.values() if name]
  lines = [*wrong, *changed]
  for name, tensor in unused.items():
    guess = did_you_mean(name, called) if near else ""
    lines.append(f"unused: {name} {list(tensor.shape)}{guess}")
  for path, name in missing.items():
    guess = did_you_mean(name, unused) if near and name else ""
    what = f"{name}, for {path}" if name and name != path else path
    lines.append(f"missing: {what}{guess}")
  return (
    f"{source} does not fit the network: {fitting} tensors have a place, "
    f"{len(unused)} are unused, {len(missing)} are missing, {len(wrong)} have "
    "another shape, kind or a double:\n  " + "\n  ".join(lines)
  )


def _typed(leaf: Any, dtype: Any) -> jax.ShapeDtypeStruct:
  """The leaf, in the dtype that is asked for if it is floating-point."""
  floating = jnp.issubdtype(leaf.dtype, jnp.floating)
  wanted = dtype if dtype is not None and floating else leaf.dtype
  return jax.ShapeDtypeStruct(
    leaf.shape, jnp.dtype(wanted), sharding=getattr(leaf, "sharding", None)
  )
