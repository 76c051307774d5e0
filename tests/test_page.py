"""The web page, the HTTP API and their server: what they answer, refuse and take at once."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
from conftest import refused, serving
from PIL import Image
from test_calibration import stored
from test_verify import Stub, photograph_of

import utils
import verify
from evaluation.age_thresholds import AgeDecision
from verification import enrolment, index, portraits

pytest.importorskip('flask')
pytest.importorskip('waitress')
from verification import page, service  # noqa: E402

KEYS = {'similarity', 'same', 'threshold', 'by', 'far', 'fitted_on', 'probability', 'ages'}
KEYS |= {'caution', 'pairs_of_different_people', 'pairs_of_one_person', 'verdict'}


@pytest.fixture
def alone(matcher):
    """A client of the page without an archive."""
    return page.application(matcher).test_client()


@pytest.fixture
def client(matcher, archive):
    return page.application(matcher, archive).test_client()


@pytest.fixture
def aging(matcher, archive):
    """A client whose decision goes by ages."""
    decision = matcher.decision._replace(ages=AgeDecision(stored()))
    known = type(matcher)(matcher.model, matcher.info, matcher.device, decision)
    return page.application(known, archive).test_client()


def fields(*images, **more):
    """A form with images, paths or bytes. As a browser has it, an empty one is a nameless part."""
    data = [image if isinstance(image, bytes) else image.read_bytes() for image in images]
    files = zip(('first', 'second'), data, strict=False)
    return {name: (io.BytesIO(one), 'a.jpg' if one else '') for name, one in files} | more


def similarity(matcher, two):
    a, b = matcher.features([*map(portraits.read_portrait_file, two)])
    return matcher.compare(a, b, (None, None), None).similarity


def test_two_faces_on_the_page_with_names_as_text(alone, matcher, faces, undecided):
    answer = alone.post('/', data=fields(*faces[:2]))
    assert answer.status_code == 200 and 'in validation' in answer.text
    assert f'Similarity {similarity(matcher, faces[:2]):.3f}' in answer.text
    seen = matcher.features([*map(portraits.read_portrait_file, faces[:2])])
    assert all(one.age.about in answer.text for one in seen)
    assert answer.text.count('data:image/jpeg') == 2
    names = {'first': '<img src=x>.jpg', 'second': '../../etc/a.jpg'}
    data = {field: (io.BytesIO(faces[0].read_bytes()), name) for field, name in names.items()}
    text = alone.post('/', data=data).text.replace('<wbr>', '')
    assert '&lt;img src=x&gt;.jpg' in text and '<img src=x' not in text and '../' not in text
    known = verify.matcher(verify.arguments([str(undecided), '--serve']))
    client = page.application(known).test_client()
    assert 'no decision' in client.post('/', data=fields(*faces[:2])).text
    assert client.get('/health').json['faces'] is None


def test_one_face_among_an_archive_is_the_index_product(client, archive, faces, matcher):
    text = client.post('/', data=fields(faces[7], b'')).text
    names = [name.replace('<wbr>', '') for name in re.findall(r'</b> (.*?)<br>', text)]
    assert 'of 36 faces' in text and len(names) == page.SHOWN
    assert names[0] == os.path.relpath(faces[7], archive.root)
    # a name goes on in the next line after a separator
    assert re.search(r'p0\d+/<wbr>\d{3}_<wbr>\d+\.jpg', text)
    answer = client.post('/find', data=fields(faces[7], top='5')).json
    (features,) = matcher.features([portraits.read_portrait_file(faces[7])])
    best = np.sort(archive.embeddings @ features.embedding)[::-1][:5]
    np.testing.assert_allclose([one['similarity'] for one in answer['found']], best, atol=1e-5)
    first = answer['found'][0]
    assert first.keys() == KEYS | {'rank', 'face', 'photograph', 'box', 'person', 'age'}
    assert first['photograph'] == os.path.relpath(faces[7], archive.root) and first['rank'] == 1
    assert answer['searched'] == 36 and first['box'] == [0, 0, 96, 112]
    for kind in ('face', 'photograph'):
        shown = client.get(f'/{kind}/{first["face"]}.jpg')
        assert Image.open(io.BytesIO(shown.data)).size == (96, 112)
        assert shown.mimetype == 'image/jpeg'


def test_compare_is_what_the_command_line_says(client, faces, weights, ask):
    answer = client.post('/compare', data=fields(*faces[:2])).json
    printed = json.loads(ask(weights, faces[0], faces[1], '--json')[1])
    assert answer.keys() == KEYS | {'faces'}
    assert printed.pop('similarity') == pytest.approx(answer.pop('similarity'), abs=1e-6)
    for face in (*answer['faces'], *printed['faces']):
        assert face.pop('file').endswith('.jpg')
    assert printed == answer


def test_ages_and_rates_decide(aging, faces):
    more = {'first_age': '4', 'second_age': '30', 'far': '0.001'}
    answer = aging.post('/compare', data=fields(*faces[:2], **more)).json
    assert answer['by'] == 'ages' and answer['threshold'] == pytest.approx(0.6)
    assert answer['ages'] == {'first': 4, 'second': 30, 'estimated': False}
    del more['far']
    text = aging.post('/', data=fields(*faces[:2], **more)).text
    assert 'the threshold for the ages 4 and 30 is 0.300' in text
    text = aging.post('/', data=fields(*faces[:2], first_age='4')).text
    assert 'for the estimated ages 4 and' in text and 'Probability of one person' in text
    found = aging.post('/find', data=fields(faces[0], first_age='5', top='1')).json['found'][0]
    assert found['ages']['first'] == 5 and found['by'] == 'ages'


ORDERS = [
    (('first', 'first'), {'first_age': '4', 'second_age': '60'}, (4, 60)),
    (('first', 'first'), {'first_age': ['4', '60']}, (4, 60)),
    (('second', 'second'), {'second_age': ['', '60']}, (None, 60)),
    (('second', 'first'), {'first_age': '4', 'second_age': '60'}, (4, 60)),
    (('first', 'second'), {'second_age': '60'}, (None, 60)),
]


@pytest.mark.parametrize('names, more, want', ORDERS)
def test_ages_go_by_order_as_the_images_do(aging, faces, names, more, want):
    data = {name: [] for name in names}
    for name, face in zip(names, faces, strict=False):
        data[name].append((io.BytesIO(face.read_bytes()), 'a.jpg'))
    answer = aging.post('/compare', data=data | more).json
    estimated = [face['age']['years'] for face in answer['faces']]
    known = [age or guess for age, guess in zip(want, estimated, strict=True)]
    assert [answer['ages']['first'], answer['ages']['second']] == known


WRONG = [('first_age', 'old'), ('second_age', '-3'), ('first_age', '1e400')]
WRONG += [('far', far) for far in ('7', 'x', 'nan')]
WRONG += [('top', top) for top in ('0', '-1', '101', '٣', '9' * 5000, '')]


def test_values_and_types_that_mean_nothing_are_answered_in_json(client, faces):
    for name, value in WRONG:
        path, images = ('/find', faces[:1]) if name == 'top' else ('/compare', faces[:2])
        answer = client.post(path, data=fields(*images, **{name: value}))
        assert answer.status_code == 400 and name in answer.json['error']
    for path in ['/compare', '/find']:
        forms = [{}, {'json': {'first': 'x'}}, {'data': b'\xff' * 999}, {'data': {'first': 'text'}}]
        forms += [{'data': faces[0].read_bytes(), 'content_type': 'image/jpeg'}]
        forms += [{'data': b'--x\r\n', 'content_type': 'multipart/form-data; boundary=x'}]
        for options in forms:
            answer = client.post(path, **options)
            assert answer.status_code == 400 and 'multipart/form-data' in answer.json['error']
        assert client.get(path).status_code == 405
        for junk in (b'', b'junk', b'GIF89a' + bytes(30)):
            answer = client.post(path, data=fields(junk, faces[0] if path == '/compare' else b''))
            assert answer.status_code in (400, 422) and answer.json['error']


def test_what_is_no_image_or_too_large_is_refused_and_the_bounds_are_said(alone, faces):
    large = io.BytesIO()
    Image.new('1', (12000, 6000)).save(large, 'PNG')
    said = {b'junk': 'not an image', b'<svg onload="alert(1)"/>': 'not an image'}
    for content, message in (said | {large.getvalue(): 'more than 60 megapixels'}).items():
        answer = alone.post('/', data=fields(content, faces[0]))
        assert answer.status_code == 422 and message in answer.text
    face = faces[0].read_bytes()
    answer = alone.post('/compare', data=fields(face + bytes(page.LARGEST), face))
    assert answer.status_code == 422 and 'larger than 16 MiB' in answer.json['error']
    limits = 'At most two photographs of 16 MiB each, in at most 6 fields'
    more = fields(face + bytes(2 * page.LARGEST + 2**17), face)
    many = {f'field{k}': (io.BytesIO(face), 'a.jpg') for k in range(7)}
    for data in (more, many, {'first': 'x' * 2**18}):
        answer = alone.post('/compare', data=data, content_type='multipart/form-data')
        assert answer.status_code == 413 and limits in answer.json['error']
    assert alone.post('/', data=fields(face)).status_code == 400
    assert alone.post('/').status_code == 400


GONE = ['/face/36.jpg', '/face/-1.jpg', '/photograph/99999999999999999999.jpg', '/face/1.png']
GONE += ['/photograph/..%2f..%2fetc.jpg', '/static/page.html', '/page.py']


def test_photographs_of_the_archive_alone_are_shown(alone, client, archive, faces, monkeypatch):
    answer = alone.post('/find', data=fields(faces[0]))
    assert answer.status_code == 404 and '--serve archive.index' in answer.json['error']
    monkeypatch.setattr(archive, 'root', '/gone')
    gone = client.get('/photograph/0.jpg')
    assert gone.status_code == 404 and 'No such file' in gone.text
    paths = [(client, path) for path in GONE] + [
        (alone, '/face/0.jpg'),
        (alone, '/photograph/0.jpg'),
    ]
    assert {one.get(path).status_code for one, path in paths} == {404}


def test_a_photograph_is_shown_with_its_face_marked(matcher, faces, tmp_path, monkeypatch):
    (tmp_path / 'archive').mkdir()
    points = photograph_of(faces[3], tmp_path / 'archive' / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(points))
    archive = enrolment.read_folder(matcher, str(tmp_path / 'archive'))
    client = page.application(matcher, archive).test_client()
    photograph = Image.open(io.BytesIO(client.get('/photograph/0.jpg').data))
    x, y = np.round(points[2]).astype(int).tolist()
    red, _, blue = photograph.getpixel((x, y))
    assert photograph.size == (480, 640) and blue < 90 < 200 < red  # the dot on the nose is yellow
    cut = np.asarray(Image.open(io.BytesIO(client.get('/face/0.jpg').data)), float)
    assert np.abs(cut - np.asarray(Image.open(faces[3]), float))[4:-4, 4:-4].mean() < 6
    text = client.post('/', data=fields(tmp_path / 'archive' / 'a.png', faces[0])).text
    assert 'class="photograph"' in text and text.count('data:image/jpeg') == 3


def test_an_answer_is_guarded_and_takes_nothing_from_elsewhere(client, matcher):
    gets = [client.get(path) for path in ('/', '/page.js', '/health', '/face/0.jpg', '/nothing')]
    for answer in (*gets, client.post('/compare')):
        assert page.HEADERS.items() <= dict(answer.headers).items()
    assert 'unsafe' not in page.POLICY and '*' not in page.POLICY
    for site in ('cross-site', 'same-site'):
        headers = {'Sec-Fetch-Site': site}
        assert client.post('/find', headers=headers).status_code == 403
        assert client.get('/face/0.jpg', headers=headers).status_code == 403
    for host, status in (('elsewhere.example', 400), ('127.0.0.1:8000', 200), ('[::1]:80', 200)):
        assert client.get('/', headers={'Host': host}).status_code == status
    everywhere = page.application(matcher, host='0.0.0.0').test_client()
    assert everywhere.get('/', headers={'Host': 'elsewhere.example'}).status_code == 200
    text = client.get('/').text
    assert not re.search(r'https?:|<style|style=|onclick', text)
    assert re.findall('<script[^>]*>[^<]*', text) == ['<script src="/page.js" defer>']
    for name in ('page.js', 'page.css'):
        script = client.get(f'/{name}')
        assert script.status_code == 200 and not re.search(r'https?:|//\w', script.text)


def test_names_that_are_no_utf8_are_shown_everywhere(matcher, faces, tmp_path, weights, ask):
    folder = tmp_path / os.fsdecode(b'caf\xe9')
    face = folder / os.fsdecode(b'caf\xe9.jpg')
    folder.mkdir()
    shutil.copy(faces[0], face)
    archive = enrolment.read_folder(matcher, str(folder))
    client = page.application(matcher, archive).test_client()
    assert 'caf\\xe9.jpg' in client.post('/', data=fields(faces[0])).text
    answer = client.post('/find', data=fields(faces[0])).json
    assert answer['found'][0]['photograph'] == 'caf\\xe9.jpg'
    assert answer['archive'].endswith('caf\\xe9')
    _, out = ask(weights, '--find', faces[0], folder, '--out', tmp_path / 'found.png')
    assert 'caf\\xe9.jpg' in out and (tmp_path / 'found.png').exists()
    _, out = ask(weights, face, faces[1], '--out', tmp_path / 'pair.png')
    assert 'caf\\xe9.jpg: aligned' in out
    (tmp_path / 'p.csv').write_bytes(b'caf\xe9/caf\xe9.jpg,' + os.fsencode(faces[1]))
    ask(weights, '--pairs', tmp_path / 'p.csv', '--out', tmp_path / 'out.csv')
    assert 'caf\\xe9/caf\\xe9.jpg,' in (tmp_path / 'out.csv').read_text()


def test_a_new_index_is_served_without_a_restart(matcher, weights, faces, tmp_path, capsys):
    folder, path = tmp_path / 'archive', tmp_path / 'a.index'
    folder.mkdir()
    (folder / 'a.jpg').write_bytes(faces[0].read_bytes())
    archive, *_ = enrolment.update_index(matcher, str(folder), path)
    client = page.application(matcher, archive, path=str(path)).test_client()
    health = client.get('/health').json
    assert health == {'status': 'ok', 'weights': matcher.info.sha256, 'faces': 1}
    (folder / 'b.jpg').write_bytes(faces[9].read_bytes())
    enrolment.update_index(matcher, str(folder), path)
    assert client.get('/health').json['faces'] == 2 and 'among 2 faces' in client.get('/').text
    one = list(archive.photographs())
    index.write_index(path, str(folder), 'f' * 64, one, False)
    assert client.get('/health').json['faces'] == 2  # one of other weights isn't taken
    assert 'made by other weights' in capsys.readouterr().err
    path.unlink()
    assert client.get('/health').json['faces'] == 2


@pytest.fixture(scope='module')
def port(matcher, archive):
    with serving(page.application(matcher, archive)) as port:
        yield port


class Slow:
    """A matcher that waits to be let go on."""

    def __init__(self, matcher):
        self.matcher, self.go, self.batches, self.started = matcher, threading.Event(), [], 0
        self.decision, self.width, self.info = matcher.decision, matcher.width, matcher.info
        self.compare = matcher.compare

    def features(self, faces):
        self.started = self.started or len(faces)
        self.go.wait(60)
        self.batches.append(len(faces))
        return self.matcher.features(faces)


def test_a_full_queue_refuses_and_waiting_requests_share_batches(matcher, faces):
    slow = Slow(matcher)
    app = page.application(slow, waiting=6)
    wait, posts = ThreadPoolExecutor(6), []
    for k in range(6):
        data = fields(faces[k], faces[k + 1])
        posts.append(wait.submit(lambda data=data: app.test_client().post('/compare', data=data)))
    # a probe that got a place would wait for ever: it asks when all six are inside
    held, probe = app.extensions['service'], app.test_client()
    end = time.monotonic() + 30
    while not slow.started or slow.started // 2 + held.queue.qsize() < 6:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert probe.post('/compare', data=fields(*faces[:2])).status_code == 503
    assert probe.post('/find', data=fields(faces[0])).status_code == 404  # which takes no place
    busy = probe.post('/', data=fields(*faces[:2]))
    assert busy.status_code == 503 and busy.headers['Retry-After'] == '2'
    assert probe.get('/').status_code == 200  # the page itself is always there
    assert probe.get('/health').status_code == 200
    slow.go.set()
    answers = [post.result(60) for post in posts]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert sum(slow.batches) == 12 and len(slow.batches) == 2  # the first, and those that waited
    for k, answer in enumerate(answers):  # everybody has their own answer
        want = pytest.approx(similarity(matcher, faces[k : k + 2]), abs=1e-5)
        assert answer.json['similarity'] == want
    assert probe.post('/compare', data=fields(*faces[:2])).status_code == 200


def test_an_error_of_the_network_is_everybodys_answer_and_no_end(matcher, faces, monkeypatch):
    client = page.application(matcher).test_client()

    def fail(of):
        raise utils.UserError('not finite')

    monkeypatch.setattr(matcher, 'features', fail)
    answer = client.post('/compare', data=fields(*faces[:2]))
    assert answer.status_code == 400 and answer.json['error'] == 'not finite'
    monkeypatch.undo()
    assert client.post('/compare', data=fields(*faces[:2])).status_code == 200


def body_of(paths):
    """The form of a POST with these images."""
    head = '--b\r\nContent-Disposition: form-data; name="{}"; filename="a.jpg"\r\n\r\n'
    both = zip(('first', 'second'), paths, strict=True)
    parts = [head.format(name).encode() + path.read_bytes() + b'\r\n' for name, path in both]
    return b''.join(parts) + b'--b--\r\n'


def request(port, body):
    with contextlib.closing(HTTPConnection('127.0.0.1', port, timeout=60)) as connection:
        kind = {'Content-Type': 'multipart/form-data; boundary=b'}
        connection.request('POST', '/compare', body, kind)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_many_clients_are_answered_or_refused_and_those_that_stop_harm_nobody(port, faces):
    bodies = [body_of(faces[k : k + 2]) for k in range(8)]
    want = [json.loads(request(port, body)[1])['similarity'] for body in bodies]

    def ask(number):
        status, text = request(port, bodies[number % 8])
        if status == 200:
            similarity = json.loads(text)['similarity']
            assert similarity == pytest.approx(want[number % 8], abs=1e-5)
        return status

    with ThreadPoolExecutor(16) as clients:  # no more than may wait: nobody is refused
        assert set(clients.map(ask, range(64))) == {200}
    with ThreadPoolExecutor(48) as clients:
        statuses = list(clients.map(ask, range(96)))
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 16
    assert ask(0) == 200
    body = body_of(faces[:2])
    head = b'POST /compare HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n'
    head += b'Content-Type: multipart/form-data; boundary=b\r\n\r\n'
    sent = [(len(body), body[:500]), (10**12, body), (len(body), b''), (0, body)]
    sent += 20 * [(len(body), body[:100])]  # more than may wait: bodies are awaited elsewhere
    slow = []
    for length, part in sent:
        connection = socket.create_connection(('127.0.0.1', port), 10)
        connection.sendall(head % length + part)
        slow.append(connection)  # and sends no more
    assert request(port, body)[0] == 200
    for connection in slow:
        connection.close()
    for cut in (body[:-300], body[: len(body) // 3]):  # whole by its length, cut within
        assert request(port, cut)[0] in (400, 422)
    assert request(port, body)[0] == 200
    idle = [socket.create_connection(('127.0.0.1', port), 10) for _ in range(450)]
    assert request(port, body)[0] == 200
    for connection in idle:
        connection.close()


def test_where_it_listens(matcher, monkeypatch, capsys):
    args = verify.arguments(['w.pth', '--serve'])
    assert all(map(service.is_loopback, (args.host, '::1', '[::1]', 'localhost')))
    assert not any(map(service.is_loopback, ('0.0.0.0', '::', 'example', '')))
    app = page.application(matcher)
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        said = f'{port}.*--port or --host names another'
        refused(said, service.serve_app, app, '127.0.0.1', port)
    for host in ('no.such.host.invalid', '1.2.3', '192.0.2.1', 'a b', ''):
        refused('host', service.serve_app, app, host, port)
    for host in ['::1', '[::1]']:
        if not socket.has_ipv6:
            pytest.skip('no IPv6 here')
        app = page.application(matcher, host=host)
        with serving(app, host) as port, urlopen(f'http://[::1]:{port}/health') as answer:
            assert answer.status == 200
        with monkeypatch.context() as patch:
            patch.setattr(service, 'create_server', lambda *_: SimpleNamespace(run=int))
            service.serve_app(app, host, port)
        assert f'http://[::1]:{port}/ until' in capsys.readouterr().out
