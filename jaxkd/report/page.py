"""The HTML page of a workdir: one file, no script, nothing fetched.

Everything that a workdir holds is untrusted text. The template escapes all of
it, and the page's own policy lets a browser load nothing but its inline images
and style.
"""

import base64
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import extras
from jaxkd.evaluation import statistics
from jaxkd.report import load, style, tables

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem;
  margin: 0 auto; padding: 1.5rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0;
  border-bottom: 1px solid #8884; }
figure { margin: 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, .quiet { color: #777; font-size: .9rem; }
pre { background: #8881; padding: .8rem; border-radius: 4px;
  overflow-x: auto; font-size: .85rem; overflow-wrap: normal; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="quiet">{{ subtitle }}</p>
{% macro grid(rows) %}
<div class="scroll"><table>
<thead><tr>{% for name in rows[0] %}<th scope="col">{{ name }}</th>\
{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>{% for text in row.values() %}\
<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endmacro %}
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% if section.image %}
<figure><img src="data:image/png;base64,{{ section.image }}" \
alt="{{ section.text }}">
<figcaption>{{ section.text }}</figcaption></figure>
{% elif section.rows %}{{ grid(section.rows) }}
{% elif section.pre %}<pre>{{ section.pre }}</pre>
{% endif %}
{% if section.text and not section.image %}\
<p class="quiet">{{ section.text }}</p>{% endif %}
</section>
{% endfor %}
</body>
</html>
"""


PROOFS = {
  "gradient": "no gradient to what an update does not train",
  "evaluation": "frozen roles ran in evaluation mode",
  "digest": "frozen roles unchanged, bit for bit",
  "donation": "state updated in place",
  "cost": "a step on one device",
}


def write(
  work: load.Workdir,
  plots: Sequence[style.Plot],
  images: Mapping[str, pathlib.Path],
  path: pathlib.Path,
) -> pathlib.Path:
  """Writes the page.

  Args:
    work: the workdir.
    plots: the figures in order, the skipped ones too.
    images: a plot's name -> its PNG.
    path: where the page goes.

  Returns:
    The path.

  Raises:
    MissingExtra: jinja2 is not installed.
  """
  jinja2 = extras.need("jinja2", extra="report", what="the report page")
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined
  )
  method = work.summary.get("method", "unnamed method")
  task = work.summary.get("task", "unnamed task")
  seeds = sorted({run.seed for run in work.runs})
  text = environment.from_string(TEMPLATE).render(
    title=f"{method} on {task}",
    subtitle=f"{_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))});"
    f" runs: {', '.join(work.labels)}",
    sections=[
      *_results(work),
      *(_plot_section(plot, images.get(plot.name)) for plot in plots),
      *_facts(work),
    ],
  )
  path.write_text(text, encoding="utf-8", errors="replace")
  return path


def summary_rows(work: load.Workdir) -> list[dict[str, str]]:
  """Returns a row a metric of summary.json: mean, 95% interval, the seeds."""
  return [
    {
      "metric": name,
      "mean [95% interval]": tables.interval(*statistics.mean_interval(values)),
      "by seed": ", ".join(f"{value:.4g}" for value in values),
    }
    for name, values in _metrics(work).items()
  ]


def control_rows(work: load.Workdir) -> list[dict[str, str]]:
  """Returns a row a control and metric: the method minus the control."""
  metrics, rows = _metrics(work), []
  for label in work.labels:
    for name, values in metrics.items():
      control = metrics.get(f"{label}/{name}", np.empty(0))
      if len(control) != len(values):
        continue
      d = statistics.paired_difference(values, control)
      rows.append(
        {
          "control": label,
          "metric": name,
          "method minus control [95% interval]": tables.interval(
            d.mean, d.low, d.high, signed=True
          ),
          "p": tables.cell(float(f"{d.p_value:.2g}")),
          "clear of zero": tables.cell(d.clear),
        }
      )
  return rows


def proof_rows(work: load.Workdir) -> list[dict[str, str]]:
  """Returns a row a phase of a label: whether its proofs hold in all seeds."""
  rows = []
  for label in work.labels:
    runs = work.of(label)
    for phase in dict.fromkeys(name for run in runs for name in run.proofs):
      found = {run.seed: _dict(run.proofs.get(phase)) for run in runs}
      cells = {text: _verdict(found, name) for name, text in PROOFS.items()}
      rows.append({"run": label, "phase": phase, **cells})
  return rows


def _verdict(found: Mapping[int, dict[str, Any]], name: str) -> str:
  """What the seeds say of one proof: the first that does not hold, or all."""
  proofs = {seed: _dict(of.get(name)) for seed, of in found.items()}
  for seed, proof in proofs.items():
    if proof.get("holds") is False:
      return f"NO, seed {seed}: {proof.get('evidence')}"
  if any(proof.get("holds") is True for proof in proofs.values()):
    return "yes"
  said = [str(of["evidence"]) for of in proofs.values() if "evidence" in of]
  return said[0] if said else tables.NONE


def _dict(value: Any) -> dict[str, Any]:
  return value if isinstance(value, dict) else {}


def _metrics(work: load.Workdir) -> dict[str, np.ndarray]:
  found = work.summary.get("metrics", {})
  items = found.items() if isinstance(found, dict) else ()
  values = {str(name): load.numbers(values) for name, values in items}
  return {name: x for name, x in values.items() if x.size}


def _results(work: load.Workdir) -> Iterable[dict[str, Any]]:
  if not work.summary:
    yield _section("Results", text="summary.json is not written yet.")
    return
  yield _section("Results", rows=summary_rows(work))
  controls = control_rows(work)
  if controls:
    yield _section(
      "Against the controls",
      rows=controls,
      text="Differences are paired by seed; p is of the paired t-test.",
    )


def _facts(work: load.Workdir) -> Iterable[dict[str, Any]]:
  proofs = proof_rows(work)
  if proofs:
    yield _section(
      "Proofs",
      rows=proofs,
      text="Of every phase that was trained here, over all seeds; "
      "proofs.json of a run has the evidence.",
    )
  params = work.summary.get("params")
  if isinstance(params, dict) and params:
    rows = [{"role": k, "parameters": _thousands(v)} for k, v in params.items()]
    yield _section("Size", rows=rows)
  timing = [
    {"run": f"{run.label}, seed {run.seed}", "what": name, "value": value}
    for run in work.runs
    for name, value in _flat(run.timing)
  ]
  if timing:
    yield _section("Time", rows=timing)
  for name, title in (("command.txt", "Command"), ("config.gin", "Config")):
    text = work.texts.get(name)
    why = "" if text else f"{name} is not in the workdir."
    yield _section(title, pre=text, text=why)
  facts = {
    k: work.summary[k]
    for k in ("commit", "wall_seconds", "versions")
    if k in work.summary
  }
  rows = [
    {"fact": name, "value": value}
    for name, value in [*_flat(work.environment), *_flat(facts)]
  ]
  why = "" if rows else "environment.json is not in the workdir."
  yield _section("Environment", rows=rows, text=why)


def _plot_section(
  plot: style.Plot, image: pathlib.Path | None
) -> dict[str, Any]:
  if image is None:
    return _section(plot.title, text=plot.text)
  content = base64.b64encode(image.read_bytes()).decode()
  return _section(plot.title, image=content, text=plot.text)


def _section(
  title: str,
  *,
  text: str = "",
  rows: Sequence[Mapping[str, Any]] = (),
  pre: str | None = None,
  image: str | None = None,
) -> dict[str, Any]:
  return {
    "title": title,
    "text": text,
    "rows": list(rows),
    "pre": pre,
    "image": image,
  }


def _flat(tree: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
  """Returns (dotted name, text) of the leaves of a JSON object."""
  if not isinstance(tree, dict):
    shown = isinstance(tree, str | float | int) and not isinstance(tree, bool)
    yield prefix, tables.cell(tree) if shown else json.dumps(tree)
    return
  for name, value in tree.items():
    yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))


def _thousands(value: Any) -> str:
  return f"{value:,}" if isinstance(value, int) else str(value)


def _count(n: int, noun: str) -> str:
  return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
