"""The archive index: what is in it, what changes, what a stop leaves, what damage leads to."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_verify import Stub, photograph_of

import utils
import verify
from verification import enrolment, index, journal, portraits
from verification.index import FACE, Index, Photograph


@pytest.fixture
def folder(drawn, tmp_path):
    return shutil.copytree(drawn / 'val', tmp_path / 'val')


def made_up(rng, names, dim=8, faces=2):
    """Photographs of random unit embeddings."""
    photographs = []
    for name in names:
        embeddings = rng.normal(size=(faces, dim)).astype('<f4')
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        photographs.append(Photograph(name, 1, 2, '', np.zeros(faces, FACE), embeddings))
    return photographs


def run(capsys, *line):
    """verify.py's exit status, and what it prints."""
    status = verify.run(verify.arguments([str(word) for word in line]))
    return status, capsys.readouterr().out


def test_nearest_is_the_brute_force_product():
    rng = np.random.default_rng(0)
    photographs = made_up(rng, [f'{k}.jpg' for k in range(9000)])  # more than two blocks
    archive = Index.of('root', photographs, False, 8)
    query = photographs[7000].embeddings[1]
    scores = np.concatenate([one.embeddings for one in photographs]) @ query
    best = np.argsort(-scores, kind='stable')[:10]
    found = archive.nearest(query, 10)
    assert [face for face, _ in found] == best.tolist() and archive.name(best[0]) == '7000.jpg'
    np.testing.assert_allclose([score for _, score in found], scores[best], atol=1e-6)
    assert len(archive.nearest(query, 10**6)) == len(archive) == 18000


def test_equal_faces_keep_their_order():
    one = made_up(np.random.default_rng(0), ['a'], faces=1)[0]
    archive = Index.of('root', [one._replace(name=f'{k}') for k in range(50)], False, 8)
    assert [face for face, _ in archive.nearest(one.embeddings[0], 5)] == [0, 1, 2, 3, 4]


def test_an_answer_is_a_person_by_the_best_face():
    rng = np.random.default_rng(1)
    names = [f'{who}/{k}.jpg' for who in ('Ada', 'Bo') for k in range(3)] + ['nobody.jpg', 'x.jpg']
    photographs = made_up(rng, names, faces=1)
    archive = Index.of('root', photographs, True, 8)
    query = photographs[4].embeddings[0]
    found = archive.nearest(query, 9)
    assert archive.people == ['Ada', 'Bo'] and len(found) == 4  # two people, two faces of nobody
    assert found[0] == (4, pytest.approx(1)) and archive.person(4) == 'Bo'
    ada = max(float(one.embeddings[0] @ query) for one in photographs[:3])
    assert {archive.person(face): score for face, score in found}['Ada'] == pytest.approx(ada)


def test_a_file_gives_back_what_was_written(tmp_path):
    rng = np.random.default_rng(2)
    photographs = made_up(rng, ['ü.jpg', os.fsdecode(b'\xff.jpg'), 'a b/c.jpg'], faces=3)
    photographs[1] = Photograph(
        'none.jpg', 5, 6, 'none.jpg: no face found', np.zeros(0, FACE), np.zeros((0, 8), '<f4')
    )
    index.write(tmp_path / 'a.index', '/root', 'f' * 64, photographs, False, 8)
    archive = Index.open(tmp_path / 'a.index', 'f' * 64)
    assert archive.left_out == ['none.jpg: no face found'] and len(archive) == 6
    for one, other in zip(photographs, archive.photographs(), strict=True):
        assert one[:4] == other[:4]
        np.testing.assert_array_equal(one.embeddings, other.embeddings)
    assert isinstance(archive.embeddings.base, np.memmap)


def test_it_is_read_with_json_and_numpy_alone(tmp_path):
    photographs = made_up(np.random.default_rng(3), ['a.jpg', 'b.jpg'])
    index.write(tmp_path / 'a.index', '/root', 'f' * 64, photographs, False, 8)
    with open(tmp_path / 'a.index', 'rb') as file:
        length = int.from_bytes(file.read(24)[8:16], 'little')
        header = json.loads(file.read(length))
    place = header['arrays']['embeddings']
    embeddings = np.memmap(
        tmp_path / 'a.index',
        place['dtype'],
        'r',
        24 + length + place['offset'],
        tuple(place['shape']),
    )
    np.testing.assert_array_equal(embeddings, np.concatenate([p.embeddings for p in photographs]))


def test_every_damaged_byte_is_noticed(tmp_path):
    path = tmp_path / 'a.index'
    index.write(path, '/root', 'f' * 64, made_up(np.random.default_rng(4), ['a']), False, 8)
    whole = path.read_bytes()
    used = len(whole) - 40  # behind the last array there may be padding
    for at in [*range(0, used, 7), 0, 8, 16]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(utils.UserError, match=r'a\.index: (damaged|no index)'):
            Index.open(path, 'f' * 64)
    for cut in (0, 5, 20, 100, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:cut])
        with pytest.raises(utils.UserError, match=r'a\.index: (damaged|no index)'):
            Index.open(path, 'f' * 64)


def test_foreign_files_and_other_weights(tmp_path, weights, drawn, capsys):
    path = tmp_path / 'a.index'
    face = next((drawn / 'val').rglob('*.jpg'))
    index.write(path, '/root', 'e' * 64, made_up(np.random.default_rng(5), ['a']), False, 8)
    with pytest.raises(utils.UserError, match='made by other weights'):
        run(capsys, weights, '--find', face, path, '--json')
    with pytest.raises(utils.UserError, match='made by other weights'):
        run(capsys, weights, '--index', drawn / 'val', path)
    path.write_text('mine')
    with pytest.raises(utils.UserError, match='no index that --index made'):
        run(capsys, weights, '--index', drawn / 'val', path)
    assert path.read_text() == 'mine'
    with pytest.raises(utils.UserError, match='No such file.*--index FOLDER makes'):
        run(capsys, weights, '--find', face, tmp_path / 'gone.index', '--json')


def test_an_update_takes_in_what_is_new_changed_or_gone(matcher, folder, tmp_path, monkeypatch):
    path = tmp_path / 'a.index'
    faces = sorted(folder.rglob('*.jpg'))
    (folder / 'junk.jpg').write_bytes(b'junk')
    first, counts, *_ = enrolment.update(matcher, str(folder), path)
    assert counts == {'new': 37, 'changed': 0, 'gone': 0} and len(first) == 36
    assert len(first.left_out) == 1 and 'junk.jpg' in first.left_out[0]
    shutil.copy(faces[0], folder / 'new.jpg')
    Image.open(faces[1]).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(faces[2], quality=95)
    faces[3].unlink()
    asked = []
    monkeypatch.setattr(
        portraits,
        'read_all',
        lambda data, name, *rest, of=portraits.read_all: (
            asked.append(name) or of(data, name, *rest)
        ),
    )
    again, counts, *_ = enrolment.update(matcher, str(folder), path)
    assert counts == {'new': 1, 'changed': 1, 'gone': 1} and len(again) == 36
    expected = [folder / 'junk.jpg', folder / 'new.jpg', faces[2]]  # left out: tried again
    assert sorted(asked) == sorted(map(str, expected))
    fresh = enrolment.read_folder(matcher, str(folder))
    assert [row[:3] for row in fresh.rows] == [row[:3] for row in again.rows]
    np.testing.assert_allclose(fresh.embeddings, again.embeddings, atol=1e-6)
    changed = path.stat().st_mtime_ns
    assert enrolment.update(matcher, str(folder), path)[1] == {'new': 0, 'changed': 0, 'gone': 0}
    assert path.stat().st_mtime_ns == changed  # nothing to do, nothing written
    assert not list(tmp_path.glob('*.journal'))


def test_all_faces_of_a_photograph_are_in_it(matcher, drawn, tmp_path, monkeypatch):
    faces = sorted((drawn / 'val').rglob('*.jpg'))
    (tmp_path / 'archive').mkdir()
    picture = Image.new('RGB', (700, 400), 'grey')
    points = []
    for k, (face, scale) in enumerate(((faces[0], 2), (faces[9], 3))):
        at = (30 + 300 * k, 30)
        picture.paste(Image.open(face).resize((96 * scale, 112 * scale)), at)
        points.append((portraits.TEMPLATE + 0.5) * scale - 0.5 + at)
    picture.save(tmp_path / 'archive' / 'both.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(*points))
    archive, *_ = enrolment.update(matcher, str(tmp_path / 'archive'), tmp_path / 'a.index')
    assert len(archive) == 2 and archive.faces['photograph'].tolist() == [0, 0]
    assert archive.faces['box'][0][0] > archive.faces['box'][1][0]  # the larger one, on the right
    for k, face in enumerate((faces[9], faces[0])):
        (features,) = matcher.features([np.asarray(Image.open(face))])
        assert archive.embeddings[k] @ features.embedding > 0.9
        again = portraits.cut(portraits.open_file(archive.path(k), 'x'), archive.faces['points'][k])
        apart = np.abs(again.astype(float) - np.asarray(Image.open(face)).astype(float))[8:-8, 8:-8]
        assert apart.mean() < 5  # the points of the index lead to the same face again


def test_people_are_folders_and_their_largest_face_counts(weights, folder, tmp_path, capsys):
    path = tmp_path / 'people.index'
    status, out = run(capsys, weights, '--index', folder, path, '--people', '--json')
    assert status == 0 and json.loads(out)['people'] == 6
    face = sorted(folder.rglob('*.jpg'))[8]
    status, out = run(capsys, weights, '--find', face, path, '--json')
    found = json.loads(out)['found']
    assert len(found) == 6 and len({one['person'] for one in found}) == 6
    assert all(one['photograph'] != str(face.relative_to(folder)) for one in found)
    with pytest.raises(utils.UserError, match='made with --people'):
        run(capsys, weights, '--index', folder, path)


def test_a_stopped_run_is_gone_on_from(matcher, folder, tmp_path, monkeypatch):
    path, embedded = tmp_path / 'a.index', []
    whole, *_ = enrolment.update(matcher, str(folder), tmp_path / 'whole.index')
    monkeypatch.setattr(enrolment, 'BATCH', 8)

    def stop(self, one, of=journal.Journal.add):
        if len(embedded) == 19:
            signal.raise_signal(signal.SIGINT)
        embedded.append(one.name)
        of(self, one)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, 'add', stop)
        with pytest.raises(utils.UserError, match='the same command goes on from it'):
            enrolment.update(matcher, str(folder), path)
    assert not path.exists()
    with open(f'{path}.journal', 'ab') as file:
        file.write(b'\x05\0\0\0\0\0\0\0torn')  # what a kill leaves of a record
    asked = []
    monkeypatch.setattr(
        portraits,
        'read_all',
        lambda data, name, *rest, of=portraits.read_all: (
            asked.append(name) or of(data, name, *rest)
        ),
    )
    again, counts, *_ = enrolment.update(matcher, str(folder), path)
    assert len(asked) == 17 and counts['new'] == 36 and not os.path.exists(f'{path}.journal')
    assert again.rows == whole.rows
    np.testing.assert_allclose(again.embeddings, whole.embeddings, atol=1e-6)


def test_a_journal_in_use_or_of_another_job_is_refused(matcher, folder, tmp_path):
    facts = {'weights': matcher.info.sha256, 'root': str(folder), 'people': False}
    with journal.Journal(tmp_path / 'a.index', facts, 8):
        with pytest.raises(utils.UserError, match='another process is at this index'):
            enrolment.update(matcher, str(folder), tmp_path / 'a.index')
    with pytest.raises(utils.UserError, match='--people: remove it'):
        enrolment.update(matcher, str(folder), tmp_path / 'a.index', people=True)


def test_another_folder_is_refused(matcher, folder, drawn, tmp_path):
    enrolment.update(matcher, str(folder), tmp_path / 'a.index')
    with pytest.raises(utils.UserError, match='name another file'):
        enrolment.update(matcher, str(drawn / 'train'), tmp_path / 'a.index')


def test_a_folder_without_faces(matcher, tmp_path):
    (tmp_path / 'f').mkdir()
    (tmp_path / 'f' / 'junk.jpg').write_bytes(b'junk')
    with pytest.raises(utils.DataError, match='no face in any of its 1 images'):
        enrolment.update(matcher, str(tmp_path / 'f'), tmp_path / 'a.index')


def test_photographs_need_the_detector(matcher, folder, tmp_path, monkeypatch):
    photograph_of(next(folder.rglob('*.jpg')), folder / 'large.png')

    def missing():
        raise utils.UserError('facenet-pytorch')

    monkeypatch.setattr(portraits, 'detector', missing)
    with pytest.raises(utils.UserError, match='requirements-prepare.txt'):
        enrolment.update(matcher, str(folder), tmp_path / 'a.index')


def test_what_was_left_out_is_tried_again(matcher, folder, tmp_path):
    path, face = tmp_path / 'a.index', next(folder.rglob('*.jpg'))
    (folder / 'a.jpg').write_bytes(b'')
    (folder / 'b.png').write_bytes(b'')
    archive, *_ = enrolment.update(matcher, str(folder), path)
    assert len(archive.left_out) == 2
    before = (folder / 'a.jpg').stat()
    with open(folder / 'a.jpg', 'r+b') as file:  # as when the library that reads it is installed
        file.write(face.read_bytes())
    os.utime(folder / 'a.jpg', ns=(before.st_atime_ns, before.st_mtime_ns))
    archive, counts, _ = enrolment.update(matcher, str(folder), path)
    assert len(archive) == 37 and len(archive.left_out) == counts['changed'] == 1


def test_what_is_passed_over_is_counted_and_named(weights, folder, tmp_path, capsys):
    for name in ('noext', 'raw.CR2', 'scan.pdf', 'notes.txt', 'more.txt'):
        (folder / name).write_bytes(b'x')
    (folder / 'broken.jpg').symlink_to('/nowhere/x.jpg')
    os.mkfifo(folder / 'pipe.jpg')
    pages = [Image.new('L', (96, 112), grey) for grey in (50, 100, 150)]
    pages[0].save(folder / 'album.tif', save_all=True, append_images=pages[1:])
    shutil.copy(next(folder.rglob('00*.jpg')), os.fsencode(folder) + b'/caf\xe9.jpg')
    status, out = run(capsys, weights, '--index', folder, tmp_path / 'a.index', '--json')
    assert status == 0 and sorted(json.loads(out)['passed_over']) == [
        '2 × .txt',
        'album.tif: its pages 2 to 3; the first is read',
        'broken.jpg: a broken link',
        'noext: its name has no ending',
        'pipe.jpg: a pipe, a socket or a device',
        'raw.CR2: camera raw',
        'scan.pdf: PDF',
    ]


def test_a_moved_archive_keeps_its_index(matcher, folder, tmp_path, monkeypatch):
    (tmp_path / 'home').mkdir()
    path = shutil.move(folder, tmp_path / 'home') and tmp_path / 'home' / 'a.index'
    first, *_ = enrolment.update(matcher, str(tmp_path / 'home' / 'val'), path)
    (tmp_path / 'home').rename(tmp_path / 'moved')
    path = tmp_path / 'moved' / 'a.index'
    archive = Index.open(path, matcher.info.sha256)
    assert archive.root == str(tmp_path / 'moved' / 'val') and os.path.exists(archive.path(5))
    (tmp_path / 'moved' / 'val').rename(tmp_path / 'elsewhere')
    monkeypatch.setattr(enrolment, 'embed_files', lambda matcher, root, names, people: names)
    again, counts, _ = enrolment.update(matcher, str(tmp_path / 'elsewhere'), path)
    assert counts == {'new': 0, 'changed': 0, 'gone': 0} and again.rows == first.rows
    assert os.path.exists(again.path(5))


def test_a_kill_in_the_middle(weights, folder, tmp_path):
    faces = sorted(folder.rglob('*.jpg'))
    for k in range(400):
        shutil.copy(faces[k % 36], folder / f'{k}.jpg')
    line = [sys.executable, ROOT / 'verify.py', weights, '--index', folder, 'a.index']
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL)
    file = tmp_path / 'a.index.journal'
    while process.poll() is None and not (file.exists() and file.stat().st_size > 20_000):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and 'a.index: 436 faces in 436 images' in done.stdout, done.stderr
    assert not file.exists()
