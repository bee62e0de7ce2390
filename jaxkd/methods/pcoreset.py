"""PCoreSet: active distillation, labels where predictions are far apart.

Kang et al., 2025, https://arxiv.org/abs/2506.00910.

In every round a new student learns with two heads, as in dual-head
optimisation: from the few labels there are, and from a teacher on everything,

  L = w_l CE(h^l(x_l), y) + w_t [KD(t(x_l), h^t(x_l)) + KD(t(x_u), h^t(x_u))]

Then Q more examples get a label. A teacher's predictions lie in clusters of the
probability simplex, and so do the student's: queries cover the student's
probabilities p = (softmax(h^l) + softmax(h^t)) / 2, not its features. From the
predictions of the labelled examples on, pick Q times

  i = argmax_{u unlabelled} min_{c labelled or picked} |p_u - p_c|
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import losses, schedules, selection
from jaxkd.errors import ConfigError
from jaxkd.method import (
  Loss,
  Method,
  Phase,
  Stream,
  Update,
  label_loss,
  part,
)
from jaxkd.network import Network, Outputs

STRATEGIES = (
  "pcoreset",
  "coreset",
  "uncertainty",
  "badge",
  "class_balanced",
  "random",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PCoreSet(Method):
  """Rounds of distillation and of labels; the pool is the split `train`.

  Roles: teacher; `round_0`, `round_1`, ... and `student`, the last one, all
  with the same first parameters. Phases: `teach` (the teacher, if it is not
  given ready), and one for every student. Prediction: the mixture of the last
  student's heads. Memory: `labelled`, which examples have a label.
  """

  student: Network
  teacher: Network
  examples: int  # of the pool
  strategy: Literal[
    "pcoreset", "coreset", "uncertainty", "badge", "class_balanced", "random"
  ] = "pcoreset"
  num_classes: int
  query: int | None = None  # Q; the number of classes if not given
  rounds: int = 15  # after the first
  temperature: float = 2.0  # T
  label_weight: float = 0.5  # w_l
  teacher_weight: float = 0.5  # w_t; 0 for labels alone
  share: float = 0.5  # of the head of labels, where predictions are mixed
  mixture_temperature: float = 1.0  # of the teacher's head, likewise
  teacher_scale: float = 1.0  # multiplies the teacher's logits
  teacher_stream: str = "train"
  teacher_steps: int = 0
  passes: int = 200  # over the labels, in every round; or
  steps: int | None = None  # in every round
  prototypes: int | None = None  # CLAP: size of the teacher's, fitted to labels
  refit_first: bool = False  # before a round's student, not after it
  refit_passes: int = 300  # over the labels
  refit_lr: float = 0.01  # of SGD with momentum 0.9
  teacher_lr: float = 1e-3  # of AdamW
  lr: float = 1e-3  # of AdamW
  warm_up: float = 0.1  # share of the steps; then along a line to 0

  def __post_init__(self):
    """Checks the strategy and the numbers."""
    if self.strategy not in STRATEGIES:
      raise ConfigError(
        f"PCoreSet.strategy={self.strategy!r}: expected one of "
        + ", ".join(STRATEGIES)
      )
    if self.rounds < 0 or self.examples < self.num_classes:
      raise ConfigError(
        f"PCoreSet.rounds={self.rounds}, examples={self.examples}: expected "
        "at least 0 rounds and an example for every class"
      )

  @property
  def _students(self):
    return (*(f"round_{n}" for n in range(self.rounds)), "student")

  @property
  def roles(self):
    """The teacher, and a student for every round."""
    return {
      "student": self.student,
      "teacher": self.teacher,
      **dict.fromkeys(self._students, self.student),
    }

  @property
  def memory(self):
    """Which examples of the pool have a label; CLAP's names and confidence."""
    labelled = jnp.zeros(self.examples, bool)
    if self.prototypes is None:
      return {"labelled": labelled}
    return {
      "labelled": labelled,
      "names": jnp.zeros((self.num_classes, self.prototypes)),
      "confidence": jnp.zeros(self.num_classes),
    }

  @property
  def phases(self):
    """The teacher, then round after round."""
    teach = Phase(
      name="teach",
      updates=(
        Update(
          trainable=("teacher",),
          loss=self.teach,
          optimizer=optax.adamw(self.teacher_lr),
        ),
      ),
      steps=self.teacher_steps,
      stream=self.teacher_stream,
      memory=(),
    )
    found = [teach]
    for number in range(self.rounds + 1):
      pair = [self._round(number)]
      if self.prototypes is not None:
        pair.insert(0 if self._fits_first(number) else 1, self._refit(number))
      found += pair
    return tuple(found)

  def _fits_first(self, number):
    """Whether a round fits the teacher before its student learns from it."""
    return self.prototypes is not None and (self.refit_first or number == 0)

  def _refit(self, number):
    update = Update(
      trainable=("teacher/prototypes",),
      loss=self.constrain,
      optimizer=lambda updates: optax.sgd(
        self._rate(self.refit_lr, updates), momentum=0.9
      ),
    )
    return Phase(
      name=f"refit_{number}",
      updates=(update,),
      epochs=self.refit_passes,
      stream=Stream("train", rows=_labelled),
      begin=functools.partial(self.begin_refit, number),
    )

  def _round(self, number):
    role = self._students[number]
    update = Update(
      trainable=(role,),
      loss=functools.partial(self.distil, role),
      optimizer=self._adamw,
    )
    length = {"steps": self.steps} if self.steps else {"epochs": self.passes}
    return Phase(
      name=f"round_{number}",
      updates=(update,),
      stream=Stream("train", rows=_labelled, replace=True),
      beside={"unlabelled": Stream("train", rows=_unlabelled)},
      targets={"shown": self.show} if self.teacher_weight else {},
      begin=functools.partial(self.begin, number),
      **length,
    )

  def _adamw(self, updates):
    return optax.adamw(self._rate(self.lr, updates))

  def _rate(self, highest, updates):
    return schedules.rise_and_fall(highest, updates, self.warm_up)

  def label(self, number, host):
    """The labels of a round."""
    pool = host.splits.train
    if len(pool) != self.examples:
      raise ConfigError(
        f"PCoreSet.examples={self.examples}: the pool has {len(pool)}"
      )
    labelled = np.array(host.memory["labelled"])
    if number == 0:
      labelled[self._first(host, pool.arrays["label"])] = True
    else:
      labelled[self.pick(host, number - 1, labelled)] = True
    host.memory["labelled"] = labelled

  def begin_refit(self, number, host):
    """The teacher as it was named, and how sure it is of the labels."""
    if self._fits_first(number):
      self.label(number, host)
    if number == 0:
      host.memory["names"] = host.params["teacher"]["prototypes"]
    names = host.memory["names"]
    host.params["teacher"] = {**host.params["teacher"], "prototypes": names}
    rows = _labelled(host.memory)
    sure = host.run(self.sure, rows=rows)["sure"]
    labels = host.splits.train.arrays["label"][rows]
    count = np.bincount(labels, minlength=self.num_classes)
    total = np.bincount(labels, sure, minlength=self.num_classes)
    host.memory["confidence"] = np.float32(total / np.maximum(count, 1))

  def sure(self, nets, batch):
    """The teacher's probability of the label."""
    p = jax.nn.softmax(nets.teacher(batch).logits)
    return {"sure": jnp.take_along_axis(p, batch["label"][:, None], 1)[:, 0]}

  def constrain(self, nets, batch, step):
    """CLAP: labels move prototypes, least where the names were sure."""
    taught = self.teach(nets, batch, step)
    moved = losses.prototype_constraint(
      nets.params("teacher")["prototypes"],
      nets.memory["names"],
      weights=nets.memory["confidence"],
    )
    return taught.replace(total=taught.total + moved * taught.weight)

  def begin(self, number, host):
    """New labels, and a student that knows nothing of earlier rounds."""
    if not self._fits_first(number):
      self.label(number, host)
    params, collections = host.start()
    role, first = self._students[number], self._students[0]
    host.params[role] = params[first]
    host.collections[role] = collections[first]

  def _first(self, host, labels):
    """One random example of every class."""
    order = jax.random.permutation(host.key("first"), len(labels))
    order = np.asarray(order)
    return [order[labels[order] == c][0] for c in range(self.num_classes)]

  def pick(self, host, number, labelled):
    """Positions in the pool that get a label, by the student of a round."""
    score = functools.partial(self.score, self._students[number])
    scores = host.run(score)
    p, features = scores["probabilities"], scores["features"]
    rows = np.flatnonzero(~labelled)
    count = self.query or self.num_classes
    key = host.key("pick")
    chosen = {
      "pcoreset": lambda: selection.probability_coreset(
        p[rows], p[labelled], count=count
      ),
      "coreset": lambda: selection.feature_coreset(
        features[rows], features[labelled], count=count
      ),
      "uncertainty": lambda: selection.uncertainty(p[rows], count=count),
      "badge": lambda: selection.badge(p[rows], features[rows], count=count),
      "class_balanced": lambda: selection.class_balanced(
        key,
        p[rows],
        host.splits.train.arrays["label"][labelled],
        count=count,
      ),
      "random": lambda: selection.at_random(key, len(rows), count=count),
    }[self.strategy]()
    return rows[np.asarray(chosen)]

  def score(self, role, nets, batch):
    """Probabilities, of both heads alike, and features of a student."""
    value = nets[role](batch).value
    p = jax.nn.softmax(self._mixed(value, 0.5, 1.0))
    return {"probabilities": p, "features": value["features"]}

  def _mixed(self, value, share, temperature):
    """Log-probabilities of both heads; without a teacher, of one."""
    if not self.teacher_weight:
      return jax.nn.log_softmax(value["labels"])
    return losses.mixed_log_probabilities(
      value["labels"], value["teacher"], share=share, temperature=temperature
    )

  def teach(self, nets, batch, step):
    """Cross entropy of the teacher."""
    del step
    return label_loss(nets.teacher(batch).logits, batch)

  def show(self, nets, batch):
    """What the teacher shows of an example: logits."""
    return self.teacher_scale * nets.teacher(batch).logits

  def distil(self, role, nets, batch, step):
    """Labels for one head, the teacher for the other one."""
    del step
    ours, pairs = nets[role](batch).value, []
    if self.teacher_weight:
      unlabelled = part(batch, "unlabelled")
      free = nets[role](unlabelled).value
      pairs = [
        (ours["teacher"], batch["shown"], batch["mask"]),
        (free["teacher"], unlabelled["shown"], unlabelled["mask"]),
      ]
    total = losses.dual_head(
      ours["labels"],
      batch["label"],
      pairs,
      temperature=self.temperature,
      label_weight=self.label_weight,
      teacher_weight=self.teacher_weight,
      where=batch["mask"],
    )
    return Loss.mean(total, where=batch["mask"])

  def _predicted(self, nets, role, batch):
    value = nets[role](batch).value
    mixed = self._mixed(value, self.share, self.mixture_temperature)
    return Outputs(value=mixed)

  def predict(self, nets, batch):
    """The mixture of the last student's heads."""
    return self._predicted(nets, "student", batch)

  def outputs(self, nets, batch):
    """The last student, the teacher, and the students of earlier rounds."""
    return {
      "student": self.predict(nets, batch),
      "teacher": nets.teacher(batch),
      **{
        name: self._predicted(nets, name, batch) for name in self._students[:-1]
      },
    }


def _labelled(memory):
  return np.flatnonzero(memory["labelled"])


def _unlabelled(memory):
  return np.flatnonzero(~np.asarray(memory["labelled"]))
