"""The web page and the HTTP API: two photographs, or one and an archive. No upload is kept."""

import base64
import io
import re
from pathlib import Path
from urllib.parse import urlsplit

import flask
import numpy as np
from flask import Blueprint, Flask, Response, abort, current_app, jsonify, render_template, request
from flask.typing import ResponseReturnValue
from markupsafe import Markup, escape
from PIL import Image
from werkzeug.exceptions import HTTPException

from storage.images import to_age
from system.names import shown
from utils import DataError, UserError
from verification import people_page, portraits
from verification.index import Index
from verification.matcher import Features, Matcher, about_search
from verification.service import WAITING, Service, is_loopback, service

LARGEST, MOST_PIXELS = 16 * 2**20, 60_000_000  # of a photograph: bytes, pixels
PARTS = 6  # fields of a form
SHOWN, MOST_SHOWN = 12, 100  # found faces, by default and at most
LOW = -0.4  # where the page's scale of similarities begins
HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    'Content-Security-Policy': POLICY,
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}
views = Blueprint('verify', __name__)


def application(
    matcher: Matcher,
    archive: Index | None = None,
    host: str = '127.0.0.1',
    far: float | None = None,
    waiting: int = WAITING,
    path: str | None = None,
    people: Path = Path(),
) -> Flask:
    """Page and API as a WSGI application. It takes images of at most LARGEST bytes, two a request,
    and `waiting` requests at a time. `path` is the archive's file, which is read again if it
    changes; `people` the people.csv of its groups, which is written to and need not be there."""
    app = Flask('verify', template_folder=str(HERE), static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=2 * LARGEST + 2**16, MAX_FORM_MEMORY_SIZE=2**17)
    app.config.update(MAX_FORM_PARTS=PARTS, FAR=far, LOCAL=is_loopback(host), PEOPLE=people)
    app.extensions['service'] = Service(matcher, archive, path, waiting)
    app.jinja_env.filters.update(at=_at, breakable=_breakable, data=_data)
    app.register_blueprint(views)
    app.register_blueprint(people_page.views)
    return app


def given(least: int, most: int) -> tuple[list[Features], list[float | None]]:
    """The faces of the images `first` and `second`, and the ages in years beside them, which go by
    order; None where none is given."""
    fields = ('first', 'second')[:most]
    images = [(field, file) for field in fields for file in request.files.getlist(field) if file]
    if not least <= len(images) <= most:
        if request.path == '/':
            abort(400, f'Choose {"two photographs" if least == 2 else "one"}.')
        what = '`first`' if most == 1 else '`first` and `second`'
        abort(400, f'choose the photographs: {what}, as multipart/form-data')
    ages = [(field, age) for field in fields for age in request.form.getlist(f'{field}_age')]
    if len(dict(images)) == len(images):
        ages = [(field, request.form.get(f'{field}_age', '')) for field, _ in images]
    years = [_age(*one) for one in ages[: len(images)]]
    faces = service.features([_portrait(file) for _, file in images])
    return faces, years + [None] * (len(images) - len(years))


def _portrait(file):
    """The face of an upload; photographs are read at most one a core at a time."""
    name = shown(file.filename.replace('\\', '/').rsplit('/')[-1][:60])
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise DataError(f'{name}: larger than {LARGEST >> 20} MiB')
    with service.reading:
        return portraits.read_portrait(data, name, service.matcher.width, MOST_PIXELS)


def _age(field, text):
    """Years, None if the text is empty."""
    try:
        return to_age(text.strip()) if text.strip() else None
    except ValueError as error:
        abort(400, f'{field}_age: {error}')


def _rate():
    """The false accept rate that is asked for."""
    text = request.form.get('far', '').strip()
    far = request.form.get('far', -1.0, float) if text else current_app.config['FAR']
    if far is not None and not 0 < far < 1:
        abort(400, 'far: a share of pairs between 0 and 1')
    return far


def page(**facts) -> str:
    facts |= {'largest': LARGEST >> 20, 'decision': service.matcher.decision}
    facts |= {'archive': service.index(), 'grouped': people_page.is_grouped()}
    return render_template('page.html', **facts)


@views.get('/')
def empty_page() -> str:
    return page()


@views.post('/')
@views.post('/compare')
@views.post('/find')
def answer() -> ResponseReturnValue:
    """Two faces compared, or one looked for in the archive."""
    archive, asked = service.index(), request.path
    if asked == '/find' and archive is None:
        abort(404, 'no archive is served: --serve archive.index')
    either = (2, 2) if archive is None else (1, 2)
    least, most = {'/compare': (2, 2), '/find': (1, 1)}.get(asked, either)
    with service.admitted():
        faces, ages = given(least, most)
        if len(faces) == 2:
            decided = service.matcher.compare(faces[0], faces[1], ages, _rate())
            if asked == '/':
                return page(answer=decided, people=faces)
            return jsonify(faces=[one.facts() for one in faces], **decided.facts())
        assert archive is not None  # without one there are two faces
        top = request.form.get('top', str(SHOWN))
        if top not in map(str, range(1, MOST_SHOWN + 1)):
            abort(400, f'top: a whole number from 1 to {MOST_SHOWN}')
        found = service.matcher.most_alike(archive, faces[0], int(top), ages[0], _rate())
        if asked == '/':
            return page(found=found, people=faces)
        return jsonify(about_search(faces[0], archive.root, archive, found))


@views.get('/<any("page.js", "page.css"):name>')
def static_file(name: str) -> Response:
    return flask.send_from_directory(HERE, name)


@views.get('/<any("face", "photograph"):what>/<int:face>.jpg')
def image(what: str, face: int) -> ResponseReturnValue:
    """A face of the archive, aligned, or its photograph with the face marked."""
    archive = service.index()
    if archive is None or face >= len(archive):
        return abort(404, 'no such face')
    points, box = archive.faces['points'][face], archive.faces['box'][face]
    with service.reading:
        try:
            photograph = portraits.open_file(archive.path(face), archive.name(face))
        except DataError as error:
            abort(404, str(error))
        if what == 'face':
            return _jpeg(portraits.cut(photograph, points)), {'Content-Type': 'image/jpeg'}
        marked = portraits.marked(photograph, points, box, 1600)
    return _jpeg(marked), {'Content-Type': 'image/jpeg'}


@views.get('/health')
def health_json() -> Response:
    archive = service.index()
    faces = None if archive is None else len(archive)
    return jsonify(status='ok', weights=service.matcher.info.sha256, faces=faces)


@views.before_app_request
def refuse_other_sites() -> None:
    # else a site could point its own name here, and read what is shown
    name = urlsplit(request.host_url).hostname or ''
    if current_app.config['LOCAL'] and not is_loopback(name):
        abort(400, 'this server is known by the names of this machine alone')
    host = urlsplit(request.headers.get('Origin', request.host_url)).netloc
    known = 'none' if host == request.host else 'cross-site'  # of a browser that doesn't say
    followed = request.method == 'GET' and request.path == '/'  # a link from elsewhere
    if request.headers.get('Sec-Fetch-Site', known) not in ('same-origin', 'none') and not followed:
        abort(403, 'only from this page itself')


@views.after_app_request
def add_headers(response: Response) -> Response:
    response.headers |= HEADERS
    return response


@views.app_errorhandler(HTTPException)
@views.app_errorhandler(UserError)
@views.app_errorhandler(DataError)
def refuse(error: Exception) -> ResponseReturnValue:
    """An error as JSON from the API, as a page else."""
    status, text = 422 if isinstance(error, DataError) else 400, str(error)
    if isinstance(error, HTTPException):
        status, text = error.code or 500, error.description or ''
    if status == 413:
        text = f'At most two photographs of {LARGEST >> 20} MiB each, in at most {PARTS} fields.'
    is_api = request.path in ('/compare', '/find', '/health', '/people.json')
    headers = {'Retry-After': '2'} if status == 503 else {}
    return jsonify(error=text) if is_api else page(problem=text), status, headers


def _jpeg(image):
    """Of a Pillow image or its pixels (H, W, 3), encoded."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, 'JPEG', quality=90)
    return buffer.getvalue()


def _data(image):
    return f'data:image/jpeg;base64,{base64.b64encode(_jpeg(image)).decode()}'


def _at(similarity):
    """Where a similarity stands on the page's scale, from 0 to 600."""
    return round(600 * (min(max(similarity, LOW), 1) - LOW) / (1 - LOW), 1)


def _breakable(name):
    """A name that may go on in the next line after a separator."""
    return Markup('<wbr>').join(map(escape, re.findall(r'[^/_-]*[/_-]*', name)[:-1]))
