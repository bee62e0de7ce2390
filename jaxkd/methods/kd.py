"""Distilling the Knowledge in a Neural Network.

Hinton, Vinyals and Dean, 2015, https://arxiv.org/abs/1503.02531, in the
cross-modal protocol of MST-Distill's benchmark: the teacher may see both
modalities or only the one that the student does not see.

A teacher is trained on labels and frozen where its validation loss was
lowest. The student minimises

  L = (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t / T) || softmax(s / T))

with alpha halved every `halve_every_epochs` epochs.
"""

import dataclasses

import optax

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.method import Loss, Method, Phase, Update, hits, label_loss
from jaxkd.network import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class KD(Method):
  """Plain (cross-modal) knowledge distillation.

  Roles: teacher, student. Phases: `teach` (the teacher on labels), `distil`
  (the student on labels and teacher). Prediction: the student.
  """

  student: Network
  teacher: Network
  temperature: float = 4.0  # T
  alpha: float = 0.5  # weight of the distillation term in the first epochs
  halve_every_epochs: int = 30  # alpha is halved after so many epochs
  teacher_epochs: int = 100  # 0 for a teacher that is given ready
  epochs: int = 100
  lr: float = 1e-4  # of Adam, for teacher and student

  def __post_init__(self):
    """Checks the numbers."""
    if not 0 <= self.alpha <= 1:
      raise ConfigError(f"KD.alpha={self.alpha}: expected 0 to 1")

  @property
  def roles(self):
    """The two networks."""
    return {"teacher": self.teacher, "student": self.student}

  @property
  def phases(self):
    """First the teacher, then the student."""
    return (
      self._phase("teach", "teacher", self.teach, self.teacher_epochs),
      self._phase(
        "distil",
        "student",
        self.distil,
        self.epochs,
        targets={"teacher_logits": self.teacher_logits},
      ),
    )

  def _phase(self, name, role, loss, epochs, targets=None):
    update = Update(trainable=(role,), loss=loss, optimizer=optax.adam(self.lr))

    def validate(nets, batch):
      return label_loss(nets[role](batch).logits, batch)

    return Phase(
      name=name,
      updates=(update,),
      epochs=epochs,
      validate=validate,
      targets=targets or {},
    )

  def teach(self, nets, batch, step):
    """Cross entropy of the teacher."""
    del step
    return label_loss(nets.teacher(batch).logits, batch)

  def teacher_logits(self, nets, batch):
    """The frozen teacher's logits."""
    return nets.teacher(batch).logits

  def distil(self, nets, batch, step):
    """Cross entropy and KL to the teacher."""
    student = nets.student(batch).logits
    alpha = self.alpha * 0.5 ** (step.epoch // self.halve_every_epochs)
    task = losses.cross_entropy(student, batch["label"])
    kd = losses.kl(
      student, batch["teacher_logits"], temperature=self.temperature
    )
    return Loss.mean(
      (1 - alpha) * task + alpha * kd,
      where=batch["mask"],
      metrics={
        "task": task,
        "kd": kd,
        "accuracy": hits(student, batch),
      },
    )

  def predict(self, nets, batch):
    """The student."""
    return nets.student(batch)

  def outputs(self, nets, batch):
    """The student, and its teacher for comparison."""
    return {
      "student": self.predict(nets, batch),
      "teacher": nets.teacher(batch),
    }
