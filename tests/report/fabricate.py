"""Writes small workdirs that look like those of finished runs."""

import json

import numpy as np

from jaxkd import evaluation

CLASSES = 10
TEACHERS = ("image", "audio", "fusion")
LIFT = {"main": 0.06, "no_kd": 0.0, "random_teacher": 0.02}


def experiment(folder, *, seeds=3, teachers=TEACHERS, phase="distil"):
  """Writes an experiment with two controls and returns its folder."""
  folder.mkdir(parents=True, exist_ok=True)
  write_json(
    folder / "jaxkd.json",
    {"format": 1, "kind": "experiment", "digest": "0" * 64},
  )
  (folder / "config.gin").write_text("KD.temperature = 4.0\n")
  (folder / "command.txt").write_text("jaxkd train experiments/kd.gin\n")
  write_json(
    folder / "environment.json", {"python": "3.11", "devices": {"cpu": 1}}
  )
  metrics = {}
  for label, lift in LIFT.items():
    for seed in range(seeds):
      result = run(folder, label, seed, lift, teachers, phase)
      prefix = "" if label == "main" else f"{label}/"
      for role, values in result.items():
        name = f"{prefix}{role}/accuracy"
        metrics.setdefault(name, []).append(values["accuracy"])
  summary = {
    "method": "KD",
    "task": "digits",
    "seeds": list(range(seeds)),
    "metrics": metrics,
    "params": {"student": 12345, "teacher": 987654},
    "wall_seconds": 12.5,
    "versions": {"jax": "0.10.2"},
    "commit": "abc",
  }
  write_json(folder / "summary.json", summary)
  return folder


def run(folder, label, seed, lift, teachers, phase):
  """Writes one run and returns its evaluation."""
  place = folder / "runs" / label / f"seed_{seed}"
  place.mkdir(parents=True)
  rng = np.random.default_rng([seed, len(label)])
  lines = []
  if label == "main":
    lines += phase_lines("teacher", 0, rng, ["task"], 0.1)
  terms = ["task"] if label == "no_kd" else ["task", "kd", "load_balance"]
  lines += phase_lines(phase, 100, rng, terms, lift)
  if label == "main":
    add_routing(lines, rng, teachers)
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (place / "metrics.jsonl").write_text(text)
  result = {"student": evaluated(rng, 0.75 + lift, kd=label != "no_kd")}
  if label == "main":
    result["teacher"] = evaluated(rng, 0.9)
  write_json(place / "evaluation.json", result)
  write_json(place / "timing.json", {"compile_seconds": 2.5, "distil": 7.1})
  write_json(place / "proofs.json", {phase: proofs(phase)})
  return result


def proofs(name):
  """Returns the proofs of a phase; the last one has a name for evidence."""
  return {
    "gradient": {"holds": True, "evidence": "every leaf is trained"},
    "donation": {"holds": True, "evidence": "68 of 68 bytes"},
    "cost": {"holds": None, "evidence": f"1 FLOPs of {name}"},
  }


def phase_lines(phase, start, rng, terms, lift):
  """Returns the lines of a phase of 100 steps."""
  lines = []
  for step in range(start + 5, start + 105, 5):
    t = (step - start) / 100
    for split in ("train", "validation") if step % 20 == 0 else ("train",):
      noise = rng.normal(scale=0.02, size=2)
      fall = 2.3 * np.exp(-3 * t) + 0.1 + (split == "validation") * 0.15
      values = {
        term: float(fall * (1 + 0.6 * i) + noise[0])
        for i, term in enumerate(terms)
      }
      values["accuracy"] = float(0.75 - 0.6 * np.exp(-4 * t) + lift + noise[1])
      row = {"phase": phase, "step": step, "epoch": step // 20}
      lines.append({**row, "split": split, "metrics": values})
  return lines


def add_routing(lines, rng, teachers):
  """Adds routing shares and mask statistics to the second phase."""
  rows = [x for x in lines if x["step"] > 100 and x["split"] == "train"]
  drift = rng.normal(size=len(teachers))
  for i, row in enumerate(rows):
    logits = drift * i / len(rows) + np.arange(len(teachers)) * i / len(rows)
    shares = np.exp(logits) / np.exp(logits).sum()
    for teacher, share in zip(teachers, shares, strict=True):
      row["metrics"][f"route/{teacher}"] = float(share)
      row["metrics"][f"mask_mean/{teacher}"] = float(1 - 0.5 * share)
      row["metrics"][f"mask_std/{teacher}"] = float(0.1 + share * i / 100)


def evaluated(rng, right, kd=False):
  """Returns the numbers of a classifier with about this accuracy."""
  labels = np.arange(300) % CLASSES
  logits = rng.normal(size=(300, CLASSES))
  logits[np.arange(300), labels] += 6 * right - 1.5
  out = evaluation.summarise(logits, labels, None, CLASSES)
  if kd:
    teacher = logits + rng.normal(size=logits.shape)
    out["agreement"] = evaluation.agreement(logits, teacher)
    out["mean_kl"] = evaluation.mean_kl(logits, teacher)
  return out


def study(folder, names=("student alone", "KD", "DKD", "random teacher")):
  """Writes a study of experiments over five seeds and returns its folder."""
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / "jaxkd.json", {"format": 1, "kind": "study"})
  rng = np.random.default_rng(0)
  shared = rng.normal(scale=0.02, size=5)
  rows, first = [], None
  for i, name in enumerate(names):
    lift = (0.0, 0.04, 0.05, -0.03)[i % 4]
    values = 0.85 + shared + lift + rng.normal(scale=0.008, size=5)
    first = values if first is None else first
    d = evaluation.paired_difference(values, first)
    mean, low, high = evaluation.mean_interval(values)
    row = {"name": name, "mean": mean, "low": low, "high": high}
    row |= {"values": values.tolist(), "difference": d.mean if i else None}
    row |= {"difference_low": d.low if i else None}
    row |= {"difference_high": d.high if i else None}
    rows.append(row)
  content = {"experiments": [], "metric": "student/accuracy", "rows": rows}
  content |= {"versions": {"jax": "0.10.2"}, "machine": "cpu", "commit": "abc"}
  write_json(folder / "study.json", content)
  return folder


def write_json(path, content):
  """Writes JSON."""
  path.write_text(json.dumps(content))
