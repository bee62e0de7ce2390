"""Tiny random Llama, Mistral, Qwen2 and Qwen3, as transformers computes them.

Run from the root of the repository, where torch and transformers are:

  python -m tests.golden.make.transformers_decoders
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1]
SHAPES = {
  "vocab_size": 41,
  "hidden_size": 32,
  "intermediate_size": 44,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "initializer_range": 0.15,
}
# Every model type, with what is its own.
CONFIGS = {
  "llama": {
    "rope_parameters": {
      "rope_type": "llama3",
      "rope_theta": 1000.0,
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 16,
    },
    "rms_norm_eps": 1e-5,
  },
  "mistral": {"sliding_window": 7, "num_key_value_heads": 1},
  "qwen2": {"tie_word_embeddings": True, "rms_norm_eps": 1e-6},
  "qwen3": {"head_dim": 12, "tie_word_embeddings": True},
}
# Scalings of rotary positions, all with one set of weights.
SCALINGS = {
  "linear": {"rope_type": "linear", "factor": 4.0},
  "dynamic": {"rope_type": "dynamic", "factor": 2.0},
  "yarn": {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 4.0,
  },
  "yarn_scaled": {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "mscale": 0.8,
    "mscale_all_dim": 0.3,
    "truncate": False,
    "beta_fast": 4.0,
  },
}


def model(kind: str, seed: int, **config: Any) -> Any:
  """A tiny model of transformers, none of its weights at a special value."""
  import torch
  import transformers

  names = {"llama": "Llama", "mistral": "Mistral"}
  name = names.get(kind, kind.title())
  settings = getattr(transformers, f"{name}Config")(
    **{**SHAPES, **config}, attn_implementation="eager"
  )
  torch.manual_seed(seed)
  net = getattr(transformers, f"{name}ForCausalLM")(settings).eval()
  with torch.no_grad():
    for weight in net.parameters():
      if weight.ndim == 1:
        start = 0.2 * torch.randn_like(weight)
        weight.copy_(start + (weight.mean() > 0.5))
  return net


def inputs() -> dict[str, np.ndarray]:
  """Tokens, and a mask that leaves out the start of rows."""
  tokens = np.random.default_rng(0).integers(0, 41, (3, 24))
  starts = np.array([[0], [5], [13]])
  return {
    "tokens": tokens.astype(np.int32),
    "token_mask": (np.arange(24)[None] >= starts).astype(np.int32),
  }


def outputs(net: Any, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Logits with and without the mask, and the first block's output."""
  import torch

  tokens = torch.from_numpy(given["tokens"]).long()
  mask = torch.from_numpy(given["token_mask"]).long()
  with torch.no_grad():
    plain = net(tokens, output_hidden_states=True, use_cache=False)
    padded = net(tokens, attention_mask=mask, use_cache=False)
  return {
    "logits": plain.logits.numpy(),
    "block1": plain.hidden_states[1].numpy(),
    "padded_logits": padded.logits.numpy(),
  }


def weights(net: Any) -> dict[str, np.ndarray]:
  """What a checkpoint of the model holds."""
  tied = net.config.tie_word_embeddings
  return {
    name: value.numpy()
    for name, value in net.state_dict().items()
    if not (tied and name == "lm_head.weight")
  }


def config_of(net: Any) -> np.ndarray:
  """The text of the model's `config.json`, as bytes."""
  text = json.dumps(json.loads(net.config.to_json_string()))
  return np.frombuffer(text.encode(), np.uint8)


def arrays(kind: str) -> dict[str, np.ndarray]:
  """All that the golden file of a model type holds."""
  net, given = model(kind, 0, **CONFIGS[kind]), inputs()
  return {
    "config": config_of(net),
    **{f"weight:{name}": value for name, value in weights(net).items()},
    **{f"input:{name}": value for name, value in given.items()},
    **{f"output:{name}": value for name, value in outputs(net, given).items()},
  }


def scaling_arrays() -> dict[str, np.ndarray]:
  """The same of one Llama under every scaling."""
  given, found = inputs(), {}
  for name, scaling in SCALINGS.items():
    longest = 12 if name == "dynamic" else 32
    net = model(
      "llama",
      1,
      rope_parameters={"rope_theta": 500.0, **scaling},
      max_position_embeddings=longest,
    )
    found |= {f"weight:{key}": value for key, value in weights(net).items()}
    found[f"config:{name}"] = config_of(net)
    found[f"output:{name}"] = outputs(net, given)["logits"]
  return found | {f"input:{name}": value for name, value in given.items()}


if __name__ == "__main__":
  for kind in CONFIGS:
    np.savez_compressed(GOLDEN / f"transformers__{kind}.npz", **arrays(kind))
  np.savez_compressed(GOLDEN / "transformers__rotary.npz", **scaling_arrays())
