"""Retrieval between images and texts, from a matrix of scores.

Everything is NumPy in float64 on the host. Shapes: N images, M texts. An image
and a text belong together where they have the same id: an image may have
several captions, and a caption several images. What is asked for is found at k
if it is among the k best; of what has the same score, what does not belong is
ranked first, so that scores that tell nothing apart find nothing. A score of
nan is the lowest.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxkd.errors import ConfigError, RefusedInput


def recall_at(scores: Any, relevant: Any, k: int) -> np.ndarray:
  """Returns [Q] 1.0 where one of the k best items is relevant, else 0.0.

  Args:
    scores: [Q, M] of Q queries and M items, higher is better.
    relevant: [Q, M] booleans; every query has a relevant item.
    k: how many items are looked at; all, if there are no more.

  Raises:
    RefusedInput: the shapes differ, a query has no relevant item, or k < 1.
  """
  if k < 1:
    raise RefusedInput(f"recall at {k}, expected at 1 or more")
  return (_rank(scores, relevant) < k).astype(np.float64)


def retrieval(
  scores: Any,
  image_ids: Any,
  text_ids: Any,
  *,
  at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
  """Returns the recalls both ways, in [0, 1].

  Args:
    scores: [N, M], higher is more alike.
    image_ids: [N] integers.
    text_ids: [M] integers.
    at: the k's.

  Returns:
    `image_to_text_<k>`, the share of images of which a caption is among the k
    best texts; `text_to_image_<k>`, the share of texts of which an image is
    among the k best images; their means over k, `image_to_text_mean` and
    `text_to_image_mean`; and `mean`, over both.

  Raises:
    RefusedInput: the shapes do not belong together, an id has no counterpart,
      or there is no k, or one below 1.
  """
  scores = np.asarray(scores)
  images, texts = np.asarray(image_ids), np.asarray(text_ids)
  if scores.shape != (*images.shape, *texts.shape) or scores.ndim != 2:
    raise RefusedInput(
      f"scores have shape {scores.shape}, image ids {images.shape} and text"
      f" ids {texts.shape}, expected [images, texts], [images] and [texts]"
    )
  if not at or min(at) < 1:
    raise RefusedInput(f"recall at {tuple(at)}, expected at 1 or more")
  together = images[:, None] == texts
  found, means = {}, []
  for way, s, relevant in (
    ("image_to_text", scores, together),
    ("text_to_image", scores.T, together.T),
  ):
    rank = _rank(s, relevant)
    recalls = {f"{way}_{k}": float((rank < k).mean()) for k in at}
    means.append(float(np.mean(list(recalls.values()))))
    found |= {**recalls, f"{way}_mean": means[-1]}
  return {**found, "mean": float(np.mean(means))}


def _rank(scores: Any, relevant: Any) -> np.ndarray:
  """Returns [Q]: how many irrelevant items come before the best relevant."""
  scores = np.asarray(scores).astype(np.float64)
  relevant = np.asarray(relevant).astype(bool)
  if scores.ndim != 2 or scores.shape != relevant.shape:
    raise RefusedInput(
      f"scores have shape {scores.shape} and relevance {relevant.shape},"
      " expected equal shapes [queries, items]"
    )
  alone = np.flatnonzero(~relevant.any(axis=1))
  if alone.size or not len(scores):
    which = f"query {alone[0]} has" if alone.size else "no query, thus"
    raise RefusedInput(f"{which} no relevant item, expected one or more")
  scores = np.where(np.isnan(scores), -np.inf, scores)
  best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
  return ((scores >= best) & ~relevant).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Recalls both ways between images and their captions.

  Predictors return a mapping with `image` [B, D] and `text` [B, K, D], rows of
  length 1. Examples with one id share their captions, which are taken once.

  Attributes:
    ids: entry of the split with the id of what an example shows, [N].
    at: the k's.
  """

  metric: ClassVar[str] = "mean"
  higher: ClassVar[bool] = True

  ids: str = "index"
  at: tuple[int, ...] = (1, 5, 10)

  def of(self, outputs: Any) -> Any:
    """Both embeddings."""
    return {way: outputs.value[way] for way in ("image", "text")}

  def check(self, outputs: Mapping[str, Any], task: Any) -> None:
    """Raises `ConfigError` where embeddings do not fit each other."""
    del task
    for name, output in outputs.items():
      image, text = (output.value[way].shape for way in ("image", "text"))
      if len(text) != 3 or image != (text[0], text[2]):
        raise ConfigError(
          f"{name} gives images {image} and texts {text}; expected [B, D] and "
          "[B, K, D]"
        )

  def __call__(
    self, kept: Mapping[str, Any], rows: Mapping[str, np.ndarray], task: Any
  ) -> dict[str, dict[str, Any]]:
    """Numbers by predictor, as `retrieval` gives them."""
    del task
    ids = rows[self.ids]
    _, first = np.unique(ids, return_index=True)
    found = {}
    for name, both in kept.items():
      texts = both["text"][first]
      scores = both["image"] @ texts.reshape(-1, texts.shape[-1]).T
      captions = np.repeat(ids[first], texts.shape[1])
      found[name] = retrieval(scores, ids, captions, at=self.at)
    return found
