"""Networks that teach each other."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry


def _mutual(student, teacher, where):
  networks = jnp.stack([student, teacher])
  return losses.mutual_kl(networks, temperature=2.0, where=where)[0]


ENTRIES = {"mutual_kl": Entry(call=_mutual, masks=True)}
