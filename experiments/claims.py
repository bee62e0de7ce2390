"""Writes docs/claims.md: what papers claim, and what was measured here.

  python experiments/claims.py

A study's folder holds `results/claims.json`, a list of claims, each about two
experiments of `results/study.json`. The verdict follows from the interval of
their paired difference, not from opinion.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jaxkd.evaluation import statistics

FOLDER = pathlib.Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "claims.md"
INTRO = """\
# What papers claim, and what was measured here

Written by `python experiments/claims.py` from `experiments/*/results/`. The
effect is the mean over seeds of the paired difference between two experiments
on the same splits, with its 95% interval. *Held*: the interval lies on the
claimed side of zero. *Not seen*: it contains zero. *Contradicted*: it lies on
the other side. Data and networks are small; the experiments' own pages say how
they differ from the paper's.

| paper | claim | measured | effect [95% CI] | seeds | verdict |
| --- | --- | --- | --- | --- | --- |
"""


def verdict(low: float, high: float, better: str) -> str:
  """What an interval of (ours - the other) says of a claim.

  Args:
    low: its lower end.
    high: its upper end.
    better: `higher` or `lower`, which the claim calls better.
  """
  if better == "lower":
    low, high = -high, -low
  if low > 0:
    return "held"
  return "contradicted" if high < 0 else "not seen"


def row(claim: Mapping[str, Any], study: Mapping[str, Any], page: str) -> str:
  """The line of a claim.

  Args:
    claim: `paper`, `url`, `claim`, `ours`, `other`, `better`, and `metric` if
      it is not the study's.
    study: content of study.json.
    page: the paper's folder.
  """
  metric = claim.get("metric", study["metric"])
  metrics = {e["name"]: e["metrics"] for e in study["experiments"]}
  ours, other = (
    metrics[claim[which]][claim.get(f"{which}_metric", metric)]
    for which in ("ours", "other")
  )
  found = statistics.paired_difference(ours, other)
  effect = f"{found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"
  pair = f"[{claim['ours']} against {claim['other']}](../{page}/README.md)"
  cells = (
    f"[{claim['paper']}]({claim['url']})",
    claim["claim"],
    f"{metric}, {pair}",
    effect,
    str(len(ours)),
    verdict(found.low, found.high, claim["better"]),
  )
  return f"| {' | '.join(cells)} |"


def rows() -> Iterator[str]:
  """The lines of all claims, by folder."""
  for path in sorted(FOLDER.rglob("results/claims.json")):
    study = json.loads((path.parent / "study.json").read_text())
    page = path.parents[1].relative_to(FOLDER.parent).as_posix()
    for claim in json.loads(path.read_text()):
      yield row(claim, study, page)


def page() -> str:
  """The whole page."""
  return INTRO + "\n".join(rows()) + "\n"


if __name__ == "__main__":
  PAGE.write_text(page())
