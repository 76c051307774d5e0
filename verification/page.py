"""The web page and the HTTP API: two photographs, or one and an archive. No upload is kept."""

import base64
import io
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import flask
from flask import Blueprint, Flask, Response, abort, jsonify, render_template, request
from markupsafe import Markup, escape
from PIL import Image
from werkzeug.exceptions import HTTPException

from storage.images import to_age
from system.names import shown
from utils import DataError, UserError
from verification import people_page, portraits
from verification.decision import Answer
from verification.index import Index
from verification.matcher import Features, Matcher, about_search
from verification.server import is_loopback
from verification.service import WAITING, Archive, Busy, Service, Site, index, site

LARGEST = 16 * 2**20  # bytes of a photograph
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


class Given(NamedTuple):
    """A face in a request, and its age in years if that is given too."""

    features: Features
    age: float | None


def application(
    matcher: Matcher,
    archive: Index | None = None,
    host: str = '127.0.0.1',
    far: float | None = None,
    waiting: int = WAITING,
    path: str | None = None,
    people: Path | None = None,
) -> Flask:
    """Page and API as a WSGI application. It takes images of at most LARGEST bytes, two a request,
    and `waiting` requests at a time. `path` is the archive's file, which is read again if it
    changes; `people` the people.csv of its groups, which is written to."""
    app = Flask('verify', template_folder=str(HERE), static_folder=None)
    most = {'MAX_CONTENT_LENGTH': 2 * LARGEST + 2**16, 'MAX_FORM_PARTS': PARTS}
    app.config.update(most, MAX_FORM_MEMORY_SIZE=2**17)
    served = None if archive is None else Archive(archive, path, matcher.info.sha256)
    app.extensions['site'] = Site(Service(matcher, waiting), served, far, is_loopback(host), people)
    app.jinja_env.filters.update(at=_at, breakable=_breakable)
    app.register_blueprint(views)
    app.register_blueprint(people_page.views)
    return app


def given(*fields: str) -> list[Given]:
    """The faces of the images in these fields, with the ages beside them, which go by order."""
    images = [(field, file) for field in fields for file in request.files.getlist(field) if file]
    ages = [(field, age) for field in fields for age in request.form.getlist(f'{field}_age')]
    if len(dict(images)) == len(images):
        ages = [(field, request.form.get(f'{field}_age', '')) for field, _ in images]
    years = [_age(*one) for one in ages[: len(images)]]
    years += [None] * (len(images) - len(years))
    service, uploads = site().service, [_upload(file) for _, file in images]
    found = [service.read(*upload) for upload in uploads]
    seen = service.features(found) if found else []
    return [Given(*one) for one in zip(seen, years, strict=True)]


def _upload(file):
    """An upload's name and bytes."""
    name = shown(file.filename.replace('\\', '/').rsplit('/')[-1][:60])
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise DataError(f'{name}: larger than {LARGEST >> 20} MiB')
    return name, data


def _age(field, text):
    """Years, None if the text is empty."""
    try:
        return to_age(text.strip()) if text.strip() else None
    except ValueError as error:
        abort(400, f'{field}_age: {error}')


def _rate():
    """The false accept rate that is asked for."""
    text = request.form.get('far', '').strip()
    far = request.form.get('far', -1.0, float) if text else site().far
    if far is not None and not 0 < far < 1:
        abort(400, 'far: a share of pairs between 0 and 1')
    return far


def compare(first: Given, second: Given) -> Answer:
    """The decision on two faces."""
    matcher, given_ages = site().service.matcher, (first.age, second.age)
    return matcher.compare(first.features, second.features, given_ages, _rate())


def search(one: Given, archive: Index, most: int) -> list[dict]:
    """The archive's faces that are most like one."""
    matcher = site().service.matcher
    return matcher.most_alike(archive, one.features, most, one.age, _rate())


def page(status: int = 200, **facts) -> Response:
    decision = site().service.matcher.decision
    facts |= {'largest': LARGEST >> 20, 'decision': decision, 'archive': index()}
    facts['grouped'] = people_page.is_grouped()
    return Response(render_template('page.html', **facts), status)


@views.get('/')
def empty_page() -> Response:
    return page()


@views.post('/')
def answered_page() -> Response:
    archive = index()
    with site().service.admitted():
        faces = given('first', 'second')
        if len(faces) < (2 if archive is None else 1):
            return page(400, problem=f'Choose {"two photographs" if archive is None else "one"}.')
        people = [_person(one) for one in faces]
        if archive is not None and len(faces) == 1:
            return page(found=search(faces[0], archive, SHOWN), people=people)
        answer = compare(*faces[:2])
        details = answer.details(site().service.matcher.decision)
        return page(answer=answer, details=details, people=people)


@views.get('/<any("page.js", "page.css"):name>')
def static_file(name: str) -> Response:
    return flask.send_from_directory(HERE, name)


@views.get('/face/<int:face>.jpg')
def face_image(face: int) -> Response:
    image, points, _ = _photograph(face)
    with site().service.reading:
        data = _encoded(Image.fromarray(portraits.cut(image, points)))
    return Response(data, mimetype='image/jpeg')


@views.get('/photograph/<int:face>.jpg')
def photograph_image(face: int) -> Response:
    image, points, box = _photograph(face)
    data = _encoded(portraits.marked(image, points, box, 1600))
    return Response(data, mimetype='image/jpeg')


def _photograph(face):
    """The photograph of a face of the archive, the face's points and its box."""
    archive = index()
    if archive is None or face >= len(archive):
        abort(404, 'no such face')
    with site().service.reading:
        try:
            image = portraits.open_file(archive.path(face), archive.name(face))
        except DataError as error:
            abort(404, str(error))
    return image, archive.faces['points'][face], archive.faces['box'][face]


@views.post('/compare')
def compare_json() -> Response:
    with site().service.admitted():
        faces = given('first', 'second')
        if len(faces) != 2:
            abort(400, 'send two images, `first` and `second`, as multipart/form-data')
        about = [one.features.facts() for one in faces]
        return jsonify(faces=about, **compare(*faces).facts())


@views.post('/find')
def find_json() -> Response:
    archive = index()
    if archive is None:
        abort(404, 'no archive is served: --serve archive.index')
    with site().service.admitted():
        faces = given('first')
        if len(faces) != 1:
            abort(400, 'send an image, `first`, as multipart/form-data')
        (one,), most = faces, request.form.get('top', str(SHOWN))
        if not re.fullmatch('[0-9]{1,3}', most) or not 1 <= int(most) <= MOST_SHOWN:
            abort(400, f'top: a whole number from 1 to {MOST_SHOWN}')
        found = search(one, archive, int(most))
        return jsonify(about_search(one.features, archive.root, archive, found))


@views.get('/health')
def health_json() -> Response:
    archive = index()
    faces = None if archive is None else len(archive)
    return jsonify(status='ok', weights=site().service.matcher.info.sha256, faces=faces)


@views.before_app_request
def refuse_other_sites() -> None:
    # else a site could point its own name here, and read what is shown
    if site().local and not is_loopback(urlsplit(f'//{request.host}').hostname or ''):
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
@views.app_errorhandler(Busy)
def refuse(error: Exception) -> Response:
    """An error as JSON from the API, as a page else."""
    status, text = {UserError: 400, DataError: 422, Busy: 503}.get(type(error)), str(error)
    if isinstance(error, HTTPException):
        status, text = error.code, error.description or ''
    if status == 413:
        text = f'At most two photographs of {LARGEST >> 20} MiB each, in at most {PARTS} fields.'
    is_api = request.path in ('/compare', '/find', '/health', '/people.json')
    response = jsonify(error=text) if is_api else page(problem=text)
    response.status_code = status or 500
    if status == 503:
        response.headers['Retry-After'] = '2'
    return response


def _person(one):
    """What the page shows of one of its photographs."""
    portrait, age = one.features.portrait, one.features.age.about
    facts = {'name': portrait.name, 'about': portrait.about, 'age': age}
    facts['photograph'] = portrait.shown and _data(portrait.shown)
    return facts | {'face': _data(Image.fromarray(portrait.face))}


def _encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=90)
    return buffer.getvalue()


def _data(image):
    return f'data:image/jpeg;base64,{base64.b64encode(_encoded(image)).decode()}'


def _at(similarity):
    """Where a similarity stands on the page's scale, from 0 to 600."""
    return round(600 * (min(max(similarity, LOW), 1) - LOW) / (1 - LOW), 1)


def _breakable(name):
    """A name that may go on in the next line after a separator."""
    return Markup('<wbr>').join(map(escape, re.findall(r'[^/_-]*[/_-]*', name)[:-1]))
