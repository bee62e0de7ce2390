"""Teachers of which k classes are known, as servers and OPSD have them."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check
from tests.losses.vectors.language import gjsd, logits_check, token_mean

SERVER = "huggingface/trl@f2cd577 server_distillation_trainer.py"
OPSD = "siyan-zhao/OPSD@590ec26 opsd_trainer.py:generalized_jsd_loss"
FILE = "llm_baselines__sparse_topk"
TAILS = {"tail_bucket": "bucket", "renormalised": "renormalize"}


def renormalized(divergence, student, teacher, k, temperature=1.0):
  """Over the k classes the teacher thinks most probable, without T^2.

  The teacher's k log-probabilities are tempered again by the loss.
  """
  return (
    losses.topk_divergence(
      divergence,
      student,
      losses.TopK.of(teacher, k),
      temperature=temperature,
      tail="renormalize",
    )
    / temperature**2
  )


def sampled(teacher, ids, first):
  """The top class and a sampled token, or that token alone.

  A token that is the top class counts once.
  """
  log_p = jax.nn.log_softmax(teacher, axis=-1)
  of_ids = jnp.take_along_axis(log_p, ids[..., None], axis=-1)
  if not first:
    return losses.TopK(ids=ids[..., None], log_probs=of_ids)
  top = losses.TopK.of(teacher, 1)
  same = top.ids == ids[..., None]
  return losses.TopK(
    ids=jnp.concatenate([top.ids, ids[..., None]], -1),
    log_probs=jnp.concatenate(
      [top.log_probs, jnp.where(same, -jnp.inf, of_ids)], -1
    ),
  )


def _server() -> Iterator[Check]:
  """Forward KL on the top k; GJSD on the top class and the sampled token."""
  for case, arrays in golden_tools.cases(FILE).items():
    where = jnp.asarray(arrays["in_labels"] != -100)
    ids = jnp.where(where, arrays["in_labels"], 0)
    given = losses.TopK(
      ids=jnp.asarray(arrays["in_topk_token_ids"]),
      log_probs=jnp.asarray(arrays["in_topk_logprobs"]),
    )
    for suffix, tail in TAILS.items():
      for name, divergence, of_teacher in (
        ("forward_kl_topk", losses.KL(), lambda t, given=given: given),
        (
          "top1_sampled_beta0p5",
          losses.JSD(0.5),
          lambda t, ids=ids: sampled(t, ids, True),
        ),
        (
          "top1_sampled_beta1",
          losses.ReverseKL(),
          lambda t, ids=ids: sampled(t, ids, False),
        ),
      ):

        def mean(
          student, teacher, d=divergence, f=of_teacher, tail=tail, where=where
        ):
          values = losses.topk_divergence(
            d, student, f(teacher), where=where, tail=tail
          )
          return token_mean(values, where)

        yield logits_check(
          "topk_divergence",
          SERVER,
          f"{FILE}/{case}/{name}_{suffix}",
          arrays,
          mean,
          f"out_{name}_{suffix}",
          f"grad_student_logits__{name}_{suffix}",
          gradient_atol=1e-5,
        )


def _opsd() -> Iterator[Check]:
  """GJSD over the teacher's k classes, renormalised."""
  for case, arrays in golden_tools.cases(FILE).items():
    where = jnp.asarray(arrays["in_labels"] != -100)
    k = arrays["in_topk_token_ids"].shape[-1]
    for beta, text in ((0.0, "0"), (0.5, "0p5"), (1.0, "1")):
      name = f"opsd_topk_renormalised_gjsd_beta{text}"

      def mean(student, teacher, beta=beta, k=k, where=where):
        values = renormalized(gjsd(beta), student, teacher, k)
        return token_mean(values, where)

      yield logits_check(
        "topk_divergence",
        OPSD,
        f"{FILE}/{case}/{name}",
        arrays,
        mean,
        f"out_{name}",
        f"grad_student_logits__{name}",
        gradient_atol=1e-5,
      )


def _slots() -> Iterator[Check]:
  """The student's k log-probabilities and that of what is left."""
  for case, arrays in golden_tools.cases(FILE).items():
    ids = jnp.asarray(arrays["in_topk_token_ids"])

    def slots(student, teacher, ids=ids):
      del teacher
      log_q = losses.log_probabilities(student)
      head = jnp.take_along_axis(log_q, ids, axis=-1)
      rest = jnp.log1p(-jnp.exp(head).sum(-1, keepdims=True))
      return jnp.concatenate([head, rest], axis=-1)

    yield logits_check(
      "log_probabilities",
      SERVER,
      f"{FILE}/{case}/student_logprobs_with_tail",
      arrays,
      slots,
      "aux_student_logprobs_with_tail",
      "",
    )


def checks() -> Iterator[Check]:
  """What a server's top k and OPSD's top k give."""
  yield from _server()
  yield from _opsd()
  yield from _slots()
