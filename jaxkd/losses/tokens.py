"""Losses of single tokens: sampled ones, and temperatures of their own."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.sequence import token_log_probs
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def sampled_reverse_kl(
  student: Array,
  teacher: Array,
  ids: Array,
  *,
  temperature: float = 1.0,
  where: Array | None = None,
) -> Array:
  """Policy-gradient form of reverse KL on tokens that the student sampled.

    -T^2 A log q_y, A = stop_gradient(log p_y - log q_y)

  y is the sampled token, p and q are the softmax of logits / T. In expectation
  over y ~ q its gradient is that of T^2 KL(q || p) at that position; its value
  is not a distance and may have either sign. The released code has no T^2.

  Args:
    student: logits, [..., V].
    teacher: logits, [..., V].
    ids: y, integers in 0..V-1, [...]; not read where `where` is not true.
    temperature: T, above 0: the temperature y was sampled at.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats squared times T^2.

  Raises:
    ValueError: if the shapes differ, the ids are not integers, or T is not
      above 0.

  Needs: logits, tokens; access white; per example.
  Checked: siyan-zhao/OPSD@590ec26.
  Reference: Zhao et al. (OPSD), https://arxiv.org/abs/2601.18734, Sec. 3.
  """
  checks.logits("sampled_reverse_kl", student, teacher)
  checks.temperature("sampled_reverse_kl", temperature)
  checks.labels("sampled_reverse_kl", ids, student.shape[:-1])
  log_q, log_p = (
    token_log_probs(at_least_float32(logits) / temperature, ids, where=where)
    for logits in (student, teacher)
  )
  advantage = stop_gradient(log_p - log_q)
  return -(temperature**2) * advantage * log_q


def token_temperature(
  privacy: Array, *, lowest: float = 1.0, highest: float = 8.0
) -> Array:
  """A temperature for every token: the more private, the flatter.

    T = lowest + (highest - lowest) privacy

  Args:
    privacy: how likely the token that is predicted is private, [...], 0 to 1.
    lowest: T of a public token, above 0.
    highest: T of a private token, at least `lowest`.

  Returns:
    [...], float32 at least.

  Raises:
    ValueError: if a temperature is out of range.

  Reference: Li et al. (Swing), https://arxiv.org/abs/2212.08349; a reading of
    its abstract.
  """
  checks.temperature("token_temperature", lowest)
  if not highest >= lowest:
    raise ValueError(
      f"token_temperature: lowest={lowest}, highest={highest}; expected the "
      "highest to be at least the lowest"
    )
  return lowest + (highest - lowest) * at_least_float32(privacy)


def swing(
  student: Array,
  teacher: Array,
  privacy: Array,
  *,
  lowest: float = 1.0,
  highest: float = 8.0,
  both: bool = True,
  where: Array | None = None,
) -> Array:
  """KL at a temperature that grows with a token's privacy (Swing).

    lowest^2 KL(softmax(z_T / T) || softmax(z_S / T)), T = `token_temperature`

  The factor is the same for all tokens: T^2 would give the gradients of
  private tokens back their size, and with it what they say. Noise, if any, is
  added to the teacher's logits by the caller.

  Args:
    student: logits z_S, [..., V].
    teacher: logits z_T, [..., V].
    privacy: how likely the token that is predicted is private, [...], 0 to 1.
    lowest: T of a public token, above 0.
    highest: T of a private token, at least `lowest`.
    both: False leaves the student at `lowest`; the order of the teacher's
      classes then reaches it.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times lowest^2.

  Raises:
    ValueError: if the shapes differ or a temperature is out of range.

  Needs: logits, privacy of the tokens; access white; per example.
  Checked: formula.
  Reference: Li et al. (Swing), https://arxiv.org/abs/2212.08349; a reading of
    its abstract.
  """
  checks.logits("swing", student, teacher)
  if privacy.shape != student.shape[:-1]:
    raise ValueError(
      f"swing: privacy {privacy.shape}; expected {student.shape[:-1]}, the "
      "shape of the logits without the class axis"
    )
  checks.where("swing", where, student.shape[:-1])
  if where is not None:
    privacy = jnp.where(where.astype(bool), privacy, 0.0)
  of_teacher = token_temperature(privacy, lowest=lowest, highest=highest)
  of_student = of_teacher if both else jnp.full_like(of_teacher, lowest)
  flat_student = at_least_float32(student) / of_student[..., None]
  flat_teacher = at_least_float32(teacher) / of_teacher[..., None]
  return lowest**2 * kl(flat_student, flat_teacher, where=where)


def noisy_probabilities(
  probabilities: Array, noise: Array, *, least: float = 1e-6
) -> Array:
  """Probabilities with noise added, cut off below and normalised again.

    max(p + n, least) / sum_c max(p_c + n_c, least)

  Args:
    probabilities: p, [..., C].
    noise: n, already scaled, [..., C].
    least: what no class falls below before the division, above 0.

  Returns:
    [..., C], float32 at least.

  Raises:
    ValueError: if the shapes differ or `least` is not above 0.

  Reference: Li et al. (Swing), https://arxiv.org/abs/2212.08349; a reading of
    its abstract.
  """
  checks.same("noisy_probabilities", probabilities=probabilities, noise=noise)
  checks.positive("noisy_probabilities", "least", least)
  noisy = at_least_float32(probabilities) + at_least_float32(noise)
  kept = jnp.maximum(noisy, least)
  return kept / jnp.sum(kept, axis=-1, keepdims=True)


def gram_cosine(
  student: Array,
  teacher: Array,
  *,
  where: Array | None = None,
  joint: bool = False,
) -> Array:
  """Distance of the relations that the tokens of an example have.

    1 - <R_S, R_T> / (|R_S| |R_T|), R = Z Z^T

  Z are logits or features of an example's tokens, such as those of its image,
  neither centred nor normalised. Rotating or scaling either side changes
  nothing; the widths may differ. A relation that is zero is at 1/2 from one
  that is not.

  Args:
    student: Z_S, [..., N, C].
    teacher: Z_T, [..., N, D].
    where: [..., N], the tokens that count; others are left out of R.
    joint: whether the relations of all examples are one long vector with one
      cosine, as the released trainer has it (batch level, a scalar). The two
      agree for one example.

  Returns:
    [...], 0 to 1 (the matrices are positive semi-definite).

  Raises:
    ValueError: if the shapes do not fit.

  Needs: logits or features of tokens; access white; per example.
  Checked: Jingchensun/llava-kd@3fe6cc5.
  Reference: Cai et al. (LLaVA-KD), https://arxiv.org/abs/2410.16236, Eq. 6.
  """
  checks.white("gram_cosine", teacher)
  if student.shape[:-1] != teacher.shape[:-1] or student.ndim < 2:
    raise ValueError(
      f"gram_cosine: student {student.shape}, teacher {teacher.shape}; "
      "expected [..., N, C] and [..., N, D]"
    )
  axes = None if joint else (-2, -1)
  of_student, of_teacher = (
    _unit(_gram(checks.masked("gram_cosine", z, where)), axes)
    for z in (student, teacher)
  )
  return 0.5 * jnp.sum((of_student - of_teacher) ** 2, axis=axes)


def _gram(z: Array) -> Array:
  """Z Z^T, [..., N, N]; a class at -inf is left out."""
  z = at_least_float32(jnp.where(jnp.isneginf(z), 0.0, z))
  return jnp.einsum("...ic,...jc->...ij", z, z, precision="highest")


def _unit(x: Array, axes: tuple[int, ...] | None) -> Array:
  """The array at norm 1, or 0 if it is 0."""
  square = jnp.sum(x**2, axis=axes, keepdims=True)
  some = square > 0
  norm = jnp.sqrt(jnp.where(some, square, 1.0))
  return jnp.where(some, x / norm, 0.0)
