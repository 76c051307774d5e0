"""Who and how old by names and tables; the five points by files."""

import numpy as np
import pytest
from photographs import fgnet_marks, ibug_marks, points_csv, pts
from PIL import Image

from preparation.alignment import TEMPLATE
from preparation.labels import NAMES, Named, person_in, years_between
from preparation.landmarks import Landmarks, five_points
from preparation.tables import Table
from utils import DataError


@pytest.mark.parametrize(
    'kind, name, person, age',
    [('plain', '000_12.jpg', None, 12), ('fgnet', '001A43a.JPG', '001', 43),
     ('fgnet', '082a05.jpg', '082', 5), ('morph', '009055_1M54.JPG', '009055', 54),
     ('cacd2000', '53_Robert_Duvall_0001.jpg', 'Robert_Duvall', 53),
     ('agedb', '0_MariaCallas_35_f.jpg', 'MariaCallas', 35),
     ('utkface', '39_1_20170116174525125.jpg.chip.jpg', None, 39),
     ('imdb-wiki', 'nm0000002_rm221957120_1983-12-21_2010.jpg', 'nm0000002', 27),
     ('imdb-wiki', '10000217_1981-05-05_2009.jpg', '10000217', 28)])
def test_names(kind, name, person, age):
    assert person_in(name, kind) == person and Named(kind).age(f'x/{name}', None, None) == age


@pytest.mark.parametrize('kind', NAMES)
def test_other_names_have_no_age(kind):
    with pytest.raises(ValueError):
        Named(kind).age('IMG-holiday.jpg', None, None)


def test_impossible_ages():
    for kind, name in (('plain', '000_121.jpg'), ('imdb-wiki', 'nm1_rm1_1983-12-21_1950.jpg'),
                       ('imdb-wiki', 'nm1_rm1_1800-1-1_1990.jpg')):
        with pytest.raises(ValueError, match='no age between 0 and 120'):
            Named(kind).age(name, None, None)


@pytest.mark.parametrize('birth, taken, years', [('1983-12-21', '2010-12-20', 26),
                                                 ('1983-12-21', '2010-12-21', 27),
                                                 ('1983-12-21', '2010', 27),
                                                 ('1983', '2010-01-01', 27),
                                                 ('1983-12-21', '2010:12:20 23:59:59', 26),
                                                 ('1899-0-0', '1930-5-1', 31),
                                                 ('2010-05-01', '2010-06-01', 0)])
def test_years_between(birth, taken, years):
    assert years_between(birth, taken) == years


@pytest.mark.parametrize('birth, taken', [('yesterday', '2010'), ('1983-12-21', ''),
                                          ('0000', '1990'), ('2010', '1983')])
def test_no_dates(birth, taken):
    with pytest.raises(ValueError):
        years_between(birth, taken)


def test_tables(tmp_path):
    file = tmp_path / 'a.csv'
    image = Image.new('RGB', (4, 4))
    exif = image.getexif()
    exif.get_ifd(0x8769)[0x9003] = '2001:02:03 04:05:06'
    image.info['exif'] = exif.tobytes()
    for text, relative, age in (('path,age\nA/1.jpg,12\n', 'A/1.jpg',
                                 12), ('A/1.jpg,12\n', 'A/1.jpg',
                                       12), ('path;age\n./A/1.jpg;12.7\n', 'A/1.jpg',
                                             12), ('age,path\n12,1.jpg\n', 'A/1.jpg', 12),
                                ('\ufeffpath,birth,taken\nA/1.jpg,1980-05-05,1990-05-04\n',
                                 'A/1.jpg', 9), ('person,birth\nA,1980-05-05\n', 'A/1.jpg', 20),
                                ('person\tbirth\ttaken\nA\t1980\t\n', 'A/1.jpg', 21)):
        file.write_text(text)
        assert Table(file).age(relative, 'A', image) == age, text
    for text, reason in (('path,age\nB/1.jpg,12\n', 'no row'),
                         ('path,age\nA/1.jpg,twelve\n', "'twelve'"), ('path,age\nA/1.jpg,200\n',
                                                                      'between')):
        file.write_text(text)
        with pytest.raises(ValueError, match=reason):
            Table(file).age('A/1.jpg', 'A', image)
    file.write_text('person,birth\nA,1980-05-05\n')
    with pytest.raises(ValueError, match='no date of capture'):
        Table(file).age('A/1.jpg', 'A', Image.new('RGB', (4, 4)))
    for text, reason in (('', 'empty'), ('name,years\nA,12\n', 'expected columns'),
                         ('path,age\na,1\na,2\n', 'two different rows')):
        file.write_text(text)
        with pytest.raises(DataError, match=reason):
            Table(file)
    with pytest.raises(DataError, match='No such file'):
        Table(tmp_path / 'nowhere.csv')


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
    for name, reason in (('x/odd.jpg', 'odd.pts: not a .pts file'), ('x/none.jpg',
                                                                     'no points for it')):
        with pytest.raises(ValueError, match=reason):
            marks.of(name)
    assert np.abs(
        Landmarks(points_csv(tmp_path / 'p.csv', {'A/1.jpg': points})).of('A/1.jpg')
        - points).max() < 1e-2
    (tmp_path / 'bad.csv').write_text('path,x1\nA/1.jpg,3\n')
    (tmp_path / 'none').mkdir()
    for where, reason in ((tmp_path / 'bad.csv', 'expected path, x1'),
                          (tmp_path / 'none', 'no .pts files'), (tmp_path / 'nowhere',
                                                                 'No such file')):
        with pytest.raises(DataError, match=reason):
            Landmarks(where)
