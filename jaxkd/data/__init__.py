"""Data: one source a file; `pipeline` turns a source into a stream of batches.

A batch is a dict of arrays with a leading axis B: the entries of the source
(`image`, `audio`, ...), `label` int32 [B], `index` int32 [B] (the example's
number inside its split) and `mask` float32 [B] (1 real, 0 padding).
"""

from jaxkd.data.av_digits import AVDigits
from jaxkd.data.av_mnist import AVMNIST
from jaxkd.data.digit_views import DigitViews
from jaxkd.data.digits import Digits
from jaxkd.data.emoji import Emoji
from jaxkd.data.fashion_mnist import FashionMNIST
from jaxkd.data.rotated_digits import RotatedDigits
from jaxkd.data.source import ArraySource, Splits, Task
from jaxkd.data.spam import Spam
from jaxkd.data.text import Text

__all__ = [
  "AVDigits",
  "AVMNIST",
  "ArraySource",
  "DigitViews",
  "Digits",
  "Emoji",
  "FashionMNIST",
  "RotatedDigits",
  "Spam",
  "Splits",
  "Task",
  "Text",
]
