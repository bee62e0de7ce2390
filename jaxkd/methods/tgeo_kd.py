"""TGeo-KD: a teacher's share for every example, from trilateral geometry.

Hu et al., ICLR 2024, https://arxiv.org/abs/2312.15112.

How far an example's teacher should be followed depends on where student S,
teacher T and label G lie to each other, and to M, what the teacher says of the
label's class on average. A controller f_w reads corners and sides of that
figure, delta_i, and gives the share alpha_i = f_w(delta_i),

  L_in = mean_i alpha_i tau^2 KL(t_i || z_i) + (1 - alpha_i) CE(z_i, y_i)

It is trained through a step of the student on held-out examples,

  theta'(w) = theta - eta grad_theta L_in(theta, w)
  L_out(w) = mean over held-out examples of CE(theta'(w))

and then the student makes its own step with the new shares.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from jaxkd import losses
from jaxkd.errors import ConfigError
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
from jaxkd.network import Network

CONTROLS = ("learned", "frozen_random", "fixed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TGeoKD(Method):
  """Distillation with learned shares; the controller learns on `validation`.

  Roles: teacher, student, controller (reads the entry `state`, returns shares
  [B]). Phases: `teach`, `distil`. Prediction: the student. Memory:
  `class_means`, the table M of the whole training split.
  """

  student: Network
  teacher: Network
  controller: Network | None = None
  num_classes: int
  control: Literal["learned", "frozen_random", "fixed"] = "learned"
  share: float = 0.5  # alpha, where it is fixed
  state: str = "geometry"  # see `losses.trilateral_state`
  temperature: float = 1.5  # tau
  ce_on_probabilities: bool = False  # as the released code: a double softmax
  unrolled_steps: int = 1  # of the student, in the controller's gradient
  unrolled_lr: float = 0.1  # eta, of these steps
  teacher_label: str = "label"  # entry that the teacher learns from
  teacher_epochs: int = 50
  epochs: int = 50
  teacher_lr: float = 1e-3  # of Adam
  lr: float = 1e-3  # of Adam, the student's
  controller_lr: float = 0.1  # of Adam
  controller_decay: float = 0.05  # its weight decay

  def __post_init__(self):
    """Checks the control."""
    if self.control not in CONTROLS:
      raise ConfigError(
        f"TGeoKD.control={self.control!r}: expected one of "
        + ", ".join(CONTROLS)
      )
    if (self.control == "fixed") == (self.controller is not None):
      raise ConfigError(
        f"TGeoKD.control={self.control!r}, controller={self.controller}: "
        "expected a controller unless the share is fixed"
      )

  @property
  def roles(self):
    """The networks; a controller if the share is not fixed."""
    found = {"teacher": self.teacher, "student": self.student}
    if self.controller is not None:
      found["controller"] = self.controller
    return found

  @property
  def memory(self):
    """M, a row for each class."""
    return {"class_means": jnp.zeros((self.num_classes, self.num_classes))}

  @property
  def phases(self):
    """The teacher, then controller and student in turns."""
    teach = Update(
      trainable=("teacher",),
      loss=self.teach,
      optimizer=optax.adam(self.teacher_lr),
    )
    controller = Update(
      trainable=("controller",),
      loss=self.control_loss,
      optimizer=optax.chain(
        optax.add_decayed_weights(self.controller_decay),
        optax.adam(self.controller_lr),
      ),
      name="held_out",
    )
    student = Update(
      trainable=("student",), loss=self.distil, optimizer=optax.adam(self.lr)
    )
    learned = self.control == "learned"
    return (
      Phase(
        name="teach",
        updates=(teach,),
        epochs=self.teacher_epochs,
        memory=(),
      ),
      Phase(
        name="distil",
        updates=(controller, student) if learned else (student,),
        epochs=self.epochs,
        beside={"held": Stream("validation")} if learned else {},
        targets={"shown": self.show},
        begin=self.begin,
      ),
    )

  def teach(self, nets, batch, step):
    """Cross entropy of the teacher, of the labels that it is given."""
    del step
    logits = nets.teacher(batch).logits
    return label_loss(logits, batch, self.teacher_label)

  def show(self, nets, batch):
    """The frozen teacher's logits."""
    return nets.teacher(batch).logits

  def begin(self, host):
    """M from all training examples, whether the teacher is right or not."""
    logits = host.run(self.shown)["logits"]
    labels = host.splits.train.arrays["label"]
    host.memory["class_means"] = losses.class_mean_probabilities(
      jnp.asarray(logits), jnp.asarray(labels)
    )

  def shown(self, nets, batch):
    """The same, of every example."""
    return {"logits": self.show(nets, batch)}

  def shares(self, nets, student, batch):
    """alpha_i, [B]."""
    if self.controller is None:
      return jnp.full(len(student), self.share)
    state = losses.trilateral_state(
      stop_gradient(student),
      batch["shown"],
      batch["label"],
      nets.memory["class_means"],
      option=self.state,
    )
    return nets.controller({**batch, "state": state}).value

  def inner(self, nets, batch):
    """L_in of every example, and the shares."""
    student = nets.student(batch, train=True).logits
    shares = self.shares(nets, student, batch)
    values = losses.trilateral_kd(
      student,
      batch["shown"],
      batch["label"],
      shares,
      temperature=self.temperature,
      ce_on_probabilities=self.ce_on_probabilities,
    )
    return values, shares, student

  def control_loss(self, nets, batch, step):
    """L_out: held-out cross entropy of the student after its step."""
    del step

    def inner(nets):
      values, *_ = self.inner(nets, batch)
      loss = Loss.mean(values, where=batch["mask"])
      return loss.total / loss.weight

    for _ in range(self.unrolled_steps):
      nets = nets.descended("student", inner, self.unrolled_lr)
    held = part(batch, "held")
    return label_loss(nets.student(held).logits, held).replace(metrics={})

  def distil(self, nets, batch, step):
    """L_in, with the shares as constants."""
    del step
    values, shares, student = self.inner(nets, batch)
    return Loss.mean(
      values,
      where=batch["mask"],
      metrics={"share": shares, "accuracy": hits(student, batch)},
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

  def measure(self, nets, batch):
    """Mean shares where the teacher is right or wrong, the student agrees."""
    shown = nets.teacher(batch).logits
    student = nets.student(batch).logits
    shares = self.shares(nets, student, {**batch, "shown": shown})
    right = hits(shown, batch)
    agree = jnp.argmax(shown, axis=-1) == jnp.argmax(student, axis=-1)
    groups = {
      "right": right,
      "wrong": ~right,
      "right_agree": right & agree,
      "right_differ": right & ~agree,
      "wrong_agree": ~right & agree,
      "wrong_differ": ~right & ~agree,
    }
    return {f"share/{name}": (shares, who) for name, who in groups.items()}
