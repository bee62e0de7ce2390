"""The page is safe to open: names are text, nothing runs or is fetched."""

import html.parser
import json

import pytest

from jaxkd import report
from jaxkd.report import load, page
from tests.report import fabricate

pytestmark = pytest.mark.usefixtures("unpainted")

ATTACKS = (
  "<script>alert(1)</script>",
  '"><img src=x onerror=alert(1)>',
  "' onmouseover='alert(1)",
  "</pre></style><iframe src=//evil.example>",
  "{{ 7 * 7 }}{% raw %}",
  "javascript:alert(1)",
  "x\x00\x1b[31m\u202e$\\frac{1}{0}$&amp;",
)


class Elements(html.parser.HTMLParser):
  """Collects (tag, attribute names) and the text of a page."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.attributes, self.text = [], [], ""
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))
    self.attributes += [(tag, name, value) for name, value in attrs]

  def handle_data(self, data):
    self.text += data


def spoiled(folder, attack):
  """Returns a workdir in which every name and text is the attack."""
  fabricate.experiment(folder, seeds=2, teachers=(attack,), phase=attack)
  for path in folder.glob("runs/*/*/*.json*"):
    rename(path, {"kd": attack, "teacher": attack, "distil": attack})
  summary = json.loads((folder / "summary.json").read_text())
  summary |= {"method": attack, "task": attack, "commit": attack}
  summary["params"] = {attack: attack}
  summary["metrics"][attack] = [0.5, 0.6]
  fabricate.write_json(folder / "summary.json", summary)
  fabricate.write_json(folder / "environment.json", {attack: {attack: attack}})
  (folder / "config.gin").write_text(attack)
  (folder / "command.txt").write_text(attack)
  return folder


def rename(path, names):
  """Renames keys in a file of JSON lines."""
  lines = []
  for line in path.read_text().splitlines():
    row = json.loads(line)
    for part in (row, row.get("metrics", {})):
      for old, new in names.items():
        if old in part:
          part[new] = part.pop(old)
    lines.append(json.dumps(row) + "\n")
  path.write_text("".join(lines))


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_add_no_element_and_no_attribute(tmp_path, attack):
  harmless = spoiled(tmp_path / "a", "harmless")
  expected = Elements(report.build(harmless)["page"].read_text())
  page = report.build(spoiled(tmp_path / "b", attack))["page"].read_text()
  found = Elements(page)
  assert found.tags == expected.tags
  if attack.isprintable():
    assert found.text.count(attack) == expected.text.count("harmless")


def test_a_control_with_markup_in_its_name_stays_text(workdir):
  (workdir / "runs" / "no_kd").rename(workdir / "runs" / "<b onload=x>")
  elements = Elements(report.build(workdir)["page"].read_text())
  assert "<b onload=x>" in elements.text
  assert not [tag for tag, _ in elements.tags if tag == "b"]


def test_the_page_runs_nothing_and_fetches_nothing(workdir):
  found = Elements(report.build(workdir)["page"].read_text())
  tags = {tag for tag, _ in found.tags}
  assert not tags & {"script", "link", "iframe", "object", "form", "a", "base"}
  for _, name, value in found.attributes:
    assert not name.startswith("on")
    assert name != "src" or value.startswith("data:image/png;base64,")
  assert "url(" not in found.text
  assert "@import" not in found.text


def test_the_policy_allows_inline_images_and_style_only(workdir):
  found = Elements(report.build(workdir)["page"].read_text())
  policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
  assert ("meta", "content", policy) in found.attributes


def test_every_figure_has_words_with_its_numbers(workdir):
  found = Elements(report.build(workdir)["page"].read_text())
  texts = [v for tag, name, v in found.attributes if name == "alt"]
  assert len(texts) == 6
  assert all(any(c.isdigit() for c in text) for text in texts)


def test_proofs_stand_in_one_table_and_a_failed_one_is_named(workdir):
  right = load.read(workdir)
  rows = page.proof_rows(right)
  assert [(row["run"], row["phase"]) for row in rows] == [
    (label, "distil") for label in right.labels
  ]
  row = rows[0]
  assert row[page.PROOFS["gradient"]] == "yes"
  assert row[page.PROOFS["donation"]] == "yes"
  assert row[page.PROOFS["digest"]] == "-"
  assert row[page.PROOFS["cost"]] == "1 FLOPs of distil"
  path = workdir / "runs" / "main" / "seed_1" / "proofs.json"
  changed = {"holds": False, "evidence": "teacher changed"}
  fabricate.write_json(path, {"distil": {"digest": changed}, "odd": 3})
  rows = page.proof_rows(load.read(workdir))
  assert rows[0][page.PROOFS["digest"]] == "NO, seed 1: teacher changed"
  assert rows[1]["phase"] == "odd"
  shown = report.build(workdir)["page"].read_text()
  assert "NO, seed 1: teacher changed" in shown
