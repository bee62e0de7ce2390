"""OFA and C2KD: losses, and the modules that are trained beside the student.

DHKD's auxiliary head too. Maps are channels first in the files.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.lax import stop_gradient

from jaxkd import losses, nets
from tests import golden_tools as tools
from tests.losses.vectors import Check

MST = "Gray-OREO/MST-Distill@093b2fe KD_methods"
OFA, C2KD = "mst_distill_baselines__ofa", "mst_distill_baselines__c2kd"
DHKD = "penghui-yang/DHKD@7976c69 classifier.py:NonLinearClassifier"
NETWORKS = ("teacher", "student", "proxy_teacher", "proxy_student")


def _block(number: int) -> tuple[tools.Rule, ...]:
  """A separable block of the file, counted from 0 there."""
  op, path = rf"blks\.{number}\.op", f"block{number + 1}"
  return (
    *tools.layer(rf"{op}\.0", f"{path}/depthwise1", tools.conv),
    *tools.layer(rf"{op}\.1", f"{path}/pointwise1", tools.conv),
    *tools.batch_norm(rf"{op}\.2", f"{path}/bn1"),
    *tools.layer(rf"{op}\.4", f"{path}/depthwise2", tools.conv),
    *tools.layer(rf"{op}\.5", f"{path}/pointwise2", tools.conv),
    *tools.batch_norm(rf"{op}\.6", f"{path}/bn2"),
  )


MAPS = {
  "OFAProjector": (
    *_block(0),
    *_block(1),
    *tools.layer(r"blks\.4", "fc", tools.linear),
  ),
  "OFAProjector1d": (
    *tools.layer(r"blks\.0", "fc1", tools.linear),
    *tools.layer(r"blks\.2", "fc2", tools.linear),
  ),
  "Proxy1d": (
    *tools.layer(r"(fc\d)", r"\1", tools.linear),
    *tools.batch_norm("bn", "bn"),
  ),
  "Proxy2d": (
    *tools.layer(r"layer\.0", "conv", tools.conv),
    *tools.batch_norm(r"layer\.1", "bn"),
    *tools.layer("fc", "fc", tools.linear),
  ),
  "DenseProxy": (
    *tools.layer(r"layer\.0", "conv", tools.conv),
    *tools.batch_norm(r"layer\.1", "bn"),
    *tools.layer("fc", "fc", tools.conv),
  ),
  "AuxiliaryHead": (
    *tools.layer(r"net_0", "fc1", tools.linear),
    *tools.batch_norm(r"net_2", "bn"),
    *tools.layer(r"net_4", "fc2", tools.linear),
  ),
}


def _last(array):
  return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def _trained(net: nn.Module, variables) -> Callable:
  """The net in training: output, and the variables after the step."""

  def run(x):
    output, state = net.apply(variables, x, train=True, mutable=["batch_stats"])
    return output, {**variables, **state}

  return run


def _module(net, file, case, source, arrays, weights) -> Iterator[Check]:
  """The outputs of a module in training, and after that one step."""
  name = type(net).__name__
  variables = tools.convert(weights, MAPS[name])
  train = _trained(net, variables)
  calls = {
    "logits": lambda x: net.apply(variables, x),
    "logits_eval": lambda x: net.apply(variables, x),
    "running_mean_after": lambda x: train(x)[1]["batch_stats"]["bn"]["mean"],
    "running_var_after": lambda x: train(x)[1]["batch_stats"]["bn"]["var"],
  }
  calls |= dict.fromkeys(
    ("train", "logits_train", "logits_train_nodropout"), lambda x: train(x)[0]
  )
  calls |= dict.fromkeys(
    ("eval_after", "logits_eval_after"), lambda x: net.apply(train(x)[1], x)
  )
  feature = arrays["in"] if "in" in arrays else arrays["in_features"]
  for output, value in tools.section(arrays, "out_").items():
    yield Check(
      loss=name,
      source=source,
      name=f"{file}/{case}/{output}",
      call=calls[output],
      inputs={"x": _last(feature)},
      value=_last(value),
      rtol=1e-4 if file == OFA else 5e-5,
      atol=5e-6 if file == OFA else 2e-6,
    )
  if "grad_features" not in arrays:
    return
  yield Check(
    loss=name,
    source=source,
    name=f"{file}/{case}/cotangent",
    call=lambda x, cotangent: jnp.sum(train(x)[0] * cotangent),
    inputs={"x": _last(feature), "cotangent": arrays["in_cotangent"]},
    value=np.sum(arrays["out_logits_train"] * arrays["in_cotangent"]),
    gradients={"x": _last(arrays["grad_features"])},
    rtol=1e-4,
    atol=5e-6,
    gradient_atol=5e-6,
  )


def _modules() -> Iterator[Check]:
  ofa, c2kd = tools.cases(OFA), tools.cases(C2KD)
  for case, net, cases, file in (
    ("case4", nets.OFAProjector(classes=3), ofa, OFA),
    ("case5", nets.OFAProjector1d(classes=3), ofa, OFA),
    ("case5", nets.Proxy1d(classes=5), c2kd, C2KD),
    ("case6", nets.Proxy2d(classes=5), c2kd, C2KD),
    ("case7", nets.DenseProxy(classes=5, size=(9, 8)), c2kd, C2KD),
  ):
    arrays = cases[case]
    weights = tools.section(arrays, "w_")
    source = f"{MST}/{'OFA' if file == OFA else 'C2KD'}.py"
    yield from _module(net, file, case, source, arrays, weights)
  file = "dhkd__aux_head"
  arrays = tools.cases(file)["case0"]
  weights = {
    _dotted(name): array
    for name, array in tools.section(arrays, "weight_").items()
  }
  head = nets.AuxiliaryHead(classes=10, dropout_rate=0.0)
  yield from _module(head, file, "case0", DHKD, arrays, weights)


def _dotted(name: str) -> str:
  """`net_2_running_mean` -> `net_2.running_mean`, as PyTorch has it."""
  return f"{name[:5]}.{name[6:]}"


def _ofa() -> Iterator[Check]:
  for case, arrays in tools.cases(OFA).items():
    if "param_eps" not in arrays:
      continue
    exponent, t_ = (float(arrays[f"param_{n}"]) for n in ("eps", "temperature"))

    def call(student, teacher, labels, exponent=exponent, t_=t_):
      values = losses.ofa(
        student, teacher, labels, exponent=exponent, temperature=t_
      )
      return values.mean() / t_**2  # the code has no T^2

    yield Check(
      loss="ofa",
      source=f"{MST}/OFA.py:ofa_loss",
      name=f"{OFA}/{case}/loss",
      call=call,
      inputs={
        "student": arrays["in_student_logits"],
        "teacher": arrays["in_teacher_logits"],
        "labels": arrays["in_labels"],
      },
      value=arrays["out_loss"],
      gradients={"student": arrays["grad_student_logits"]},
      rtol=1e-4,
      atol=5e-6,
      gradient_atol=5e-6,
    )


def _c2kd_terms(given, threshold: float) -> dict[str, jax.Array]:
  """All outputs of a step of C2KD by their names."""
  t, s, pt, ps = (given[f"{name}_logits"] for name in NETWORKS)
  labels = given["labels"]
  tau = losses.kendall_tau(ps, pt)
  similar = tau > threshold

  def kl(x, y):
    return losses.kl(x, stop_gradient(y)).mean()

  def zeroed(x, y):
    return losses.zeroed_target_kl(
      x, stop_gradient(y), labels, where=similar
    ).mean()

  terms = {
    "kl_proxyT_from_T": kl(pt, t),
    "kl_T_from_proxyT": kl(t, pt),
    "kl_proxyS_from_S": kl(ps, s),
    "kl_S_from_proxyS": kl(s, ps),
    "nt_proxyS_from_proxyT": zeroed(ps, pt),
    "nt_proxyT_from_proxyS": zeroed(pt, ps),
  }
  labelled = losses.cross_entropy(t, labels) + losses.cross_entropy(s, labels)
  total = labelled.mean() + sum(terms.values())
  return terms | {
    "kendall_tau": tau,
    "mask": similar.astype(jnp.int32),
    "loss_total": total,
  }


def _dense_terms(given) -> dict[str, jax.Array]:
  """The terms of dense logits: the mask is not applied where it is not empty.

  Logits are [B H W, C], labels [B, H, W].
  """
  pt, ps = given["proxy_teacher_logits"], given["proxy_student_logits"]
  labels = given["labels"]
  flat = labels.reshape(-1)
  tau = losses.kendall_tau(ps, pt).reshape(len(labels), -1)

  def zeroed(x, y):
    return losses.zeroed_target_kl(x, stop_gradient(y), flat).mean()

  terms = {
    "nt_proxyS_from_proxyT": zeroed(ps, pt),
    "nt_proxyT_from_proxyS": zeroed(pt, ps),
  }
  return terms | {
    "image_kendall_tau": tau.mean(-1),
    "sum": sum(terms.values()),
  }


def _c2kd_check(case, output, value, terms, arrays, gradients=None) -> Check:
  loss = "kl"
  if "kendall" in output or output == "mask":
    loss = "kendall_tau"
  elif output.startswith("nt") or output == "sum":
    loss = "zeroed_target_kl"
  return Check(
    loss=loss,
    source=f"{MST}/C2KD.py, main-C2KD.py",
    name=f"{C2KD}/{case}/{output}",
    call=lambda **given: terms(given)[output],
    inputs=tools.section(arrays, "in_"),
    value=value,
    gradients=gradients or {},
    rtol=5e-5,
    atol=2e-6,
    gradient_atol=2e-6,
  )


def _c2kd() -> Iterator[Check]:
  cases = tools.cases(C2KD)
  for case in ("case0", "case1", "case2"):
    arrays = cases[case]
    threshold = float(arrays["param_krc"])

    def terms(given, threshold=threshold):
      return _c2kd_terms(given, threshold)

    for output, value in tools.section(arrays, "out_").items():
      gradients = None
      if output == "loss_total":
        names = [f"{name}_logits" for name in NETWORKS]
        gradients = {name: arrays[f"grad_{name}"] for name in names}
      yield _c2kd_check(case, output, value, terms, arrays, gradients)
  yield _c2kd_check(
    "case3",
    "kendall_tau",
    cases["case3"]["out_kendall_tau"],
    lambda given: {"kendall_tau": losses.kendall_tau(given["a"], given["b"])},
    cases["case3"],
  )
  arrays = cases["case4"]
  for output, value in tools.section(arrays, "out_").items():
    yield _c2kd_check("case4", output, value, _dense_terms, arrays)
  both = [f"nt_proxy{a}_from_proxy{b}" for a, b in ("ST", "TS")]
  names = [f"{name}_logits" for name in NETWORKS[2:]]
  yield _c2kd_check(
    "case4",
    "sum",
    sum(arrays[f"out_{name}"] for name in both),
    _dense_terms,
    arrays,
    {name: arrays[f"grad_{name}"] for name in names},
  )


def checks() -> Iterator[Check]:
  """Losses and modules of OFA and C2KD, and DHKD's head."""
  yield from _ofa()
  yield from _c2kd()
  yield from _modules()
