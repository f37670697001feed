"""Figures as SVG that lies in the page itself: no script, the page's own fonts, and its colours, light or dark.

Only this module knows matplotlib, and imports it when it draws.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections import defaultdict
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from lorarlhf.recipe.stages import STAGES
from lorarlhf.reporting.plots import Plot, Series, printable, readable_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (4.6, 3.0)  # inches: of a width that a phone has room for
COUNTED = {info.unit for info in STAGES.values()}  # an axis of them has no halves
MARKED = 60  # points of a line, beyond which marks would hide it
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# Colours that stand for the page's, which are not known here: what style.css says is put in their place.
INK, LINE = "#010101", "#020202"
PALETTE = tuple(f"#03030{place}" for place in range(8))
STYLED = {INK: "currentColor", LINE: "var(--line)", **{c: f"var(--series-{i})" for i, c in enumerate(PALETTE)}}
STYLE: dict[Any, Any] = {  # Any: the keys that matplotlib knows are a type of their own
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), LINE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.6,
}


@lru_cache(maxsize=512)  # a page that is made again has mostly the same ones
def draw(plot: Plot) -> str:
    """The figure as an `<svg>` element."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global
    from matplotlib.ticker import MaxNLocator

    salt = hashlib.sha256(
        repr(plot).encode(errors="replace")
    ).hexdigest()  # names in one figure are to mean nothing in another
    written = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        # Its own fonts lack many scripts; it is the browser that draws the text.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        _draw_series(axes, plot)
        if plot.x in COUNTED:
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.set_xlabel(printable(plot.x))
        axes.set_ylabel(printable(plot.y))
        if len(plot.series) > 1:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize="small")
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(written.getvalue(), plot)


def _draw_series(axes: Axes, plot: Plot) -> None:
    if plot.diagonal:
        axes.axline((0.5, 0.5), slope=1, color=LINE, linestyle="--")
    bottoms: dict[float, float] = defaultdict(float)
    for place, one in enumerate(plot.series):
        xs, ys = zip(*one.points, strict=True)
        colour, name = PALETTE[one.colour % len(PALETTE)], f"series-{place}"
        if one.kind == "bars":
            axes.bar(xs, ys, one.width, [bottoms[x] for x in xs], color=colour, label=printable(one.name))
            for x, y in one.points:
                bottoms[x] += y
            continue
        style = {"line": "-", "points": ":", "path": "-"}[one.kind] if len(xs) > 1 else ""
        mark = "o" if one.kind != "line" or len(xs) <= MARKED else ""
        (line,) = axes.plot(xs, ys, style, marker=mark, color=colour, label=printable(one.name), gid=name)
        line.set(alpha=0.45 if one.faint else 1, markersize=3 if one.kind == "line" or one.faint else 6)
        line.set_linewidth(1 if one.faint else 1.5)
        if one.intervals:
            lows, highs = ([end[side] for end in one.intervals] for side in (0, 1))
            axes.vlines(xs, lows, highs, color=colour, linewidth=1)
        for at, label in zip(one.points, one.labels, strict=False):
            axes.annotate(printable(label), at, (4, 4), textcoords="offset points", fontsize="small")


def _inlined(text: str, plot: Plot) -> str:
    """matplotlib's SVG without what a page has no use for, and with a tooltip for each point.

    Styles become attributes: then the page's policy need allow no style but its own.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(text)
    for unwanted in (f"{{{SVG}}}metadata", f"{{{SVG}}}defs"):
        for element in root.findall(unwanted):
            if element.find(f"{{{SVG}}}clipPath") is None:
                root.remove(element)
    for element in root.iter():
        for name, value in re.findall(r"([\w-]+): ([^;]+)", element.attrib.pop("style", "")):
            if name != "font-family":
                element.set(name, STYLED.get(value, value))
        if element.tag == f"{{{SVG}}}g" and (group := element.attrib.pop("id", "")).startswith("series-"):
            _add_tooltips(element, plot.series[int(group.removeprefix("series-"))], plot.x)
    root.set("role", "img")
    root.set("aria-label", f"{printable(plot.title)}; the numbers are in the table beside it")
    root.set("class", "figure")
    for size in ("width", "height"):
        root.attrib.pop(size)
    return ElementTree.tostring(root, encoding="unicode")


def _add_tooltips(group: ElementTree.Element, series: Series, x: str) -> None:
    marks = group.findall(f".//{{{SVG}}}use")
    for mark, (at, value), place in zip(marks, series.points, count()):
        where = series.labels[place] if series.labels else readable_number(at)
        title = ElementTree.SubElement(mark, f"{{{SVG}}}title")
        title.text = f"{printable(series.name)}, {'' if series.labels else f'{x} '}{where}: {readable_number(value)}"
