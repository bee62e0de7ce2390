"""MMANet: margin-aware distillation and modality-aware regularisation.

Wei, Luo, Luo and Ma, CVPR 2023, https://arxiv.org/abs/2304.08028.

One network for any subset of the modalities. It is trained with a random
combination m_i for every example, and

1. copies how examples resemble each other from a teacher that always sees all
   modalities, more where the teacher is unsure (MAD): w_i is its entropy,

     L_MAD = sum_i w_i sum_j (G^S_ij - G^T_ij)^2

2. classifies once more, by an auxiliary head on the same masked features, what
   has a weak combination W (MAR),

     L_MAR = mean_i [m_i in W] CE(z^aux_i, y_i)

W is mined: the combination of all modalities but one whose predictions on the
validation split differ most from those of all, summed over some epochs, and
the combinations inside it. From then on

  L = CE(z, y) + mu L_MAR + lambda L_MAD.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import evaluation, losses
from jaxkd.method import Loss, Method, Phase, Update, hits, label_loss
from jaxkd.network import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMANet(Method):
  """Distillation into a network that may lack any of its modalities.

  Roles: teacher and student read `available`, [B, M], last; auxiliary reads
  the entry `masked`. Phases: `teach` on all modalities, `distil`. Prediction:
  the student. Memory: `divergence` of every candidate, summed, and `weak`, the
  combinations of W.
  """

  student: Network
  teacher: Network
  auxiliary: Network
  modalities: tuple[str, ...]  # names, in the order of `available`
  num_classes: int
  masked: str = "masked"  # tap of the joint masked features
  feature: str = "head/trunk"  # tap of the last shared feature
  mad_weight: float = 30.0  # lambda
  mar_weight: float = 0.5  # mu
  uniform: bool = False  # equal w_i: similarity preserving
  weights: Literal["rows", "columns"] = "rows"  # columns: the released code
  broadcast: bool = False  # the released selection, see `modality_aware`
  mine_from: int = 2  # first epoch of mining, counted from 0
  begin: int = 5  # first epoch with the whole loss
  teacher_epochs: int = 100
  epochs: int = 100
  lr: float = 1e-3  # of SGD with momentum 0.9 and Nesterov's step
  weight_decay: float = 5e-4
  warm_up: int = 5  # epochs, from 0
  drops: tuple[int, ...] = (16, 33, 50)  # epochs after it: lr times 0.1

  @property
  def roles(self):
    """The three networks."""
    return {
      "teacher": self.teacher,
      "student": self.student,
      "auxiliary": self.auxiliary,
    }

  @property
  def combinations(self):
    """All non-empty subsets of modalities, the full one last."""
    return evaluation.modality_combinations(len(self.modalities))

  @property
  def _candidates(self):
    rows = self.combinations
    return rows[rows.sum(1) == len(self.modalities) - 1]

  @property
  def memory(self):
    """What mining has found so far."""
    weak = evaluation.weak_set(
      np.zeros(len(self._candidates)), self._candidates
    )
    return {
      "divergence": jnp.zeros(len(self._candidates)),
      "weak": jnp.zeros(weak.shape, jnp.int32),  # none
    }

  @property
  def phases(self):
    """The teacher on all modalities, then the student on subsets."""

    def phase(name, trainable, loss, epochs, **options):
      update = Update(
        trainable=trainable,
        loss=loss,
        optimizer=functools.partial(self._sgd, epochs),
      )
      return Phase(name=name, updates=(update,), epochs=epochs, **options)

    return (
      phase(
        "teach",
        ("teacher",),
        self.teach,
        self.teacher_epochs,
        validate=self.judge_teacher,
        memory=(),
      ),
      phase(
        "distil",
        ("student", "auxiliary"),
        self.distil,
        self.epochs,
        validate=self.judge,
        targets={"shown": self.show, "shown_feature": self.show_feature},
        after_epoch=self.mine,
      ),
    )

  def _sgd(self, epochs, updates):
    epoch = updates / epochs
    edges = [round((self.warm_up + drop) * epoch) for drop in self.drops]
    rate = optax.join_schedules(
      (
        optax.linear_schedule(0.0, self.lr, round(self.warm_up * epoch)),
        optax.piecewise_constant_schedule(
          self.lr, {edge - round(self.warm_up * epoch): 0.1 for edge in edges}
        ),
      ),
      (round(self.warm_up * epoch),),
    )
    return optax.chain(
      optax.add_decayed_weights(self.weight_decay),
      optax.sgd(rate, momentum=0.9, nesterov=True),
    )

  def teach(self, nets, batch, step):
    """Cross entropy of the teacher."""
    del step
    return self.judge_teacher(nets, batch)

  def judge_teacher(self, nets, batch):
    """The same on held-out examples."""
    return label_loss(nets.teacher(batch).logits, batch)

  def show(self, nets, batch):
    """The frozen teacher's logits."""
    return nets.teacher(batch).logits

  def show_feature(self, nets, batch):
    """The frozen teacher's last shared feature."""
    return nets.teacher(batch, taps=(self.feature,)).taps[self.feature]

  def distil(self, nets, batch, step):
    """Classification, and from `begin` on both further terms."""
    drawn = self._drawn(nets, batch)
    taps = (self.masked, self.feature)
    student = nets.student({**batch, "available": drawn}, taps=taps)
    auxiliary = nets.auxiliary({"masked": student.taps[self.masked]})
    task = losses.cross_entropy(student.logits, batch["label"])
    doubt = batch["shown"]
    mad = losses.margin_aware(
      student.taps[self.feature],
      batch["shown_feature"],
      jnp.zeros_like(doubt) if self.uniform else doubt,
      weights=self.weights,
      where=batch["mask"],
    )
    mar = losses.modality_aware(
      auxiliary.logits,
      batch["label"],
      drawn,
      nets.memory["weak"],
      broadcast=self.broadcast,
      where=batch["mask"],
    )
    on = step.epoch >= self.begin
    return Loss.mean(
      task + on * (self.mar_weight * mar + self.mad_weight * mad),
      where=batch["mask"],
      metrics={
        "task": task,
        "mad": mad,
        "mar": mar,
        "accuracy": hits(student.logits, batch),
      },
    )

  def _drawn(self, nets, batch):
    """A combination for every example, all alike probable."""
    rows = jnp.asarray(self.combinations, jnp.float32)
    size = (len(batch["mask"]),)
    return rows[jax.random.randint(nets.key("drawn"), size, 0, len(rows))]

  def _shown(self, nets, batch, combination):
    """The student where only some modalities are there."""
    row = jnp.asarray(combination, jnp.float32)
    shape = batch["available"].shape
    available = batch["available"] * jnp.broadcast_to(row, shape)
    return nets.student({**batch, "available": available})

  def predicted(self, nets, batch):
    """Labels by candidate, and from all modalities."""
    found = {
      str(n): self._shown(nets, batch, row).logits.argmax(-1)
      for n, row in enumerate(self._candidates)
    }
    return {**found, "full": nets.student(batch).logits.argmax(-1)}

  def mine(self, host):
    """Adds up divergences in the mining epochs; then names the weak ones."""
    if not self.mine_from <= host.epoch < self.begin:
      return
    labels = host.run(self.predicted, "validation")
    candidates = self._candidates
    seen = np.stack([labels[str(n)] for n in range(len(candidates))])
    added = losses.combination_divergence(
      seen, labels["full"], self.num_classes
    )
    total = np.asarray(host.memory["divergence"]) + added
    host.memory["divergence"] = total.astype(np.float32)
    if host.epoch == self.begin - 1:
      host.memory["weak"] = evaluation.weak_set(total, candidates)

  def judge(self, nets, batch):
    """Held-out cross entropy, mean over all combinations."""
    found = [
      label_loss(self._shown(nets, batch, row).logits, batch)
      for row in self.combinations
    ]
    return jax.tree.map(lambda *parts: sum(parts), *found)

  def predict(self, nets, batch):
    """The student, on what is available."""
    return nets.student(batch)

  def outputs(self, nets, batch):
    """The student, the teacher, and the student on every combination."""
    names = [
      evaluation.combination_name(self.modalities, row)
      for row in self.combinations
    ]
    return {
      "student": self.predict(nets, batch),
      "teacher": nets.teacher(batch),
      **{
        name: self._shown(nets, batch, row)
        for name, row in zip(names, self.combinations, strict=True)
      },
    }

  def measure(self, nets, batch):
    """Accuracy, mean over all combinations."""
    right = [
      hits(self._shown(nets, batch, row).logits, batch)
      for row in self.combinations
    ]
    return {"student/mean_accuracy": jnp.mean(jnp.stack(right), axis=0)}
