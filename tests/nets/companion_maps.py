"""Name maps of the companions of feature losses, PyTorch name -> path here."""

from tests import golden_tools as tools


def fitnet_regressor(kernel) -> tuple[tools.Rule, ...]:
  """A convolution or a transposed one, and its batch norm."""
  return (*tools.layer("conv", "conv", kernel), *tools.batch_norm("bn", "bn"))


def hint_regressor(kind: str, student: tuple[int, ...]):
  """The regressor of a kind, for a student's channels-first feature."""
  kernel = tools.conv_transpose if kind == "up" else tools.conv
  linear = tools.linear_after_flatten((16, *student[1:]))
  return (
    *tools.layer("(?:conv|conv1d|conv2d|deconv)", "conv", kernel),
    *tools.layer("fc", "fc", linear),
  )


VID_REGRESSOR = tuple(
  rule
  for i in range(3)
  for rule in tools.layer(f"regressor_{2 * i}", f"conv{i + 1}", tools.conv)
)


def _factor(part: str, step: int, kernel) -> tuple[tools.Rule, ...]:
  """Three layers that PyTorch numbers every `step`, with their batch norms."""
  rules: tuple[tools.Rule, ...] = ()
  for i in range(3):
    name, place = f"{part}{i + 1}", step * i
    rules += (
      *tools.layer(f"{part}_{place}", name, kernel),
      *tools.batch_norm(f"{part}_{place + 1}", f"{name}_bn"),
    )
  return rules


PARAPHRASER = (
  *_factor("encoder", 3, tools.conv),
  *_factor("decoder", 3, tools.conv_transpose),
)
TRANSLATOR = _factor("encoder", 3, tools.conv)
CONNECTOR = (
  *tools.layer("0", "conv", tools.conv),
  *tools.batch_norm("1", "bn"),
)
SIMKD_TRANSFER = tuple(
  rule
  for i in range(3)
  for rule in (
    *tools.layer(f"{3 * i}", f"conv{i + 1}", tools.conv),
    *tools.batch_norm(f"{3 * i + 1}", f"bn{i + 1}"),
  )
)


def review_fusion(stages: int) -> tuple[tools.Rule, ...]:
  """Blocks that are numbered from the deepest stage there, here the other."""
  rules: tuple[tools.Rule, ...] = ()
  for i in range(stages):
    block = f"block{stages - i}"
    for layer in (1, 2):
      rules += (
        *tools.layer(f"{i}_conv{layer}_0", f"{block}/conv{layer}", tools.conv),
        *tools.batch_norm(f"{i}_conv{layer}_1", f"{block}/bn{layer}"),
      )
    rules += tools.layer(f"{i}_att_conv_0", f"{block}/attention", tools.conv)
  return rules
