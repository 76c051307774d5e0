"""What the views of the page serve from, for a request at hand."""

from pathlib import Path
from typing import NamedTuple

from flask import current_app

from verification.index import Index
from verification.service import Archive, Service


class Site(NamedTuple):
    service: Service
    archive: Archive | None
    far: float | None  # the rate to decide at if a request names none
    local: bool  # whether this machine alone is served
    people: Path | None  # the people.csv of the archive's groups, which need not be there


def site() -> Site:
    return current_app.extensions['site']


def index() -> Index | None:
    archive = site().archive
    return archive.current() if archive else None
