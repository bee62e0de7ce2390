"""What a frozen role showed, in files.

    FOLDER/<role>/<digest of the key>/
      index.json                    key, what is shown, shards, errors
      targets-00000.array_record    a record for every example

The key says of what the outputs are: the role's network, its variables, the
examples and how they are decoded. A folder holds any number of keys, such as
those of several splits and seeds, and one form of outputs for a role. A run
looks for the key that it would compute itself; if it is not there, the nearest
one is named with what is different.

`codec` writes top-k, `records` examples, `folder` the index; `showing` runs the
role, `caching` makes files of it, and `reading` gives batches their entries.
"""

from jaxkd.training.target_files.caching import cache
from jaxkd.training.target_files.folder import TargetFolder
from jaxkd.training.target_files.showing import Wanted

__all__ = ["TargetFolder", "Wanted", "cache"]
