"""Trained companions of feature losses, with the losses that train them."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses, nets
from tests import golden_tools
from tests.losses.vectors import Check
from tests.losses.vectors.maps import MDISTILLER, REP_DISTILLER, last
from tests.nets import companion_maps as name_maps

BASE = "logit_feature_baselines__"
MST_FITNETS = "mst_distill_baselines__fitnets"


def dotted(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """PyTorch names as they are listed in the maps: the last part after a dot."""
  ends = ("weight", "bias", "running_mean", "running_var")
  found = {}
  for name, array in arrays.items():
    end = next(end for end in ends if name.endswith(end))
    found[f"{name.removesuffix(end).rstrip('._')}.{end}"] = array
  return found


def variables(arrays, rules, prefix="weight_"):
  """Flax variables of a case's module."""
  weights = dotted(golden_tools.section(arrays, prefix))
  return golden_tools.convert(weights, rules)


def train(net, tree, *inputs, params=None):
  """A training-mode pass: the value and the new statistics."""
  tree = {**tree, **({} if params is None else {"params": params})}
  if "batch_stats" not in tree:
    return net.apply(tree, *inputs), {}
  return net.apply(tree, *inputs, train=True, mutable=["batch_stats"])


def flat(tree, path):
  """One leaf of nested variables."""
  for key in path.split("/"):
    tree = tree[key]
  return tree


def put(params, path, leaf):
  """The parameters with another leaf."""
  key, _, rest = path.partition("/")
  below = put(params[key], rest, leaf) if rest else leaf
  return {**params, key: below}


def common(arrays):
  """The maps of a case."""
  return {
    "student": last(arrays["in_student_map_nchw"]),
    "teacher": last(arrays["in_teacher_map_nchw"]),
  }


def family(file, source, rtol=1e-4, atol=1e-5):
  """A maker of checks of one file."""

  def make(case, what, loss, call, inputs, value, gradients=None):
    return Check(
      loss=loss,
      source=source,
      name=f"{file}/{case}/{what}",
      call=call,
      inputs=inputs,
      value=value,
      gradients=gradients or {},
      rtol=rtol,
      atol=atol,
      gradient_rtol=rtol,
      gradient_atol=atol,
    )

  return make


def _fitnet() -> Iterator[Check]:
  file = f"{BASE}fitnet_module"
  make = family(file, f"{MDISTILLER} _common.py:ConvReg")
  net = nets.FitNetRegressor()
  for case, arrays in golden_tools.cases(file).items():
    doubles = case == "case1"
    kernel = golden_tools.conv_transpose if doubles else golden_tools.conv
    tree = variables(arrays, name_maps.fitnet_regressor(kernel))
    inputs = common(arrays)

    def value(student, teacher, kernel=None, tree=tree):
      params = tree["params"]
      if kernel is not None:
        params = put(params, "conv/kernel", kernel)
      return train(net, tree, student, teacher, params=params)

    def loss(student, teacher, kernel, value=value):
      mapped = value(student, teacher, kernel)[0]
      return losses.fitnet(mapped, teacher).mean()

    yield make(
      case,
      "regressed",
      "FitNetRegressor",
      lambda value=value, **given: value(**given)[0],
      inputs,
      last(arrays["out_regressed"]),
    )
    yield make(
      case,
      "loss",
      "FitNetRegressor",
      loss,
      {**inputs, "kernel": tree["params"]["conv"]["kernel"]},
      arrays["out_loss"],
      {
        "student": last(arrays["grad_student_map_nchw"]),
        "kernel": kernel(arrays["grad_conv_weight"]),
      },
    )
    for name in ("mean", "var"):
      yield make(
        case,
        f"running_{name}",
        "FitNetRegressor",
        lambda value=value, name=name, **given: flat(
          value(**given)[1], f"batch_stats/bn/{name}"
        ),
        inputs,
        arrays[f"out_bn_running_{name}_after"],
      )


def _hints() -> Iterator[Check]:
  make = family(
    MST_FITNETS,
    "Gray-OREO/MST-Distill@093b2fe KD_methods/FitNets.py",
    rtol=2e-5,
    atol=1e-6,
  )
  net = nets.HintRegressor()
  for case, arrays in golden_tools.cases(MST_FITNETS).items():
    kind = str(arrays["param_kind"])
    student, teacher = arrays["in_guided_features"], arrays["in_hint_features"]
    rules = name_maps.hint_regressor(kind, student.shape[1:])
    params = variables(arrays, rules, "w_")["params"]
    slopes = variables(arrays, rules, "gradw_")["params"]
    paths = [f"{layer}/{leaf}" for layer in params for leaf in params[layer]]

    def regressed(student, teacher, paths=paths, params=params, **leaves):
      for path in paths:
        params = put(params, path, leaves.get(path, flat(params, path)))
      return net.apply({"params": params}, student, teacher)

    inputs = {"student": last(student), "teacher": last(teacher)}
    yield make(
      case,
      "regressed",
      "HintRegressor",
      regressed,
      inputs,
      last(arrays["out_regressed"]),
    )
    yield make(
      case,
      "loss",
      "HintRegressor",
      lambda student, teacher, regressed=regressed, **leaves: losses.fitnet(
        regressed(student, teacher, **leaves), teacher
      ).mean(),
      {**inputs, **{path: flat(params, path) for path in paths}},
      arrays["out_loss"],
      {
        "student": last(arrays["grad_guided_features"]),
        **{path: flat(slopes, path) for path in paths},
      },
    )


def _vid() -> Iterator[Check]:
  file = f"{BASE}vid_module"
  make = family(file, f"{REP_DISTILLER} VID.py:VIDLoss")
  net = nets.VIDRegressor()
  for case, arrays in golden_tools.cases(file).items():
    if case == "caseI":
      continue
    log_scale = arrays.pop("weight_log_scale")
    params = variables(arrays, name_maps.VID_REGRESSOR)["params"]

    def loss(student, teacher, log_scale, kernel, params=params):
      params = put(params, "conv1/kernel", kernel)
      given = {"params": {**params, "log_scale": log_scale}}
      return losses.vid(*net.apply(given, student, teacher)).mean()

    yield make(
      case,
      "loss",
      "vid",
      loss,
      {
        **common(arrays),
        "log_scale": log_scale,
        "kernel": params["conv1"]["kernel"],
      },
      arrays["out_loss"],
      {
        "student": last(arrays["grad_student_map_nchw"]),
        "log_scale": arrays["grad_log_scale"],
        "kernel": golden_tools.conv(arrays["grad_regressor_0_weight"]),
      },
    )
  start = golden_tools.load(file)["caseI_out_initial_log_scale_for_var5"]

  def initial(student):
    drawn = net.init(jax.random.key(0), student, student)
    return drawn["params"]["log_scale"][0]

  yield make(
    "caseI",
    "initial",
    "VIDRegressor",
    initial,
    {"student": np.ones((1, 2, 2, 1), np.float32)},
    start,
  )


def _factors() -> Iterator[Check]:
  file = f"{BASE}factor_transfer_module"
  make = family(file, f"{REP_DISTILLER} FT.py:FactorTransfer")
  arrays = golden_tools.cases(file)["case0"]
  maps = common(arrays)
  trees = {
    name: variables(arrays, rules, f"weight_{name}_")
    for name, rules in (
      ("paraphraser", name_maps.PARAPHRASER),
      ("translator", name_maps.TRANSLATOR),
    )
  }

  def of_teacher(teacher):
    return train(nets.Paraphraser(), trees["paraphraser"], teacher)[0]

  def of_student(student, teacher):
    return train(nets.Translator(), trees["translator"], student, teacher)[0]

  def loss(student, teacher):
    factors = of_student(student, teacher), of_teacher(teacher)[0]
    return losses.factor_transfer(*factors, factor="attention").mean()

  def rebuilt(teacher):
    return losses.fitnet(of_teacher(teacher)[1], teacher).mean()

  teacher = {"teacher": maps["teacher"]}
  expected = {
    "teacher_factor": ("Paraphraser", lambda teacher: of_teacher(teacher)[0]),
    "reconstruction": ("Paraphraser", lambda teacher: of_teacher(teacher)[1]),
    "reconstruction_loss": ("Paraphraser", rebuilt),
    "student_factor": ("Translator", of_student),
    "loss": ("factor_transfer", loss),
  }
  for what, (name, call) in expected.items():
    value = arrays[f"out_{what}"]
    yield make(
      "case0",
      what,
      name,
      call,
      teacher if name == "Paraphraser" else maps,
      last(value) if value.ndim else jnp.asarray(value),
      {"student": last(arrays["grad_student_map_nchw"])}
      if what == "loss"
      else {},
    )


def checks() -> Iterator[Check]:
  """Every output and gradient, in training mode as the references ran."""
  yield from _fitnet()
  yield from _hints()
  yield from _vid()
  yield from _factors()
