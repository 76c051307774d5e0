"""Ages, dates and names as people's tables have them."""

import pytest

from preparation.tables import Table
from utils import DataError


@pytest.mark.parametrize(
    'age', ['30', '30.5', '30,5', '30 years', '30 Years old', '30yrs', '30y', '30 y/o', ' 30 yr. ']
)
def test_ways_to_write_an_age(tmp_path, age):
    (tmp_path / 'a.csv').write_text(f'path;age\nA/1.jpg;{age}\n')
    assert Table(tmp_path / 'a.csv').age('A/1.jpg', None, None) == 30


def test_decimal_commas_without_a_line_of_names(tmp_path):
    """Of a semicolon and a comma, one each, the semicolon separates."""
    (tmp_path / 'a.csv').write_text('A/1.jpg;30,5\nA/2.jpg;31,5\n')
    assert Table(tmp_path / 'a.csv').age('A/2.jpg', None, None) == 31


def write_dates(folder, *births, taken='2010-12-20'):
    rows = ''.join(f'{k}.jpg,{birth},{taken}\n' for k, birth in enumerate(births))
    (folder / 'a.csv').write_text('path,birth,taken\n' + rows)
    return folder / 'a.csv'


@pytest.mark.parametrize(
    'births, years',
    [
        (['21.12.1983', '20.12.1983'], [26, 27]),  # dots: the day is first
        (['21/12/1983', '11/12/1983', '01/01/1983'], [26, 27, 27]),  # as the 21st tells
        (['12/21/1983', '12/11/1983'], [26, 27]),  # as the 21st tells
        (['12-21-1983 00:00', '1983-12-21'], [26, 26]),
        (['05/05/1983', '31/31/1983', '1983'], [27, None, 27]),
    ],
)
def test_dates_that_begin_with_the_day_or_the_month(tmp_path, births, years):
    table = Table(write_dates(tmp_path, *births))
    for k, age in enumerate(years):
        if age is None:
            with pytest.raises(ValueError, match='is no date'):
                table.age(f'{k}.jpg', None, None)
        else:
            assert table.age(f'{k}.jpg', None, None) == age
    assert Table(write_dates(tmp_path, '1983-12-21', taken='20.12.2010')).age('0.jpg', '', '') == 26


@pytest.mark.parametrize(
    'births',
    [
        ['01/05/1980', '02/05/1980'],
        [
            '13/05/1980',
            '05/13/1980',
            '01/05/1980',
            '02/05/1980',
            '03/05/1980',
            '04/05/1980',
            '1/2/1980',
        ],
    ],
)
def test_dates_that_may_begin_with_either(tmp_path, births):
    with pytest.raises(
        DataError,
        match="a.csv: . of . ages can't be read, as that of .*1/0?./1980"
        "' is no date: day or month first\\? Write 1980-12-21",
    ):
        Table(write_dates(tmp_path, *births))


def test_ages_that_are_mostly_none(tmp_path):
    """Said once of the table; a few are said of their photographs."""
    file = tmp_path / 'a.csv'
    file.write_text('path,age\na,young\nb,old\nc,30\nd,\n')
    with pytest.raises(DataError, match="a.csv: 2 of 3 ages can't be read, .* of a: .*'young'"):
        Table(file)
    file.write_text('path,age\na,young\nb,31\nc,30\nd,\n')
    assert Table(file).age('c', None, None) == 30
    with pytest.raises(ValueError, match="'young'"):
        Table(file).age('a', None, None)
    file.write_text('path,age\n' + ''.join(f'{k},{1980 + k}\n' for k in range(3)))
    with pytest.raises(DataError, match='3 of 3 ages .*1980 is no age between 0 and 120'):
        Table(file)


def test_names_in_latin_1(tmp_path):
    """They are found where the photographs have the names that they stand for, else it is said."""
    (tmp_path / 'a.csv').write_bytes('path,age\nZoë/ä.jpg,12\nA/1.jpg,13\n'.encode('cp1252'))
    table = Table(tmp_path / 'a.csv')
    table.check([('Zoë/ä.jpg', 'Zoë'), ('A/1.jpg', 'A')])
    assert table.age('Zoë/ä.jpg', None, None) == 12 and table.age('A/1.jpg', None, None) == 13
    (tmp_path / 'b.csv').write_bytes('path,age\nИра/1.jpg,12\nA/1.jpg,13\n'.encode('cp1251'))
    table = Table(tmp_path / 'b.csv')
    table.check([('A/1.jpg', 'A')])
    with pytest.raises(
        DataError,
        match='b.csv: not UTF-8, and .* fit no photograph, where .* has '
        'Ира/1.jpg: save it as UTF-8',
    ):
        table.check([('A/1.jpg', 'A'), ('Ира/1.jpg', 'Ира')])
    (tmp_path / 'c.csv').write_bytes(b'person,age\nZo\xeb,12\nA,13\n')
    assert Table(tmp_path / 'c.csv').age('Zoë/1.jpg', 'Zoë', None) == 12
    raw = 'Zo\udceb/1.jpg'  # and where the disk has the same bytes
    (tmp_path / 'd.csv').write_bytes(b'path,age\nZo\xeb/1.jpg,12\n')
    assert Table(tmp_path / 'd.csv').age(raw, None, None) == 12


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-be'])
def test_encodings_of_tables(tmp_path, encoding):
    text = 'path,age\nZoë/ä.jpg,12\n'
    mark = '\ufeff' if encoding == 'utf-16-be' else ''
    (tmp_path / 'a.csv').write_bytes((mark + text).encode(encoding))
    assert Table(tmp_path / 'a.csv').age('Zoë/ä.jpg', None, None) == 12
