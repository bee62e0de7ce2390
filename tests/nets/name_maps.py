"""Name maps of the networks of MST-Distill, PyTorch name -> path here."""

from tests import golden_tools as tools

LENET5 = (
  *tools.layer(r"(conv\d)", r"\1", tools.conv),
  *tools.layer(r"(fc\d)", r"\1", tools.linear),
)

THREE_LAYER_CNN = (
  *tools.layer(r"(conv\d)", r"\1", tools.conv),
  *tools.layer("fc1", "fc1", tools.linear_after_flatten((128, 14, 14))),
)

CNN_I = (
  *tools.layer(r"AudioNet\.(conv\d)", r"audio_branch/\1", tools.conv),
  *tools.layer(r"ImageNet\.(conv\d)", r"image_branch/\1", tools.conv),
  *tools.layer(r"ImageNet\.(fc\d)", r"image_branch/\1", tools.linear),
  *tools.layer(r"(fc\d)", r"\1", tools.linear),
)

MLP = tools.layer(r"(fc\d)", r"\1", tools.linear)

MLP_I = (
  *tools.layer(r"VisualNet\.(fc\d)", r"visual_branch/\1", tools.linear),
  *tools.layer(r"TextualNet\.(fc\d)", r"text_branch/\1", tools.linear),
  *MLP,
)


def branch_net(shape: tuple[int, ...]) -> tuple[tools.Rule, ...]:
  """One branch, whose last map has this channels-first shape."""
  return (
    *tools.layer(r"\w+_branch\.(conv\d)", r"branch/\1", tools.conv),
    *tools.batch_norm(r"\w+_branch\.(bn\d)", r"branch/\1"),
    *tools.layer("fc1", "fc1", tools.linear_after_flatten(shape)),
    *tools.layer(r"(fc[23])", r"\1", tools.linear),
  )


def dscnn(
  audio: tuple[int, ...], visual: tuple[int, ...]
) -> tuple[tools.Rule, ...]:
  """Two branches, whose last maps have these channels-first shapes."""
  return (
    *tools.layer(r"(\w+_branch)\.(conv\d)", r"\1/\2", tools.conv),
    *tools.batch_norm(r"(\w+_branch)\.(bn\d)", r"\1/\2"),
    *tools.layer("fc1", "fc1", tools.linear_after_flatten(audio, visual)),
    *tools.layer(r"(fc[23])", r"\1", tools.linear),
  )


def _block(pattern: str, path: str) -> tuple[tools.Rule, ...]:
  """A block that PyTorch numbers conv 0, bn 1, ReLU 2, conv 3, bn 4, ..."""
  rules: tuple[tools.Rule, ...] = ()
  for i in range(3):
    norm = tools.batch_norm(rf"{pattern}\.{3 * i + 1}", rf"{path}/bn{i + 1}")
    convolution = tools.layer(
      rf"{pattern}\.{3 * i}", rf"{path}/conv{i + 1}", tools.conv
    )
    rules += (*convolution, *norm)
  return rules


FUSENET_BRANCH = (
  *_block(r"CBR(\d)_\w+_ENC", r"encoder\1"),
  *_block(r"CBR(\d)_\w+_DEC", r"decoder\1"),
)

FUSENET = (
  *_block(r"CBR(\d)_RGB_ENC", r"rgb_encoder\1"),
  *_block(r"CBR(\d)_DEPTH_ENC", r"depth_encoder\1"),
  *_block(r"CBR(\d)_RGBD_DEC", r"decoder\1"),
)


def mask_net_1d(heads: int, prefix: str = "") -> tuple[tools.Rule, ...]:
  """A mask net on vectors; `prefix` is its path inside a larger net."""
  attention = f"params/{prefix}attention"
  return (
    *tools.layer("(embed|fc)", rf"{prefix}\1", tools.linear),
    tools.Rule(
      r"mha\.in_proj_weight", attention, tools.attention_kernels(heads)
    ),
    tools.Rule(r"mha\.in_proj_bias", attention, tools.attention_biases(heads)),
    *tools.layer(
      r"mha\.out_proj", f"{prefix}attention/out", tools.attention_out(heads)
    ),
  )


def mask_net_2d(heads: int) -> tuple[tools.Rule, ...]:
  """A mask net on maps."""
  stem = r"spatial_reduce\.downsample"
  return (
    *tools.layer(rf"{stem}\.0", "spatial_reduce/depthwise", tools.conv),
    *tools.layer(rf"{stem}\.1", "spatial_reduce/pointwise", tools.conv),
    *tools.batch_norm(rf"{stem}\.2", "spatial_reduce/bn"),
    *mask_net_1d(heads, "vector_mask/"),
  )


GATE_NET = tools.layer(r"(fc\d)", r"\1", tools.linear)

DENSE_GATE_NET = (
  *tools.layer("conv_point", "pointwise", tools.conv),
  *tools.layer("conv_depthwise", "depthwise", tools.conv),
  *tools.layer("fc", "fc", tools.linear),
)
