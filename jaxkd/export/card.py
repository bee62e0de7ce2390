"""The model card: what was trained, on what, how well, and how to run it.

Plain text with YAML front matter, as model hubs read it.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.evaluation import statistics
from jaxkd.export.trained import PREDICTOR, Trained
from jaxkd.report import tables
from jaxkd.teachers.load import fingerprint

if TYPE_CHECKING:
  from jaxkd.experiment import Experiment
  from jaxkd.method import Method
  from jaxkd.training.workdir import Workdir

Rows = list[dict[str, Any]]
DEPLOYED = "student"  # what a method calls its rule for prediction
# An id of SPDX, and some of them that what is no id may have meant.
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*\+?")
_LICENSES = (
  "Apache-2.0",
  "BSD-2-Clause",
  "BSD-3-Clause",
  "CC-BY-4.0",
  "CC-BY-NC-4.0",
  "CC-BY-SA-4.0",
  "CC0-1.0",
  "GPL-3.0-only",
  "MIT",
  "MPL-2.0",
)
_LINK = re.compile(r"https?://\S+?(?=[,.;)]?(?:\s|$))")


def card(
  experiment: Experiment,
  workdir: Workdir,
  summary: Mapping[str, Any],
  trained: Trained,
  facts: Mapping[str, Any],
  *,
  use: str,
  command: str,
) -> str:
  """Returns the text of README.md.

  Args:
    experiment: what was run.
    workdir: its run directory.
    summary: the content of summary.json.
    trained: what was exported.
    facts: the content of export.json.
    use: how the format is read.
    command: the command line of the export; may be empty.
  """
  method = experiment.method
  sections = {
    "Use": [use, _compatibility(facts), _shapes(facts)],
    "Method": [_first_line(method), _links(method)],
    "Roles": [
      tables.table(_roles(experiment, trained, facts)),
      *(
        f"The role `{role}` began with the weights of {found['source']} "
        f"({found['fingerprint']})."
        for role, found in facts["sources"].items()
      ),
      "A fingerprint is the SHA-256 of names, shapes, dtypes and bytes.",
    ],
    "Data": [
      f"Task `{experiment.task.name}`: {_first_line(experiment.task)}",
      f"Measured on the {experiment.measured_on} split.",
    ],
    "Metrics": _metrics(summary, trained),
    "How it was made": [
      _code((_read(workdir.command), command)),
      _code(f"{name} {version}" for name, version in facts["versions"].items()),
      f"Trained with commit {summary['commit']}.",
    ],
    "Licence": [
      f"`{facts['license']}`." if facts["license"] else "None was given.",
      "That of the data, and of teachers from elsewhere, may bind what is made "
      "of them.",
    ],
  }
  title = f"{_network(trained)} of {summary['method']} on {summary['task']}"
  front = _front(experiment, summary, facts["license"])
  parts = [front, f"# {title}"]
  for heading, paragraphs in sections.items():
    parts += [f"## {heading}", *filter(None, paragraphs)]
  return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def check_license(license: str | None) -> None:
  """Checks the form of a license's id; whether SPDX has it is not looked up.

  Raises:
    ConfigError: it cannot be one.
  """
  if license is not None and not _LICENSE.fullmatch(license):
    raise ConfigError(
      f"--license {license!r} is no id of SPDX"
      + did_you_mean(license, _LICENSES)
      + "; expected letters, digits, '.' and '-', such as Apache-2.0 or "
      "LicenseRef-own"
    )


def fingerprints(trained: Trained) -> dict[str, str]:
  """Digests of the variables of all roles."""
  fitted = trained.fitted
  return {
    role: fingerprint({"params": params, **fitted.collections.get(role, {})})
    for role, params in fitted.params.items()
  }


def sources(method: Method) -> dict[str, dict[str, str]]:
  """Of roles that began with weights from elsewhere: whence, and a digest."""
  return {
    role: {
      "source": _source(network.weights),
      "fingerprint": network.weights.fingerprint(),
    }
    for role, network in method.roles.items()
    if network.weights is not None
  }


def _source(weights: Any) -> str:
  """An id as it is, of a path only the last part."""
  if hasattr(weights, "members"):  # of an ensemble
    return ", ".join(map(_source, weights.members))
  place = getattr(weights, "source", getattr(weights, "workdir", None))
  if place is None:
    return "variables given in Python"
  path = Path(place)
  return path.name if path.is_absolute() or path.exists() else str(place)


def _front(
  experiment: Experiment, summary: Mapping[str, Any], license: str | None
) -> str:
  """What hubs read, every value quoted."""
  lines = ["---", "library_name: jaxkd", "tags:"]
  if license:  # hubs write the ids small, and SPDX does not mind
    lines.insert(1, f"license: {json.dumps(license.lower())}")
  tags = ("jax", "knowledge-distillation", summary["method"])
  lines += [f"- {json.dumps(tag)}" for tag in tags]
  lines += ["datasets:", f"- {json.dumps(experiment.task.name)}"]
  return "\n".join([*lines, "---"])


def _network(trained: Trained) -> str:
  if trained.role == PREDICTOR:
    return "The predictor"
  return f"{trained.network.name} ({trained.role})"


def _compatibility(facts: Mapping[str, Any]) -> str:
  if facts["format"] != "safetensors":
    return ""
  kinds = (facts["config"] or {}).get("architectures")
  if kinds:
    text = (
      f"The layout is {facts['layout']}: `transformers.{kinds[0]}."
      "from_pretrained` reads the folder."
    )
  elif facts["sentences"]:
    text = f"The layout is {facts['layout']}."
  else:
    text = (
      f"The names of the tensors are {facts['layout']}. Other libraries do not "
      "know them."
    )
  return f"{text}\n\n{facts['sentences'] or ''}".strip()


def _shapes(facts: Mapping[str, Any]) -> str:
  rows = [
    {
      "": side,
      "name": name,
      "dtype": array["dtype"],
      "shape": ", ".join(map(str, array["shape"])),
    }
    for side in ("inputs", "outputs")
    for name, array in facts.get(side, {}).items()
  ]
  if facts["difference"] is None:
    return tables.table(rows) if rows else ""
  found = facts["difference"]
  return (
    tables.table(rows)
    + "\n\nThe largest difference to the trained network, on "
    + f"{found['platform']}: {found['absolute']:.2e}, "
    + f"{found['relative']:.2e} of the outputs' scale."
  )


def _roles(
  experiment: Experiment, trained: Trained, facts: Mapping[str, Any]
) -> Rows:
  method = experiment.method
  learned = {
    role
    for phase in method.lasting_phases
    for role in phase.trains(tuple(method.roles))
  }
  return [
    {
      "role": role,
      "network": network.name,
      "reads": ", ".join(network.inputs),
      "parameters": f"{_count(trained.fitted.params[role]):,}",
      "trained": "yes" if role in learned else "no",
      "fingerprint": facts["fingerprints"][role],
    }
    for role, network in method.roles.items()
  ]


def _count(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _metrics(summary: Mapping[str, Any], trained: Trained) -> list[str]:
  """A table of the means over seeds, and of the exported seed."""
  name = DEPLOYED if trained.role == PREDICTOR else trained.role
  place = summary["seeds"].index(trained.seed)
  rows = [
    {
      "metric": metric.removeprefix(f"{name}/"),
      "mean and 95% interval": tables.interval(
        *statistics.mean_interval(values)
      ),
      "seeds": len(values),
      "this seed": float(values[place]),
    }
    for metric, values in summary["metrics"].items()
    if metric.startswith(f"{name}/") and metric.count("/") == 1
  ]
  if not rows:
    return ["Not measured by itself."]
  what = (
    "Of what the method deploys."
    if name == DEPLOYED
    else f"Of the role `{name}`."
  )
  return [what, tables.table(rows)]


def _first_line(thing: Any) -> str:
  return (inspect.getdoc(type(thing)) or "").split("\n")[0]


def _links(method: Any) -> str:
  """The papers that a method's file names."""
  module = inspect.getdoc(inspect.getmodule(type(method))) or ""
  text = f"{module}\n{inspect.getdoc(type(method)) or ''}"
  found = dict.fromkeys(_LINK.findall(text))
  return "\n".join(f"- <{link}>" for link in found)


def _read(path: Any) -> str:
  return path.read_text("utf-8").strip() if path.exists() else ""


def _code(lines: Iterable[str]) -> str:
  """An indented block, which nothing in the lines can end."""
  kept = [line for text in lines for line in text.splitlines() if line.strip()]
  return "\n".join(f"    {line}" for line in kept)
