"""Lists of the published shape, hostile pickles, ranks by hand, evaluate.py's command line."""

import functools
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, execute, python, refused, save_weights, tiny_model
from conftest import noise as encoded
from PIL import Image

import evaluate
from evaluation import evidence, plots, protocols
from evaluation.pair_files import read_bin


def face(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed, 96))


def names(listed):
    """The list's pairs as (file, file, same, fold)."""
    files = [Path(source).name for source in listed.sources]
    pairs = zip(*listed.pairs[:4], strict=True)
    return [(files[a], files[b], bool(same), int(fold)) for a, b, same, fold in pairs]


def test_lfw_and_what_is_missing_of_it(tmp_path):
    refused(f'{tmp_path}/pairs.txt: No such file', protocols.lfw, tmp_path)
    lines = 2 * 'A_B\t1\t4\nC\t1\t2\nA_B\t1\tC\t2\nD\t10\tC\t1\n'
    (tmp_path / 'pairs.txt').write_text('2\t2\n' + lines)
    for name in ('A_B_0001', 'A_B_0004', 'C_0001', 'C_0002', 'D_0010'):
        face(tmp_path / 'images' / name[:-5] / f'{name}.jpg', sum(map(ord, name)))
    listed = protocols.lfw(tmp_path, 2, 2)
    assert names(listed)[:4] == [
        ('A_B_0001.jpg', 'A_B_0004.jpg', True, 0),
        ('C_0001.jpg', 'C_0002.jpg', True, 0),
        ('A_B_0001.jpg', 'C_0002.jpg', False, 0),
        ('D_0010.jpg', 'C_0001.jpg', False, 0),
    ]
    assert listed.pairs.fold.tolist() == [0] * 4 + [1] * 4 and len(listed.sources) == 5
    assert ((listed.pairs.people[:, 0] == listed.pairs.people[:, 1]) == listed.pairs.same).all()
    shutil.rmtree(tmp_path / 'images')
    places = f'{tmp_path}/images/A_B/A_B_0001.jpg, {tmp_path}/A_B/A_B_0001.jpg'
    refused(f'looked for {places}', protocols.lfw, tmp_path, 2, 2)
    counts = {'10\t300\nA\t1\t2\n': 'expected 6000', '5\t300\n': 'first line', '': 'empty'}
    for text, why in counts.items():
        (tmp_path / 'pairs.txt').write_text(text)
        refused(why, protocols.lfw, tmp_path)


def test_pairs_have_folds_of_calfw_cacd_vs_or_tenths_of_either_kind(tmp_path):
    # not in order of the folds
    genuine = [('A_0001.jpg', 2), ('A_0002.jpg', 2), ('B_0001.jpg', 1), ('B_0003.jpg', 1)]
    impostor = [('A_0001.jpg', 0), ('B_0001.jpg', 0), ('B_0003.jpg', 0), ('A_0002.jpg', 0)]
    lines = [f'{name} {token}\r\n' for name, token in genuine + impostor]
    (tmp_path / 'pairs_CALFW.txt').write_bytes(''.join(lines).encode())
    face(tmp_path / 'aligned images' / 'A_0001.jpg')
    listed = protocols.calfw(tmp_path, 2, 1)
    assert names(listed) == [
        ('A_0001.jpg', 'A_0002.jpg', True, 1),
        ('B_0001.jpg', 'B_0003.jpg', True, 0),
        ('A_0001.jpg', 'B_0001.jpg', False, 0),
        ('B_0003.jpg', 'A_0002.jpg', False, 1),
    ]
    assert listed.sources[0] == str(tmp_path / 'aligned images' / 'A_0001.jpg')
    assert len(np.unique(listed.pairs.people)) == 2
    lines[:4] = [line.replace(' 2', ' 1') for line in lines[:4]]
    (tmp_path / 'pairs_CALFW.txt').write_text(''.join(lines))
    refused(r'\[2, 0\] genuine pairs', protocols.calfw, tmp_path, 2, 1)
    refused('expected 12000', protocols.calfw, tmp_path)
    face(tmp_path / '0000_0.jpg')
    listed = protocols.cacd_vs(tmp_path)
    assert len(listed.pairs.left) == 4000 and len(listed.sources) == 8000
    assert names(listed)[199] == ('0199_0.jpg', '0199_1.jpg', True, 0)
    assert names(listed)[200] == ('0200_0.jpg', '0200_1.jpg', False, 0)
    assert names(listed)[3999] == ('3999_0.jpg', '3999_1.jpg', False, 9) and listed.pairs.same[400]
    genuine = ''.join(f'1 p{k}/a.jpg p{k}/b.jpg\n' for k in range(20))
    impostors = ''.join(f'0 p{k}/a.jpg p{k + 1}/b.jpg\n' for k in range(10))
    (tmp_path / 'list.txt').write_text(genuine + impostors)
    face(tmp_path / 'p0' / 'a.jpg')
    listed = protocols.pair_list(tmp_path / 'list.txt')
    assert np.bincount(listed.pairs.fold[listed.pairs.same]).tolist() == [2] * 10
    assert np.bincount(listed.pairs.fold[~listed.pairs.same]).tolist() == [1] * 10
    assert len(np.unique(listed.pairs.people)) == 20
    (tmp_path / 'flat.txt').write_text('1 p0/a.jpg p1/b.jpg\n0 p0/a.jpg p0/b.jpg\n')
    assert protocols.pair_list(tmp_path / 'flat.txt').pairs.people is None
    (tmp_path / 'bad.txt').write_text('p0/a.jpg p1/b.jpg 2\n')
    refused('line 1', protocols.pair_list, tmp_path / 'bad.txt')


def test_names_of_fgnet_and_morph_in_any_case_and_as_aligners_leave_them(tmp_path):
    for name in ('002A05.JPG', '001A43a.jpg', '001a02.JPG', '001A43b.jpg'):
        face(tmp_path / 'images' / name)
    (tmp_path / 'images' / 'Thumbs.db').touch()
    listed = protocols.fgnet(tmp_path, 4, 2)
    found = [Path(path).name for path in listed.sources]
    assert found == ['001a02.JPG', '001A43a.jpg', '001A43b.jpg', '002A05.JPG']
    assert listed.ages.tolist() == [2, 43, 43, 5] and listed.labels.tolist() == [0, 0, 0, 1]
    refused('4 images of 2 .* has 1002 of 82; no .* 3, 4, 5, … .80 ', protocols.fgnet, tmp_path)
    for person in range(6):
        face(tmp_path / 'fgnet' / f'{person:03d}A07a_0.JPG')
        for name in ('1M21_0', '2M30-aligned'):
            face(tmp_path / 'morph' / f'{person:06d}_{name}.JPG')
    assert protocols.fgnet(tmp_path / 'fgnet', 6, 6).ages.tolist() == [7] * 6
    listed = protocols.morph(tmp_path / 'morph')
    assert listed.ages.tolist() == [21, 30] * 6 and listed.notices == ()
    for name in ('000001_1M.JPG', 'contact sheet.png'):
        face(tmp_path / 'morph' / name)
    (notice,) = protocols.morph(tmp_path / 'morph').notices
    assert '2 image(s) left out' in notice and '000001_1M.JPG, contact sheet.png' in notice
    face(tmp_path / 'morph' / 'copies' / '000001_1m21.png')
    two = 'two images of one photograph, .*21_0.JPG, .*1m21.png'
    refused(two, protocols.morph, tmp_path / 'morph')


def test_morph_gallery_is_the_youngest_and_probe_the_oldest(tmp_path):
    for name in '1_10M30 1_2M30 1_1M41 1_3M41 2_1F20 3_0M25 3_1M25'.split():
        face(tmp_path / f'00000{name}.JPG')
    listed = protocols.morph_subjects(protocols.morph(tmp_path), 2, 0)
    assert listed.drawn == '000001_2M30.JPG 000001_1M41.JPG\n000003_0M25.JPG 000003_1M25.JPG\n'
    assert listed.ages.tolist() == [30, 41, 25, 25]
    refused('2 subjects have two', protocols.morph_subjects, protocols.morph(tmp_path), 3, 0)


def written(kind, images, same):
    if kind == 'python 2':  # its bytes of (list of str, list of bool), protocol 2
        items = b''.join(b'T' + struct.pack('<I', len(image)) + image for image in images)
        flags = b''.join(b'\x88' if flag else b'\x89' for flag in same)
        return b'\x80\x02](' + items + b'e](' + flags + b'e\x86.'
    items = [np.frombuffer(image, np.uint8) for image in images] if 'array' in kind else images
    scalars = [np.bool_(flag) for flag in same]
    flags = {'array, array': np.array(same), 'array, scalar': scalars}.get(kind, same)
    return pickle.dumps((items, flags), int(kind[-1]) if kind[-1].isdigit() else 4)


WRITERS = ['python 2', 'bytes 2', 'bytes 4', 'bytes 5', 'array 2', 'array 4', 'array 5']


@pytest.mark.parametrize('kind', [*WRITERS, 'array, array', 'array, scalar'])
@pytest.mark.parametrize('old', [False, True])  # the names that numpy 1 wrote
def test_bin_of_every_writer(tmp_path, kind, old):
    images, same = [encoded(k) for k in range(4)], [True, False]
    data = written(kind, images, same)
    if old:
        names = re.compile(rb'\x8c(.)numpy\._core', re.DOTALL)
        data = names.sub(lambda m: b'\x8c' + bytes([m[1][0] - 1]) + b'numpy.core', data)
        data = data.replace(b'cnumpy._core', b'cnumpy.core')
        if b'\x95' in data[:3]:
            data = data[:2] + data[11:]  # without the frame, whose length has changed
    (tmp_path / 'a.bin').write_bytes(data)
    found, flags = read_bin(tmp_path / 'a.bin')
    assert found == images and flags.tolist() == same
    listed = protocols.bin_file(tmp_path / 'a.bin')
    assert listed.pairs.left.tolist() == [0, 2] and listed.pairs.right.tolist() == [1, 3]


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(tmp_path):
    ran = tmp_path / 'ran'
    yield 'posix.system', pickle.dumps(Runs(__import__('os').system, f'touch {ran}'))
    yield 'builtins.eval', pickle.dumps(([Runs(eval, f"open({str(ran)!r}, 'w')")], [True]))
    yield 'builtins.getattr', pickle.dumps(Runs(getattr, 'a', 'upper'))
    yield 'subprocess.Popen', pickle.dumps(Runs(subprocess.Popen, ['touch', str(ran)]))
    yield 'numpy.load', b'cnumpy\nload\n(S"x"\ntR.'
    yield 'numpy.dtype.type', b'\x80\x04\x8c\x05numpy\x8c\x0adtype.type\x93.'
    yield 'os.system', b'cos\nsystem\n(S"touch ' + str(ran).encode() + b'"\ntR.'
    yield "type 'O8'", pickle.dumps((np.array([1], object), [True]))


def test_hostile_pickles_are_refused_and_run_nothing(tmp_path):
    for k, (what, data) in enumerate(hostile(tmp_path)):
        (tmp_path / f'{k}.bin').write_bytes(data)
        line = refused('refused', read_bin, tmp_path / f'{k}.bin')
        assert what.split()[-1].strip("'") in line
    assert not (tmp_path / 'ran').exists()


def test_bin_of_another_content_or_damaged_is_one_line(tmp_path):
    cut, long = pickle.dumps(([b'a' * 99] * 2, [True]))[:-40], b'\x80\x04\x8e' + b'\xff' * 8
    for data in (b'', b'no pickle', b'c_codecs\nencode\n(S"x"\nS"rot13"\ntR.', cut, long):
        (tmp_path / 'a.bin').write_bytes(data)
        refused('a.bin', read_bin, tmp_path / 'a.bin')
    for content, why in (
        (([b'a', b'b', b'c'], [True]), '3 images and 1 pairs'),
        (([], []), '0 images'),
        ([1], 'expected lists'),
        ((b'ab', [True]), 'expected lists'),
        (([b'a', 7], [True]), 'image 1: expected an encoded image'),
        (([b'a', b'b'], [2]), 'booleans'),
        (([b'a', '€'], [True]), 'image 1: .* found str'),
        (([np.zeros((2, 2), np.uint8)] * 2, [True]), 'image 0: .* found an array'),
        (([np.zeros(2, np.int64)] * 2, [True]), 'image 0: .* found an array'),
    ):
        (tmp_path / 'a.bin').write_bytes(pickle.dumps(content))
        refused(why, read_bin, tmp_path / 'a.bin')


def test_distractor_ranks_are_counted_by_hand():
    # subject 0 at 0, 10, 40 degrees; subject 1 at 90, 92
    degrees, labels = [0, 10, 40, 90, 92, 5, -25, 91], np.array([0, 0, 0, 1, 1])
    points = np.exp(1j * np.radians(degrees))
    points = np.stack([points.real, points.imag], 1).astype(np.float32)
    ranks, probe = evidence.distractor_ranks(points[:5], labels, points[5:])
    # probe 0: mate 10° off, one distractor (5) nearer; mate 40° off: 5 and −25 nearer; …
    assert ranks.tolist() == [2, 3, 2, 2, 2, 1, 2, 2] and probe.tolist() == [0, 0, 1, 1, 2, 2, 3, 4]
    report = evidence.distractor_report(points[:5], labels, points[5:])
    assert report['distractors'] == 3 and report['cmc'][:4] == [1 / 8, 7 / 8, 1, 1]
    equal = np.ones((4, 2), np.float32) / 2**0.5
    # equal scores go before
    ranks, _ = evidence.distractor_ranks(equal, np.array([0, 0, 1, 1]), equal[:3])
    assert ranks.tolist() == [4] * 4


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    return [save_weights(tiny_model(seed), folder / f'{seed}.pth') for seed in range(2)]


@pytest.fixture(scope='module')
def noise(tmp_path_factory):
    """12 people of 8 ages."""
    root = tmp_path_factory.mktemp('noise') / 'people'
    rng = np.random.default_rng(0)
    for person in range(12):
        for image in range(8):
            age = rng.integers(1, 80)
            face(root / f'{person:02d}' / f'{image:03d}_{age}.jpg', 8 * person + image)
    return root


run = functools.partial(execute, evaluate)


def result_of(folder):
    """What evaluate.py wrote."""
    return json.loads((folder / 'results.json').read_text())


def report_of(folder):
    return result_of(folder)['models'][0]


def command(*line, **environment):
    """evaluate.py as a process of its own; what it writes stays bytes."""
    line = ROOT / 'evaluate.py', *line
    return python(None, *line, text=False, env=os.environ | environment)


def drawn(path):
    """Whether a picture is there and has something on it."""
    return np.asarray(Image.open(path).convert('L')).std() > 5


def test_folder_from_the_command_line(weights, noise, tmp_path):
    done = command(-1, weights[0], 'folder', noise, '--out', tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    result, report = result_of(tmp_path / 'out'), report_of(tmp_path / 'out')
    assert report['images'] == 96 and report['people'] == 12 and len(report['weights_sha256']) == 64
    assert report['verification']['auc'] == pytest.approx(0.5, abs=0.15)
    assert result['command'].startswith('python3 evaluate.py -1')
    assert set(report['leakage']['age']) == {'x', 'x_age', 'x_id'}
    assert 'folder-people, 0.pth: 96 images' in done.stdout.decode()
    far = report['verification']['far']
    low, high = far['0.1']['interval']
    assert low <= far['0.1']['threshold'] <= high and '0.0001' not in far
    line = f'FAR 0.1: {far["0.1"]["threshold"]:.3f} [{low:.3f} {high:.3f}]'
    assert line in done.stdout.decode()
    for name in ('roc', 'gaps', 'scores', 'errors', 'leakage'):
        assert drawn(tmp_path / 'out' / f'{name}.png')
    done = command(-1, weights[1], 'folder', noise, '--out', tmp_path / 'out')
    assert done.returncode == 1 and done.stderr.count(b'\n') == 1
    assert b'report on other weights' in done.stderr


def test_names_that_are_no_text(weights, noise, tmp_path, monkeypatch):
    root, model = (tmp_path / os.fsdecode(name) for name in (b'caf\xe9', b'w\xe9$x^$.pth'))
    shutil.copytree(noise, root)
    (root / '00').rename(root / '张伟')
    shutil.copy(weights[0], model)
    done = command(-1, model, 'folder', root, '--out', tmp_path / 'out', PYTHONIOENCODING='ascii')
    assert done.returncode == 0 and done.stderr == b'', done.stderr
    assert drawn(tmp_path / 'out' / 'errors.png') and drawn(tmp_path / 'out' / 'roc.png')
    assert plots.readable('Zoë_1.jpg') == 'Zoë_1.jpg'
    assert plots.readable('张\udce9\n$') == r'\u5f20\udce9\u000a\$'
    for encoding in ['ascii', 'cp1251', 'cp1252', 'gbk', 'euc-jp']:
        written = io.BytesIO()
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(written, encoding, write_through=True))
        with evaluate.utils.one_line_errors():
            print('R² of |ρ| ± 张, caf\udce9')
        text = written.getvalue().decode(encoding)
        assert text.startswith('R') and text.rstrip().endswith('caf?') and ' of |' in text


def test_a_reader_of_ones_own_and_its_list_of_pairs(weights, noise, tmp_path, monkeypatch):
    monkeypatch.setitem(evaluate.READERS, 'mine', lambda path: protocols.folder(path, r'_|\.', 1))
    pairs = tmp_path / 'mine' / 'pairs-seed-5.txt'
    run(-1, weights[0], 'mine', noise, '--out', tmp_path / 'mine', '--write-pairs', '--seed', 5)
    run(-1, weights[0], 'folder', noise, '--out', tmp_path / 'folder', '--seed', 5)
    run(-1, weights[0], 'pairs', pairs, '--out', tmp_path / 'pairs')
    mine, folder, listed = (report_of(tmp_path / name) for name in ('mine', 'folder', 'pairs'))
    assert mine == folder and 'leakage' in mine and 'rank1' in mine
    first, second = mine['verification'], listed['verification']
    for figure in 'pairs accuracy accuracy_std fold_accuracy threshold auc eer tar@1e-1'.split():
        assert first[figure] == second[figure], figure
    assert first['far']['0.1']['threshold'] == second['far']['0.1']['threshold']
    refused('pairs has a list of its own', run, -1, weights[0], 'pairs', pairs, '--write-pairs')


def test_a_list_of_ones_own_format_has_a_report_of_its_own(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(evaluate.READERS, 'csv', protocols.pair_list)
    shutil.copy(weights[0], tmp_path / 'w.pth')
    for name in 'abc':
        face(tmp_path / f'{name}.jpg', ord(name))
    for name, third in (('one', 'c'), ('two', 'b')):
        (tmp_path / f'{name}.csv').write_text(f'1,a.jpg,b.jpg\n0,{third}.jpg,a.jpg\n')
    (tmp_path / 'three.csv').write_text('1,a.jpg,b.jpg\n0,c.jpg,b.jpg\n')
    line = -1, tmp_path / 'w.pth', 'csv'
    run(*line, tmp_path / 'one.csv')
    run(*line, tmp_path / 'three.csv')
    kinds = {path.name.rpartition('-')[0] for path in (tmp_path / 'eval').iterdir()}
    assert kinds == {'csv-one', 'csv-three'}
    refused('one person and different people', run, *line, tmp_path / 'two.csv')
    (one,) = (tmp_path / 'eval').glob('csv-one-*')
    refused('a report on another list, .*one.csv', run, *line, tmp_path / 'three.csv', '--out', one)


ALONE = [(1, 4, 'one person alone'), (4, 1, 'one image'), (1, 1, 'one ')]


def test_why_a_folder_has_no_figures_and_what_it_is_noticed_for(weights, tmp_path, capsys):
    for people, each, why in ALONE:
        for k in range(people * each):
            face(tmp_path / why / str(k // each) / f'{k:03d}_{20 + k}.jpg', k)
        run(-1, weights[0], 'folder', tmp_path / why, '--out', tmp_path / f'{why}-out')
        out = capsys.readouterr().out
        assert '–  all: ' in out and why in out and 'the age is not read' in out
    for k in range(12):
        face(tmp_path / 'set' / str(k // 4) / f'{k:03d}_{k % 4}.jpg', k)
    (tmp_path / 'set' / '0' / 'notes.txt').touch()
    run(-1, weights[0], 'folder', tmp_path / 'set', '--out', tmp_path / 'out')
    out = capsys.readouterr().out
    assert '1 file(s) are no images by their names, and left out: 0/notes.txt' in out
    assert 'is the number of the picture taken for the age?' in out
    assert len(result_of(tmp_path / 'out')['notices']) == 2


@pytest.mark.parametrize('val', [True, False])
def test_folder_may_be_an_entry_of_meta(weights, noise, tmp_path, monkeypatch, capsys, val):
    train_root, val_root = ('nowhere', str(noise)) if val else (str(noise), None)
    entry = dict(train_root=train_root, val_root=val_root, pat=r'[_.]', pos=-2, n_cls=12)
    monkeypatch.setattr(evaluate.meta, 'here', entry, raising=False)
    run(-1, weights[0], 'folder', 'here', '--out', tmp_path)
    assert f'reading its {"val" if val else "train"}_root' in capsys.readouterr().out
    assert report_of(tmp_path)['images'] == 96


def test_compare_draws_the_same_people_for_both(weights, noise, tmp_path, capsys):
    run('--compare', *weights, 'folder', noise, '--out', tmp_path)
    result = result_of(tmp_path)
    (first, second), (found, *_) = result['models'], result['differences']
    auc = second['verification']['auc'] - first['verification']['auc']
    assert found['verification']['auc']['difference'] == pytest.approx(auc)
    assert found['rank1']['difference'] == pytest.approx(second['rank1'] - first['rank1'])
    assert {'errors_1.png', 'errors_2.png', 'roc.png'} <= {path.name for path in tmp_path.iterdir()}
    assert 'paired bootstrap' in capsys.readouterr().out


def test_bin_from_the_command_line(weights, tmp_path):
    content = [encoded(k) for k in range(40)], [True, False] * 10
    (tmp_path / 'toy.bin').write_bytes(pickle.dumps(content))
    run(-1, weights[0], 'bin', tmp_path / 'toy.bin')
    (out,) = (weights[0].parent / 'eval').glob('bin-toy-*')
    report = report_of(out)
    assert report['people'] is None and report['interval_over'] == 'pairs'
    assert len(report['verification']['fold_accuracy']) == 10
    assert drawn(out / 'errors.png')


def test_fgnet_with_distractors_and_morph_with_its_list(weights, tmp_path, monkeypatch):
    for person in range(1, 6):
        for age in (3, 20, 40):
            face(tmp_path / 'fgnet' / f'{person:03d}A{age:02d}.JPG', 100 * person + age)
    for k in range(7):
        face(tmp_path / 'others' / str(k % 2) / f'{k}.jpg', k)
    monkeypatch.setitem(evaluate.READERS, 'fgnet', lambda path: protocols.fgnet(path, 15, 5))
    line = -1, weights[0], 'fgnet', tmp_path / 'fgnet', '--distractors', tmp_path / 'others'
    run(*line, '--out', tmp_path / 'out')
    result, report = result_of(tmp_path / 'out'), report_of(tmp_path / 'out')
    assert result['benchmark'] == 'fgnet-7-distractors' and report['megaface']['distractors'] == 7
    assert report['megaface']['cmc'][7] == 1 and drawn(tmp_path / 'out' / 'cmc.png')
    for person in range(6):
        for picture, age in enumerate((20, 31, 44)):
            face(tmp_path / 'morph' / f'{person:06d}_{picture}M{age}.JPG', 10 * person + picture)
    run(-1, weights[0], 'morph', tmp_path / 'morph', '--subjects', 4, '--out', tmp_path / 'list')
    report = report_of(tmp_path / 'list')
    assert report['rank1_probes'] == 4 and report['images'] == 8
    assert len((tmp_path / 'list' / 'subjects.txt').read_text().splitlines()) == 4
    assert len(report['list_sha256']) == 64


def test_stored_vectors_are_a_benchmark(weights, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 4)
    rows = {'embeddings': rng.normal(size=(20, 16))[labels] + 0.3 * rng.normal(size=(80, 16))}
    rows |= {'identities': labels, 'ages': rng.uniform(0, 80, 80)}
    np.savez(tmp_path / 'v.npz', **rows)
    run('embeddings', tmp_path / 'v.npz', '--out', tmp_path / 'plain')
    run(-1, weights[0], 'embeddings', tmp_path / 'v.npz', '--out', tmp_path / 'by-weights')
    plain, split = (report_of(tmp_path / name) for name in ('plain', 'by-weights'))
    assert plain['rank1'] > 0.9 and list(plain['leakage']['age']) == ['x']
    assert list(split['leakage']['age']) == ['x', 'x_age', 'x_id']
    assert plain['leakage']['age']['x'] == split['leakage']['age']['x']
    assert (tmp_path / 'plain' / 'report.html').exists()
    for key in ('ages', 'identities'):
        np.savez(tmp_path / 'v.npz', **{name: rows[name] for name in rows if name != key})
        refused(f'v.npz: it holds no array `{key}`', run, 'embeddings', tmp_path / 'v.npz')
    np.savez(tmp_path / 'v.npz', **rows | {'embeddings': np.ones((80, 5))})
    line = -1, weights[0], 'embeddings', tmp_path / 'v.npz'
    refused('have 5 values, the weights 16', run, *line)


def test_command_lines_and_what_is_missing_are_one_line(capsys, weights, tmp_path):
    wrong = {'0 1 a.pth lfw x': 'expected `ctx weights`', '-1 a.pth nonsense x': 'invalid choice'}
    wrong |= {'a.pth b.pth lfw x': 'expected `ctx weights`', '--compare a.pth lfw x': 'two or more'}
    for line, why in (wrong | {'-1 a.pth lfw x --distractors y': 'belong to fgnet'}).items():
        with pytest.raises(SystemExit):
            evaluate.arguments(line.split())
        assert why in capsys.readouterr().err
    for line in ('--compare a b c 2', '2 --compare a b c', '--compare a b c'):
        args = evaluate.arguments([*line.split(), 'lfw', 'x'])
        assert args.weights == ['a', 'b', 'c'] and args.ctx == (2 if '2' in line else -1)
        assert (args.benchmark, args.path) == ('lfw', 'x')
    for benchmark in evaluate.READERS:
        refused(str(tmp_path), run, -1, weights[0], benchmark, tmp_path / 'nowhere')
