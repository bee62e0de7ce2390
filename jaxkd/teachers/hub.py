"""Folders of the Hugging Face Hub, in its cache."""

from __future__ import annotations

import re
from pathlib import Path

from jaxkd.errors import RefusedInput
from jaxkd.extras import need

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CONFIG = ("config.json", "*.safetensors", "*.safetensors.index.json")
_TORCH = ("config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


def folder_of(source: str, revision: str | None) -> Path:
  """The folder of a model of the Hub; what the cache has is not fetched.

  Args:
    source: the model's id, `owner/name`.
    revision: branch, tag or commit; the main branch if not given.

  Returns:
    The folder of the commit in the cache.

  Raises:
    RefusedInput: this is no id, or the model cannot be had.
    MissingExtra: the extra `hub` is not installed.
  """
  if not _ID.fullmatch(source):
    raise RefusedInput(
      f"there is no file or folder {source!r}, and it is no id of the Hub, "
      "which has the form owner/name"
    )
  hub = need("huggingface_hub", extra="hub", what=f"{source!r} of the Hub")
  for patterns in (_CONFIG, _TORCH):
    try:
      folder = Path(
        hub.snapshot_download(
          source, revision=revision, allow_patterns=list(patterns)
        )
      )
    except (OSError, ValueError) as error:
      reason = " ".join(str(error).split())
      raise RefusedInput(
        f"cannot get {source!r} (revision {revision or 'main'}) from the Hub "
        f"or its cache: {reason}"
      ) from error
    if any(any(folder.glob(pattern)) for pattern in patterns[1:]):
      break
  return folder
