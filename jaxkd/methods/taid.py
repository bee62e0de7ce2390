"""TAID: temporally adaptive interpolated distillation of language models.

Shing, Misaki, Bao, Yokoi and Akiba, ICLR 2025,
https://arxiv.org/abs/2501.16937.

A small model that imitates a large one directly averages its modes or drops
some. TAID's target starts near the student and goes to the teacher:

  p_t = softmax((1 - t) stop_gradient(z_S) + t z_T)
  L = mean over tokens of KL(p_t || q), q = softmax(z_S)

t climbs from `start` to `end`, never slower than the line, and faster while
the loss falls: with the loss l of a step, l' of the step before, N steps,

  m <- beta m + (1 - beta) (l' - l) / l'
  t <- min(end, max(start + (end - start) s / N, t + alpha sigmoid(m) (1 - t)))

A step is made with the t before it. With t = 1 throughout this is plain
distillation, of whatever divergence.
"""

import dataclasses

import optax

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.method import Loss, Method, Phase, Update, counted, hits, label_loss
from jaxkd.network import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class TAID(Method):
  """Distillation of a causal language model through targets on the way to it.

  Roles: teacher, student. Phases: `teach` (the teacher on text), `warm` (the
  student on text: its own distribution is the first target), `distil`.
  Prediction: the student. Memory: `share`, of the teacher in the target.
  """

  student: Network
  teacher: Network
  start: float = 0.4  # t at the first step
  end: float = 1.0  # t at the last step
  rate: float = 5e-4  # alpha; for some 10^4 steps, about 5 / N for N steps
  decay: float = 0.99  # beta, of the momentum
  adaptive: bool = True  # False: t on the line
  subtract_entropy: bool = False  # the released loss is a cross entropy
  divergence: losses.Divergence | None = None  # instead of KL(p_t || q)
  ratio: float = 1.0  # lambda: (1 - lambda) CE of the text + lambda L
  teacher_steps: int = 1000
  warm_steps: int = 0
  steps: int = 1000  # N
  teacher_lr: float = 1e-4  # of AdamW, falls to 0 along a cosine
  lr: float = 1e-4  # the student's, likewise
  weight_decay: float = 0.01  # of matrices
  clip: float = 1.0  # largest norm of a gradient

  def __post_init__(self):
    """Checks the numbers."""
    if not 0 <= self.start <= self.end <= 1:
      raise ConfigError(
        f"TAID.start={self.start}, end={self.end}: expected 0 <= start <= end "
        "<= 1"
      )
    if not 0 <= self.ratio <= 1:
      raise ConfigError(f"TAID.ratio={self.ratio}: expected 0 to 1")

  @property
  def roles(self):
    """The two models."""
    return {"teacher": self.teacher, "student": self.student}

  @property
  def memory(self):
    """t, its momentum and the loss of the step before."""
    return {"share": losses.TeacherShare.create(0.0)}

  @property
  def phases(self):
    """First the teacher, then the student on text, then on the teacher."""
    distil = self._update("student", self.distil, self.lr)
    return (
      Phase(
        name="teach",
        updates=(self._update("teacher", self.teach, self.teacher_lr),),
        steps=self.teacher_steps,
        validate=self.judge,
        memory=(),
      ),
      Phase(
        name="warm",
        updates=(self._update("student", self.warm, self.lr),),
        steps=self.warm_steps,
        memory=(),
      ),
      Phase(
        name="distil",
        updates=(dataclasses.replace(distil, remember=self.advance),),
        steps=self.steps,
        begin=self.begin,
      ),
    )

  def _update(self, role, loss, lr):
    def adamw(updates):
      return optax.chain(
        optax.clip_by_global_norm(self.clip),
        optax.adamw(
          optax.cosine_decay_schedule(lr, updates),
          weight_decay=self.weight_decay,
          mask=_matrices,
        ),
      )

    return Update(trainable=(role,), loss=loss, optimizer=adamw)

  def teach(self, nets, batch, step):
    """Cross entropy of the teacher."""
    del step
    return self.judge(nets, batch)

  def judge(self, nets, batch):
    """The same on text held out."""
    return label_loss(nets.teacher(batch).logits, batch)

  def warm(self, nets, batch, step):
    """Cross entropy of the student."""
    del step
    return label_loss(nets.student(batch).logits, batch)

  def begin(self, host):
    """T starts."""
    host.memory["share"] = losses.TeacherShare.create(self.start)

  def distil(self, nets, batch, step):
    """The divergence from the intermediate target, mean over tokens."""
    del step
    where = counted(batch)
    share = nets.memory["share"].share
    student = nets.student(batch).logits
    teacher = nets.teacher(batch).logits
    if self.divergence is None:
      distance = losses.taid(
        student,
        teacher,
        teacher_share=share,
        where=where,
        subtract_entropy=self.subtract_entropy,
      )
    else:
      target = losses.intermediate_logits(student, teacher, teacher_share=share)
      distance = self.divergence(student, target, where=where)
    task = losses.cross_entropy(student, batch["label"], where=where)
    return Loss.mean(
      (1 - self.ratio) * task + self.ratio * distance,
      where=where,
      metrics={
        "distance": distance,
        "task": task,
        "accuracy": hits(student, batch),
        "share": share,
      },
    )

  def advance(self, memory, means, step):
    """T after the step, from the mean over all its tokens."""
    return {
      "share": losses.advance_share(
        memory["share"],
        means["distance"],
        progress=step.index / self.steps,
        start=self.start,
        end=self.end,
        rate=self.rate,
        decay=self.decay,
        adaptive=self.adaptive,
      )
    }

  def predict(self, nets, batch):
    """The student."""
    return nets.student(batch)

  def outputs(self, nets, batch):
    """The student, and its teacher for comparison."""
    return {
      "student": self.predict(nets, batch),
      "teacher": nets.teacher(batch),
    }


def _matrices(params):
  """Which parameters decay: not biases, not the scales of norms."""
  return {
    name: _matrices(value) if isinstance(value, dict) else value.ndim > 1
    for name, value in params.items()
  }
