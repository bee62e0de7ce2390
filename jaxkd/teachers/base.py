"""What a family of models is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen

from jaxkd.teachers.names import NameMap

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
  """Models from elsewhere that one net of ours can be.

  Attributes:
    name: of the family, such as `bert`.
    model_types: what `model_type` in their `config.json` may be.
    names: what their tensors are called, and where they lie here.
    build: `(config, **options) -> (module, inputs)`: our module for their
      config, and the batch entries that it reads.
    describe: `(module) -> config`, the inverse of `build`.
  """

  name: str
  model_types: tuple[str, ...]
  names: NameMap
  build: Callable[..., tuple[linen.Module, tuple[str, ...]]]
  describe: Callable[[linen.Module], dict[str, Any]]
