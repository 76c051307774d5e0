"""What meta.py says of a data set, and ages in the file names of the field."""

import pytest

import meta
from dataset import check_entry
from storage.images import parse_age
from utils import DataError

NAMES = [  # file name, pat, pos, age, as in the field's sets
    ('000_12.jpg', r'_|\.', 1, 12),
    ('001A02.JPG', r'[A-Za-z.]+', 1, 2),
    ('001A43a.JPG', r'[A-Za-z.]+', 1, 43),
    ('009055_1M54.JPG', r'[MF_.]', 2, 54),
    ('123456_02F27.JPG', r'[MF_.]', 2, 27),
    ('53_Robert_Duvall_0001.jpg', '_', 0, 53),
    ('0_MariaCallas_35_f.jpg', '_', 2, 35),
    ('39_1_20170116174525125.jpg.chip.jpg', '_', 0, 39),
    ('000_12.5_x.jpg', '_', 1, 12.5),
    ('000_0.jpg', r'_|\.', 1, 0),
    ('000_120.jpg', r'_|\.', -2, 120),
]


@pytest.mark.parametrize('name, pat, pos, age', NAMES)
def test_ages_in_the_names_of_the_field(name, pat, pos, age):
    assert parse_age(name, pat, pos) == age


@pytest.mark.parametrize(
    'template, name, age',
    [
        ('demo', '000_12.jpg', 12),
        ('fgnet', '001A43a.JPG', 43),
        ('morph', '009055_1M54.JPG', 54),
        ('cacd2000', '53_Robert_Duvall_0001.jpg', 53),
        ('agedb', '0_MariaCallas_35_f.jpg', 35),
    ],
)
def test_templates_of_meta(template, name, age):
    entry = getattr(meta, template)
    check_entry(template, entry, meta.age_cutoffs)
    assert parse_age(name, entry['pat'], entry['pos']) == age


@pytest.mark.parametrize(
    'name, why',
    [
        ('000.jpg', 'no age'),
        ('000_.jpg', 'no age'),
        ('000_nan.jpg', 'no age'),
        ('000_1e1.jpg', 'no age'),
        ('000_-3.jpg', 'no age'),
        ('000_1٢.jpg', 'no age'),
        ('000_121.jpg', 'between 0 and 120'),
        ('000', 'no position 1'),
    ],
)
def test_names_without_an_age(name, why):
    with pytest.raises(ValueError, match=why):
        parse_age(name, r'_|\.', 1)


GOOD = {'train_root': 'a', 'val_root': None, 'pat': '_', 'pos': 1, 'n_cls': 2}


@pytest.mark.parametrize(
    'change, message',
    [
        ({'train_rot': 'a'}, "'train_rot'; did you mean 'train_root'"),
        ({'pat': '('}, 'no regular expression'),
        ({'pos': '1'}, 'whole number'),
        ({'n_cls': True}, 'whole number'),
        ({'train_root': None}, 'a folder'),
        ({'val_root': 3}, 'a folder, shards, a list, or None'),
    ],
)
def test_bad_entries(change, message):
    with pytest.raises(DataError, match='^meta.py, yours: .*' + message):
        check_entry('yours', GOOD | change, meta.age_cutoffs)


@pytest.mark.parametrize('key', GOOD)
def test_missing_keys(key):
    with pytest.raises(DataError, match=f"meta.py, yours: the key '{key}' is missing"):
        check_entry('yours', {k: v for k, v in GOOD.items() if k != key}, meta.age_cutoffs)


def test_a_list_says_the_ages_itself(tmp_path):
    entry = {'train_root': str(tmp_path / 'a.csv'), 'val_root': None}
    assert check_entry('yours', entry, meta.age_cutoffs)['n_cls'] is None
    folder = entry | {'val_root': str(tmp_path)}
    with pytest.raises(DataError, match="the key 'pat' is missing"):
        check_entry('yours', folder, meta.age_cutoffs)
    assert check_entry('yours', folder | {'pat': '_', 'pos': 1}, meta.age_cutoffs)['pos'] == 1


@pytest.mark.parametrize('cutoffs', [(), (12, 12), (18, 12), ('a',)])
def test_bad_cutoffs(cutoffs):
    with pytest.raises(DataError, match='age_cutoffs'):
        check_entry('yours', GOOD, cutoffs)
