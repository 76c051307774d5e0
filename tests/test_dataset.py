"""Entries, lists, pixels, batches, the file of decoded faces; each bad input's message."""

import errno
import io
import os
import pickle
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import invalid, listed, pixels_of, refused
from PIL import Image
from test_images import encoded

import meta
from dataset import Batches, Faces, check_entry, training_loader
from storage import rows
from storage.images import decode, parse_age
from system import progress


@pytest.fixture
def folder(drawn, tmp_path):
    """A copy of the drawn training faces that a test may spoil."""
    shutil.copytree(drawn / 'train', tmp_path / 'set' / 'train')
    return tmp_path / 'set' / 'train'


def test_bad_folders_and_names_are_named_and_counted(folder, tmp_path):
    refused('No such file', listed, tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    refused('no images; expected .*<identity>', listed, tmp_path / 'empty')
    (folder / 'nobody').mkdir()
    refused(r'1 identity folder\(s\) without an image: nobody', listed, folder)
    (folder / 'nobody').rmdir()
    for k in range(5):
        shutil.copy(next(folder.glob('p00000/000_*')), folder / 'p00001' / f'bad{k}.jpg')
    named = r'.*p00001/bad0.jpg, p00001/bad1.jpg, p00001/bad2.jpg, … \(5 in all\)'
    refused(rf"5 file name\(s\) {named}; .*'pat'", listed, folder)


def test_other_sizes_and_unreadable_files(folder):
    for size in [0, 200, -300]:
        for kind in ['JPEG', 'PNG']:
            bad = folder / 'p00000' / f'bad_20.{kind.lower()}'
            bad.write_bytes(encoded(kind=kind)[:size])
            refused('bad_20.*not readable', listed(folder).check)
            bad.unlink()
            assert not list(folder.parent.glob('.*')), 'no half-made cache may stay'
    said = r'1 image\(s\) are not 112 high × 96 or 112 wide, or not readable: p00000/wrong_20.jpg: '
    for wide, high in [(112, 96), (64, 64)]:
        for cache in [True, False]:
            Image.new('RGB', (wide, high)).save(folder / 'p00000' / 'wrong_20.jpg')
            refused(f'{said}{high} high × {wide} wide', listed(folder).check, cache)


@pytest.mark.parametrize('width', [96, 112])
@pytest.mark.parametrize('cache', [True, False])
def test_a_set_of_both_sizes_is_of_the_wanted_width(folder, width, cache):
    wide = encoded(kind='PNG', size=(112, 112))
    (folder / 'p00000' / 'wide_20.png').write_bytes(wide)
    faces = listed(folder, width)
    assert faces.check(cache) == [] and bool(faces.pixels) == cache
    images = pixels_of(faces)
    assert images.shape == (41, 112, width, 3)
    for index in range(len(faces)):
        assert (images[index] == decode(faces.encoded(index), width)).all()


def test_each_width_has_a_file_of_decoded_faces(folder):
    paths = []
    for width in (96, 112, 96, 112):
        faces = listed(folder, width)
        faces.check()
        paths.append(os.path.basename(faces.pixels.path))
    assert paths[:2] == paths[2:] and paths[1] == paths[0].replace('.npy', '-112.npy')
    assert paths[0] == f'.train.{faces.fingerprint[:16]}.npy', 'the name it always had'
    assert [np.load(folder.parent / name).shape[2] for name in paths[:2]] == [96, 112]
    (folder / 'p00000' / 'more_20.jpg').write_bytes(encoded())
    del faces  # which holds its file
    listed(folder).check()
    assert len(list(folder.parent.glob('.train.*'))) == 1, 'those of the set as it was are gone'


def test_cache_gives_the_same_pixels_and_follows_the_folder(folder):
    plain, cached = listed(folder), listed(folder)
    plain.check(cache=False)
    assert cached.check() == [] and plain.pixels is None
    indices = list(range(len(plain)))
    both = cached.__getitems__(indices), plain.__getitems__(indices)
    for ours, theirs in zip(*both, strict=True):
        assert len(ours) == len(theirs) and (not len(ours) or (ours == theirs).all())
    assert cached.__getitems__([0])[0].shape == (1, 3, 112, 96)
    (first,) = folder.parent.glob('.train.*.npy')
    again = listed(folder)
    again.check()
    assert again.pixels.path == str(first)
    assert (pixels_of(pickle.loads(pickle.dumps(again))) == pixels_of(plain)).all()
    del cached, again  # which hold the file
    changed = next(folder.glob('p00003/*'))
    changed.write_bytes(encoded())
    third = listed(folder)
    third.check()
    (second,) = folder.parent.glob('.train.*.npy')
    assert second != first
    index = [third.path(i) for i in range(len(third))].index(str(changed))
    assert (pixels_of(third)[index] == decode(changed.read_bytes())).all()


def test_no_room_for_the_cache_is_said_and_decoding_goes_on(folder, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(1, 1, 0))
    faces = listed(folder)
    assert 'too little free space' in faces.check()[0]
    assert faces.__getitems__([0, 1])[0].shape == (2, 3, 112, 96)


def test_batches_are_a_function_of_seed_and_epoch_and_the_loader_reads_them(folder):
    batches, epochs = Batches(103, 10, seed=1), []
    for batches.epoch in (0, 1):
        order = sum(batches, [])
        assert len(order) == len(set(order)) == 100 and len(list(batches)) == len(batches) == 10
        epochs.append(order)
    assert epochs[0] != epochs[1] and sum(Batches(103, 10, seed=2), []) != epochs[0]
    resumed = Batches(103, 10, seed=1)
    resumed.epoch, resumed.first = 1, 4
    assert sum(resumed, []) == epochs[1][40:]
    for workers in [0, 2]:
        faces = listed(folder)
        faces.check()
        loader = training_loader(faces, 8, 0, workers, pin=False)
        for loader.batch_sampler.epoch in (0, 1):
            wanted = list(loader.batch_sampler)
            for indices, (images, labels, ages, _) in zip(wanted, loader, strict=True):
                assert (labels.numpy() == faces.labels[indices]).all()
                assert (ages.numpy() == faces.ages[indices]).all()
                assert (images[3].permute(1, 2, 0).numpy() == faces.read(indices[3])).all()
        reason = 'less than one batch of 64: lower it with --batch-size'
        refused(reason, training_loader, listed(folder), 64, 0, 0, False)


def checked(folder):
    faces = listed(folder)
    assert faces.check() == [] and faces.pixels
    return faces


def test_a_file_that_a_run_uses_is_kept(folder):
    """A second run on the changed set begins while the first is at work."""
    first = checked(folder)
    before, kept = pixels_of(first), Path(first.pixels.path)
    (folder / 'p00000' / 'more_50.jpg').write_bytes(encoded())
    second = checked(folder)
    assert second.pixels.path != str(kept) and kept.exists()
    worker = pickle.loads(pickle.dumps(first))  # which opens it for itself
    assert (pixels_of(first) == before).all() and (pixels_of(worker) == before).all()
    del first, worker
    (folder / 'p00000' / 'more_50.jpg').unlink()
    (folder / 'p00000' / 'other_50.jpg').write_bytes(encoded())
    checked(folder)
    assert not kept.exists(), 'nobody uses it any more'


def test_a_read_only_disk_is_said_and_faces_are_decoded(folder, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(rows, 'open', refuse, raising=False)
    monkeypatch.setattr(Path, 'unlink', refuse)  # of a file that never was, too
    old = folder.parent / f'.train.{"0" * 32}.tmp'
    old.write_bytes(b'')
    os.utime(old, (0, 0))  # there is something to sweep
    faces = listed(folder)
    (notice,) = faces.check()
    assert 'Read-only file system for ' in notice and 'every epoch decodes anew' in notice
    assert len(pixels_of(faces)) == 40


def output_of(monkeypatch, terminal, seconds, work):
    """What work() writes to stderr where a line is due every `seconds`."""
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, 'isatty', lambda: terminal, raising=False)
    monkeypatch.setattr(sys, 'stderr', stderr)
    monkeypatch.setattr(progress, 'SECONDS', seconds)
    work()
    return stderr.getvalue()


def test_how_far_it_is_is_said_with_rate_and_time_left(folder, monkeypatch):
    def work():
        with progress.progress(None, 'reading x', 300, unit=' faces') as bar:
            for _ in range(3):
                time.sleep(0.02)
                bar.update(100)

    lines = output_of(monkeypatch, False, 0.01, work).split('\n')
    assert len(lines) == 4 and lines[-1] == '' and '\r' not in ''.join(lines)
    for number, line in enumerate(lines[:-1], 1):
        assert line.startswith(f'reading x: {100 * number} of 300 faces, ')
        assert line.endswith(' left') and ' faces/s, ' in line
    assert output_of(monkeypatch, False, 60, work) == '', 'none in the first minute'
    # on a terminal there is a bar that vanishes
    text = output_of(monkeypatch, True, 60, lambda: list(progress.progress(range(3), 'reading x')))
    assert text.startswith('\rreading x:   0%') and text.endswith('\r')
    monkeypatch.setattr(Faces, 'read', lambda self, index: time.sleep(0.01))
    faces = listed(folder)
    text = output_of(monkeypatch, False, 0, lambda: faces.check(cache=False))
    assert f'reading {folder}: 40 of 40 faces, ' in text


NAMES = [('demo', '000_12.jpg', 12), ('demo', '000_0.jpg', 0), ('fgnet', '001A02.JPG', 2)]
NAMES += [('fgnet', '001A43a.JPG', 43), ('agedb', '0_MariaCallas_35_f.jpg', 35)]
NAMES += [('morph', '009055_1M54.JPG', 54), ('morph', '123456_02F27.JPG', 27)]
NAMES += [('cacd2000', '53_Robert_Duvall_0001.jpg', 53)]
NAMES += [('cacd2000', '39_1_20170116174525125.jpg.chip.jpg', 39)]  # UTKFace's


def test_names_with_and_without_an_age():
    for template, name, age in NAMES:
        entry = getattr(meta, template)
        check_entry(template, entry, meta.age_cutoffs)
        assert parse_age(name, entry['pat'], entry['pos']) == age
    assert parse_age('000_12.5_x.jpg', '_', 1) == 12.5
    assert parse_age('000_120.jpg', r'_|\.', -2) == 120
    for name, why in WITHOUT.items():
        invalid(why, parse_age, name, r'_|\.', 1)


WITHOUT = dict.fromkeys(('000.jpg', '000_.jpg', '000_nan.jpg', '000_1e1.jpg'), 'no age')
WITHOUT |= dict.fromkeys(('000_-3.jpg', '000_1٢.jpg'), 'no age')
WITHOUT |= {'000_121.jpg': 'between 0 and 120', '000': 'no position 1'}


GOOD = {'train_root': 'a', 'val_root': None, 'pat': '_', 'pos': 1, 'n_cls': 2}


BAD = [({'train_rot': 'a'}, "'train_rot'; did you mean 'train_root'")]
BAD += [({'pat': '('}, 'no regular expression'), ({'pos': '1'}, 'whole number')]
BAD += [({'n_cls': True}, 'whole number'), ({'train_root': None}, 'a folder')]
BAD += [({'val_root': 3}, 'a folder, shards, a list, or None')]


def test_bad_entries_and_those_of_lists(tmp_path):
    for change, message in BAD:
        said = f'^meta.py, yours: .*{message}'
        refused(said, check_entry, 'yours', GOOD | change, meta.age_cutoffs)
    for key in GOOD:
        entry = {k: v for k, v in GOOD.items() if k != key}
        said = f"meta.py, yours: the key '{key}' is missing"
        refused(said, check_entry, 'yours', entry, meta.age_cutoffs)
    for cutoffs in ((), (12, 12), (18, 12), ('a',)):
        refused('age_cutoffs', check_entry, 'yours', GOOD, cutoffs)
    entry = {'train_root': str(tmp_path / 'a.csv'), 'val_root': None}
    assert check_entry('yours', entry, meta.age_cutoffs)['n_cls'] is None
    folder = entry | {'val_root': str(tmp_path)}
    refused("the key 'pat' is missing", check_entry, 'yours', folder, meta.age_cutoffs)
    assert check_entry('yours', folder | {'pat': '_', 'pos': 1}, meta.age_cutoffs)['pos'] == 1
