"""What meta.py says of a data set, and ages in the file names of the field."""

import pytest
from conftest import refused

import meta
from dataset import check_entry
from storage.images import parse_age

NAMES = [('demo', '000_12.jpg', 12), ('demo', '000_0.jpg', 0), ('fgnet', '001A02.JPG', 2)]
NAMES += [('fgnet', '001A43a.JPG', 43), ('agedb', '0_MariaCallas_35_f.jpg', 35)]
NAMES += [('morph', '009055_1M54.JPG', 54), ('morph', '123456_02F27.JPG', 27)]
NAMES += [('cacd2000', '53_Robert_Duvall_0001.jpg', 53)]
NAMES += [('cacd2000', '39_1_20170116174525125.jpg.chip.jpg', 39)]  # UTKFace's


@pytest.mark.parametrize('template, name, age', NAMES)
def test_templates_of_meta(template, name, age):
    entry = getattr(meta, template)
    check_entry(template, entry, meta.age_cutoffs)
    assert parse_age(name, entry['pat'], entry['pos']) == age


def test_ages_with_decimals_and_counted_from_the_end():
    assert parse_age('000_12.5_x.jpg', '_', 1) == 12.5
    assert parse_age('000_120.jpg', r'_|\.', -2) == 120


WITHOUT = dict.fromkeys(('000.jpg', '000_.jpg', '000_nan.jpg', '000_1e1.jpg'), 'no age')
WITHOUT |= dict.fromkeys(('000_-3.jpg', '000_1٢.jpg'), 'no age')
WITHOUT |= {'000_121.jpg': 'between 0 and 120', '000': 'no position 1'}


@pytest.mark.parametrize('name, why', WITHOUT.items())
def test_names_without_an_age(name, why):
    with pytest.raises(ValueError, match=why):
        parse_age(name, r'_|\.', 1)


GOOD = {'train_root': 'a', 'val_root': None, 'pat': '_', 'pos': 1, 'n_cls': 2}


BAD = [({'train_rot': 'a'}, "'train_rot'; did you mean 'train_root'")]
BAD += [({'pat': '('}, 'no regular expression'), ({'pos': '1'}, 'whole number')]
BAD += [({'n_cls': True}, 'whole number'), ({'train_root': None}, 'a folder')]
BAD += [({'val_root': 3}, 'a folder, shards, a list, or None')]


@pytest.mark.parametrize('change, message', BAD)
def test_bad_entries(change, message):
    entry = GOOD | change
    refused('^meta.py, yours: .*' + message, check_entry, 'yours', entry, meta.age_cutoffs)


@pytest.mark.parametrize('key', GOOD)
def test_missing_keys(key):
    entry = {k: v for k, v in GOOD.items() if k != key}
    said = f"meta.py, yours: the key '{key}' is missing"
    refused(said, check_entry, 'yours', entry, meta.age_cutoffs)


def test_a_list_says_the_ages_itself(tmp_path):
    entry = {'train_root': str(tmp_path / 'a.csv'), 'val_root': None}
    assert check_entry('yours', entry, meta.age_cutoffs)['n_cls'] is None
    folder = entry | {'val_root': str(tmp_path)}
    refused("the key 'pat' is missing", check_entry, 'yours', folder, meta.age_cutoffs)
    assert check_entry('yours', folder | {'pat': '_', 'pos': 1}, meta.age_cutoffs)['pos'] == 1


@pytest.mark.parametrize('cutoffs', [(), (12, 12), (18, 12), ('a',)])
def test_bad_cutoffs(cutoffs):
    refused('age_cutoffs', check_entry, 'yours', GOOD, cutoffs)
