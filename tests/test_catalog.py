"""The catalogue says of every loss what its docstring and its checks say."""

import json
import re

import pytest

from jaxkd import catalog, losses
from tests.losses import table
from tests.losses.entries import entries

SOUND = """\
Distance of two things.

  |p - q|

  summed over the classes

Anything, Needs a line.

Args:
  student: Checked: nothing.
Needs: logits, labels; access white; per example.
Checked: some/one@0123abc; other/two@4567def;
  formula.
Reference: Somebody et al.,
  https://arxiv.org/abs/1234.56789, Eq. 1.
"""
LOSSES = pytest.mark.parametrize("name", table.own())


def test_a_docstring_is_taken_apart():
  assert catalog.parse("f", SOUND) == {
    "summary": "Distance of two things.",
    "formula": "|p - q|\n\nsummed over the classes",
    "needs": ("logits", "labels"),
    "access": "white",
    "level": "per example",
    "reference": "Somebody et al., https://arxiv.org/abs/1234.56789, Eq. 1.",
    "link": "https://arxiv.org/abs/1234.56789",
    "checked_against": ("some/one@0123abc", "other/two@4567def", "formula"),
  }


def test_a_loss_that_nothing_official_proves_says_so():
  text = re.sub(
    r"Checked: .*\n  formula", "Checked: property tests only", SOUND
  )
  assert catalog.parse("f", text)["checked_against"] == ()


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("things.", "things", "'Distance of two things'; expected one line that"),
    ("things.\n", "things.\nOf two.", "one line that ends in a period first"),
    ("  |p - q|\n\n  summed", "  \nsummed", "expected an empty line and the"),
    ("access white", "access all", "access all; per example.; expected 'arra"),
    ("access white; ", "", "Needs: logits, labels; per example.; expected"),
    ("per example", "per token", "per token.; expected 'arrays; access text"),
    ("Needs: logits", "Takes: logits", "Needs: missing; expected 'arrays"),
    ("Reference: ", "See: ", "Reference: missing; expected a paper"),
  ],
)
def test_a_malformed_docstring_is_named(old, new, message):
  assert old in SOUND
  with pytest.raises(ValueError, match="docstring of f: ") as caught:
    catalog.parse("f", SOUND.replace(old, new))
  assert message in str(caught.value)


def test_every_differentiable_loss_of_the_contract_is_in_the_catalogue():
  promised = {n for n, entry in entries().items() if entry.differentiable}
  assert promised <= catalog.public().keys()


def test_every_docstring_is_sound():
  found = catalog.entries()
  assert {entry.name for entry in found} == table.own().keys()
  assert {e.instance for e in found} >= {"kl", "reverse_kl"}


def test_building_blocks_are_no_losses():
  blocks = {"Divergence", "TopK", "log_probabilities", "soft_cap"}
  assert not blocks & catalog.public().keys()


@LOSSES
def test_an_entry_is_plain_and_readable(name):
  entry = catalog.entry(name)
  plain = json.loads(json.dumps(entry.plain()))
  assert plain["name"] == name
  assert plain["access"] in catalog.ACCESS
  assert plain["level"] in catalog.LEVELS
  assert plain["parameters"].keys() == entry.parameters.keys()
  assert all(part in entry.text() for part in (name, entry.formula[:20]))


@pytest.mark.parametrize("name", sorted(entries().keys() & table.own().keys()))
def test_an_entry_has_the_level_that_the_contract_measures(name):
  expected = "batch level" if entries()[name].batch_level else "per example"
  assert catalog.entry(name).level == expected


def test_the_class_of_an_instance_is_its_entry():
  entry = catalog.entry("KL")
  assert (entry.instance, entry.family) == ("kl", "relative_entropy")
  assert type(losses.kl) is losses.KL
  assert entry.arguments == ("student", "teacher")
  assert catalog.entry("JSD").parameters == {"beta": 0.5, "mixture": "teacher"}


@LOSSES
def test_a_docstring_names_what_its_checks_compare_with(name):
  text = table.own()[name].__doc__
  assert "Checked:" in text, "python -m tests.losses.table --docstrings"
  proven = table.sources(table.by_loss().get(name, ()))
  assert catalog.entry(name).checked_against == proven


def _without_errors(page):
  return re.sub(r"\| (\d(e-?\+?\d+)?|-) \|$", "| * |", page, flags=re.M)


def test_the_page_is_what_the_generator_writes():
  errors = dict.fromkeys(table.by_loss(), 1e-6)
  written = table.PAGE.read_text()
  assert _without_errors(written) == _without_errors(table.page(errors))


@pytest.mark.slow
@pytest.mark.parametrize("name", table.by_loss())
def test_the_page_states_errors_of_the_order_that_is_measured(name):
  rows = table.PAGE.read_text().splitlines()
  row = next(row for row in rows if re.match(rf"\| `{name}`\W", row))
  stated = float(row.rstrip("| ").rpartition("|")[2])
  measured = table.worst(table.by_loss()[name])
  assert measured <= max(3 * stated, 1e-6)


def test_a_checked_line_is_written_beneath_what_a_loss_needs():
  module = (
    'def f(x):\n  """F.\n\n  Needs: logits; access white;\n    per example.\n'
    '  Reference: A (2001).\n  """\n'
  )
  first = table.with_checked(module, "f", "Checked: a/b@0123abc.")
  expected = module.replace("example.\n", "example.\n  Checked: a/b@0123abc.\n")
  assert first == expected
  long = "; ".join(f"owner/repository@{n}{'0' * 30}" for n in range(3))
  second = table.with_checked(first, "f", f"Checked: {long}.")
  assert max(map(len, second.splitlines())) <= 80
  text = "\n".join(second.split('"""')[1].replace("\n  ", "\n").splitlines())
  assert catalog.parse("f", text.replace("F.\n", "F.\n\n  x\n"))[
    "checked_against"
  ] == tuple(long.split("; "))
  assert table.with_checked(second, "f", "Checked: a/b@0123abc.") == first
