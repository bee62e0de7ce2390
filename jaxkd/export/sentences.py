"""What sentence-transformers reads beside the tensors of an encoder of texts.

Its folder is a list of modules, `modules.json`, each with a folder of its own:
the net in the main folder, the pooling, and the division by the length. The
tokenizer is no part of a network, and none is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd.nets.bert import BERT
from jaxkd.nets.static_embedding import StaticEmbedding

MODULES = "modules.json"
POOLING = "1_Pooling/config.json"
LENGTH = "sentence_bert_config.json"
_MODES = {  # theirs, and ours
  "pooling_mode_cls_token": "first",
  "pooling_mode_mean_tokens": "mean",
  "pooling_mode_max_tokens": None,
  "pooling_mode_mean_sqrt_len_tokens": None,
}
_READS = (
  "`sentence_transformers.SentenceTransformer` reads the folder once the files "
  "of the tokenizer, `tokenizer.json` and those beside it, lie in it."
)


@dataclasses.dataclass(frozen=True)
class Folder:
  """What makes a folder one of sentence-transformers.

  Attributes:
    files: contents of the JSON files, by path.
    note: how the folder is read, or why it is not.
  """

  files: Mapping[str, Any]
  note: str


def folder_of(module: Any, examples: Mapping[str, np.ndarray]) -> Folder | None:
  """Returns the files for a net that makes one vector of a text.

  Args:
    module: the net.
    examples: batch entries as those of the data; `tokens`, integers [N, L].

  Returns:
    The files; without any and with a note why, if texts are read in another
    way there; None for another net, or one that gives something else.
  """
  if getattr(module, "head", None) != "none":
    return None
  if isinstance(module, BERT) and module.pooling in _MODES.values():
    files = {
      MODULES: _modules("Transformer", "Pooling", normalised=module.normalised),
      LENGTH: {"max_seq_length": module.length, "do_lower_case": False},
      POOLING: {
        "word_embedding_dimension": module.width,
        **{mode: ours == module.pooling for mode, ours in _MODES.items()},
      },
    }
    return Folder(files, _READS)
  if isinstance(module, StaticEmbedding):
    return _static(module, examples["tokens"])
  return None


def _static(module: StaticEmbedding, tokens: np.ndarray) -> Folder:
  first = np.unique(tokens[:, 0])
  if len(first) == 1:
    return Folder(
      {},
      f"Every row of the data begins with token {first[0]}; "
      "sentence-transformers puts none around a text, so that its vectors "
      "would be others: the folder is not laid out for it.",
    )
  files = {MODULES: _modules("StaticEmbedding", normalised=module.normalised)}
  note = (
    f"{_READS} It reads the whole of a text, with no tokens, such as `[SEP]`, "
    "around it."
  )
  return Folder(files, note)


def _modules(*kinds: str, normalised: bool) -> list[dict[str, Any]]:
  """The list of modules; the first one lies in the main folder."""
  kinds = (*kinds, "Normalize") if normalised else kinds
  return [
    {
      "idx": place,
      "name": str(place),
      "path": f"{place}_{kind}" if place else "",
      "type": f"sentence_transformers.models.{kind}",
    }
    for place, kind in enumerate(kinds)
  ]
