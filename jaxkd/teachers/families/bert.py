"""BERT and the encoders that are trained from it, such as MiniLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from jaxkd.nets.bert import BERT
from jaxkd.nets.readout import Pool
from jaxkd.teachers import configs, names
from jaxkd.teachers.base import Config, Family

# What a config stands for that does not say it.
_DEFAULTS = {
  "vocab_size": 30522,
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "attention_probs_dropout_prob": 0.1,
  "max_position_embeddings": 512,
  "type_vocab_size": 2,
  "layer_norm_eps": 1e-12,
  "position_embedding_type": "absolute",
  "is_decoder": False,
  "add_cross_attention": False,
  "tie_word_embeddings": True,
}
# The head of each of their classes, and whether the class has a pooler.
_CLASSES = {
  "BertModel": ("none", True),
  "BertForSequenceClassification": ("classes", True),
  "BertForMaskedLM": ("masked_lm", False),
  "BertForPreTraining": ("masked_lm", True),
}


def build(
  config: Config,
  *,
  head: str | None = None,
  num_classes: int | None = None,
  pooling: Pool | None = None,
  normalised: bool = False,
  pooler: bool | None = None,
  token_types: bool = False,
  **options: Any,
) -> tuple[BERT, tuple[str, ...]]:
  """Makes our net of their config.

  Args:
    config: their `config.json`.
    head: of the net; None for that of the checkpoint's class.
    num_classes: of the head `classes`; None for the config's.
    pooling: of the net; None for the pooler if the head is `classes`, else for
      none. Sentence encoders have theirs, often `mean`, in a file beside the
      config.
    normalised: whether the pooled vector is brought to length 1.
    pooler: whether the checkpoint has a pooler; None for what its class has.
    token_types: whether the net reads token types, for pairs of sentences.
    **options: further fields of the net: dtype, remat, scan_layers, dropout,
      attention_dropout (by default the config's).

  Returns:
    The net, and the batch entries that it reads.

  Raises:
    ConfigError: for a value in the config that is not supported.
  """
  config = {**_DEFAULTS, **config}
  usual, has_pooler = _CLASSES[
    configs.architecture(config, _CLASSES, "BertModel")
  ]
  for key in ("position_embedding_type", "is_decoder", "add_cross_attention"):
    configs.require(config, key, (_DEFAULTS[key],))
  head = head or usual
  if head == "masked_lm":
    configs.require(config, "tie_word_embeddings", (True,))
  fields = {
    **configs.encoder_fields(config),
    "dropout": config["hidden_dropout_prob"],
    "attention_dropout": config["attention_probs_dropout_prob"],
    **options,
  }
  net = BERT(
    vocabulary_size=configs.size(config, "vocab_size"),
    length=configs.size(config, "max_position_embeddings"),
    types=configs.size(config, "type_vocab_size"),
    pooling=pooling or ("pooler" if head == "classes" else "none"),
    normalised=normalised,
    pooler=has_pooler if pooler is None else pooler,
    head=head,
    num_classes=num_classes or configs.class_count(config),
    **fields,
  )
  inputs = ("tokens", "token_mask", "token_types")
  return net, inputs if token_types else inputs[:2]


def describe(net: BERT) -> dict[str, Any]:
  """Returns the config that `build` makes the net of.

  A pooling has no place in it; what reads it gives the tokens' vectors.

  Raises:
    ConfigError: transformers has no such net.
  """
  if net.head == "classes":
    configs.require_field(net, "pooling", ("pooler",))
  pooler = net.pooler or net.pooling == "pooler"
  kinds = {kind: name for name, kind in reversed(_CLASSES.items())}
  config = {
    "model_type": "bert",
    "architectures": [kinds.get((net.head, pooler), kinds[net.head, True])],
    "vocab_size": net.vocabulary_size,
    **configs.described_encoder(net),
    "hidden_dropout_prob": net.dropout,
    "attention_probs_dropout_prob": net.attention_dropout,
    "max_position_embeddings": net.length,
    "type_vocab_size": net.types,
    "tie_word_embeddings": True,
  }
  if net.head == "classes":
    config |= configs.labels(net.num_classes)
  return config


def _norm(theirs: str, ours: str) -> tuple[names.Rule, ...]:
  """Rules of a layer norm, whose weights have other names in old files."""
  return (
    *names.norm(theirs, ours),
    names.Rule(f"{theirs}.gamma", f"params/{ours}/scale"),
    names.Rule(f"{theirs}.beta", f"params/{ours}/bias"),
  )


def _block() -> Iterable[names.Rule]:
  """Rules of a block."""
  for part in ("query", "key", "value"):
    yield from names.linear(f"attention.self.{part}", f"attention/{part}")
  yield from names.linear("attention.output.dense", "attention/out")
  yield from _norm("attention.output.LayerNorm", "attention_norm")
  yield from names.linear("intermediate.dense", "mlp/fc1")
  yield from names.linear("output.dense", "mlp/fc2")
  yield from _norm("output.LayerNorm", "mlp_norm")


_NET = (
  *names.embedding("embeddings.word_embeddings", "words"),
  *names.embedding("embeddings.position_embeddings", "positions"),
  *names.embedding("embeddings.token_type_embeddings", "types"),
  *_norm("embeddings.LayerNorm", "embedding_norm"),
  *names.under("encoder.layer.{i}", "block{i+1}", tuple(_block())),
  *names.linear("pooler.dense", "pooler/fc"),
)
# Every class but the plain one calls the net `bert`, which the plain one reads
# too; that name is therefore the one that is written.
_NAMES = names.NameMap(
  rules=(
    *(dataclasses.replace(r, theirs=f"bert.{r.theirs}") for r in _NET),
    *_NET,
    *names.linear("cls.predictions.transform.dense", "head/fc"),
    *_norm("cls.predictions.transform.LayerNorm", "head/norm"),
    names.Rule("cls.predictions.bias", "params/head/word_bias"),
    *names.linear("classifier", "head"),
  ),
  ignored=(
    r"(bert\.)?embeddings\.position_ids",
    r"cls\.predictions\.decoder\.(weight|bias)",  # those of the words
    r"cls\.seq_relationship\.(weight|bias)",
  ),
)

FAMILY = Family(
  name="bert",
  model_types=("bert",),
  names=_NAMES,
  build=build,
  describe=describe,
)
