"""DHO: dual-head optimisation, semi-supervised distillation of a large teacher.

Kang et al., 2025, https://arxiv.org/abs/2505.07675.

A student learns from a few labels and from a teacher's predictions on labelled
and unlabelled examples. Where one classifier receives both, their gradients
conflict in the backbone; here each has a linear head of its own,

  L = w_l CE(h^l(x_l), y) + w_t [KD(t(x_l), h^t(x_l)) + KD(t(x_u), h^t(x_u))]
  KD(t, s) = mean_i T^2 KL(softmax(t_i / T) || softmax(s_i / T))

and the student predicts with a mixture chosen on validation, without training,

  p = alpha softmax(h^l) + (1 - alpha) softmax(h^t / beta).
"""

import dataclasses

import jax.numpy as jnp
import optax

from jaxkd import losses, schedules
from jaxkd.method import (
  Loss,
  Method,
  Phase,
  Stream,
  Update,
  hits,
  label_loss,
  part,
)
from jaxkd.network import Network, Outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class DHO(Method):
  """A student of two heads; the streams are `train` and `unlabelled`.

  Roles: teacher, student (returns `labels`, `teacher`: see `nets.DualHead`).
  Phases: `teach` (the teacher, if it is not given ready), `distil`. Prediction:
  the mixture of the heads. Memory: `mixture`, alpha and beta.
  """

  student: Network
  teacher: Network
  temperature: float = 2.0  # T
  label_weight: float = 0.5  # w_l; 1 for ImageNet with few labels
  teacher_weight: float = 0.5  # w_t, likewise
  teacher_scale: float = 1.0  # multiplies the teacher's logits
  choose: bool = True  # alpha, beta and the epoch on validation; else the last
  share: float = 0.5  # alpha, where it is not chosen
  mixture_temperature: float = 1.0  # beta, likewise
  teacher_label: str = "label"  # entry that the teacher learns from
  teacher_stream: str = "unlabelled"
  teacher_epochs: int = 0
  epochs: int = 200  # of the unlabelled examples
  labelled_batch: int | None = None  # the task's if not given
  teacher_lr: float = 1e-3  # of AdamW
  lr: float = 1e-3  # of AdamW, the student's
  weight_decay: float = 1e-4
  warm_up: float = 0.1  # share of the steps; then along a line to 0

  @property
  def roles(self):
    """The two networks."""
    return {"teacher": self.teacher, "student": self.student}

  @property
  def memory(self):
    """Alpha and beta."""
    return {"mixture": jnp.asarray([self.share, self.mixture_temperature])}

  @property
  def phases(self):
    """The teacher on its labels, then the student on both streams."""
    teach = Phase(
      name="teach",
      updates=(
        Update(
          trainable=("teacher",),
          loss=self.teach,
          optimizer=optax.adamw(self.teacher_lr),
        ),
      ),
      epochs=self.teacher_epochs,
      stream=self.teacher_stream,
      memory=(),
    )
    distil = Phase(
      name="distil",
      updates=(
        Update(trainable=("student",), loss=self.distil, optimizer=self._adamw),
      ),
      epochs=self.epochs,
      stream="unlabelled",
      beside={"labelled": Stream("train", batch_size=self.labelled_batch)},
      targets={"shown": self.show},
      after_epoch=self.mix if self.choose else None,
      validate=self.judge if self.choose else None,
    )
    return (teach, distil)

  def _adamw(self, updates):
    schedule = schedules.rise_and_fall(self.lr, updates, self.warm_up)
    return optax.adamw(schedule, weight_decay=self.weight_decay)

  def teach(self, nets, batch, step):
    """Cross entropy of the teacher, of the labels that it is given."""
    del step
    logits = nets.teacher(batch).logits
    return label_loss(logits, batch, self.teacher_label)

  def show(self, nets, batch):
    """What the teacher shows of an example: logits."""
    return self.teacher_scale * nets.teacher(batch).logits

  def distil(self, nets, batch, step):
    """Labels for one head, the teacher for the other one."""
    del step
    labelled = part(batch, "labelled")
    ours, free = nets.student(labelled).value, nets.student(batch).value
    total = losses.dual_head(
      ours["labels"],
      labelled["label"],
      (
        (ours["teacher"], labelled["shown"], labelled["mask"]),
        (free["teacher"], batch["shown"], batch["mask"]),
      ),
      temperature=self.temperature,
      label_weight=self.label_weight,
      teacher_weight=self.teacher_weight,
      where=labelled["mask"],
    )
    return Loss.mean(total, where=batch["mask"])

  def heads(self, nets, batch):
    """Both heads' logits."""
    value = nets.student(batch).value
    return {"labels": value["labels"], "teacher": value["teacher"]}

  def mix(self, host):
    """Alpha and beta by a grid on the validation split."""
    shown = host.run(self.heads, "validation")
    labels = host.splits.validation.arrays["label"]
    share, temperature, _ = losses.best_mixture(
      shown["labels"], shown["teacher"], labels
    )
    host.memory["mixture"] = jnp.stack([share, temperature])

  def judge(self, nets, batch):
    """Errors of the mixture on the validation split."""
    right = hits(self.predict(nets, batch).logits, batch)
    return Loss.mean(
      1.0 - right, where=batch["mask"], metrics={"accuracy": right}
    )

  def predict(self, nets, batch):
    """The mixture of the heads, as log-probabilities."""
    value = nets.student(batch).value
    share, temperature = nets.memory["mixture"]
    return Outputs(
      value=losses.mixed_log_probabilities(
        value["labels"],
        value["teacher"],
        share=share,
        temperature=temperature,
      )
    )

  def outputs(self, nets, batch):
    """The mixture, the teacher, and each head alone."""
    value = nets.student(batch).value
    return {
      "student": self.predict(nets, batch),
      "teacher": nets.teacher(batch),
      "label_head": Outputs(value=value["labels"]),
      "teacher_head": Outputs(value=value["teacher"]),
    }
