"""BOOT: data-free distillation of a diffusion model with bootstrapping.

Gu, Zhai, Zhang, Liu and Susskind, ICML 2024, https://arxiv.org/abs/2306.05544.

The student g maps noise e to the signal y_t of the trajectory that the teacher
f would follow from e: at the least time that is the sample, in one evaluation.
No data is read and no trajectory is run: two outputs of the student at s < t
must agree with one step of the teacher between them,

  x_t = alpha_t g(e, t) + sigma_t e
  kappa = 1 - alpha_t sigma_s / (sigma_t alpha_s)
  L_BS = E_t |g(e, s) - SG[g(e, t) + kappa (f(x_t, t) - g(e, t))]|^2 / kappa^2

and at the greatest time the student must agree with the teacher,

  L_BC = |g(e, t_max) - SG[f(e, t_max)]|^2,  L = L_BS + beta L_BC

f is guided, if it is conditional: f = u + w (c - u).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.method import Loss, Method, Phase, Update, label_loss
from jaxkd.network import Network, Outputs

SOLVERS = ("ddim", "heun")
PREDICTIONS = {
  "clean": lambda x, value, level: value,
  "noise": losses.clean_from_noise,
  "velocity": losses.clean_from_velocity,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BOOT(Method):
  """A sampler of one step from a denoiser, without data.

  Roles: teacher and student, of the entries `x`, `t` and, with classes,
  `condition`; judge, a classifier whose features measure samples. Phases:
  `teach` and `judge` on data, `distil` without. Prediction: the student's
  sample from the entry `noise`.
  """

  teacher: Network
  judge: Network
  judge_layer: str  # tap of the judge with the features
  shape: tuple[int, ...]  # of an example
  student: Network | None = None  # the teacher's network if not given
  classes: int | None = None  # number of conditions; None for none
  guidance: float = 1.0  # w
  condition_dropout: float = 0.1  # of the teacher's training
  schedule: losses.CosineNoise | losses.LinearNoise = losses.CosineNoise()
  prediction: Literal["clean", "noise", "velocity"] = "clean"  # the teacher's
  interval: float = 0.04  # delta = t - s
  t_min: float = 0.01
  t_max: float = 0.99
  boundary_weight: float = 0.5  # beta
  weighting: Literal["signal", "delta", "none"] = "signal"  # 1 / kappa^2
  solver: Literal["ddim", "heun"] = "ddim"  # of the teacher's step
  copy_teacher: bool = True  # the student starts as the teacher
  teacher_steps: int = 6000
  judge_steps: int = 1000
  steps: int = 5000
  teacher_lr: float = 1e-3  # of AdamW, as that of the judge
  lr: float = 3e-4  # of AdamW, falls to 0 along a line
  sampler_steps: tuple[int, ...] = (1, 2, 4, 8, 50)  # of DDIM, to compare

  def __post_init__(self):
    """Checks the options."""
    for name, known in (("solver", SOLVERS), ("prediction", PREDICTIONS)):
      if getattr(self, name) not in known:
        raise ConfigError(
          f"BOOT.{name}={getattr(self, name)!r}: expected one of "
          + ", ".join(known)
        )
    if not 0 < self.t_min < self.t_max < 1 or self.interval <= 0:
      raise ConfigError(
        f"BOOT.t_min={self.t_min}, t_max={self.t_max}, interval="
        f"{self.interval}: expected 0 < t_min < t_max < 1, interval above 0"
      )

  @property
  def roles(self):
    """The sampler, its teacher, and who judges them."""
    return {
      "teacher": self.teacher,
      "judge": self.judge,
      "student": self.student or self.teacher,
    }

  @property
  def phases(self):
    """The teacher and the judge on data, the student on noise."""

    def linear(updates):
      return optax.adamw(optax.linear_schedule(self.lr, 0.0, updates))

    def phase(name, role, loss, steps, optimizer, **options):
      update = Update(trainable=(role,), loss=loss, optimizer=optimizer)
      return Phase(name=name, updates=(update,), steps=steps, **options)

    adam = optax.adamw(self.teacher_lr)
    return (
      phase("teach", "teacher", self.teach, self.teacher_steps, adam),
      phase("judge", "judge", self.classify, self.judge_steps, adam),
      phase(
        "distil",
        "student",
        self.distil,
        self.steps,
        linear,
        stream=None,
        begin=self.begin if self.copy_teacher else None,
      ),
    )

  def begin(self, host):
    """The student starts as the teacher."""
    host.params["student"] = host.params["teacher"]

  def classify(self, nets, batch, step):
    """Cross entropy of the judge."""
    del step
    return label_loss(nets.judge(batch).logits, batch)

  def teach(self, nets, batch, step):
    """The teacher takes the noise away."""
    del step
    clean = batch["image"]
    time, noise, drop = (
      nets.key(name) for name in ("time", "noise", "condition")
    )
    t = jax.random.uniform(time, clean.shape[:1])
    noise, level = jax.random.normal(noise, clean.shape), self.schedule(t)
    condition = None
    if self.classes is not None:
      dropped = jax.random.bernoulli(drop, self.condition_dropout, t.shape)
      condition = jnp.where(dropped, self.classes, batch["label"])
    x = losses.diffuse(clean, noise, level)
    predicted = self._denoise(nets, x, t, condition)
    return Loss.mean(losses.denoising(predicted, clean), where=batch["mask"])

  def _run(self, role, x, t, condition):
    given = {"x": x, "t": jnp.broadcast_to(t, x.shape[:1])}
    if condition is not None:
      given["condition"] = condition
    return role(given).value

  def _denoise(self, nets, x, t, condition):
    """The teacher's prediction of the example."""
    value = self._run(nets.teacher, x, t, condition)
    level = self.schedule(jnp.broadcast_to(t, x.shape[:1]))
    return PREDICTIONS[self.prediction](x, value, level)

  def guided(self, nets, x, t, condition):
    """f: the teacher's prediction under guidance."""
    predicted = self._denoise(nets, x, t, condition)
    if condition is None or self.guidance == 1:
      return predicted
    nothing = jnp.full_like(condition, self.classes)
    free = self._denoise(nets, x, t, nothing)
    return losses.guide(predicted, free, scale=self.guidance)

  def distil(self, nets, batch, step):
    """Bootstrapping and boundary loss, of fresh noise."""
    del step
    size = len(batch["mask"])
    noise = jax.random.normal(nets.key("noise"), (size, *self.shape))
    t = jax.random.uniform(
      nets.key("time"), (size,), minval=self.t_min, maxval=self.t_max
    )
    condition = None
    if self.classes is not None:
      condition = jax.random.randint(
        nets.key("condition"), (size,), 0, self.classes
      )
    s = jnp.maximum(t - self.interval, self.t_min)
    target = self.target(nets, noise, t, s, condition)
    share = losses.step_share(self.schedule(t), self.schedule(s))
    bootstrap = losses.boot(
      self._run(nets.student, noise, s, condition),
      target,
      share=share,
      interval=jnp.maximum(t - s, jnp.finfo(jnp.float32).tiny),
      weighting=self.weighting,
    )
    boundary = losses.denoising(
      self._run(nets.student, noise, self.t_max, condition),
      stop_gradient(self.guided(nets, noise, self.t_max, condition)),
    )
    return Loss.mean(
      bootstrap + self.boundary_weight * boundary,
      where=batch["mask"],
      metrics={"bootstrap": bootstrap, "boundary": boundary},
    )

  def target(self, nets, noise, t, s, condition):
    """The student's signal at t after one step of the teacher, a constant."""
    now, then = self.schedule(t), self.schedule(s)
    signal = stop_gradient(self._run(nets.student, noise, t, condition))
    x = losses.diffuse(signal, noise, now)
    clean = self.guided(nets, x, t, condition)
    if self.solver == "ddim":
      return stop_gradient(losses.signal_step(signal, clean, now, then))
    return stop_gradient(
      losses.heun_signal_step(
        signal,
        clean,
        lambda x: self.guided(nets, x, s, condition),
        noise=noise,
        now=now,
        then=then,
      )
    )

  def _condition(self, batch):
    return batch["label"] if self.classes is not None else None

  def predict(self, nets, batch):
    """The student's sample."""
    condition = self._condition(batch)
    sample = self._run(nets.student, batch["noise"], self.t_min, condition)
    return Outputs(value=sample)

  def sample(self, nets, batch, steps):
    """The teacher's sample by DDIM."""
    condition = self._condition(batch)
    times = jnp.linspace(self.t_max, self.t_min, steps + 1)

    def denoise(x, t):
      return self.guided(nets, x, t, condition)

    x = losses.ddim_sample(denoise, batch["noise"], times, self.schedule)
    last = jnp.full(x.shape[:1], self.t_min)
    return denoise(x, last) if steps > 1 else denoise(batch["noise"], times[0])

  def outputs(self, nets, batch):
    """Features of samples: of the student, of the teacher, of data."""
    found = {"student": self.predict(nets, batch).value}
    for steps in self.sampler_steps:
      found[f"ddim_{steps}"] = self.sample(nets, batch, steps)
    found["data"] = batch["image"]
    return {name: self._features(nets, x) for name, x in found.items()}

  def _features(self, nets, x):
    judged = nets.judge({"image": x}, taps=(self.judge_layer,))
    return Outputs(
      value={"sample": x, "features": judged.taps[self.judge_layer]}
    )

  def measure(self, nets, batch):
    """Mean squares to the teacher's longest trajectory from the same noise."""
    longest = self.sample(nets, batch, max(self.sampler_steps))
    return {
      "student/to_teacher": losses.denoising(
        self.predict(nets, batch).value, longest
      ),
      "ddim_1/to_teacher": losses.denoising(
        self.sample(nets, batch, 1), longest
      ),
    }
