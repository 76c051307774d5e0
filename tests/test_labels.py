"""Who and how old by names and tables, as people have them; the five points by files."""

import datetime
import unicodedata

import numpy as np
import pytest
from conftest import invalid, refused
from photographs import fgnet_marks, ibug_marks, points_csv, pts
from PIL import Image
from scipy.io import savemat

import prepare
from preparation.labels import NAMES, age_in, fields_in, years_between
from preparation.landmarks import Landmarks, five_points
from preparation.tables import Table
from recognition.alignment import TEMPLATE

FILES = {  # kind: file names, and the person and the age in them
    'plain': [('000_12.jpg', None, 12)],
    'fgnet': [('001A43a.JPG', '001', 43), ('082a05.jpg', '082', 5), ('001A43a_0.JPG', '001', 43)],
    'morph': [('009055_1M54.JPG', '009055', 54), ('009055_1M54_crop.JPG', '009055', 54)],
    'agedb': [(f'0_MariaCallas_35_f{end}.jpg', 'MariaCallas', 35) for end in ('', '_0')],
    'utkface': [(f'39_1_2017011617{end}.jpg', None, 39) for end in ('.jpg.chip', '_face')],
    'imdb-wiki': [
        ('nm0000002_rm221957120_1983-12-21_2010.jpg', 'nm0000002', 27),
        ('10000217_1981-05-05_2009.jpg', '10000217', 28),
        ('10000217_1981-05-05_2009_0.jpg', '10000217', 28),
    ],
    'cacd2000': [
        ('53_Robert_Duvall_0001.jpg', 'Robert_Duvall', 53),
        ('41_50_Cent_0001.jpg', '50_Cent', 41),
        ('41_Apollo_13_0001_0.jpg', 'Apollo_13', 41),
    ],
}
# as an aligner leaves them
ENDS = '0001_0', '0001-aligned', '0001_000', '0001 (1)', '1'
FILES['cacd2000'] += [(f'41_Some_Body_{end}.jpg', 'Some_Body', 41) for end in ENDS]


def test_names_years_and_impossible_ages():
    for kind in NAMES:
        for name, person, age in FILES[kind]:
            assert fields_in(name, kind).get('person') == person
            assert age_in(name, kind) == age
        with pytest.raises(ValueError):
            age_in('IMG-holiday.jpg', kind)
    for birth, taken, years in YEARS:
        assert years_between(birth, taken) == years
    for birth, taken in NO_DATES:
        with pytest.raises(ValueError):
            years_between(birth, taken)
    names = 'nm1_rm1_1983-12-21_1950.jpg', 'nm1_rm1_1800-1-1_1990.jpg'
    for kind, name in (('plain', '000_121.jpg'), *(('imdb-wiki', name) for name in names)):
        invalid('no age between 0 and 120', age_in, name, kind)


YEARS = [('1983-12-21', '2010-12-20', 26), ('1983-12-21', '2010-12-21', 27)]
YEARS += [('1983-12-21', '2010', 27), ('1983', '2010-01-01', 27), ('1899-0-0', '1930-5-1', 31)]
YEARS += [('1983-12-21', '2010:12:20 23:59:59', 26), ('2010-05-01', '2010-06-01', 0)]
NO_DATES = [('yesterday', '2010'), ('1983-12-21', ''), ('0000', '1990'), ('2010', '1983')]
NO_DATES += [('1980-13-45', '2010'), ('1980-13-0', '2010'), ('1980', '2001-02-30')]


TABLES = {  # what is in it: the age of A/1.jpg, or why it has none
    'path,age\nA/1.jpg,12\n': 12,
    'A/1.jpg,12\n': 12,
    'path;age\n./A/1.jpg;12.7\n': 12,
    'age,path\n12,1.jpg\n': 12,
    '\ufeffpath,birth,taken\nA/1.jpg,1980-05-05,1990-05-04\n': 9,
    'person,birth\nA,1980-05-05\n': 20,
    'person\tbirth\ttaken\nA\t1980\t\n': 21,
    'path,age\nB/1.jpg,12\n': 'no row',
    'path,age\nA/1.jpg,twelve\n': "'twelve'",
    'path,age\nA/1.jpg,200\n': 'between',
}
PATHS = 'A\\1.jpg', './A/1.jpg', '/data/set/A/1.jpg', '1.jpg'
TABLES |= {f'path,age\n{path},12\n': 12 for path in PATHS}
AGES = '30', '30.5', '30,5', '30 years', '30 Years old', '30yrs', '30y', '30 y/o', ' 30 yr. '
TABLES |= {f'path;age\nA/1.jpg;{age}\n': 30 for age in AGES}
# of a semicolon and a comma, one each, the semicolon separates
TABLES |= {'A/1.jpg;30,5\nA/2.jpg;31,5\n': 30}
POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'
NO_TABLES = [('', 'the table is empty'), ('name,years\nA,12\n', 'expected columns')]
NO_TABLES += [('path,age\na,1\na,2\n', 'two different rows'), (b'PK\3\4zip', 'a zip archive')]
NO_TABLES += [('path,age, Age\na,1,2\n', "2 columns 'age'"), (b'\xff\xfea', 'expected columns')]
NO_TABLES += [(POINTER, 'git lfs pull'), ('\n<!DOCTYPE html><html>', 'a web page')]
NO_TABLES += [(b'\x1f\x8b\x08', 'gzip'), (b'\0\1\2', 'no text file')]


@pytest.fixture
def table(tmp_path):
    """Makes the Table of a file that holds this text, or these bytes."""

    def make(data, name='a.csv'):
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return Table(tmp_path / name, '/data/set')

    return make


def test_tables_and_files_that_are_none_or_have_no_date(tmp_path, table):
    exif, image = Image.Exif(), str(tmp_path / 'dated.jpg')
    exif.get_ifd(0x8769)[0x9003] = '2001:02:03 04:05:06'
    Image.new('RGB', (4, 4)).save(image, exif=exif)
    for text, age in TABLES.items():
        if isinstance(age, int):
            assert table(text).age('A/1.jpg', 'A', image) == age
        else:
            with pytest.raises(ValueError, match=age):
                table(text).age('A/1.jpg', 'A', image)
    for data, reason in NO_TABLES:
        refused(f'a.csv: .*{reason}', table, data)
    refused('a.xlsx: .*save it as CSV', table, b'PK\3\4', 'a.xlsx')
    refused('a.xls: .*save it as CSV', table, b'\xd0\xcf\x11\xe0', 'a.xls')
    refused('No such file', Table, tmp_path / 'nowhere.csv')
    invalid('no date of capture', table('person,birth\nA,1980-05-05\n').age, 'A/1.jpg', 'A', None)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-be'])
def test_accents_in_any_form_and_encoding(table, encoding):
    forms = [unicodedata.normalize(form, 'Zoë/ä.jpg') for form in ('NFC', 'NFD')]
    for row in forms:
        text = ('\ufeff' if encoding == 'utf-16-be' else '') + f'path,age\n{row},12\n'
        known = table(text.encode(encoding))
        assert [known.age(relative, None, None) for relative in forms] == [12, 12]


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'a.csv').write_text('path,age\n~/set/A/1.jpg,12\n')
    assert Table(tmp_path / 'a.csv', tmp_path / 'set').age('A/1.jpg', None, None) == 12
    args = prepare.arguments(['~/set', '~/out', '--ages', '~/a.csv', '--landmarks=~/points'])
    paths = [str(tmp_path / name) for name in ('set', 'out', 'a.csv', 'points')]
    assert [*args.folders, *args.ages, args.landmarks] == paths


def test_a_table_that_does_not_fit_and_names_in_latin_1(table):
    """Bare names that fit several photographs, and names that fit none, are refused before work."""
    paths, people = table('path,age\n1.jpg,12\n2.jpg,13\n'), table('person,age\nA,12\n')
    paths.check([('A/1.jpg', 'A'), ('B/2.jpg', 'B')])
    both = [('A/1.jpg', 'A'), ('B/1.jpg', 'B')]
    refused('1.jpg fits A/1.jpg, B/1.jpg: write the folders too', paths.check, both)
    reason = "of its 2 rows fits: it has 1.jpg, where /data/set has 'x/y'"
    refused(reason, paths.check, [('x/y', 'x')])
    people.check([('A/1.jpg', 'A'), ('A/2.jpg', 'A')])
    refused("has 'B': write each person", people.check, both[1:])
    known = table('path,age\nZoë/ä.jpg,12\nA/1.jpg,13\n'.encode('cp1252'))
    known.check([('Zoë/ä.jpg', 'Zoë'), ('A/1.jpg', 'A')])
    assert known.age('Zoë/ä.jpg', None, None) == 12 and known.age('A/1.jpg', None, None) == 13
    known = table('path,age\nИра/1.jpg,12\nA/1.jpg,13\n'.encode('cp1251'))
    known.check([('A/1.jpg', 'A')])
    reason = 'a.csv: not UTF-8, and .* fit no photograph, where .* has Ира/1.jpg: save it as UTF-8'
    refused(reason, known.check, [('A/1.jpg', 'A'), ('Ира/1.jpg', 'Ира')])
    assert table(b'person,age\nZo\xeb,12\nA,13\n').age('Zoë/1.jpg', 'Zoë', None) == 12
    # and where the disk has the same bytes
    assert table(b'path,age\nZo\xeb/1.jpg,12\n').age('Zo\udceb/1.jpg', None, None) == 12


def matlab_day(text):
    """MATLAB's number of a day: 1 is the first of January of the year 0."""
    return datetime.date.fromisoformat(text).toordinal() + 366


def cells(*values):
    return np.array(values, object)


def test_mat_files(tmp_path):
    """The published layout: a struct of rows, with paths in cells; a birth of 0 is none."""
    paths = cells('17/10000217_1981-05-05_2009.jpg', '48/10000548_1925-04-04_1964.jpg', 'x/n.jpg')
    assert matlab_day('2000-01-01') == 730486  # as MATLAB's own documentation has it
    struct = {
        'dob': np.array([matlab_day('1981-05-05'), matlab_day('1925-04-04'), 0.0]),
        'photo_taken': np.array([2009, 1964, 2000], np.uint16),
        'full_path': paths,
        'gender': np.array([1.0, np.nan, 0.0]),
        'name': cells('Sami', 'D', 'N'),
    }
    savemat(tmp_path / 'wiki.mat', {'wiki': struct})
    table = Table(tmp_path / 'wiki.mat')
    for path, age in zip(paths[:2], (28, 39), strict=True):
        assert table.age(path, None, None) == age
        # as the names of these files tell it too
        assert age_in(path.split('/')[1], 'imdb-wiki') == age
    invalid('no date', table.age, 'x/n.jpg', None, None)
    names = cells('53_Robert_Duvall_0001.jpg', '23_A_B_0002.jpg')
    people = {'name': cells('Robert Duvall'), 'birth': np.array([1931])}
    images = {'name': names, 'age': np.array([53, 23]), 'year': np.array([1, 2])}
    savemat(tmp_path / 'cacd.mat', {'celebrityData': people, 'celebrityImageData': images})
    assert Table(tmp_path / 'cacd.mat').age('Robert_Duvall/' + names[0], None, None) == 53
    savemat(tmp_path / 'own.mat', {'path': names, 'age': np.array([7.0, 8.5])})
    assert Table(tmp_path / 'own.mat').age(names[1], None, None) == 8
    savemat(tmp_path / 'other.mat', {'x': np.zeros(3)})
    (tmp_path / 'new.mat').write_bytes(b'MATLAB 7.3 MAT-file, Platform: GLNXA64')
    (tmp_path / 'cut.mat').write_bytes((tmp_path / 'own.mat').read_bytes()[:150])
    refused('other.mat: holds x; expected full_path', Table, tmp_path / 'other.mat')
    refused("new.mat: .*'-v7'", Table, tmp_path / 'new.mat')
    refused('cut.mat: not readable as a .mat file', Table, tmp_path / 'cut.mat')
    refused('gone.mat: No such file', Table, tmp_path / 'gone.mat')


def test_landmark_files_and_names_that_fit_two_people(tmp_path):
    points = TEMPLATE * 2 + 30
    for marks in (points, points[[1, 0, 2, 4, 3]], fgnet_marks(points), ibug_marks(points)):
        assert np.abs(five_points(marks) - points).max() < 1e-9
    invalid('21 points', five_points, np.zeros((21, 2)))
    points = TEMPLATE * 2 + 30
    (tmp_path / 'points').mkdir()
    (tmp_path / 'points' / '001a02.pts').write_text(pts(fgnet_marks(points)))
    (tmp_path / 'points' / 'odd.pts').write_text('hello')
    marks = Landmarks(tmp_path / 'points')
    assert np.abs(marks.of('x/001A02.JPG') - points).max() < 1e-2
    for name, reason in (('odd', 'odd.pts: not a .pts file'), ('none', 'no points for it')):
        invalid(reason, marks.of, f'x/{name}.jpg')
    marks = Landmarks(points_csv(tmp_path / 'p.csv', {'A/1.jpg': points}))
    assert np.abs(marks.of('A/1.jpg') - points).max() < 1e-2
    (tmp_path / 'bad.csv').write_text('path,x1\nA/1.jpg,3\n')
    (tmp_path / 'none').mkdir()
    refused('expected path, x1', Landmarks, tmp_path / 'bad.csv')
    refused('no .pts files', Landmarks, tmp_path / 'none')
    refused('No such file', Landmarks, tmp_path / 'nowhere')
    for person, shift in (('A', 0), ('B', 5)):
        (tmp_path / 'points' / person).mkdir(parents=True)
        (tmp_path / 'points' / person / '1.pts').write_text(pts(points + shift))
    marks = Landmarks(tmp_path / 'points')
    marks.check(['A/1.jpg', 'B/1.jpg'])
    assert np.abs(marks.of('B/1.jpg') - points - 5).max() < 1e-2
    invalid('no points for it', marks.of, 'C/1.jpg')
    bare = Landmarks(points_csv(tmp_path / 'p.csv', {'1.jpg': points}))
    refused('1.jpg fits A/1.jpg, B/1.jpg', bare.check, ['A/1.jpg', 'B/1.jpg'])
    (tmp_path / 'twice.csv').write_text(2 * ('1.jpg' + 10 * ',3' + '\n'))
    refused('two rows for 1.jpg', Landmarks, tmp_path / 'twice.csv')


def dates(births, taken='2010-12-20'):
    rows = [f'{k}.jpg,{birth},{taken}\n' for k, birth in enumerate(births)]
    return 'path,birth,taken\n' + ''.join(rows)


DATES = [(['21.12.1983', '20.12.1983'], [26, 27])]  # dots: the day is first
DATES += [(['21/12/1983', '11/12/1983', '01/01/1983'], [26, 27, 27])]  # as the 21st tells
DATES += [(['12/21/1983', '12/11/1983'], [26, 27]), (['12-21-1983 00:00', '1983-12-21'], [26, 26])]
DATES += [(['05/05/1983', '31/31/1983', '1983'], [27, 'is no date', 27])]


def test_dates_that_begin_with_the_day_or_the_month_and_ages_that_are_none(table):
    for births, years in DATES:
        known = table(dates(births))
        for k, age in enumerate(years):
            if isinstance(age, int):
                assert known.age(f'{k}.jpg', None, None) == age
            else:
                invalid(age, known.age, f'{k}.jpg', None, None)
        assert table(dates(['1983-12-21'], '20.12.2010')).age('0.jpg', None, None) == 26
    reason = "1/0?./1980' is no date: day or month first\\? Write 1980-12-21"
    reason = f"a.csv: . of . ages can't be read, as that of .*{reason}"
    for births in ('01/05/1980 02/05/1980', LONG):
        refused(reason, table, dates(births.split()))
    reason = "a.csv: 2 of 3 ages can't be read, .* of a: .*'young'"
    refused(reason, table, 'path,age\na,young\nb,old\nc,30\nd,\n')
    known = table('path,age\na,young\nb,31\nc,30\nd,\n')
    assert known.age('c', None, None) == 30
    invalid("'young'", known.age, 'a', None, None)
    reason = '3 of 3 ages .*1980 is no age between 0 and 120'
    refused(reason, table, 'path,age\na,1980\nb,1981\nc,1982\n')


LONG = '13/05/1980 05/13/1980 01/05/1980 02/05/1980 03/05/1980 04/05/1980 1/2/1980'
