"""Classic losses of logits: KD, DKD, NKD, standardised logits, smoothing.

What differs from ours is written in each call: a T^2 that a library leaves
out, averages over the classes as well, weights of the terms.
"""

from collections.abc import Callable, Iterator, Mapping

import jax

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

MDISTILLER = "megvii-research/mdistiller@a08d46f"
REPDISTILLER = "HobbitLong/RepDistiller@b84f547"
TORCHDISTILL = "yoshitomo-matsubara/torchdistill@3e4373c"
TFKD = "yuanli2333/Teacher-free-Knowledge-Distillation@d000ab3"
LOGIT_STD = "sunshangquan/logit-standardization-KD@f6e5aa5"
BATCH = ("student_logits", "teacher_logits", "labels")

Call = Callable[..., jax.Array]
Table = Mapping[str, tuple[str, str, Call]]  # output -> loss, source, call


def table_checks(
  file: str,
  calls: Callable[[dict[str, float]], Table],
  arguments: tuple[str, ...] = BATCH,
  cases: tuple[str, ...] | None = None,
  **tolerances: float,
) -> Iterator[Check]:
  """Checks of a golden file that names its arrays in the common way.

  Args:
    file: golden file.
    calls: a case's scalars -> every output's loss, source and call.
    arguments: inputs in the order in which the calls take them.
    cases: which ones; all if not given.
    **tolerances: `rtol` and `atol`, of values and of gradients.
  """
  options = {"rtol": 1e-5, "atol": 1e-6} | tolerances
  options = {
    "gradient_rtol": options["rtol"],
    "gradient_atol": options["atol"],
  } | options
  for case, arrays in golden_tools.cases(file).items():
    if cases is not None and case not in cases:
      continue
    scalars = golden_tools.section(arrays, "param_")
    table = calls({name: float(x) for name, x in scalars.items()})
    outputs = golden_tools.section(arrays, "out_")
    assert table.keys() == outputs.keys(), (file, case)
    for output, (loss, source, call) in table.items():
      grad = {name: f"grad_{name}__{output}" for name in arguments}
      yield Check(
        loss=loss,
        source=source,
        name=f"{file}/{case}/{output}",
        call=lambda call=call, **given: call(*(given[n] for n in arguments)),
        inputs={name: arrays[f"in_{name}"] for name in arguments},
        value=outputs[output],
        gradients={n: arrays[g] for n, g in grad.items() if g in arrays},
        **options,
      )


def _ce(s, y):
  return losses.cross_entropy(s, y).mean()


def _kd(scalars) -> Table:
  t_, a = scalars["temperature"], scalars["alpha"]

  def kd(s, t, y=None):
    return losses.kl(s, t, temperature=t_).mean()

  return {
    "mdistiller_kd": ("kl", f"{MDISTILLER} KD.py:kd_loss", kd),
    "repdistiller_kd": ("kl", f"{REPDISTILLER} KD.py:DistillKL", kd),
    "torchdistill_kd_with_targets": (
      "kl",
      f"{TORCHDISTILL} mid_level.py:KDLoss",
      lambda s, t, y: a * _ce(s, y) + (1 - a) * kd(s, t),
    ),
    "torchdistill_kd_no_targets": (
      "kl",
      f"{TORCHDISTILL} mid_level.py:KDLoss",
      lambda s, t, y: kd(s, t) / t_**2,
    ),
    "tfkd_loss_kd": (
      "kl",
      f"{TFKD} my_loss_function.py:loss_kd",
      lambda s, t, y: (1 - a) * _ce(s, y) + a * kd(s, t) / s.shape[-1],
    ),
    "cross_entropy": (
      "cross_entropy",
      "torch.nn.functional.cross_entropy",
      lambda s, t, y: _ce(s, y),
    ),
  }


def _dkd_nkd(scalars) -> Table:
  t_ = scalars["temperature"]
  source = f"{MDISTILLER} DKD.py:dkd_loss"

  def dkd(alpha, beta):
    return lambda s, t, y: losses.dkd(
      s, t, y, alpha=alpha, beta=beta, temperature=t_
    ).mean()

  def nkd(s, t, y):
    gamma, temperature = scalars["nkd_gamma"], scalars["nkd_temperature"]
    return losses.nkd(s, t, y, gamma=gamma, temperature=temperature).mean()

  return {
    "dkd": ("dkd", source, dkd(scalars["alpha"], scalars["beta"])),
    "dkd_tckd_only": (
      "target_class_kl",
      source,
      lambda s, t, y: losses.target_class_kl(s, t, y, temperature=t_).mean(),
    ),
    "dkd_nckd_only": (
      "non_target_class_kl",
      source,
      lambda s, t, y: losses.non_target_class_kl(
        s, t, y, temperature=t_
      ).mean(),
    ),
    "nkd": ("nkd", "yzd-v/cls_KD@1e5d48f nkd.py:NKDLoss", nkd),
  }


def _logit_std(scalars) -> Table:
  t_, a = scalars["temperature"], scalars["torchdistill_alpha"]

  def kd(s, t):
    return losses.kl(s, t, temperature=t_, standardize=True).mean()

  def dkd(s, t, y):
    return losses.dkd(
      losses.standardize(s),
      losses.standardize(t),
      y,
      alpha=scalars["alpha"],
      beta=scalars["beta"],
      temperature=t_,
    ).mean()

  return {
    "standardised_student": (
      "standardize",
      f"{LOGIT_STD} KD.py:normalize",
      lambda s, t, y: losses.standardize(s),
    ),
    "kd_logit_std": (
      "kl",
      f"{LOGIT_STD} KD.py:kd_loss",
      lambda s, t, y: kd(s, t),
    ),
    "dkd_logit_std": ("dkd", f"{LOGIT_STD} DKD.py:dkd_loss", dkd),
    "torchdistill_logit_std_with_targets": (
      "kl",
      f"{TORCHDISTILL} mid_level.py:LogitStdKDLoss",
      lambda s, t, y: a * _ce(s, y) + (1 - a) * kd(s, t),
    ),
  }


def _smoothing(scalars) -> Table:
  t_, a, m = (scalars[n] for n in ("temperature", "alpha", "multiplier"))

  def smoothed(s, y, epsilon):
    return losses.cross_entropy(s, y, label_smoothing=epsilon).mean()

  def regularized(s, t, y):
    kl = losses.teacher_free_kl(s, y, temperature=t_).mean() / s.shape[-1]
    return (1 - a) * _ce(s, y) + a * m * kl

  def itself(s, t, y):
    kl = losses.kl(s, t, temperature=t_).mean() / s.shape[-1]
    return (1 - a) * _ce(s, y) + a * m * kl

  def over_the_others(s, t, y):
    classes = s.shape[-1]
    return smoothed(s, y, 0.1 * classes / (classes - 1))

  def plain(s, t, y):
    return smoothed(s, y, scalars["epsilon"])

  source = f"{TFKD} my_loss_function.py"
  return {
    "tfkd_reg": (
      "teacher_free_kl",
      f"{source}:loss_kd_regularization",
      regularized,
    ),
    "tfkd_self": ("kl", f"{source}:loss_kd_self", itself),
    "label_smoothing_tfkd_eps0p1": (
      "cross_entropy",
      f"{source}:loss_label_smoothing",
      over_the_others,
    ),
    "label_smoothing_torch": (
      "cross_entropy",
      "torch.nn.functional.cross_entropy",
      plain,
    ),
    "label_smoothing_szegedy_module": (
      "cross_entropy",
      "Jin-Ying/Multi-Level-Logit-Distillation@5ee473f "
      "loss.py:CrossEntropyLabelSmooth",
      plain,
    ),
  }


def checks() -> Iterator[Check]:
  """KD of three libraries, DKD, NKD, standardised logits, smoothing, Tf-KD."""
  prefix = "logit_feature_baselines__"
  yield from table_checks(f"{prefix}kd", _kd)
  yield from table_checks(f"{prefix}dkd_nkd", _dkd_nkd, atol=1e-5)
  yield from table_checks(f"{prefix}logit_std", _logit_std, atol=1e-5)
  yield from table_checks(f"{prefix}label_smoothing_tfkd", _smoothing)
