"""Kullback-Leibler divergence and the divergences made of it.

Notation as in `divergence`: p is the teacher, q the student, T the
temperature.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.divergence import Divergence, exp, mixture, relative_entropy
from jaxkd.losses.softmax import Reduction, least_where

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class KL(Divergence):
  """Forward Kullback-Leibler divergence KL(p || q).

    T^2 sum_c p_c (log p_c - log q_c)

  Its gradient with respect to the student's logits is T (q - p). Libraries of
  language models often leave out the teacher's entropy (a cross entropy) or
  the T^2.

  Needs: logits; access topk; per example.
  Checked: 2018cx/SinKD@1ffac901; DD-DuDa/BitDistiller@9faaab8;
    Fantasyele/LLaVA-KD@aad2802; Gray-OREO/MST-Distill@093b2fe;
    HobbitLong/RepDistiller@b84f547; Jingchensun/llava-kd@3fe6cc5;
    LCS2-IIITD/KD_generalization@a5fed92; MANGA-UOFA/fdistill@8e2ff7c;
    SakanaAI/TAID@a062892; erjui/DHO@846de75; hchoi71/MIX-KD@6e8c149;
    huggingface/trl@f2cd577; jongwooko/distillm@d47e77f;
    megvii-research/mdistiller@a08d46f; penghui-yang/DHKD@7976c69;
    shufangxun/LLaVA-MoD@481ca57; siyan-zhao/OPSD@590ec26;
    skyshoumeng/Label_Assisted_Distillation@cd08406;
    sunshangquan/logit-standardization-KD@f6e5aa5;
    yoshitomo-matsubara/torchdistill@3e4373c;
    yuanli2333/Teacher-free-Knowledge-Distillation@d000ab3; formula.
  Reference: Hinton et al., https://arxiv.org/abs/1503.02531, Sec. 2.
  """

  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """KL(p || q)."""
    del context
    return (relative_entropy(log_p, log_q),)


@dataclasses.dataclass(frozen=True)
class ReverseKL(Divergence):
  """Reverse Kullback-Leibler divergence KL(q || p).

    T^2 sum_c q_c (log q_c - log p_c)

  Infinite where the student has mass and the teacher has none.

  Needs: logits; access topk; per example.
  Checked: DD-DuDa/BitDistiller@9faaab8; Daniel00008/ProC-KD@56c6adc;
    Fantasyele/LLaVA-KD@aad2802; LCS2-IIITD/KD_generalization@a5fed92;
    MANGA-UOFA/fdistill@8e2ff7c; SakanaAI/TAID@a062892; huggingface/trl@f2cd577;
    huggingface/trl@f2cd5771; jongwooko/distillm@d47e77f;
    microsoft/LMOps@4f2a9deb; siyan-zhao/OPSD@590ec26; formula.
  Reference: Gu et al. (MiniLLM), https://arxiv.org/abs/2306.08543, Eq. 2.
  """

  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """KL(q || p)."""
    del context
    return (relative_entropy(log_q, log_p),)


@dataclasses.dataclass(frozen=True)
class SymmetricKL(Divergence):
  """Weighted sum of both directions of KL.

    T^2 [(1 - w) KL(p || q) + w KL(q || p)]

  Needs: logits; access topk; per example.
  Checked: DD-DuDa/BitDistiller@9faaab8; jongwooko/distillm@d47e77f.
  Reference: Jeffreys' divergence at w = 1/2 is twice this; the weight as in
    Ko et al. (DistiLLM), https://arxiv.org/abs/2402.03898.
  """

  reverse_weight: float = 0.5  # w, 0 to 1

  def __post_init__(self):
    """Checks the weight."""
    checks.between(self.name, "reverse_weight", self.reverse_weight, 0, 1)

  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """The weighted terms."""
    del context
    w = self.reverse_weight
    forward = relative_entropy(log_p, log_q) if w < 1 else 0.0
    reverse = relative_entropy(log_q, log_p) if w > 0 else 0.0
    return ((1 - w) * forward + w * reverse,)


@dataclasses.dataclass(frozen=True)
class JSD(Divergence):
  """Generalised Jensen-Shannon divergence.

    T^2 [beta KL(p || m) + (1 - beta) KL(q || m)], m = beta p + (1 - beta) q

  This is the convention of GKD: beta is the teacher's share of the mixture, so
  that D / beta -> KL(p || q) as beta -> 0. At 0 and at 1 the formula is 0;
  libraries that return a KL there jump, which is why the ends are refused.
  DistiLLM's lambda is 1 - beta. `mixture="student"` is the other convention,
  of older copies: m = beta q + (1 - beta) p under the same weights, which tends
  to KL(q || p) as beta -> 0 and to KL(p || q) as beta -> 1 at full scale. The
  two agree at 1/2 only.

  Needs: logits; access topk; per example.
  Checked: DD-DuDa/BitDistiller@9faaab8; Fantasyele/LLaVA-KD@aad2802;
    LCS2-IIITD/KD_generalization@a5fed92; SakanaAI/TAID@a062892;
    huggingface/trl@f2cd577; jongwooko/distillm@d47e77f;
    siyan-zhao/OPSD@590ec26.
  Reference: Agarwal et al. (GKD), https://arxiv.org/abs/2306.13649, Eq. 1.
  """

  beta: float = 0.5
  mixture: Literal["teacher", "student"] = "teacher"  # whose share beta is

  def __post_init__(self):
    """Checks beta and the convention."""
    if not 0 < self.beta < 1:
      raise ValueError(
        f"JSD: beta={self.beta}; expected a value between 0 and 1 (use KL or "
        "ReverseKL for the ends)"
      )
    checks.one_of("JSD", "mixture", self.mixture, ("teacher", "student"))

  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """The weighted terms of both sides against the mixture."""
    del context
    share = self.beta if self.mixture == "teacher" else 1 - self.beta
    log_m = mixture(log_p, log_q, share)
    teacher = relative_entropy(log_p, log_m)
    student = relative_entropy(log_q, log_m)
    return (self.beta * teacher + (1 - self.beta) * student,)


@dataclasses.dataclass(frozen=True)
class SkewKL(Divergence):
  """Skew KL: the student is softened by the teacher.

    T^2 KL(p || alpha p + (1 - alpha) q)

  Finite for every student while alpha > 0; KL at alpha = 0.

  Needs: logits; access topk; per example.
  Checked: Fantasyele/LLaVA-KD@aad2802; SakanaAI/TAID@a062892;
    jongwooko/distillm@d47e77f.
  Reference: Ko et al. (DistiLLM), https://arxiv.org/abs/2402.03898, Sec. 3.1.
  """

  alpha: float = 0.1  # the teacher's share, 0 to 1

  def __post_init__(self):
    """Checks alpha."""
    checks.between(self.name, "alpha", self.alpha, 0, 1)

  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """KL(p || mixture)."""
    del context
    return (relative_entropy(log_p, mixture(log_p, log_q, self.alpha)),)


@dataclasses.dataclass(frozen=True)
class SkewReverseKL(Divergence):
  """Skew reverse KL: the teacher is softened by the student.

    T^2 KL(q || (1 - alpha) p + alpha q)

  The gradient flows through the mixture too. Reverse KL at alpha = 0.

  Needs: logits; access topk; per example.
  Checked: Fantasyele/LLaVA-KD@aad2802; MANGA-UOFA/fdistill@8e2ff7c;
    SakanaAI/TAID@a062892; jongwooko/distillm@d47e77f.
  Reference: Ko et al. (DistiLLM), https://arxiv.org/abs/2402.03898, Sec. 3.1.
  """

  alpha: float = 0.1  # the student's share, 0 to 1

  def __post_init__(self):
    """Checks alpha."""
    checks.between(self.name, "alpha", self.alpha, 0, 1)

  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """KL(q || mixture)."""
    del context
    return (relative_entropy(log_q, mixture(log_q, log_p, self.alpha)),)


@dataclasses.dataclass(frozen=True)
class AdaptiveKL(Divergence):
  """Adaptive KL: forward where the head, reverse where the tail is far off.

    T^2 [w KL(p || q) + (1 - w) KL(q || p)],
    w = sum_{c in head} |p_c - q_c| / sum_c |p_c - q_c|, a constant

  The head are the most probable classes of the teacher whose mass together is
  at most `head_mass`, the first one in any case; classes of equal probability
  are in or out together.

  Needs: logits; access topk; per example.
  Checked: wutaiqiang/LLM_KD_AKL@ff278be.
  Reference: Wu et al. (AKL), https://arxiv.org/abs/2404.02657, Alg. 1.
  """

  head_mass: float = 0.5  # mu, 0 to 1

  def __post_init__(self):
    """Checks the mass."""
    checks.between(self.name, "head_mass", self.head_mass, 0, 1)

  def context(self, log_p: Array, over: Reduction) -> Array:
    """The least probability that is in the head, [..., 1]."""
    p = exp(log_p).astype(jnp.float32)
    largest = over.max(p)
    if self.head_mass == 1:  # whatever the sum rounds to
      return jnp.zeros_like(largest)

    def enough(least: Array) -> Array:
      return over.sum(jnp.where(p >= least, p, 0.0)) <= self.head_mass

    return jnp.minimum(least_where(enough, largest), largest)

  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """Both directions, and the distances in the head and everywhere."""
    gap = jnp.abs(stop_gradient(exp(log_p) - exp(log_q)))
    head = stop_gradient(exp(log_p)).astype(jnp.float32) >= context
    return (
      relative_entropy(log_p, log_q),
      relative_entropy(log_q, log_p),
      jnp.where(head, gap, 0.0),
      gap,
    )

  def value(self, *sums: Array) -> Array:
    """The two directions, weighted by the share of the head."""
    forward, reverse, head, everywhere = sums
    w = head / jnp.where(everywhere > 0, everywhere, 1.0)
    return w * forward + (1 - w) * reverse


kl = KL()
reverse_kl = ReverseKL()
