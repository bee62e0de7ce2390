"""Turns a workdir into figures, tables and one HTML page."""

import os
import pathlib

from jaxkd.report import figures, load, outcomes, page, style
from jaxkd.report.study import study_report, study_table
from jaxkd.report.tables import print_table, table

__all__ = ["build", "print_table", "study_report", "study_table", "table"]

PLOTS = (
  figures.curves,
  figures.routing,
  figures.masks,
  outcomes.confusion,
  outcomes.calibration,
  outcomes.agreement,
)


def build(workdir: str | os.PathLike) -> dict[str, pathlib.Path]:
  """Writes the figures and the page of a workdir into WORKDIR/report.

  A figure whose metrics no run has logged is left out, and the page says why.
  A report of a run that is still training shows what there is.

  Args:
    workdir: the folder that a training command wrote.

  Returns:
    "page" and the name of each figure drawn -> the file.

  Raises:
    RefusedInput: the folder is not a workdir, holds no runs, or a file in it
      is not what it must be.
    MissingExtra: matplotlib or jinja2 is not installed.
  """
  work = load.read(workdir)
  folder = work.path / "report"
  with style.drawing():
    plots = [plot(work) for plot in PLOTS]
    images = {}
    folder.mkdir(exist_ok=True)
    for plot in plots:
      path = folder / f"{plot.name}.png"
      path.unlink(missing_ok=True)
      if plot.figure is not None:
        images[plot.name] = style.save(plot.figure, path)
  html = page.write(work, plots, images, folder / "report.html")
  return {"page": html, **images}
