"""Groups on the page and as JSON: each a row of faces by age, to be named, joined and split.

Every change is written to people.csv, which `verify.py --group` reads back.
"""

import threading

from flask import (
    Blueprint,
    abort,
    current_app,
    jsonify,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue

from verification.people import faces_by_place
from verification.people_files import COLUMNS, PAIRS, by_group, read_people, write_table
from verification.service import service

GROUPS = 20  # on a page
LONGEST = 100  # characters of a name
Rows = list[dict[str, str]]
views = Blueprint('people', __name__)
_writing = threading.Lock()


def is_grouped() -> bool:
    """Whether the archive that is served has groups."""
    return service.archive is not None and current_app.config['PEOPLE'].is_file()


@views.get('/people.json')
@views.get('/people')  # which is what url_for gives
def people() -> ResponseReturnValue:
    version, rows = _read()
    found = _groups(rows)
    if request.path == '/people.json':
        return jsonify(version=version, groups=found)
    pages, number = max(-(-len(found) // GROUPS), 1), request.args.get('page', 1, int)
    numbers = [one['group'] for one in found]
    if request.args.get('group') in numbers:
        number = numbers.index(request.args['group']) // GROUPS + 1
    number = min(max(number, 1), pages)
    facts = {'groups': found[(number - 1) * GROUPS : number * GROUPS], 'page': number}
    facts |= {'pages': pages, 'count': len(found), 'said': request.args.get('said', '')[:200]}
    return render_template('people.html', grouped=True, version=version, **facts)


@views.post('/people')
@views.post('/people.json')
def change() -> ResponseReturnValue:
    """Does what the form asks; says what was done, and shows the group."""
    with _writing:
        (version, rows), form = _read(), request.form
        if form.get('version') != version:
            abort(409, 'the groups have changed since this page was shown: load it again')
        here = [row for row in rows if row['group'] == form.get('group', '')]
        if not here or form.get('do') not in ('name', 'join', 'split'):
            abort(400, 'send `do` (name, join or split) and `group`, the number of a group')
        said, group = (_split if form['do'] == 'split' else _join)(rows, here)
        more = [key for key in rows[0] if key not in (*COLUMNS, *PAIRS)]
        write_table(current_app.config['PEOPLE'], [*COLUMNS, *more], rows)
    if request.path == '/people':
        there = url_for('.people', said=said, group=group, _anchor=f'group-{group}')
        return redirect(there, 303)
    version, rows = _read()
    found = next((one for one in _groups(rows) if one['group'] == group), {})
    return jsonify(version=version, said=said, **found)


def _read() -> tuple[str, Rows]:
    """The version of people.csv, which differs whenever it was written again, and its rows."""
    if not is_grouped():
        abort(404, 'no groups are served: --group archive.index makes them')
    path = current_app.config['PEOPLE']
    return str(path.stat().st_mtime_ns), read_people(path)


def _groups(rows: Rows) -> list[dict]:
    """The groups for JSON, the largest first, faces by age; `face` is the row in the index."""
    here = faces_by_place(service.index())
    faces = ((here.get((row['photograph'], row['box'])), row) for row in rows)
    # None are photographs that have gone
    groups = by_group([row | {'face': face} for face, row in faces if face is not None])
    for group in groups:
        group['faces'].sort(key=lambda face: (face['age'] is None, face['age'] or 0, face['face']))
        nearest = max(group['faces'], key=lambda face: face['nearest_probability'] or 0)
        group['nearest'] = nearest['nearest']
    return sorted(groups, key=lambda one: (-len(one['faces']), one['group'].zfill(9)))


def _join(rows, here):
    """Names the group, or joins it with another; also with one that has its new name, as who has
    one name is one person."""
    group, into = here[0]['group'], request.form.get('into', '').strip()
    if request.form['do'] == 'name':
        name = ' '.join(request.form.get('name', '').split())[:LONGEST]
        for row in here:
            row['name'] = name
        namesakes = {row['group'] for row in rows if name and row['name'] == name} - {group}
        if not namesakes:
            return f'Group {group} {f"is {name}" if name else "has no name"}.', group
        into = namesakes.pop()
    elif into not in {row['group'] for row in rows} - {group}:
        abort(400, f'into: no other group {into!r}')
    both = [row for row in rows if row['group'] in (group, into)]
    names = {row['name'] for row in both} - {''}
    if len(names) > 1:
        abort(400, f'{" and ".join(sorted(names))} are different people: rename one before')
    for row in both:
        row['group'], row['name'] = into, next(iter(names), '')
    return f'Group {group} is joined with group {into}.', into


def _split(rows, here):
    ticked, faces = request.form.getlist('face'), faces_by_place(service.index())
    places = {place for place, face in faces.items() if str(face) in ticked}
    apart = [row for row in here if (row['photograph'], row['box']) in places]
    if not apart or len(apart) == len(here):
        abort(400, 'face: tick those faces of the group that are of another person, not all')
    numbers = (int(row['group']) for row in rows if row['group'].isdecimal())
    group, new = here[0]['group'], str(max(numbers, default=0) + 1)
    for row in apart:
        row['group'], row['name'], row['born'] = new, '', ''
    return f'Group {new} was split off group {group}.', new
