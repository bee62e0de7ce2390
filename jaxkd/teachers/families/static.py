"""Static embeddings of sentence-transformers and Model2Vec: a table of vectors.

Their files come without a config that says its size. Here it has the
`model_type` `static_embedding`, `vocab_size`, `hidden_size` and `normalize`.
"""

from __future__ import annotations

from typing import Any

from jaxkd.nets.static_embedding import StaticEmbedding
from jaxkd.teachers import configs, names
from jaxkd.teachers.base import Config, Family

_TYPE = "static_embedding"


def build(
  config: Config, **options: Any
) -> tuple[StaticEmbedding, tuple[str, ...]]:
  """Makes our net of a config.

  Args:
    config: `vocab_size`, `hidden_size`, and perhaps `normalize` (False).
    **options: further fields of the net: normalised, head, num_classes,
      dropout, dtype.

  Returns:
    The net, and the batch entries that it reads.

  Raises:
    ConfigError: for a value in the config that is not supported.
  """
  config = {"vocab_size": None, "hidden_size": None, "normalize": False} | {
    **config
  }
  fields = {
    "normalised": configs.require(config, "normalize", (False, True)),
    **options,
  }
  net = StaticEmbedding(
    vocabulary_size=configs.size(config, "vocab_size"),
    width=configs.size(config, "hidden_size"),
    **fields,
  )
  return net, ("tokens", "token_mask")


def describe(net: StaticEmbedding) -> dict[str, Any]:
  """Returns the config that `build` makes the net of.

  Raises:
    ConfigError: it has a head, for which they have no name.
  """
  configs.require_field(net, "head", ("none",))
  return {
    "model_type": _TYPE,
    "vocab_size": net.vocabulary_size,
    "hidden_size": net.width,
    "normalize": net.normalised,
  }


FAMILY = Family(
  name="static-embedding",
  model_types=(_TYPE,),
  names=names.NameMap(
    (
      *names.embedding("embedding", "words"),
      names.Rule("embeddings", "params/words/embedding"),  # Model2Vec
    )
  ),
  build=build,
  describe=describe,
)
