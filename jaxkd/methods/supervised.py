"""Training on labels alone: the student without distillation.

L = mean_b CE(s(x_b), y_b), the control of every table.
"""

import dataclasses

import optax

from jaxkd.method import Method, Phase, Update, label_loss
from jaxkd.network import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised(Method):
  """A student trained on labels alone, its best validation epoch kept.

  Roles: student. Phase: `supervise`. Prediction: the student.
  """

  student: Network
  epochs: int = 100
  lr: float = 1e-4  # of Adam

  @property
  def roles(self):
    """The student alone."""
    return {"student": self.student}

  @property
  def phases(self):
    """One phase of cross entropy."""
    update = Update(
      trainable=("student",), loss=self.loss, optimizer=optax.adam(self.lr)
    )
    return (
      Phase(
        name="supervise",
        updates=(update,),
        epochs=self.epochs,
        validate=self.validate,
      ),
    )

  def loss(self, nets, batch, step):
    """Mean cross entropy."""
    del step
    return self.validate(nets, batch)

  def validate(self, nets, batch):
    """Mean cross entropy."""
    return label_loss(nets.student(batch).logits, batch)

  def predict(self, nets, batch):
    """The student."""
    return nets.student(batch)
