"""Name maps of networks that are cut into modules, PyTorch -> path here."""

from collections.abc import Sequence

from tests import golden_tools as tools


def _norm(pattern: str, path: str) -> tuple[tools.Rule, ...]:
  return (
    tools.Rule(rf"{pattern}\.weight", f"params/{path}/scale"),
    tools.Rule(rf"{pattern}\.bias", f"params/{path}/bias"),
  )


def _block(number: int, path: str, heads: int) -> tuple[tools.Rule, ...]:
  name, attention = rf"blocks\.{number}", f"params/{path}/attention"
  return (
    *_norm(rf"{name}\.norm1", f"{path}/norm1"),
    *_norm(rf"{name}\.norm2", f"{path}/norm2"),
    tools.Rule(
      rf"{name}\.attn\.qkv\.weight", attention, tools.attention_kernels(heads)
    ),
    tools.Rule(
      rf"{name}\.attn\.qkv\.bias", attention, tools.attention_biases(heads)
    ),
    *tools.layer(
      rf"{name}\.attn\.proj",
      f"{path}/attention/out",
      tools.attention_out(heads),
    ),
    *tools.layer(rf"{name}\.mlp\.(fc\d)", rf"{path}/mlp/\1", tools.linear),
  )


def vit(
  depths: Sequence[int], heads: int, first: int = 0
) -> tuple[tools.Rule, ...]:
  """A vision transformer whose blocks are numbered through all modules.

  Args:
    depths: blocks of the modules that are there.
    heads: attention heads.
    first: number of the first of these modules.
  """
  last, number = first + len(depths) - 1, 0
  rules = (
    *tools.layer(r"patch_embed\.proj", "module0/stem/patches", tools.conv),
    tools.Rule("cls_token", "params/module0/stem/class_token"),
    tools.Rule("pos_embed", "params/module0/stem/position"),
    *_norm("norm", f"module{last}/head/norm"),
    *tools.layer("head", f"module{last}/head/fc", tools.linear),
  )
  for place, depth in enumerate(depths, start=first):
    for block in range(1, depth + 1):
      rules += _block(number, f"module{place}/block{block}", heads)
      number += 1
  for stitch in ("pre_stitch", "post_stitch"):
    path = f"module{first}/{stitch}"
    rules += _norm(rf"blocks\.\d\.{stitch}\.ln", f"{path}/norm")
    rules += tools.layer(
      rf"blocks\.\d\.{stitch}\.fc", f"{path}/fc", tools.linear
    )
  return rules


def modulated(pattern: str, path: str) -> tuple[tools.Rule, ...]:
  """A modulated linear map."""
  start = f"{pattern}\\." if pattern else ""
  return (
    tools.Rule(f"{start}native_weight", f"params/{path}kernel", tools.linear),
    tools.Rule(f"{start}native_bias", f"params/{path}bias"),
    tools.Rule(f"{start}scale_gain", f"params/{path}gain"),
    tools.Rule(rf"{start}scale\.weight", f"params/{path}scale", tools.linear),
  )


def mediator(path: str) -> tuple[tools.Rule, ...]:
  """A mediator with its stitches, which is the module at this path."""
  inside = f"{path}/block1"
  rules = (
    *tools.layer("(pre|post)_stitch", rf"{path}/\1_stitch/fc", tools.linear),
    *_norm(r"latent_attention\.receiver_layernorm", f"{inside}/attention/norm"),
    *_norm(r"ffn\.layernorm", f"{inside}/ffn/norm"),
    tools.Rule(
      r"latent_attention\.layer_scale\.gamma",
      f"params/{inside}/attention/gamma",
    ),
    tools.Rule(r"ffn\.layer_scale\.gamma", f"params/{inside}/ffn/gamma"),
    *modulated(r"ffn\.ffn\.0", f"{inside}/ffn/fc1/"),
    *modulated(r"ffn\.ffn\.2", f"{inside}/ffn/fc2/"),
    *modulated(r"latent_attention\.exit_layer", f"{inside}/attention/exit/"),
  )
  for name in ("query", "key", "value"):
    rules += modulated(
      rf"latent_attention\.{name}_compiler", f"{inside}/attention/{name}/"
    )
  return rules


def scalar_gains(tree: dict) -> dict:
  """The variables with gains of no axis, of which the tools make one."""
  return {
    name: scalar_gains(value)
    if isinstance(value, dict)
    else (value.reshape(()) if name == "gain" else value)
    for name, value in tree.items()
  }


def named(arrays: dict) -> dict:
  """PyTorch names of arrays whose files have `__` for their points."""
  return {name.replace("__", "."): array for name, array in arrays.items()}
