"""The archive index: what is in it, what changes, what a stop leaves, what damage leads to."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from conftest import refused, unit
from PIL import Image
from test_verify import Stub, no_detector, photograph_of

from verification import enrolment, index, portraits
from verification.enrolment import Journal
from verification.index import FACE, Index, Photograph


@pytest.fixture
def folder(drawn, tmp_path):
    return shutil.copytree(drawn / 'val', tmp_path / 'val')


@pytest.fixture
def update(matcher, folder, tmp_path):
    """Makes or renews tmp_path/a.index: the Index and what there was to do."""

    def run(root=folder, path=tmp_path / 'a.index', **options):
        return enrolment.update_index(matcher, str(root), path, **options)[:2]

    return run


def made_up(rng, names, dim=8, faces=2):
    photographs = []
    for name in names:
        embeddings = unit(rng.normal(size=(faces, dim)).astype('<f4'))
        photographs.append(Photograph(name, 1, 2, '', np.zeros(faces, FACE), embeddings))
    return photographs


def test_nearest_is_the_brute_force_product_and_a_person_the_best_face():
    rng = np.random.default_rng(0)
    photographs = made_up(rng, [f'{k}.jpg' for k in range(9000)])  # more than two blocks
    archive = Index.of('root', photographs, False)
    query = photographs[7000].embeddings[1]
    scores = np.concatenate([one.embeddings for one in photographs]) @ query
    best = np.argsort(-scores, kind='stable')[:10]
    found = archive.nearest(query, 10)
    assert [face for face, _ in found] == best.tolist() and archive.name(best[0]) == '7000.jpg'
    np.testing.assert_allclose([score for _, score in found], scores[best], atol=1e-6)
    assert len(archive.nearest(query, 10**6)) == len(archive) == 18000
    equal = Index.of('root', 25 * photographs[:1], False)  # equal faces keep their order
    query = photographs[0].embeddings[0]
    assert [face for face, _ in equal.nearest(query, 5)] == [0, 2, 4, 6, 8]
    rng = np.random.default_rng(1)
    names = [f'{who}/{k}.jpg' for who in ('Ada', 'Bo') for k in range(3)] + ['nobody.jpg', 'x.jpg']
    photographs = made_up(rng, names, faces=1)
    archive = Index.of('root', photographs, True)
    query = photographs[4].embeddings[0]
    found = archive.nearest(query, 9)
    assert archive.people == ['Ada', 'Bo'] and len(found) == 4  # two people, two faces of nobody
    assert found[0] == (4, pytest.approx(1)) and archive.person(4) == 'Bo'
    ada = max(float(one.embeddings[0] @ query) for one in photographs[:3])
    assert {archive.person(face): score for face, score in found}['Ada'] == pytest.approx(ada)


def test_a_file_gives_back_what_was_written_and_every_damaged_byte_is_noticed(tmp_path):
    rng = np.random.default_rng(2)
    photographs = made_up(rng, ['ü.jpg', os.fsdecode(b'\xff.jpg'), 'a b/c.jpg'], faces=3)
    photographs[1] = Photograph(
        'none.jpg', 5, 6, 'none.jpg: no face found', np.zeros(0, FACE), np.zeros((0, 8), '<f4')
    )
    index.write_index(tmp_path / 'a.index', '/root', 'f' * 64, photographs, False)
    archive = Index.open(tmp_path / 'a.index', 'f' * 64)
    assert archive.left_out == ['none.jpg: no face found'] and len(archive) == 6
    for one, other in zip(photographs, archive.photographs(), strict=True):
        assert one[:4] == other[:4]
        np.testing.assert_array_equal(one.embeddings, other.embeddings)
    assert isinstance(archive.embeddings.base, np.memmap)
    path = tmp_path / 'a.index'
    index.write_index(path, '/root', 'f' * 64, made_up(np.random.default_rng(4), ['a']), False)
    whole = path.read_bytes()
    used = len(whole) - 40  # behind the last array there may be padding
    flips = [*range(0, used, 7), 0, 8, 16]
    damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in flips]
    damaged += [whole[:cut] for cut in (0, 5, 20, 100, len(whole) // 2, len(whole) - 64)]
    for data in damaged:
        path.write_bytes(data)
        refused(r'a\.index: (damaged|no index)', Index.open, path, 'f' * 64)


def test_foreign_files_and_other_weights(tmp_path, weights, drawn, ask):
    path, face = tmp_path / 'a.index', next((drawn / 'val').rglob('*.jpg'))
    index.write_index(path, '/root', 'e' * 64, made_up(np.random.default_rng(5), ['a']), False)
    refused('made by other weights', ask, weights, '--find', face, path, '--json')
    refused('made by other weights', ask, weights, '--index', drawn / 'val', path)
    path.write_text('mine')
    refused('no index that --index made', ask, weights, '--index', drawn / 'val', path)
    assert path.read_text() == 'mine'
    line = '--find', face, tmp_path / 'gone.index', '--json'
    refused('No such file.*--index FOLDER makes', ask, weights, *line)


def test_an_update_takes_in_what_differs(matcher, folder, update, tmp_path, images_read):
    path, faces = tmp_path / 'a.index', sorted(folder.rglob('*.jpg'))
    (folder / 'junk.jpg').write_bytes(b'junk')
    first, counts = update()
    assert counts == {'new': 37, 'changed': 0, 'gone': 0} and len(first) == 36
    assert len(first.left_out) == 1 and 'junk.jpg' in first.left_out[0]
    shutil.copy(faces[0], folder / 'new.jpg')
    Image.open(faces[1]).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(faces[2], quality=95)
    faces[3].unlink()
    images_read.clear()
    again, counts = update()
    assert counts == {'new': 1, 'changed': 1, 'gone': 1} and len(again) == 36
    expected = [folder / 'junk.jpg', folder / 'new.jpg', faces[2]]  # left out: tried again
    assert sorted(images_read) == sorted(map(str, expected))
    fresh = enrolment.read_folder(matcher, str(folder))
    assert [row[:3] for row in fresh.rows] == [row[:3] for row in again.rows]
    np.testing.assert_allclose(fresh.embeddings, again.embeddings, atol=1e-6)
    changed = path.stat().st_mtime_ns
    assert update()[1] == {'new': 0, 'changed': 0, 'gone': 0}
    assert path.stat().st_mtime_ns == changed  # nothing to do, nothing written
    assert not list(tmp_path.glob('*.journal'))


def test_all_faces_of_a_photograph_are_in_it(matcher, faces, update, tmp_path, monkeypatch):
    (tmp_path / 'archive').mkdir()
    picture, points = Image.new('RGB', (700, 400), 'grey'), []
    for k, (face, scale) in enumerate(((faces[0], 2), (faces[9], 3))):
        at = (30 + 300 * k, 30)
        picture.paste(Image.open(face).resize((96 * scale, 112 * scale)), at)
        points.append((portraits.TEMPLATE + 0.5) * scale - 0.5 + at)
    picture.save(tmp_path / 'archive' / 'both.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(*reversed(points)))
    archive, _ = update(tmp_path / 'archive')
    assert len(archive) == 2 and archive.faces['photograph'].tolist() == [0, 0]
    assert archive.faces['box'][0][0] > archive.faces['box'][1][0]  # the larger one, on the right
    for k, face in enumerate((faces[9], faces[0])):
        (features,) = matcher.features([portraits.read_portrait_file(face)])
        assert archive.embeddings[k] @ features.embedding > 0.9
        again = portraits.cut(portraits.open_file(archive.path(k), 'x'), archive.faces['points'][k])
        apart = np.abs(again.astype(float) - np.asarray(Image.open(face)).astype(float))[8:-8, 8:-8]
        assert apart.mean() < 5  # the points of the index lead to the same face again


def test_people_are_folders_and_their_largest_face_counts(weights, folder, tmp_path, ask):
    path, face = tmp_path / 'people.index', sorted(folder.rglob('*.jpg'))[8]
    status, out = ask(weights, '--index', folder, path, '--people', '--json')
    assert status == 0 and json.loads(out)['people'] == 6
    found = json.loads(ask(weights, '--find', face, path, '--json')[1])['found']
    assert len(found) == 6 and len({one['person'] for one in found}) == 6
    assert all(one['photograph'] != str(face.relative_to(folder)) for one in found)
    refused('made with --people', ask, weights, '--index', folder, path)


def test_a_stopped_run_is_gone_on_from(update, tmp_path, monkeypatch, images_read):
    path, embedded = tmp_path / 'a.index', []
    whole, _ = update(path=tmp_path / 'whole.index')
    monkeypatch.setattr(enrolment, 'BATCH', 8)

    def stop(self, one, of=Journal.add):
        if len(embedded) == 19:
            signal.raise_signal(signal.SIGINT)
        embedded.append(one.name)
        of(self, one)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, 'add', stop)
        refused('the same command goes on from it', update)
    assert not path.exists()
    with open(f'{path}.journal', 'ab') as file:
        file.write(b'\x05\0\0\0\0\0\0\0torn')  # what a kill leaves of a record
    images_read.clear()
    again, counts = update()
    assert len(images_read) == 17 and counts['new'] == 36 and not os.path.exists(f'{path}.journal')
    assert again.rows == whole.rows
    np.testing.assert_allclose(again.embeddings, whole.embeddings, atol=1e-6)


def test_what_an_update_refuses(matcher, folder, update, drawn, tmp_path, monkeypatch):
    facts = {'weights': matcher.info.sha256, 'root': str(folder), 'people': False}
    with Journal.of(tmp_path / 'a.index', facts, 8):
        refused('another process is at this index', update)
    refused('--people: remove it', update, people=True)
    update()
    refused('name another file', update, drawn / 'train')
    photograph_of(next(folder.rglob('*.jpg')), folder / 'large.png')
    monkeypatch.setattr(portraits, 'detector', no_detector)
    refused('requirements-prepare.txt', update)


PASSED_OVER = ['2 × .txt', 'album.tif: its pages 2 to 3; the first is read']
PASSED_OVER += ['broken.jpg: a broken link', 'noext: its name has no ending']
PASSED_OVER += ['pipe.jpg: a pipe, a socket or a device', 'raw.CR2: camera raw', 'scan.pdf: PDF']


def test_what_is_passed_over_is_counted_and_named(weights, folder, tmp_path, ask):
    for name in ('noext', 'raw.CR2', 'scan.pdf', 'notes.txt', 'more.txt'):
        (folder / name).write_bytes(b'x')
    (folder / 'broken.jpg').symlink_to('/nowhere/x.jpg')
    os.mkfifo(folder / 'pipe.jpg')
    pages = [Image.new('L', (96, 112), grey) for grey in (50, 100, 150)]
    pages[0].save(folder / 'album.tif', save_all=True, append_images=pages[1:])
    shutil.copy(next(folder.rglob('00*.jpg')), os.fsencode(folder) + b'/caf\xe9.jpg')
    status, out = ask(weights, '--index', folder, tmp_path / 'a.index', '--json')
    assert status == 0 and sorted(json.loads(out)['passed_over']) == PASSED_OVER


def test_a_moved_archive_keeps_its_index(matcher, folder, update, tmp_path, images_read):
    home, moved = tmp_path / 'home', tmp_path / 'moved'
    home.mkdir()
    shutil.move(folder, home)
    first, _ = update(home / 'val', home / 'a.index')
    home.rename(moved)
    archive = Index.open(moved / 'a.index', matcher.info.sha256)
    assert archive.root == str(moved / 'val') and os.path.exists(archive.path(5))
    (moved / 'val').rename(tmp_path / 'elsewhere')
    images_read.clear()
    again, counts = update(tmp_path / 'elsewhere', moved / 'a.index')
    assert counts == {'new': 0, 'changed': 0, 'gone': 0} and again.rows == first.rows
    assert os.path.exists(again.path(5)) and not images_read
