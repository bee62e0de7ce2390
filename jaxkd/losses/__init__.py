"""Losses: arrays in, loss out; no parameters, no state, no config.

Student first, teacher second, everything else by keyword. Values are per
example unless a docstring says batch-level.
"""

from jaxkd.losses.activations import (
  activation_boundary,
  disagreement,
  ofd,
  ofd_margin,
  vid,
  weighted_alignment,
)
from jaxkd.losses.advantage import (
  advantage_guided,
  dckd,
  log_ratio_advantage,
)
from jaxkd.losses.boxes import (
  box_points,
  foreground_l1,
  gaussian_mask,
  gaussian_radius,
  point_features,
  point_relations,
  sample_points,
)
from jaxkd.losses.candidates import dynamic_contrastive, focal_scores
from jaxkd.losses.channels import (
  ickd,
  nst,
  similarity_preserving,
)
from jaxkd.losses.contrastive import (
  cosine_distance,
  hard_negatives,
  info_nce,
  low_rank_similarity,
  nt_xent,
  partial_ranking,
)
from jaxkd.losses.correlation import (
  batch_correlation,
  class_correlation,
  confidence_masks,
  dist,
  mlkd,
)
from jaxkd.losses.cross_tokenizer import (
  align_answers,
  byte_groups,
  merge_tokens,
  sorted_distance,
  uld,
)
from jaxkd.losses.decoupled import (
  dkd,
  nkd,
  non_target_class_kl,
  ofa,
  target_class_kl,
  zeroed_target_kl,
)
from jaxkd.losses.dense import (
  cwd,
  patch_correspondence,
  patch_similarities,
  point_regression,
  soft_argmax,
)
from jaxkd.losses.divergence import Divergence
from jaxkd.losses.ensembles import logit_mean, mutual_kl, probability_mean
from jaxkd.losses.gradients import align_gradients
from jaxkd.losses.graphs import (
  contextual_relations,
  semantic_correlation,
  token_graph,
)
from jaxkd.losses.interpolation import intermediate_logits, taid
from jaxkd.losses.linear import linear_divergence
from jaxkd.losses.logits import (
  binary_cross_entropy,
  binary_kl,
  cross_entropy,
  normalized_binary_kl,
  soft_cross_entropy,
  teacher_free_kl,
  virtual_teacher,
)
from jaxkd.losses.maps import (
  attention_transfer,
  factor_transfer,
  fitnet,
  match_sizes,
  mgd,
)
from jaxkd.losses.memory_bank import (
  MemoryBank,
  crd,
  crd_negatives,
)
from jaxkd.losses.modalities import (
  combination_divergence,
  inter_modal_correlation,
  margin_aware,
  modality_aware,
  prototype_correlation,
)
from jaxkd.losses.policy import (
  clipped_policy,
  mixed_importance,
  reverse_kl_estimate,
  reward_to_go,
  teacher_reward,
  whiten,
)
from jaxkd.losses.powers import (
  AlphaDivergence,
  RenyiDivergence,
  TotalVariation,
)
from jaxkd.losses.preference import (
  dpo,
  hinge_preference,
  implicit_reward,
  ipo,
  kto_pair,
  rrhf,
)
from jaxkd.losses.ranking import (
  kendall_tau,
  label_first_ranking,
  list_mle,
  plackett_luce,
)
from jaxkd.losses.relations import (
  correlated_differences,
  correlation_congruence,
  gram_congruence,
  pkt,
  rkd,
  rkd_angle,
  rkd_distance,
)
from jaxkd.losses.relative_entropy import (
  JSD,
  KL,
  AdaptiveKL,
  ReverseKL,
  SkewKL,
  SkewReverseKL,
  SymmetricKL,
  kl,
  reverse_kl,
)
from jaxkd.losses.routing import (
  load_balance_cv,
  load_balance_kl,
  mixture_kl,
  routed_kl,
  top_k_teachers,
)
from jaxkd.losses.salience import (
  feature_salience,
  freeze_features,
  least_salient,
  permute_features,
)
from jaxkd.losses.sequence import (
  Position,
  completion_logits,
  is_position,
  next_token,
  predicts,
  sequence_log_probs,
  sequence_mean,
  sequence_sum,
  token_log_probs,
)
from jaxkd.losses.sharded import over_axis, sharded_divergence
from jaxkd.losses.similarities import (
  balanced_similarity_bce,
  similarity_bce,
  similarity_kl,
  similarity_mse,
  soft_info_nce,
)
from jaxkd.losses.softmax import log_probabilities, soft_cap, standardize
from jaxkd.losses.sparse import topk_divergence
from jaxkd.losses.stages import (
  fsp,
  kdsvd,
  review_kd,
)
from jaxkd.losses.subclasses import (
  SubclassDirections,
  class_log_probs,
  null_projector,
  subclass_directions,
  subclass_log_probs,
  subclass_projections,
)
from jaxkd.losses.temperature import (
  adversarial_temperature,
  reversal_strength,
  reverse_gradient,
)
from jaxkd.losses.tokens import (
  gram_cosine,
  noisy_probabilities,
  sampled_reverse_kl,
  swing,
  token_temperature,
)
from jaxkd.losses.top_classes import TopKLD, renormalized_topkld
from jaxkd.losses.topk import TopK
from jaxkd.losses.transport import (
  balanced_assignment,
  batch_transport,
  class_transport,
  sinkhorn,
)

__all__ = [
  "JSD",
  "KL",
  "AdaptiveKL",
  "AlphaDivergence",
  "Divergence",
  "MemoryBank",
  "Position",
  "RenyiDivergence",
  "ReverseKL",
  "SkewKL",
  "SkewReverseKL",
  "SubclassDirections",
  "SymmetricKL",
  "TopK",
  "TopKLD",
  "TotalVariation",
  "activation_boundary",
  "advantage_guided",
  "adversarial_temperature",
  "align_answers",
  "align_gradients",
  "attention_transfer",
  "balanced_assignment",
  "balanced_similarity_bce",
  "batch_correlation",
  "batch_transport",
  "binary_cross_entropy",
  "binary_kl",
  "box_points",
  "byte_groups",
  "class_correlation",
  "class_log_probs",
  "class_transport",
  "clipped_policy",
  "combination_divergence",
  "completion_logits",
  "confidence_masks",
  "contextual_relations",
  "correlated_differences",
  "correlation_congruence",
  "cosine_distance",
  "crd",
  "crd_negatives",
  "cross_entropy",
  "cwd",
  "dckd",
  "disagreement",
  "dist",
  "dkd",
  "dpo",
  "dynamic_contrastive",
  "factor_transfer",
  "feature_salience",
  "fitnet",
  "focal_scores",
  "foreground_l1",
  "freeze_features",
  "fsp",
  "gaussian_mask",
  "gaussian_radius",
  "gram_congruence",
  "gram_cosine",
  "hard_negatives",
  "hinge_preference",
  "ickd",
  "implicit_reward",
  "info_nce",
  "inter_modal_correlation",
  "intermediate_logits",
  "ipo",
  "is_position",
  "kdsvd",
  "kendall_tau",
  "kl",
  "kto_pair",
  "label_first_ranking",
  "least_salient",
  "linear_divergence",
  "list_mle",
  "load_balance_cv",
  "load_balance_kl",
  "log_probabilities",
  "log_ratio_advantage",
  "logit_mean",
  "low_rank_similarity",
  "margin_aware",
  "match_sizes",
  "merge_tokens",
  "mgd",
  "mixed_importance",
  "mixture_kl",
  "mlkd",
  "modality_aware",
  "mutual_kl",
  "next_token",
  "nkd",
  "noisy_probabilities",
  "non_target_class_kl",
  "normalized_binary_kl",
  "nst",
  "nt_xent",
  "null_projector",
  "ofa",
  "ofd",
  "ofd_margin",
  "over_axis",
  "partial_ranking",
  "patch_correspondence",
  "patch_similarities",
  "permute_features",
  "pkt",
  "plackett_luce",
  "point_features",
  "point_regression",
  "point_relations",
  "predicts",
  "probability_mean",
  "prototype_correlation",
  "renormalized_topkld",
  "reversal_strength",
  "reverse_gradient",
  "reverse_kl",
  "reverse_kl_estimate",
  "review_kd",
  "reward_to_go",
  "rkd",
  "rkd_angle",
  "rkd_distance",
  "routed_kl",
  "rrhf",
  "sample_points",
  "sampled_reverse_kl",
  "semantic_correlation",
  "sequence_log_probs",
  "sequence_mean",
  "sequence_sum",
  "sharded_divergence",
  "similarity_bce",
  "similarity_kl",
  "similarity_mse",
  "similarity_preserving",
  "sinkhorn",
  "soft_argmax",
  "soft_cap",
  "soft_cross_entropy",
  "soft_info_nce",
  "sorted_distance",
  "standardize",
  "subclass_directions",
  "subclass_log_probs",
  "subclass_projections",
  "swing",
  "taid",
  "target_class_kl",
  "teacher_free_kl",
  "teacher_reward",
  "token_graph",
  "token_log_probs",
  "token_temperature",
  "top_k_teachers",
  "topk_divergence",
  "uld",
  "vid",
  "virtual_teacher",
  "weighted_alignment",
  "whiten",
  "zeroed_target_kl",
]
