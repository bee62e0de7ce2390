r"""Conversations as text and as tokens: how a model wants them is data.

A format says what stands before and behind the messages of every role. In a
file it is JSON:

  {
    "start": "",
    "roles": {
      "user": ["<|im_start|>user\n", "<|im_end|>\n"],
      "assistant": ["<|im_start|>assistant\n", "<|im_end|>\n"]
    },
    "answers": ["assistant"],
    "stripped": false
  }

Nothing in it is run. A conversation is a list of messages, dicts of `role` and
`content`.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxkd.data.tokenizer_files import Rows, Side, TokenizerFile, padded
from jaxkd.errors import ConfigError, RefusedInput, did_you_mean

Message = Mapping[str, str]
# Roles of positions, the numbers of `jaxkd.losses.Position`.
PAD, PROMPT, ANSWER = 0, 1, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFormat:
  """What stands around the messages of a conversation.

  Attributes:
    roles: Role to what stands before and behind its messages.
    start: What stands before the first message.
    answers: Roles whose messages are what a model is to say, with what stands
      behind them, by which it says that it is done.
    stripped: Whether white space around a message is left out.
  """

  roles: Mapping[str, tuple[str, str]]
  start: str = ""
  answers: tuple[str, ...] = ("assistant",)
  stripped: bool = False

  def __post_init__(self):
    """Raises `ConfigError` for a field of another form."""
    for role, around in self.roles.items():
      if (
        isinstance(around, str)
        or len(around) != 2
        or not all(isinstance(text, str) for text in around)
      ):
        raise ConfigError(
          f"ChatFormat.roles: {role!r} has {around!r}; expected two texts, "
          "what stands before and behind its messages"
        )
    if not self.answers:
      raise ConfigError(
        "ChatFormat.answers: empty; expected a role that answers"
      )
    for role in self.answers:
      if role not in self.roles:
        raise ConfigError(
          f"ChatFormat.answers: no role {role!r}"
          + did_you_mean(role, self.roles)
        )
    roles = {role: tuple(around) for role, around in self.roles.items()}
    object.__setattr__(self, "roles", MappingProxyType(roles))
    object.__setattr__(self, "answers", tuple(self.answers))

  @classmethod
  def read(cls, path: str | os.PathLike[str]) -> "ChatFormat":
    """Reads a format from a JSON file.

    Raises:
      RefusedInput: The file cannot be read or holds something else.
    """
    path = pathlib.Path(path)
    try:
      fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
      raise RefusedInput(
        f"chat format {path}: not readable ({error}); expected JSON"
      ) from error
    try:
      return cls(**_checked(fields))
    except ConfigError as error:
      raise RefusedInput(f"chat format {path}: {error}") from error

  def text(
    self, conversation: Sequence[Message], *, answer_next: bool = False
  ) -> str:
    """Returns a conversation as one text.

    Args:
      conversation: Messages in their order.
      answer_next: Whether to end with what stands before an answer, so that a
        model says one.
    """
    return "".join(text for text, _ in self._pieces(conversation, answer_next))

  def encode(
    self,
    conversation: Sequence[Message],
    tokenizer: TokenizerFile,
    *,
    answer_next: bool = False,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of a conversation, and the role of each.

    The text is cut into tokens as a whole. A token that ends in an answer
    belongs to it.

    Args:
      conversation: Messages in their order.
      tokenizer: Makes the tokens.
      answer_next: See `text`.

    Returns:
      int32 [n]; int32 [n] of `PROMPT` and `ANSWER`.

    Raises:
      RefusedInput: A message has a role that the format does not know, or text
        that the tokenizer takes for a special token, such as the end of a
        message.
    """
    pieces = self._pieces(conversation, answer_next)
    for number, message in enumerate(conversation):
      for token in tokenizer.special:
        if token in message["content"]:
          raise RefusedInput(
            f"message {number} holds the special token {token!r}; expected "
            "text that cannot be taken for the format's own"
          )
    ids, places = tokenizer.spans("".join(text for text, _ in pieces))
    ends = np.cumsum([len(text) for text, _ in pieces])
    last = np.maximum(places[:, 1] - 1, places[:, 0])  # its last character
    piece = np.searchsorted(ends, last, side="right")
    kinds = np.asarray([kind for _, kind in pieces], np.int32)
    return ids, kinds[np.minimum(piece, len(kinds) - 1)]

  def rows(
    self,
    conversations: Sequence[Sequence[Message]],
    tokenizer: TokenizerFile,
    *,
    length: int,
    side: Side = "right",
    answer_next: bool = False,
  ) -> Rows:
    """Returns conversations as rows.

    Args:
      conversations: N of them.
      tokenizer: Makes the tokens.
      length: Tokens in a row, L.
      side: Where the padding is, and where conversations that are too long are
        cut; left, if an answer is to follow.
      answer_next: See `text`.

    Returns:
      `tokens`, int32 [N, L]; `token_mask`, float32 [N, L], 0 for padding;
      `roles`, int32 [N, L], `PAD`, `PROMPT` or `ANSWER`.
    """
    found = [
      self.encode(conversation, tokenizer, answer_next=answer_next)
      for conversation in conversations
    ]
    ids, roles = zip(*found, strict=True) if found else ((), ())
    fill = tokenizer.padding
    arrays = padded(ids, length=length, fill=fill, side=side)
    roles = padded(roles, length=length, fill=PAD, side=side)["tokens"]
    return arrays | {"roles": roles}

  def _pieces(
    self, conversation: Sequence[Message], answer_next: bool
  ) -> list[tuple[str, int]]:
    """Returns the text in pieces, with the role of each."""
    pieces = [(self.start, PROMPT)]
    for number, message in enumerate(conversation):
      role, content = self._checked_message(number, message)
      before, behind = self.roles[role]
      kind = ANSWER if role in self.answers else PROMPT
      content = content.strip() if self.stripped else content
      pieces += [(before, PROMPT), (content + behind, kind)]
    if answer_next:
      pieces.append((self.roles[self.answers[0]][0], PROMPT))
    return pieces

  def _checked_message(self, number: int, message: Message) -> tuple[str, str]:
    """Returns role and content of a message."""
    fields = sorted(message) if isinstance(message, Mapping) else []
    if fields != ["content", "role"] or not isinstance(message["content"], str):
      raise RefusedInput(
        f"message {number} is {message!r}; expected texts `role` and `content`"
      )
    role = message["role"]
    if role not in self.roles:
      raise RefusedInput(
        f"message {number} has the role {role!r}"
        + did_you_mean(str(role), self.roles)
        + f" (known: {', '.join(self.roles)})"
      )
    return role, message["content"]


def _checked(fields: Any) -> dict[str, Any]:
  """Returns the fields of a file if their names and kinds are right."""
  kinds = {"roles": dict, "start": str, "answers": list, "stripped": bool}
  if not isinstance(fields, dict) or "roles" not in fields:
    raise ConfigError("expected an object with an entry 'roles'")
  for name, value in fields.items():
    if name not in kinds:
      raise ConfigError(f"unknown entry {name!r}{did_you_mean(name, kinds)}")
    if not isinstance(value, kinds[name]):
      raise ConfigError(
        f"entry {name!r} is {value!r}; expected {kinds[name].__name__}"
      )
  return fields


def _around(before: str, behind: str, **names: str) -> dict:
  """Returns roles that differ in the name before a message alone."""
  roles = {"system": "system", "user": "user", "assistant": "assistant"} | names
  return {role: (before.format(name), behind) for role, name in roles.items()}


CHATML = ChatFormat(roles=_around("<|im_start|>{}\n", "<|im_end|>\n"))
LLAMA3 = ChatFormat(
  roles=_around("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
  start="<|begin_of_text|>",
  stripped=True,
)
GEMMA = ChatFormat(
  roles={
    "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
    "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
  },
  start="<bos>",
  stripped=True,
)
