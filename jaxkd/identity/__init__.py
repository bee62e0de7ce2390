"""What a built config is: described as data, signed, compared.

The identity of a run is that of the objects it runs, however they came about:
from a gin file or from Python.
"""

from jaxkd.identity.comparing import difference
from jaxkd.identity.describing import describe, digest, fields

__all__ = ["describe", "difference", "digest", "fields"]
