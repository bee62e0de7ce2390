"""Distill: any weighted sum of losses, between any networks, from a config.

  L = sum_i w_i(epoch) loss_i(student, teacher; options_i(epoch))

over terms that read labels, logits or submodule outputs. The loss library
becomes a method: every published loss is one config file, and so is every
combination of them.

Three arrangements of the networks share that sum:

1. Teachers (Hinton et al., https://arxiv.org/abs/1503.02531): each learns from
   labels first and is frozen; a term takes all of them or those it names.
2. Peers (deep mutual learning, https://arxiv.org/abs/1706.00384): they learn
   together with the student from the first step on, each one taught by all
   others, which are constants in its loss.
3. Generations (born-again networks, https://arxiv.org/abs/1805.04770): equal
   students in a row, each one taught by the one before. Without teachers the
   first learns from labels: self-distillation.

An `encoder` comes trained and is never changed. What it returns of an example
is the batch's entry `encoded`, which teachers read: they are heads on frozen
features. It runs once for every example of a phase.

With `unlabelled`, terms that read labels of the data are of the training split
and all others of that one; every term is a mean over its own examples.

`access` is how much of the teachers can be seen: everything (`white`), the k
most probable classes with their log-probabilities (`topk`), or samples alone
(`text`). A loss that needs more refuses.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import jax
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
from jaxkd.network import Network, Outputs
from jaxkd.terms import Features, Logits, Seen, Term, View

ENCODED = "encoded"
LABELLED = "labelled"  # the stream beside that of unlabelled examples
ACCESS = ("white", "topk", "text")
SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(Method):
  """A weighted sum of terms between a student and its teachers.

  Roles: `encoder`, the teachers and peers by name, `generation_1`, ... before
  the last one, `student`, and the terms' projectors, which a generation takes
  over from the one before. Phases: `teach_<name>` for every teacher,
  `distil_<generation>` for the generations before the last one, `distil`.
  Prediction: the student.
  """

  student: Network
  terms: tuple[Term, ...]
  teachers: Mapping[str, Network] = dataclasses.field(default_factory=dict)
  peers: Mapping[str, Network] = dataclasses.field(default_factory=dict)
  encoder: Network | None = None  # of the teachers' inputs, with its weights
  generations: int = 1
  access: Literal["white", "topk", "text"] = "white"
  k: int = 5  # classes that are seen with access topk
  teacher_epochs: int = 100
  teacher_stream: str = "train"  # split of the labels that teachers learn
  unlabelled: str = ""  # split of the terms that read no labels of the data
  labelled_batch: int | None = None  # then of labels; the task's if not given
  epochs: int = 100  # of every generation, over `unlabelled` if it is given
  lr: float = 1e-3  # of Adam
  teacher_lr: float | None = None  # likewise; `lr` if not given
  lr_schedule: Literal["constant", "cosine"] = "constant"  # cosine: to 0

  def __post_init__(self):
    """Checks names and arrangements against each other."""
    object.__setattr__(self, "terms", tuple(self.terms))
    names = [term.name for term in self.terms]
    if not names or len(set(names)) != len(names):
      raise ConfigError(
        f"Distill.terms: expected terms with names of their own, got {names}"
      )
    if self.access not in ACCESS:
      raise ConfigError(
        f"Distill.access={self.access!r}: expected one of {', '.join(ACCESS)}"
      )
    if self.lr_schedule not in SCHEDULES:
      raise ConfigError(
        f"Distill.lr_schedule={self.lr_schedule!r}: expected one of "
        + ", ".join(SCHEDULES)
      )
    if self.generations < 1 or (self.generations > 1 and self.peers):
      raise ConfigError(
        f"Distill.generations={self.generations}, peers={list(self.peers)}: "
        "expected at least 1 generation, and peers in one generation only"
      )
    others = [*self.teachers, *self.peers]
    taken = (*self._generations, "encoder")
    for name in others:
      if name in taken or others.count(name) > 1:
        raise ConfigError(f"Distill: two networks are called {name!r}")
    self._check_terms()

  def _check_terms(self):
    for term in self.terms:
      if term.taught and not (self.teachers or self.peers):
        if self.generations == 1:
          raise ConfigError(
            f"Distill: term {term.name!r} needs a teacher; expected teachers, "
            "peers, or more than one generation"
          )
      if isinstance(term, Features) and self.peers:
        raise ConfigError(
          f"Distill: term {term.name!r} reads submodules; peers are taught by "
          "labels and logits"
        )
      if isinstance(term, Logits) and self.access == "text" and self.teachers:
        raise ConfigError(
          f"Distill: term {term.name!r} reads logits of its teacher and needs "
          f"access 'topk' or 'white'; Distill.access={self.access!r} gives "
          "samples alone (Labels(of=...))"
        )
      if isinstance(term, Features) and self.access != "white":
        raise ConfigError(
          f"Distill: term {term.name!r} reads submodules of its teacher and "
          f"needs access 'white'; Distill.access={self.access!r}"
        )
    if not self._active(self._generations[0]):
      raise ConfigError(
        "Distill: the first generation has no teacher; expected a term of "
        "labels for it"
      )

  @property
  def _generations(self):
    """The students in their order; the last one is deployed."""
    earlier = (f"generation_{n}" for n in range(1, self.generations))
    return (*earlier, "student")

  @property
  def roles(self):
    """All networks by name."""
    students = dict.fromkeys(self._generations, self.student)
    projectors = {}
    for term in self.terms:
      projectors |= term.roles
    encoder = {"encoder": self.encoder} if self.encoder else {}
    others = {**encoder, **self.teachers, **self.peers}
    return {**others, **students, **projectors}

  @property
  def phases(self):
    """The teachers one by one, then the generations."""
    return (
      *map(self._teach, self.teachers),
      *map(self._distil, self._generations),
    )

  @property
  def memory(self):
    """What terms keep between steps."""
    return {k: v for term in self.terms for k, v in term.memory.items()}

  def _teach(self, name):
    # A validation would run the encoder after every epoch.
    judge = functools.partial(self.validate, (name,))
    teach = functools.partial(self.teach, name)
    return Phase(
      name=f"teach_{name}",
      updates=(self._update((name,), teach, self.teacher_lr),),
      epochs=self.teacher_epochs,
      stream=self.teacher_stream,
      validate=None if self.encoder else judge,
      targets={ENCODED: self.encode} if self.encoder else {},
      memory=(),
    )

  def _distil(self, learner):
    projectors = [r for term in self._active(learner) for r in term.roles]
    return Phase(
      name="distil" if learner == "student" else f"distil_{learner}",
      updates=(
        self._update(
          (learner, *self.peers, *projectors),
          functools.partial(self.distil, learner),
        ),
      ),
      epochs=self.epochs,
      stream=self.unlabelled or "train",
      beside={LABELLED: Stream("train", batch_size=self.labelled_batch)}
      if self.unlabelled
      else {},
      validate=functools.partial(self.validate, (learner, *self.peers)),
      targets=self._targets(learner),
    )

  def _update(self, trainable, loss, lr=None):
    lr = self.lr if lr is None else lr

    def adam(updates):
      if self.lr_schedule == "cosine":
        return optax.adam(optax.cosine_decay_schedule(lr, updates))
      return optax.adam(lr)

    return Update(trainable=trainable, loss=loss, optimizer=adam)

  def _taught_by(self, learner):
    """The frozen teachers of a generation: name in terms -> role."""
    number = self._generations.index(learner)
    if number:
      return {"teacher": self._generations[number - 1]}
    return {name: name for name in self.teachers}

  def _active(self, learner):
    """The terms of a generation; those of teachers where it has some."""
    taught = self._taught_by(learner) or self.peers
    return [term for term in self.terms if taught or not term.taught]

  def _targets(self, learner):
    """What the frozen teachers show, computed once for every example."""
    taught, targets = self._taught_by(learner), {}
    for name, role in taught.items():
      wanted = set()
      for term in self._active(learner):
        wanted |= set(term.reads(name, first=next(iter(taught))))
      if self.access == "topk" and "logits" in wanted:
        wanted = wanted - {"logits"} | {"ids", "log_probs"}
      for what in sorted(wanted):
        targets[f"{name}/{what}"] = functools.partial(self.show, role, what)
    return targets

  def encode(self, nets, batch):
    """What the encoder returns."""
    return nets.encoder(batch).value

  def _encoded(self, nets, batch):
    """The batch with what the encoder returns of it, if there is one."""
    if self.encoder is None:
      return batch
    return {**batch, ENCODED: self.encode(nets, batch)}

  def show(self, role, what, nets, batch):
    """What a frozen teacher shows: logits, top-k, its class, or a tap."""
    batch = self._encoded(nets, batch)
    if what not in ("logits", "ids", "log_probs", "label"):
      return nets[role](batch, taps=(what,)).taps[what]
    logits = nets[role](batch).logits
    if what == "logits":
      return logits
    if what == "label":
      return losses.TopK.of(logits, 1).ids[..., 0]
    return getattr(losses.TopK.of(logits, self.k), what)

  def teach(self, name, nets, batch, step):
    """A teacher learns from labels."""
    del step
    return self.validate((name,), nets, batch)

  def validate(self, names, nets, batch):
    """Networks are judged by the labels."""
    task = [label_loss(nets[name](batch).logits, batch) for name in names]
    total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), task)
    return total.replace(weight=task[0].weight)

  def distil(self, learner, nets, batch, step):
    """The weighted sum of the terms, of the learner and of its peers."""
    terms = self._active(learner)
    if not self.unlabelled:
      return self._sum(learner, terms, nets, batch, step)
    parts = (
      ([t for t in terms if t.labelled], part(batch, LABELLED)),
      ([t for t in terms if not t.labelled], batch),
    )
    sums = [
      self._sum(learner, chosen, nets, examples, step)
      for chosen, examples in parts
      if chosen
    ]
    total = sum(s.total / jnp.maximum(s.weight, 1.0) for s in sums)
    joined = Loss.mean(total, where=batch["mask"])
    metrics = {k: v for s in reversed(sums) for k, v in s.metrics.items()}
    memory = {k: v for s in sums for k, v in s.memory.items()}
    return joined.replace(metrics=metrics, memory=memory)

  def _sum(self, learner, terms, nets, batch, step):
    """The weighted sum of some of the terms, on one batch."""
    paths = {p for t in terms if isinstance(t, Features) for p in t.student}
    outputs = {
      learner: nets[learner](batch, taps=tuple(sorted(paths))),
      **{name: nets[name](batch) for name in self.peers},
    }
    teachers = {name: _seen(name, batch) for name in self._taught_by(learner)}
    total, metrics, memory = 0.0, {}, {}
    for name, own in outputs.items():
      others = {
        peer: Seen(logits=stop_gradient(o.logits))
        for peer, o in outputs.items()
        if peer != name
      }
      view = View(nets, batch, step, own, {**teachers, **others})
      prefix = "" if name == learner else f"{name}/"
      for term in terms:
        weighted, value, kept = term.weighted(view)
        total = total + weighted
        memory |= kept
        metrics[prefix + term.name] = value
      metrics[f"{prefix}accuracy"] = hits(own.logits, batch)
    return Loss.mean(total, where=batch["mask"], metrics=metrics, memory=memory)

  def predict(self, nets, batch):
    """The student."""
    return nets.student(batch)

  def outputs(self, nets, batch):
    """The student, its teachers and peers; generations also as an ensemble."""
    found = {"student": self.predict(nets, batch)}
    given = self._encoded(nets, batch)
    found |= {n: nets[n](given) for n in (*self.teachers, *self.peers)}
    if self.generations > 1:
      logits = [nets[name](batch).logits for name in self._generations]
      found["ensemble"] = Outputs(
        value=losses.probability_mean(jnp.stack(logits))
      )
    return found


def _seen(name, batch):
  """What a frozen teacher showed of a batch."""
  shown = {
    entry.removeprefix(f"{name}/"): value
    for entry, value in batch.items()
    if entry.startswith(f"{name}/")
  }
  logits, label = shown.pop("logits", None), shown.pop("label", None)
  if "ids" in shown:
    logits = losses.TopK(shown.pop("ids"), shown.pop("log_probs"))
  return Seen(logits=logits, label=label, taps=shown)
