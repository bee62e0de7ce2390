"""m2mKD: module-to-module knowledge distillation.

Lo et al., 2024, https://arxiv.org/abs/2402.16918.

A network of modules that is hard to train from scratch, such as one of experts,
starts from modules that were taught one by one. Teacher T and student S are cut
into as many modules as a shallow meta network A has blocks; in place i of A
stands the teacher's module once and the student's once, and the two hybrids
must give the same logits,

  h_i = A_{<i}(x),  t_i = A_{>i}(T_i(h_i)),  s_i = A_{>i}(S_i(h_i))
  L_i = (1 - alpha) CE(s_i, y)
    + alpha tau^2 KL(softmax(t_i / tau) || softmax(s_i / tau))

A is frozen, but gradients go through its blocks behind i. The modules, without
the stitches that fit them to A, are then one student, trained on labels.
"""

import dataclasses
import functools
from typing import Literal

import numpy as np
import optax

from jaxkd import losses, nets
from jaxkd.method import Loss, Method, Phase, Stream, Update, hits, label_loss
from jaxkd.network import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class M2mKD(Method):
  """Modules of a student, taught in the harness of a meta network.

  Roles: meta, teacher, student, each with submodules `module0`, `module1`, ...
  (`nets.ModularNet`), the student with stitches. Phases: `meta` on labels;
  `teach_i`, the teacher's modules in the harness, and `teach`, all of them
  together; `module_i`, the student's modules; `distil`, the whole student on
  labels. Prediction: the student.
  """

  student: Network
  teacher: Network
  meta: Network
  alpha: float = 0.5  # the teacher's part of L_i
  temperature: float = 1.0  # tau
  kd_reduction: Literal["batchmean", "numel"] = (
    "batchmean"  # numel: as released
  )
  hard: bool = False  # the teacher's class in place of its probabilities
  label_smoothing: float = 0.1
  logit_weight: float = 0.0  # of KL to the teacher in `distil`: plain KD
  examples: int | None = None  # of `train` that the student sees; all if None
  meta_epochs: int = 300
  teacher_module_epochs: int = 100
  teacher_epochs: int = 100
  module_epochs: int = 100  # 0: the student from scratch
  epochs: int = 100
  lr: float = 5e-4  # of AdamW, for a batch of 512; proportional to it
  final_lr: float = 1e-5  # at the end of a cosine
  warm_up: float = 0.2  # share of the steps, none in `teach` and `distil`
  weight_decay: float = 0.05
  clip: float = 1.0  # largest norm of a gradient in `teach` and `distil`

  def __post_init__(self):
    """Checks that the networks fit in the harness."""
    nets.check_harness(
      self.meta.module, teacher=self.teacher.module, student=self.student.module
    )

  @property
  def _places(self):
    return range(len(self.meta.module.divided_depths))

  @property
  def roles(self):
    """The three networks."""
    found = {"meta": self.meta, "teacher": self.teacher}
    if not self._taught:
      found = {}
    return {**found, "student": self.student}

  @property
  def _taught(self):
    return bool(self.module_epochs or self.logit_weight)

  @property
  def phases(self):
    """Harness, teacher, modules of the student, student."""
    distil = self._phase(
      "distil",
      "student",
      self.distil,
      self.epochs,
      whole=True,
      few=True,
      targets={"shown": self.show} if self.logit_weight else {},
    )
    if not self._taught:
      return (distil,)
    found = [self._phase("meta", "meta", self.judge, self.meta_epochs)]
    found += [
      self._phase(
        f"teach_{i}",
        f"teacher/module{i}",
        functools.partial(self.teach_module, i),
        self.teacher_module_epochs,
        targets={"given": functools.partial(self.given, i)},
      )
      for i in self._places
    ]
    found.append(
      self._phase(
        "teach", "teacher", self.teach, self.teacher_epochs, whole=True
      )
    )
    found += [
      self._phase(
        f"module_{i}",
        f"student/module{i}",
        functools.partial(self.pair, i),
        self.module_epochs,
        few=True,
        targets={
          "given": functools.partial(self.given, i),
          "shown": functools.partial(self.hybrid_logits, i),
        },
      )
      for i in self._places
    ]
    return tuple(phase for phase in (*found, distil) if phase)

  def _phase(self, name, trained, loss, epochs, *, whole=False, few=False, **o):
    if not epochs:
      return None
    rows = self._few if few and self.examples else None
    update = Update(
      trainable=(trained,),
      loss=loss,
      optimizer=functools.partial(self._adamw, whole),
    )
    stream = Stream("train", rows=rows)
    return Phase(
      name=name, updates=(update,), epochs=epochs, stream=stream, **o
    )

  def _few(self, memory):
    del memory
    return np.arange(self.examples)

  def _adamw(self, whole, updates):
    rising = 0 if whole else round(self.warm_up * updates)
    rate = optax.warmup_cosine_decay_schedule(
      1e-6 if rising else self.lr, self.lr, rising, updates, self.final_lr
    )
    adamw = optax.adamw(rate, weight_decay=self.weight_decay)
    if not whole:
      return adamw
    return optax.chain(optax.clip_by_global_norm(self.clip), adamw)

  # The harness: an edit puts other states behind a module.

  def given(self, index, nets, batch):
    """h_i: the harness's states before place i, the image before the first."""
    if index == 0:
      return batch["image"]
    before = f"module{index - 1}"
    return nets.meta(batch, taps=(before,)).taps[before]

  def _behind(self, role, batch, index, given, method=None):
    """The states behind module i of a network that is given h_i."""
    path, edits = f"module{index}", {}
    if index:
      edits = {f"module{index - 1}": lambda _: given}
    return role(batch, taps=(path,), edits=edits, method=method).taps[path]

  def _after(self, nets, batch, index, states):
    """Logits of the harness with other states behind place i."""
    path = f"module{index}"
    return nets.meta(batch, edits={path: lambda _: states}).logits

  def hybrid_logits(self, index, nets, batch):
    """t_i: the harness with the teacher's module in place i."""
    given = self.given(index, nets, batch)
    states = self._behind(nets.teacher, batch, index, given)
    return self._after(nets, batch, index, states)

  # Losses.

  def judge(self, nets, batch, step):
    """Cross entropy of the meta network."""
    del step
    return self._labels(nets.meta(batch).logits, batch)

  def _labels(self, logits, batch):
    values = losses.cross_entropy(
      logits, batch["label"], label_smoothing=self.label_smoothing
    )
    return Loss.mean(
      values,
      where=batch["mask"],
      metrics={"accuracy": hits(logits, batch)},
    )

  def teach_module(self, index, nets, batch, step):
    """Cross entropy of the harness with the teacher's module in place i."""
    del step
    states = self._behind(nets.teacher, batch, index, batch["given"])
    return self._labels(self._after(nets, batch, index, states), batch)

  def teach(self, nets, batch, step):
    """Cross entropy of the assembled teacher."""
    del step
    return self._labels(nets.teacher(batch).logits, batch)

  def pair(self, index, nets, batch, step):
    """L_i: the student's module against the teacher's in the same place."""
    del step
    states = self._behind(
      nets.student, batch, index, batch["given"], "stitched"
    )
    logits = self._after(nets, batch, index, states)
    values = losses.module_pair(
      logits,
      batch["shown"],
      batch["label"],
      teacher_weight=self.alpha,
      temperature=self.temperature,
      label_smoothing=self.label_smoothing,
      hard=self.hard,
      kd_reduction=self.kd_reduction,
    )
    return Loss.mean(
      values,
      where=batch["mask"],
      metrics={"accuracy": hits(logits, batch)},
    )

  def show(self, nets, batch):
    """The assembled teacher's logits."""
    return nets.teacher(batch).logits

  def distil(self, nets, batch, step):
    """Cross entropy of the student, which has no stitches now."""
    del step
    logits = nets.student(batch).logits
    if not self.logit_weight:
      return label_loss(logits, batch)
    task = losses.cross_entropy(logits, batch["label"])
    kd = losses.kl(logits, batch["shown"], temperature=self.temperature)
    return Loss.mean(
      (1 - self.logit_weight) * task + self.logit_weight * kd,
      where=batch["mask"],
      metrics={"accuracy": hits(logits, batch)},
    )

  def predict(self, nets, batch):
    """The student."""
    return nets.student(batch)

  def outputs(self, nets, batch):
    """The student, and its teacher where there is one."""
    found = {"student": self.predict(nets, batch)}
    if self._taught:
      found["teacher"] = nets.teacher(batch)
    return found
