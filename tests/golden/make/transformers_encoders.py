"""Tiny random BERT, ViT, DeiT and CLIP models, written by transformers.

  python tests/golden/make/transformers_encoders.py [OUT]

Needs torch and transformers. Weights are those of the files that
`save_pretrained` writes, under their names there; every weight is drawn anew,
so that norms and biases are not at 1 and 0.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors import numpy as safetensors

OUT = pathlib.Path(__file__).parents[1]
SIZES = {
  "hidden_size": 12,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "intermediate_size": 20,
}
TEXT = {"vocab_size": 29, "max_position_embeddings": 10}
IMAGE = {"image_size": 12, "patch_size": 4}
NAMES = {f"id2label{n}": {i: f"LABEL_{i}" for i in range(n)} for n in (5,)}


def drawn(model, seed):
  """Draws all weights of a model, and turns dropout off."""
  random = torch.Generator().manual_seed(seed)
  for name, weight in model.named_parameters():
    noise = torch.randn(weight.shape, generator=random)
    is_scale = "norm" in name.lower() and name.endswith("weight")
    with torch.no_grad():
      if name == "logit_scale":
        weight.fill_(2.5)
      else:
        weight.copy_(1 + 0.2 * noise if is_scale else 0.3 * noise)
  return model.eval()


def saved(model):
  """The tensors and the config that the model's folder holds."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    folder = pathlib.Path(folder)
    tensors = safetensors.load_file(folder / "model.safetensors")
    return tensors, json.loads((folder / "config.json").read_text())


def text_inputs(seed, batch=4, length=7):
  """Tokens, a mask with padding at the end, and types of two sentences."""
  random = np.random.default_rng(seed)
  tokens = random.integers(1, TEXT["vocab_size"], (batch, length))
  mask = (
    np.arange(length)[None] < random.integers(3, length + 1, batch)[:, None]
  )
  types = np.arange(length)[None] >= random.integers(1, 3, batch)[:, None]
  return {
    "tokens": np.where(mask, tokens, 0).astype(np.int32),
    "token_mask": mask.astype(np.int32),
    "token_types": np.where(mask, types, 0).astype(np.int32),
  }


def image_inputs(seed, batch=3):
  """Images, channels last."""
  random = np.random.default_rng(seed)
  side = IMAGE["image_size"]
  return {"image": random.normal(size=(batch, side, side, 3)).astype("float32")}


def given(inputs):
  """Our inputs under the names and in the layout of transformers."""
  names = {
    "tokens": "input_ids",
    "token_mask": "attention_mask",
    "token_types": "token_type_ids",
  }
  theirs = {
    names[k]: torch.tensor(v).long() for k, v in inputs.items() if k in names
  }
  if "image" in inputs:
    theirs["pixel_values"] = torch.tensor(inputs["image"]).permute(0, 3, 1, 2)
  return theirs


def bert(kind, seed, **options):
  """A BERT model of a class of transformers."""
  config = transformers.BertConfig(**SIZES, **TEXT, **options)
  return drawn(getattr(transformers, kind)(config), seed), text_inputs(seed)


def vision(kind, seed, **options):
  """A ViT or DeiT model of a class of transformers."""
  config = "DeiTConfig" if kind.startswith("DeiT") else "ViTConfig"
  config = getattr(transformers, config)(**SIZES, **IMAGE, **options)
  return drawn(getattr(transformers, kind)(config), seed), image_inputs(seed)


def clip(seed, *, end):
  """A CLIP model whose texts end with `end`, or with the highest token."""
  text = {**SIZES, **TEXT, "bos_token_id": 0, "pad_token_id": 1}
  config = transformers.CLIPConfig(
    text_config={**text, "eos_token_id": end, "projection_dim": 8},
    vision_config={**SIZES, **IMAGE, "hidden_size": 18, "projection_dim": 8},
    projection_dim=8,
  )
  inputs = image_inputs(seed) | text_inputs(seed)
  del inputs["token_types"]
  ends = inputs["token_mask"].sum(1) - 1
  last = 28 if end == 2 else end
  tokens = np.where(inputs["tokens"] == last, 4, inputs["tokens"])
  tokens[np.arange(len(ends)), ends] = last
  inputs["tokens"] = np.where(inputs["token_mask"], tokens, 1).astype(np.int32)
  return drawn(transformers.CLIPModel(config), seed), inputs


MODELS = {
  "bert": lambda: bert("BertModel", 1),
  "bert_masked_lm": lambda: bert("BertForMaskedLM", 2),
  "bert_classes": lambda: bert(
    "BertForSequenceClassification", 3, id2label=NAMES["id2label5"]
  ),
  "vit": lambda: vision("ViTModel", 4),
  "vit_classes": lambda: vision(
    "ViTForImageClassification", 5, id2label=NAMES["id2label5"], qkv_bias=False
  ),
  "deit_classes": lambda: vision(
    "DeiTForImageClassification", 6, id2label=NAMES["id2label5"]
  ),
  "deit_distilled": lambda: vision(
    "DeiTForImageClassificationWithTeacher", 7, id2label=NAMES["id2label5"]
  ),
  "clip": lambda: clip(8, end=2),
  "clip_end": lambda: clip(9, end=17),
}
OUTPUTS = (
  "last_hidden_state",
  "pooler_output",
  "logits",
  "cls_logits",
  "distillation_logits",
  "text_embeds",
  "image_embeds",
  "logits_per_image",
)


def run(name):
  """Makes a model of `MODELS` and runs it.

  Returns:
    Its inputs, its outputs, its tensors and its config.
  """
  model, inputs = MODELS[name]()
  with torch.no_grad():
    found = model(**given(inputs))
  outputs = {
    key: found[key].numpy()
    for key in OUTPUTS
    if found.get(key, None) is not None
  }
  return inputs, outputs, *saved(model)


def main(out):
  """Writes a golden file for each model."""
  for name in MODELS:
    inputs, outputs, tensors, config = run(name)
    arrays = {
      **{f"weight:{key}": value for key, value in tensors.items()},
      **{f"input:{key}": value for key, value in inputs.items()},
      **{f"output:{key}": value for key, value in outputs.items()},
      "config": np.frombuffer(json.dumps(config).encode(), np.uint8),
    }
    path = out / f"transformers__{name}.npz"
    np.savez_compressed(path, **arrays)
    sys.stdout.write(f"{path.name} {path.stat().st_size / 1e3:.0f} kB\n")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]) if sys.argv[1:] else OUT)
