"""Terms of a weighted sum of losses: what each reads of whom.

A term is a loss of `jaxkd.losses`, a weight, and the places where its arrays
come from: logits, or outputs of named submodules (taps) of student and
teacher. `Distill` sums terms; none of them knows a config.
"""

from jaxkd.terms.features import Contrast, Features
from jaxkd.terms.logits import Labels, Logits
from jaxkd.terms.term import Seen, Term, View

__all__ = ["Contrast", "Features", "Labels", "Logits", "Seen", "Term", "View"]
