"""Losses of sequences: reductions, alignments, temperatures of tokens."""

import re
from collections.abc import Iterator

import jax.numpy as jnp

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check
from tests.losses.vectors.language import (
  gjsd,
  logits_check,
  number,
  token_mean,
)
from tests.losses.vectors.sparse_topk import renormalized

FIDELITY = "LCS2-IIITD/KD_generalization@a5fed92 kd_trainer.py"
OPSD = "siyan-zhao/OPSD@590ec26 opsd_trainer.py:OPSDTrainer"


def _fidelity_call(name, attention, labels):
  """T^2, means of sequences; GJSD has the student's share and token means."""
  kind, _, setting = name.partition("_")
  if kind == "gjsd":
    jsd = losses.JSD(number(setting.removeprefix("beta")), mixture="student")
    where = labels != -100
    return "JSD", lambda s, t: token_mean(jsd(s, t, where=where), where)
  where = None if setting.endswith("_nomask") else attention
  temperature = float(setting.removesuffix("_nomask").removeprefix("T"))
  divergence = losses.KL() if kind == "fkl" else losses.ReverseKL()

  def mean(s, t):
    values = divergence(s, t, temperature=temperature, where=where)
    return losses.sequence_mean(values, where=where).mean()

  return divergence.name, mean


def _fidelity() -> Iterator[Check]:
  """1e-9 is added to their probabilities, within the tolerance."""
  file = "kd_fidelity__losses"
  for case, arrays in golden_tools.cases(file).items():
    attention = jnp.asarray(arrays["in_attention_mask"])
    labels = jnp.asarray(arrays["in_labels"])
    for name in golden_tools.section(arrays, "out_"):
      loss, call = _fidelity_call(name, attention, labels)
      yield logits_check(
        loss,
        FIDELITY,
        f"{file}/{case}/{name}",
        arrays,
        call,
        f"out_{name}",
        f"grad_student_logits__{name}",
      )


def _opsd_aligned() -> Iterator[Check]:
  """GJSD of the completions, dense and of the teacher's top k; no T^2."""
  for case, arrays in golden_tools.cases("opsd__losses").items():
    where = jnp.asarray(arrays["in_labels"] != -100)
    for name in golden_tools.section(arrays, "out_gjsd_"):
      beta, temperature, k = re.fullmatch(
        r"beta([0-9p]+)_T([0-9p]+?)(?:_topk(\d+))?", name
      ).groups()
      divergence, t2 = gjsd(number(beta)), number(temperature)

      def mean(student, teacher, d=divergence, t2=t2, k=k, where=where):
        if k is not None:
          values = renormalized(d, student, teacher, int(k), t2)
        else:
          values = d(student, teacher, temperature=t2, where=where) / t2**2
        return token_mean(values, where)

      yield logits_check(
        "topk_divergence" if k else divergence.name,
        f"{OPSD}.generalized_jsd_loss",
        f"opsd__losses/{case}/gjsd_{name}",
        arrays,
        mean,
        f"out_gjsd_{name}",
        f"grad_student_logits__gjsd_{name}",
      )


def _opsd_full() -> Iterator[Check]:
  """From the logits of both prompts with one completion behind them."""
  for case, arrays in golden_tools.cases("opsd__losses").items():
    prompt = int(arrays["param_student_prompt_length"])
    ids = jnp.asarray(arrays["in_student_ids"][:, prompt:])
    where = jnp.asarray(arrays["in_full_labels"][:, prompt:] != -100)

    def completions(student, teacher, length=ids.shape[1]):
      return tuple(
        losses.completion_logits(z, length) for z in (student, teacher)
      )

    def step(student, teacher, pair=completions, where=where):
      jsd = losses.JSD(0.5)(*pair(student, teacher), temperature=1.1)
      return token_mean(jsd / 1.1**2, where)

    def sampled(student, teacher, pair=completions, ids=ids, where=where):
      values = losses.sampled_reverse_kl(
        *pair(student, teacher), ids, temperature=1.1, where=where
      )
      return token_mean(values / 1.1**2, where)

    full = {
      "in_student_logits": arrays["in_full_student_logits"],
      "in_teacher_logits": arrays["in_full_teacher_logits"],
    }
    for loss, name, call in (
      ("JSD", "full_step_gjsd_beta0p5_T1p1", step),
      ("sampled_reverse_kl", "policy_gradient_T1p1", sampled),
    ):
      yield logits_check(
        loss,
        f"{OPSD}.compute_loss",
        f"opsd__losses/{case}/{name}",
        arrays | full,
        call,
        f"out_{name}",
        f"grad_full_student_logits__{name}",
      )


def _ddk() -> Iterator[Check]:
  """Cross entropy of labels and gamma KL without T^2."""
  file = "ddk__mixture.derived"
  directions = {"forward_kl": losses.KL(), "reverse_kl": losses.ReverseKL()}
  for index in range(3):
    arrays = golden_tools.section(golden_tools.load(file), f"loss{index}_")
    labels = jnp.asarray(arrays["in_labels"])
    where = jnp.asarray(arrays["in_mask"], bool)
    gamma, t2 = (
      float(arrays[f"param_{name}"]) for name in ("gamma", "temperature")
    )
    for name, divergence in directions.items():

      def mean(s, t, d=divergence, y=labels, w=where, gamma=gamma, t2=t2):
        task = losses.cross_entropy(s, y, where=w)
        return token_mean(
          task + gamma * d(s, t, temperature=t2, where=w) / t2**2, w
        )

      yield logits_check(
        divergence.name,
        "formula",
        f"{file}/loss{index}/{name}",
        arrays,
        mean,
        f"out_loss_{name}",
        f"grad_student_logits__{name}",
        gradient_rtol=1e-5,
      )


def _swing_targets(case, arrays, span) -> Iterator[Check]:
  """Temperatures, and probabilities with noise."""
  privacy = jnp.asarray(arrays["in_privacy_likelihood"])
  noise = jnp.asarray(arrays["in_noise"])

  def temperatures(student, teacher):
    del student, teacher
    return losses.token_temperature(privacy, **span)

  def probabilities(student, teacher):
    t = temperatures(student, teacher)[..., None]
    p = jnp.exp(losses.log_probabilities(teacher, t))
    return losses.noisy_probabilities(p, 0.1 * noise, least=1e-6)

  for loss, output, call in (
    ("token_temperature", "temperature", temperatures),
    ("noisy_probabilities", "noisy_probs_clip_renorm", probabilities),
  ):
    yield logits_check(
      loss,
      "formula",
      f"{SWING}/{case}/{output}",
      arrays,
      call,
      f"out_{output}",
      "",
      atol=1e-6,
    )


SWING = "swing__token_temperature.derived"


def _swing() -> Iterator[Check]:
  """No factor for the temperature; noise on the teacher's logits."""
  for case, arrays in golden_tools.cases(SWING).items():
    privacy = jnp.asarray(arrays["in_privacy_likelihood"])
    where = jnp.asarray(arrays["in_mask"], bool)
    lowest, highest = (
      float(arrays[f"param_t_{end}"]) for end in ("min", "max")
    )
    span = {"lowest": lowest, "highest": highest}
    yield from _swing_targets(case, arrays, span)
    for name in golden_tools.section(arrays, "out_"):
      if not name.startswith(("teacher_only", "both_sides")):
        continue
      noise = jnp.asarray(arrays["in_noise"]) * name.endswith("_noise")
      options = span | {"both": name.startswith("both"), "where": where}

      def mean(s, t, n=noise, x=privacy, options=options, where=where):
        values = losses.swing(s, t + n, x, **options)
        return token_mean(values / options["lowest"] ** 2, where)

      yield logits_check(
        "swing",
        "formula",
        f"{SWING}/{case}/{name}",
        arrays,
        mean,
        f"out_{name}",
        f"grad_student_logits__{name}",
        gradient_rtol=1e-5,
      )


def checks() -> Iterator[Check]:
  """KD fidelity, OPSD, DDK and Swing."""
  yield from _fidelity()
  yield from _opsd_aligned()
  yield from _opsd_full()
  yield from _ddk()
  yield from _swing()
