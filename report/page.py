"""index.html of a results folder: all sessions on one page that needs nothing but itself."""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from common import UserError, check_writable, write_text
from report.page_pictures import pictures_of
from report.page_plots import plots_of
from report.page_tables import nets_table, repairs_table, session_tables
from report.sessions import command, read_sessions
from report.trainings import find_trainings

WEB = Path(__file__).with_name("web")  # page.html, page.css, page.js and the library that sorts tables
NAME = "index.html"


def write_page(results, data, workers=1):
    """Write index.html of a results folder, a Path. Returns (its path, [a line on each file that was left out]).

    data: folder of all data sets. workers: threads that decode images. UserError if there is no session to show.
    """
    if not results.is_dir():
        raise UserError(f"{results} is not there: .venv/bin/python sweep.py makes it")
    sessions, left_out = read_sessions(results)
    if not sessions:
        why = f" ({left_out[0]})" if left_out else ""
        raise UserError(f"{results} holds no sweep.csv that can be shown{why}: .venv/bin/python sweep.py measures one")
    check_writable(results / NAME)  # before, not after, the pictures
    write_text(results / NAME, page(sessions, left_out, results, data, workers))
    return results / NAME, left_out


def page(sessions, left_out, results, data, workers=1):
    """The text of the page. left_out: a line on each file that is not shown; the rest: as for write_page."""
    environment = Environment(loader=FileSystemLoader(WEB), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    plots = plots_of(sessions)
    pictures, without = pictures_of(sessions, data, workers)
    tables = [nets_table(sessions, find_trainings(sessions, results)), repairs_table(sessions)]
    return environment.get_template("page.html").render(
        results=results.name,
        left_out=left_out,
        tables=tables,
        sessions=[_shown(session, results) for session in sessions],
        plots=plots["plots"],
        pictures=pictures,
        without_pictures=without,
        content=_json(_for_script(plots, pictures)),
        css=_web("page.css"),
        scripts=[Markup(get_plotlyjs()), _web("sortable.min.js"), _web("page.js")],
    )


def _web(name):
    return Markup((WEB / name).read_text("utf-8"))


def _shown(session, results):
    """What the page's section on a session needs."""
    return {
        "name": session.name,
        "csv": f"{results.name}/{session.name}/sweep.csv",
        "command": command(session.same),
        "tables": list(session_tables(session)),
    }


def _for_script(plots, pictures):
    """What page.js reads: cells, styles, figures of the plots, pictures."""
    figures = {
        plot.name: [{"options": list(options), **figure} for options, figure in plot.figures.items()]
        for plot in plots["plots"]
    }
    return {"cells": plots["cells"], "styles": plots["styles"], "figures": figures, "pictures": pictures}


def _json(content):
    """JSON that can stand in a <script>: no text in it can end the script."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
