"""Numbers about a network that works with any subset of its modalities.

A combination is a row of 0 and 1, one entry for each of M modalities; its name
joins the names of the modalities that are there by `+`. Conventions are those
of `jaxkd.evaluation.classification`.

Reference: https://arxiv.org/abs/2304.08028
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.evaluation import classification


def modality_combinations(count: int) -> np.ndarray:
  """Returns int32 [2^M - 1, M]: all subsets but the empty one.

  Single modalities come first, then pairs, and all of them last; of one size,
  those with the first modalities come first.

  Args:
    count: M, at least 1.

  Raises:
    RefusedInput: there is no modality.
  """
  if count < 1:
    raise RefusedInput(f"{count} modalities, expected at least 1")
  chosen = [
    subset
    for size in range(1, count + 1)
    for subset in itertools.combinations(range(count), size)
  ]
  return np.array(
    [[m in subset for m in range(count)] for subset in chosen], np.int32
  )


def combination_name(modalities: Sequence[str], combination: Any) -> str:
  """Returns the names of the modalities that are there, joined by `+`.

  Args:
    modalities: M names.
    combination: [M], 0 or 1.

  Raises:
    RefusedInput: there is not one entry for every modality.
  """
  row = np.asarray(combination)
  if row.shape != (len(modalities),):
    raise RefusedInput(
      f"combination has shape {row.shape}, expected ({len(modalities)},)"
    )
  return "+".join(
    name for name, here in zip(modalities, row, strict=True) if here
  )


def subset_accuracies(
  logits: Mapping[str, Any],
  labels: Any,
  modalities: Sequence[str],
  mask: Any = None,
) -> dict[str, float]:
  """Returns the accuracy for every combination, and their plain mean.

  Args:
    logits: [..., C] by the name of the combination that gave them.
    labels: [...] integers in [0, C); what is masked may be anything.
    modalities: M names in the order of the combinations.
    mask: [...] 0 marks the examples left out.

  Returns:
    Accuracies in [0, 1] by name, in the order of `modality_combinations`, and
    `mean` last.

  Raises:
    RefusedInput: a combination lacks logits, there are others, or shapes do
      not fit.
  """
  rows = modality_combinations(len(modalities))
  names = [combination_name(modalities, row) for row in rows]
  if set(names) != set(logits):
    raise RefusedInput(
      f"logits of {', '.join(sorted(logits))}, expected those of "
      + ", ".join(names)
    )
  y = np.asarray(labels)
  keep = classification.kept(mask, y.shape)
  found = {}
  for name in names:
    z = np.asarray(logits[name])
    if z.shape[:-1] != y.shape:
      raise RefusedInput(
        f"logits of {name} have shape {z.shape} and labels {y.shape}, expected"
        " [..., classes] and [...]"
      )
    right = classification.accuracy(z[keep], y[keep])
    found[name] = float(right.mean()) if right.size else float("nan")
  return {**found, "mean": float(np.mean(list(found.values())))}


def weak_set(divergence: Any, candidates: Any) -> np.ndarray:
  """Returns int32 [1 + n, M]: the weakest combination and its n modalities.

  Args:
    divergence: [W], of each candidate, summed over epochs; the first of equal
      ones wins.
    candidates: [W, M], such as all pairs. Of a single modality there is
      nothing to add.

  Raises:
    RefusedInput: the shapes do not fit, or a divergence is not finite.
  """
  d, rows = np.asarray(divergence, np.float64), np.asarray(candidates)
  if rows.ndim != 2 or d.shape != rows.shape[:1] or not d.size:
    raise RefusedInput(
      f"divergences have shape {d.shape} and candidates {rows.shape}, expected"
      " [W] and [W, M]"
    )
  if not np.isfinite(d).all():
    raise RefusedInput(f"divergences {d.tolist()}, expected finite numbers")
  weakest = (rows[d.argmax()] != 0).astype(np.int32)
  if weakest.sum() == 1:
    return weakest[None]
  single = np.eye(len(weakest), dtype=np.int32)[weakest > 0]
  return np.concatenate([weakest[None], single])
