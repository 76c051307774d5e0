"""Groups on the page and as JSON: each a row of faces by age, to be named, joined and split.

Every change is written to people.csv, which `verify.py --group` reads back.
"""

import threading
from pathlib import Path

from flask import Blueprint, Response, abort, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as BaseResponse

from verification.people import faces_by_place, place_of
from verification.people_files import COLUMNS, PAIRS, read_table, write_table
from verification.service import index, site

GROUPS = 20  # on a page
LONGEST = 100  # characters of a name
Rows = list[dict[str, str]]
views = Blueprint('people', __name__)
_writing = threading.Lock()


def is_grouped() -> bool:
    """Whether the archive that is served has groups."""
    path = site().people
    return site().archive is not None and path is not None and path.is_file()


@views.get('/people')
def people_page() -> str:
    path, rows = _read()
    found, wanted = _groups(rows), request.args.get('page', '')
    pages = max(-(-len(found) // GROUPS), 1)
    number = int(wanted) if wanted.isdecimal() else 1
    numbers = [one['group'] for one in found]
    if request.args.get('group') in numbers:
        number = numbers.index(request.args['group']) // GROUPS + 1
    number = min(max(number, 1), pages)
    facts = {'groups': found[(number - 1) * GROUPS : number * GROUPS], 'page': number}
    facts |= {'pages': pages, 'count': len(found), 'said': request.args.get('said', '')[:200]}
    return render_template('people.html', grouped=True, version=_version(path), **facts)


@views.get('/people.json')
def people_json() -> Response:
    path, rows = _read()
    return jsonify(version=_version(path), groups=_groups(rows))


@views.post('/people')
def change_page() -> BaseResponse:
    said, group = _change()
    return redirect(url_for('.people_page', said=said, group=group, _anchor=f'group-{group}'), 303)


@views.post('/people.json')
def change_json() -> Response:
    said, group = _change()
    path, rows = _read()
    found = next((one for one in _groups(rows) if one['group'] == group), {})
    return jsonify(version=_version(path), said=said, **found)


def _read():
    if not is_grouped():
        abort(404, 'no groups are served: --group archive.index makes them')
    return site().people, read_table(site().people)


def _version(path: Path) -> str:
    """Differs whenever the file was written again."""
    return str(path.stat().st_mtime_ns)


def _groups(rows: Rows) -> list[dict]:
    """The groups for JSON, the largest first, faces by age; `face` is the row in the index."""
    here = faces_by_place(index())
    groups: dict[str, dict] = {}
    for row in rows:
        face = here.get((row['photograph'], row['box']))
        if face is None:  # of a photograph that has gone
            continue
        group = groups.setdefault(row['group'], {'group': row['group'], 'name': '', 'faces': []})
        group['name'] = group['name'] or row['name']
        facts: dict = {key: row[key] or None for key in ('photograph', 'nearest', 'born', 'taken')}
        for key in ('age', 'probability', 'nearest_probability'):
            facts[key] = float(row[key]) if row[key] else None
        facts['box'] = [*map(float, row['box'].split())]
        group['faces'].append(facts | {'face': face})
    for group in groups.values():
        group['faces'].sort(key=lambda face: (face['age'] is None, face['age'] or 0, face['face']))
        nearest = max(group['faces'], key=lambda face: face['nearest_probability'] or 0)
        group['nearest'] = nearest['nearest']
    return sorted(groups.values(), key=lambda one: (-len(one['faces']), one['group'].zfill(9)))


def _change():
    """Does what the form asks; what was done, in words, and the group to show."""
    with _writing:
        path, rows = _read()
        form = request.form
        if form.get('version') != _version(path):
            abort(409, 'the groups have changed since this page was shown: load it again')
        group = form.get('group', '')
        here = [row for row in rows if row['group'] == group]
        changes = {'name': _name, 'join': _join, 'split': _split}
        if not here or form.get('do') not in changes:
            abort(400, 'send `do` (name, join or split) and `group`, the number of a group')
        said, group = changes[form['do']](rows, here, group)
        more = [key for key in rows[0] if key not in (*COLUMNS, *PAIRS)]
        write_table(path, [*COLUMNS, *more], rows)
    return said, group


def _name(rows, here, group):
    name = ' '.join(request.form.get('name', '').split())[:LONGEST]
    others = {row['group'] for row in rows if name and row['name'] == name} - {group}
    for row in here:
        row['name'] = name
    if others:  # who has one name is one person
        return _merge(rows, here, others.pop())
    return f'Group {group} {f"is {name}" if name else "has no name"}.', group


def _join(rows, here, group):
    into = request.form.get('into', '').strip()
    if into == group or into not in {row['group'] for row in rows}:
        abort(400, f'into: no other group {into!r}')
    return _merge(rows, here, into)


def _merge(rows, here, into):
    group, both = here[0]['group'], [*here, *(row for row in rows if row['group'] == into)]
    names = {row['name'] for row in both} - {''}
    if len(names) > 1:
        abort(400, f'{" and ".join(sorted(names))} are different people: rename one before')
    for row in both:
        row['group'], row['name'] = into, next(iter(names), '')
    return f'Group {group} is joined with group {into}.', into


def _split(rows, here, group):
    archive = index()
    faces = {int(face) for face in request.form.getlist('face') if face.isdecimal()}
    places = {place_of(archive, face) for face in faces if face < len(archive)}
    apart = [row for row in here if (row['photograph'], row['box']) in places]
    if not apart or len(apart) == len(here):
        abort(400, 'face: tick those faces of the group that are of another person, not all')
    new = str(max((int(row['group']) for row in rows if row['group'].isdecimal()), default=0) + 1)
    for row in apart:
        row['group'], row['name'], row['born'] = new, '', ''
    return f'Group {new} was split off group {group}.', new
