"""Recognise the form of a data set from its columns, and bring its rows into the form of `lorarlhf.data.rows`."""

from lorarlhf.data.formats.choices import CHOICES
from lorarlhf.data.formats.format import Format, Table, UnknownColumns, recognise
from lorarlhf.data.formats.tables import DEMONSTRATIONS, PREFERENCES, PROMPTS, SCORED

__all__ = [
    "CHOICES",
    "DEMONSTRATIONS",
    "PREFERENCES",
    "PROMPTS",
    "SCORED",
    "Format",
    "Table",
    "UnknownColumns",
    "recognise",
]
