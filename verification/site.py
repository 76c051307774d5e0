"""What the views of the page serve from, for a request at hand."""

from pathlib import Path
from typing import NamedTuple

from flask import current_app

from verification.index import Index
from verification.service import Archive, Service


class Site(NamedTuple):
    """
    far     the rate to decide at if a request names none
    local   whether this machine alone is served
    people  the file people.csv of the archive's groups, which need not be there
    """

    service: Service
    archive: Archive | None
    far: float | None
    local: bool
    people: Path | None


def site() -> Site:
    return current_app.extensions['site']


def index() -> Index | None:
    archive = site().archive
    return archive.current() if archive else None
