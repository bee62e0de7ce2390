"""Teachers from elsewhere: other projects' weights in networks of ours.

  Pretrained("folder/of/model")          a network with its weights
  Network(net, weights=Checkpoint(...))  any network with weights from a file
  Ensemble([first, second])              several networks as one

A family of models is one table of names and one function from their config to
a net of ours (`families`). Files are read as data and never run (`files`);
tensors go to their shards one by one, or one error says all that does not fit
(`load`).
"""

from jaxkd.teachers.base import Family
from jaxkd.teachers.ensemble import Ensemble
from jaxkd.teachers.families import FAMILIES, family_of
from jaxkd.teachers.files import Tensor, Tensors, open_tensors
from jaxkd.teachers.load import fingerprint
from jaxkd.teachers.names import NameMap, Rule
from jaxkd.teachers.pretrained import Checkpoint, InMemory, Pretrained

__all__ = [
  "FAMILIES",
  "Checkpoint",
  "Ensemble",
  "Family",
  "InMemory",
  "NameMap",
  "Pretrained",
  "Rule",
  "Tensor",
  "Tensors",
  "family_of",
  "fingerprint",
  "open_tensors",
]
