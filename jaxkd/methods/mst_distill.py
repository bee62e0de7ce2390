"""MST-Distill: Mixture of Specialized Teachers for Cross-Modal Distillation.

ACM Multimedia 2025, https://arxiv.org/abs/2507.07015. Which teacher helps
differs by sample, and teacher and student look at different evidence. So a
multimodal teacher t, the other modality's network a and the student s are
first trained together; then small soft masks inside the frozen t and a pull
their outputs towards the student's, each masked network being one specialised
teacher; then a gate on the student's logits picks teachers for every sample.

With KD(x, y) = T^2 KL(softmax(y / T) || softmax(x / T)), "y teaches x":

  stage 1  sum_x [CE(x, y) + sum_{x' != x} KD(x, x')],  x in {t, a, s},
           with gradients to both sides of every KD
  stage 2  L_j = KD(t_j, s) for every mask j of t and of a; only mask j moves
  stage 3  w_task CE(s, y) + w_kl (1/k) sum_r KD(s, t_{i_r}) + w_lb L_lb,
           P = softmax(gate(s)), i = top-k of P per sample,
           L_lb = lb_scale KL(U || mean_b P), or its coefficient of variation

Differs from the text as the released code does, each by an option:
1. In stage 3 the masks of a network accumulate from its first masked layer on
   (`accumulate_masks`), though each was trained alone.
2. The choice is hard and unweighted: the gate learns from load balance only
   (`gate_weighting`), whose gradient also reaches the student
   (`stop_gate_input`).
3. L_lb has a further factor 1/n (`lb_scale`).
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.method import Loss, Method, Phase, Update, hits
from jaxkd.nets import Gate, MaskNet, apply_mask
from jaxkd.network import Network

TRIO = ("teacher", "aux", "student")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MSTDistill(Method):
  """Mixture of specialised teachers.

  Roles: teacher (both modalities), aux (the other modality), student, one
  mask per masked layer (`teacher_1`, ..., `aux_1`, ...) and the gate. Phases:
  `collaborate`, `specialise`, `distil`. Prediction: the student alone.
  """

  student: Network
  aux: Network
  teacher: Network
  teacher_layers: tuple[str, ...]  # masked layers of the teacher, by tap path
  aux_layers: tuple[str, ...]  # masked layers of aux
  temperature: float = 4.0  # T
  heads: int = 3  # attention heads of a MaskNet
  hidden_dim_factor: int = 2  # divides the hidden width of a MaskNet
  k: int = 1  # teachers chosen per sample
  lb: Literal["kl", "cv"] = "kl"  # load balance
  lb_scale: float | None = None  # of KL(U || m); None: 1/n as released
  w_task: float = 1.0
  w_kl: float = 1.0  # halved after epochs 0, 30, 60, ... of stage 3
  w_lb: float = 1.0  # times 0.9 after epochs 0, 10, 20, ... of stage 3
  w_mutual: float = 1.0  # of the pairwise terms of stage 1
  epochs_s1: int = 1
  epochs_s2: int = 1
  epochs: int = 100  # of stage 3
  s1_lr: float = 1e-4  # Adam in every stage
  s2_lr: float = 1e-4
  lr: float = 1e-4
  accumulate_masks: bool = True
  gate_weighting: Literal["none", "straight_through"] = "none"
  stop_gate_input: bool = False
  ignore_label: int | None = None  # of unlabelled pixels, e.g. 0 on NYU
  use_masks: bool = True  # ablation: the specialised teachers stay unmasked
  random_routing: bool = False  # ablation: teachers drawn uniformly

  def __post_init__(self):
    """Checks the options against each other."""
    for name, valid in (
      ("lb", ("kl", "cv")),
      ("gate_weighting", ("none", "straight_through")),
    ):
      if getattr(self, name) not in valid:
        raise ConfigError(
          f"MSTDistill.{name}={getattr(self, name)!r}: expected one of "
          + ", ".join(valid)
        )
    if not 1 <= self.k <= len(self.specialists):
      raise ConfigError(
        f"MSTDistill.k={self.k}: expected 1 to {len(self.specialists)}, the "
        f"number of specialised teachers ({', '.join(self.specialists)})"
      )

  @property
  def specialists(self):
    """The specialised teachers: name -> (network, masked layer)."""
    return {
      f"{role}_{n}": (role, layer)
      for role in ("teacher", "aux")
      for n, layer in enumerate(getattr(self, f"{role}_layers"), start=1)
    }

  @property
  def roles(self):
    """The trio, the masks and the gate."""
    mask = Network(
      MaskNet(heads=self.heads, hidden_dim_factor=self.hidden_dim_factor),
      inputs=("feature",),
    )
    gate = Network(Gate(ways=len(self.specialists)), inputs=("logits",))
    masked = self.use_masks and (self.epochs_s2 or self.epochs)
    return (
      {role: getattr(self, role) for role in TRIO}
      | dict.fromkeys(self.specialists if masked else (), mask)
      | ({"gate": gate} if self.epochs else {})
    )

  @property
  def phases(self):
    """The three stages; one of length 0 is left out."""
    together = Update(
      trainable=TRIO, loss=self.collaborate, optimizer=optax.adam(self.s1_lr)
    )
    one_by_one = tuple(
      Update(
        name=f"specialise/{name}",
        trainable=(name,),
        loss=functools.partial(self.specialise, name),
        optimizer=optax.adam(self.s2_lr),
      )
      for name in self.specialists
    )
    student = Update(
      trainable=("student", "gate"),
      loss=self.distil,
      optimizer=optax.adam(self.lr),
    )
    stages = []
    if self.epochs_s1:
      stages.append(
        Phase(
          name="collaborate",
          updates=(together,),
          epochs=self.epochs_s1,
          validate=self.validate_trio,
        )
      )
    if self.epochs_s2 and self.use_masks:
      stages.append(
        Phase(
          name="specialise",
          updates=one_by_one,
          epochs=self.epochs_s2,
          validate=self.validate_masks,
        )
      )
    if self.epochs:
      stages.append(
        Phase(
          name="distil",
          updates=(student,),
          epochs=self.epochs,
          validate=self.validate_student,
          targets={"specialists": self.specialist_logits},
        )
      )
    return tuple(stages)

  def collaborate(self, nets, batch, step=None):
    """Stage 1: labels, and every network learns from the two others."""
    del step
    logits = {role: nets[role](batch).logits for role in TRIO}
    task = sum(self.task(logits[x], batch) for x in TRIO)
    mutual = sum(
      self.kd(logits[x], logits[y]) for x in TRIO for y in TRIO if x != y
    )
    return Loss.mean(
      task + self.w_mutual * mutual,
      where=batch["mask"],
      metrics={
        "task": task,
        "mutual": mutual,
        **{
          f"accuracy/{role}": self.accuracy(logits[role], batch)
          for role in TRIO
        },
      },
    )

  def validate_trio(self, nets, batch):
    """Stage 1 is judged by the labels: the networks drift apart with time."""
    logits = {role: nets[role](batch).logits for role in TRIO}
    task = sum(self.task(logits[x], batch) for x in TRIO)
    accuracy = {f"accuracy/{x}": self.accuracy(logits[x], batch) for x in TRIO}
    return Loss.mean(
      task, where=batch["mask"], metrics={"task": task, **accuracy}
    )

  def masked(self, nets, batch, *names):
    """Logits of a network under the masks of these specialists; the masks."""
    masks = {}

    def edit(name, feature):
      masks[name] = nets[name]({"feature": feature}).value
      return apply_mask(feature, masks[name])

    role = self.specialists[names[0]][0]
    edits = {
      self.specialists[name][1]: functools.partial(edit, name) for name in names
    }
    return nets[role](batch, edits=edits).logits, masks

  def specialise(self, name, nets, batch, step=None):
    """Stage 2: a masked network learns from the frozen student."""
    del step
    logits, masks = self.masked(nets, batch, name)
    kd = self.kd(logits, nets.student(batch).logits)
    mask = masks[name].reshape(len(kd), -1)
    return Loss.mean(
      kd,
      where=batch["mask"],
      metrics={
        f"mask_mean/{name}": mask.mean(-1),
        f"mask_std/{name}": mask.std(-1),
      },
    )

  def validate_masks(self, nets, batch):
    """The mean of the masks' losses."""
    student = nets.student(batch).logits
    kd = [
      self.kd(self.masked(nets, batch, name)[0], student)
      for name in self.specialists
    ]
    return Loss.mean(sum(kd) / len(kd), where=batch["mask"])

  def specialist_logits(self, nets, batch):
    """Logits of all specialised teachers, [B, n, ..., C]."""
    logits = []
    for name, (role, _) in self.specialists.items():
      peers = [x for x, (r, _) in self.specialists.items() if r == role]
      names = (
        peers[: peers.index(name) + 1] if self.accumulate_masks else [name]
      )
      logits.append(
        self.masked(nets, batch, *names)[0]
        if self.use_masks
        else nets[role](batch).logits
      )
    return jnp.stack(logits, axis=1)

  def distil(self, nets, batch, step):
    """Stage 3: labels, the chosen specialists and load balance."""
    student = nets.student(batch).logits
    gate = nets.gate(
      {"logits": stop_gradient(student) if self.stop_gate_input else student}
    ).value
    scores = (
      jax.random.gumbel(nets.key("routing"), gate.shape)
      if self.random_routing
      else gate
    )
    chosen = losses.top_k_teachers(scores, self.k)
    task = self.task(student, batch)
    kd = losses.routed_kl(
      student,
      batch["specialists"],
      chosen,
      temperature=self.temperature,
      weights=self.route_weights(gate, chosen),
    )
    balance = self.load_balance(gate, batch["mask"])
    w_kl, w_lb = self.weights(step.epoch)
    return Loss.mean(
      self.w_task * task + w_kl * kd + w_lb * balance,
      where=batch["mask"],
      metrics={
        "task": task,
        "kd": kd,
        "load_balance": balance,
        "accuracy": self.accuracy(student, batch),
        **self.routes(chosen),
      },
    )

  def route_weights(self, gate, chosen):
    """Weights of the chosen teachers: 1, or 1 with the gradient of P."""
    if self.gate_weighting == "none":
      return None
    p = jnp.take_along_axis(jax.nn.softmax(gate), chosen, axis=-1)
    return 1 + p - stop_gradient(p)

  def load_balance(self, gate, mask):
    """L_lb of the gate's logits."""
    if self.lb == "cv":
      return losses.load_balance_cv(gate, where=mask)
    scale = 1 / gate.shape[-1] if self.lb_scale is None else self.lb_scale
    return scale * losses.load_balance_kl(gate, where=mask)

  def weights(self, epoch):
    """w_kl and w_lb in force during a 0-based epoch of stage 3."""
    halvings = (epoch + 29) // 30  # after epochs 0, 30, 60, ...
    tenths = (epoch + 9) // 10  # after epochs 0, 10, 20, ...
    return self.w_kl * 0.5**halvings, self.w_lb * 0.9**tenths

  def routes(self, chosen):
    """Share of the choices that falls on each specialised teacher."""
    return {
      f"route/{name}": jnp.mean(chosen == n, axis=-1)
      for n, name in enumerate(self.specialists)
    }

  def validate_student(self, nets, batch):
    """Stage 3 is judged by the student's labels alone."""
    logits = nets.student(batch).logits
    task = self.task(logits, batch)
    return Loss.mean(
      task,
      where=batch["mask"],
      metrics={"task": task, "accuracy": self.accuracy(logits, batch)},
    )

  def kd(self, student, teacher):
    """KD(student, teacher) per example, averaged over dense positions."""
    values = losses.kl(student, teacher, temperature=self.temperature)
    return self.per_example(values, None, None)

  def task(self, logits, batch):
    """Cross entropy per example; dense: over pixels that carry a label."""
    where = self.labelled(batch)
    values = losses.cross_entropy(logits, batch["label"], where=where)
    return self.per_example(values, where, batch)

  def accuracy(self, logits, batch):
    """Share of right labels per example, over the same pixels."""
    return self.per_example(hits(logits, batch), self.labelled(batch), batch)

  def labelled(self, batch):
    """Where a label counts, or None for everywhere."""
    if self.ignore_label is None:
      return None
    labels, mask = batch["label"], batch["mask"]
    real = mask.reshape((-1,) + (1,) * (labels.ndim - 1)) > 0
    return (labels != self.ignore_label) & real

  def per_example(self, values, where, batch):
    """Means over positions, of which each that counts weighs the same."""
    if where is None:
      return values.reshape(len(values), -1).mean(-1)
    scale = jnp.sum(batch["mask"]) / jnp.maximum(jnp.sum(where), 1)
    kept = jnp.where(where, values, 0)
    return kept.reshape(len(values), -1).sum(-1) * scale

  def predict(self, nets, batch):
    """The student alone."""
    return nets.student(batch)

  def outputs(self, nets, batch):
    """The student, and the two others for comparison."""
    return {r: nets[r](batch) for r in ("student", "teacher", "aux")}

  def measure(self, nets, batch):
    """Routing shares of the gate."""
    if not self.epochs or self.random_routing:
      return {}
    gate = nets.gate({"logits": nets.student(batch).logits}).value
    return self.routes(losses.top_k_teachers(gate, self.k))
