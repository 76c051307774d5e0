"""The web page: what it takes and refuses; in a real browser where Chromium and its driver are."""

import io
import re
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from test_verify import Stub, photograph_of

import utils
import verify
from verification import portraits
from verification.indexing import read_folder

pytest.importorskip('flask')
pytest.importorskip('waitress')
from verification import page  # noqa: E402


@pytest.fixture(scope='module')
def gallery(matcher, drawn):
    return read_folder(matcher, str(drawn / 'val'))


@pytest.fixture(scope='module')
def faces(drawn):
    return sorted((drawn / 'val').rglob('*.jpg'))


@pytest.fixture
def client(matcher):
    return page.application(matcher).test_client()


def post(client, first, second=None, **more):
    """Uploads bytes as the form does: a field left empty is a part without a name."""
    fields = {
        'first': (io.BytesIO(first), 'a.jpg'),
        'second': (io.BytesIO(second or b''), 'b.jpg' if second else ''),
    }
    return client.post('/', data=fields, **more)


def test_two_faces(client, matcher, faces):
    answer = post(client, faces[0].read_bytes(), faces[1].read_bytes())
    a, b = matcher.features([np.asarray(Image.open(path)) for path in faces[:2]])
    text = answer.get_data(as_text=True)
    assert (
        answer.status_code == 200
        and f'Similarity {a.embedding @ b.embedding:.3f}' in text
        and 'in validation' in text
    )
    assert a.about in text and b.about in text and text.count('data:image/jpeg') == 2


def test_one_face_among_a_folder(matcher, gallery, faces):
    text = post(page.application(matcher, gallery).test_client(), faces[7].read_bytes()).get_data(
        as_text=True
    )
    names = re.findall(r'</b> (.*?)<br>', text)
    assert (
        'of 36 faces' in text
        and len(names) == page.SHOWN
        and names[0] == str(faces[7].relative_to(faces[7].parent.parent))
    )


def test_an_alignment_is_shown(client, faces, tmp_path, monkeypatch):
    points = photograph_of(faces[0], tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(points))
    text = post(client, (tmp_path / 'a.png').read_bytes(), faces[0].read_bytes()).get_data(
        as_text=True
    )
    assert 'class="photograph"' in text and text.count('data:image/jpeg') == 3


@pytest.mark.parametrize(
    'content, message',
    [
        (b'junk', 'not an image'),
        (b'PK\3\4' + bytes(99), 'not an image'),
        (b'<svg onload="alert(1)"/>', 'not an image'),
        (b'GIF89a' + bytes(20), 'a.jpg'),
    ],
    ids=['junk', 'zip', 'svg', 'gif'],
)
def test_what_is_no_image_is_refused(client, faces, content, message):
    answer = post(client, content, faces[0].read_bytes())
    assert answer.status_code == 422 and message in answer.get_data(as_text=True)


def test_photographs_of_too_many_pixels_are_not_decoded(client, faces):
    buffer = io.BytesIO()
    Image.new('1', (12000, 6000)).save(buffer, 'PNG')
    answer = post(client, buffer.getvalue(), faces[0].read_bytes())
    assert answer.status_code == 422 and 'more than 60 megapixels' in answer.get_data(as_text=True)


def test_size_and_count_are_bounded(client, faces, monkeypatch):
    face = faces[0].read_bytes()
    assert post(client, face + bytes(page.LARGEST), face).status_code == 422
    assert post(client, face + bytes(2 * page.LARGEST + 2**16), face).status_code == 413
    many = {f'field{k}': (io.BytesIO(face), 'a.jpg') for k in range(7)}
    assert client.post('/', data=many).status_code == 413
    assert (
        client.post(
            '/', data={'first': 'x' * 2**18}, content_type='multipart/form-data'
        ).status_code
        == 413
    )
    assert post(client, face).status_code == 400 and client.post('/').status_code == 400


def test_names_are_shown_as_text(client, faces):
    names = {'first': '<img src=x>.jpg', 'second': '../../etc/a.jpg'}
    fields = {field: (io.BytesIO(faces[0].read_bytes()), name) for field, name in names.items()}
    text = client.post('/', data=fields).get_data(as_text=True)
    assert '&lt;img src=x&gt;.jpg' in text and '<img src=x' not in text and '../' not in text


def test_other_sites_and_other_names_of_the_machine_are_refused(client, matcher, faces):
    face = faces[0].read_bytes()
    assert post(client, face, face, headers={'Sec-Fetch-Site': 'cross-site'}).status_code == 403
    assert client.get('/', headers={'Host': 'elsewhere.example'}).status_code == 400
    assert client.get('/', headers={'Host': '127.0.0.1:8000'}).status_code == 200
    assert (
        page.application(matcher, host='0.0.0.0')
        .test_client()
        .get('/', headers={'Host': 'elsewhere.example'})
        .status_code
        == 200
    )


def test_nothing_comes_from_elsewhere(client):
    answer = client.get('/')
    assert (
        "default-src 'none'" in answer.headers['Content-Security-Policy']
        and answer.headers['Cache-Control'] == 'no-store'
    )
    text = answer.get_data(as_text=True)
    assert not re.search(r'https?:|<style|style=|onclick', text)
    assert re.findall('<script[^>]*>[^<]*', text) == ['<script src="/page.js" defer>']
    for name in ('page.js', 'page.css'):
        script = client.get(f'/{name}')
        assert script.status_code == 200 and not re.search(r'https?:|//\w', script.text)
    for name in ('static/page.html', 'page.html', 'page.py'):
        assert client.get(f'/{name}').status_code == 404


def test_it_listens_to_this_machine_alone_unless_told():
    args = verify.arguments(['w.pth', '--serve'])
    assert page.is_loopback(args.host) and page.is_loopback('::1') and page.is_loopback('localhost')
    assert (
        not page.is_loopback('0.0.0.0')
        and not page.is_loopback('::')
        and not page.is_loopback('example')
    )


def test_a_port_that_is_taken(matcher):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(utils.UserError, match='--port names another'):
            page.serve(page.application(matcher), '127.0.0.1', port)


def test_the_page_of_weights_without_a_threshold(weights, faces, tmp_path):
    state = torch.load(weights)
    del state['decision']
    torch.save(state, tmp_path / 'old.pth')
    client = page.application(
        verify.matcher(verify.arguments([str(tmp_path / 'old.pth'), '--serve']))
    ).test_client()
    assert 'no decision' in post(client, faces[0].read_bytes(), faces[1].read_bytes()).get_data(
        as_text=True
    )
