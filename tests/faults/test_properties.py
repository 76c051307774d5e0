"""What holds for whatever is put in: hypothesis looks for what breaks it."""

import contextlib
import dataclasses
import re
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import utils
from dataset import Faces
from evaluation import protocols
from evaluation.pair_files import read_bin
from recognition.weights import load_checkpoint, save_checkpoint
from storage.images import parse_age
from training.recipe import paper
from utils import DataError

repeatable = dict(deadline=None, derandomize=True, database=None)
few = settings(max_examples=60, suppress_health_check=list(HealthCheck), **repeatable)
ages = st.one_of(st.integers(0, 120).map(str), st.decimals(0, 120, places=2).map(str))
odd = st.text('0123456789_.AaMF-e²٣\n', max_size=20)
names = st.text(st.characters(codec='utf-8'), max_size=30) | odd


@few
@given(st.text('abcXYZ0123456789', max_size=8), ages, st.sampled_from(['_', '[_M]', '[_x]+']))
def test_an_age_that_is_written_is_the_age_that_is_read(subject, age, pat):
    assert parse_age(f'{subject}_{age}_x.jpg', pat, 1) == float(age)


@few
@given(names, st.sampled_from([r'_|\.', '[A-Za-z.]+', '[MF_.]', '(_)|(x)', '']), st.integers(-4, 4))
def test_any_name_has_an_age_or_says_why_not(name, pat, pos):
    try:
        assert 0 <= parse_age(name, pat, pos) <= 120
    except ValueError as error:
        assert type(error) is ValueError and '\n' not in str(error)


VALUES = {field.name: getattr(paper, field.name) for field in dataclasses.fields(paper)}
TEXTS = ['{[]: 1}', '\0', '(1, "a")', "('.3', .5)", '[1]', 'None', '(1,)', '((1,),)', '1j', '1e999']
TEXTS += ['True', 'exit()', '1', '1.5', '(' * 5000, '1' * 5000, '9' * 400, '-' * 9000 + '1']


@few
@given(st.sampled_from([*VALUES]), st.text(max_size=30) | st.sampled_from(TEXTS))
def test_any_value_is_of_the_kind_or_refused_in_one_line(key, text):
    try:
        recipe = paper.override([(key, text)])
    except utils.UserError as error:
        assert str(error).isprintable() and len(str(error)) < 500
    else:
        like, value = 0 if VALUES[key] is None else VALUES[key], getattr(recipe, key)
        assert type(value) is type(like) or key == 'horizon' and value is None
        assert not isinstance(value, tuple) or all(type(e) is type(like[0]) for e in value)
        assert recipe == dataclasses.replace(paper, **{key: value})


@few
@given(st.sampled_from([key for key in VALUES if not isinstance(VALUES[key], str)]), st.data())
def test_a_value_that_is_written_is_the_value_that_is_read(key, data):
    like = 0 if VALUES[key] is None else VALUES[key]
    kinds = {bool: st.booleans(), int: st.integers(0, 9), float: st.floats(0, 1)}
    one = kinds[type(like[0] if isinstance(like, tuple) else like)]
    value = data.draw(st.lists(one).map(tuple) if isinstance(like, tuple) else one)
    try:
        expected = dataclasses.replace(paper, **{key: value})
    except utils.UserError as error:  # a value that no recipe can have is refused as a text too
        refused(re.escape(str(error)), paper.override, [(key, repr(value))])
    else:
        assert paper.override([(key, repr(value))]) == expected


@contextlib.contextmanager
def or_one_line():
    try:
        yield
    except DataError as error:
        assert str(error).isprintable() and len(str(error)) < 1000


line = st.text(max_size=20)
for regex in (r'[01] \w{1,3} \w{1,3}', r'\w{1,3} \d \d', r'\w{1,3} \d'):
    line |= st.from_regex(regex, fullmatch=True)
lines = st.lists(line, max_size=9).map('\n'.join)
counted = lines.map(lambda text: b'1 1\n' + text.encode())
LISTS = {
    'pairs.txt': lambda folder: protocols.lfw(folder, 1, 1),
    'pairs_CALFW.txt': lambda folder: protocols.calfw(folder, 1, 1),
    'list': lambda folder: protocols.pair_list(folder / 'list'),
    'a.bin': lambda folder: read_bin(folder / 'a.bin'),
}


@pytest.mark.parametrize('name, read', LISTS.items())
def test_any_list_is_read_or_refused_in_one_line(name, read):
    @few
    @given(lines.map(str.encode) | st.binary(max_size=60) | counted)
    def check(content):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, name).write_bytes(content)
            with or_one_line():
                read(Path(folder))

    check()


face = st.from_regex(r'(a|b)_3.jpg[ \t,]+\w{1,3}[ \t,]+[0-9]{1,3}', fullmatch=True)
faces = st.lists(face, max_size=4).map('\n'.join)
encoded = (lines | faces).map(str.encode) | faces.map(lambda text: text.encode('utf-16'))


@few
@given(st.sampled_from(['a.txt', 'a.csv']), st.binary(max_size=60) | encoded)
def test_any_list_of_faces_is_read_or_refused_in_one_line(name, content):
    with tempfile.TemporaryDirectory() as folder:
        for image in ('a_3.jpg', 'b_3.jpg'):
            Path(folder, image).touch()
        Path(folder, name).write_bytes(content)
        with or_one_line():
            found = Faces(Path(folder, name), '_', 1)
            assert 1 <= len(found) <= 2 and len(found.classes) <= 2 and found.ages.max() <= 120


name = st.from_regex(r'[0-9A-Za-z_٣²]{1,25}\.jpg', fullmatch=True)
name |= st.from_regex(r'[0-9]{1,25}_1[MF][0-9]{1,9}\.jpg', fullmatch=True)


@few
@given(st.lists(name, max_size=5))
def test_any_names_are_a_set_or_refused_in_one_line(files):
    with tempfile.TemporaryDirectory() as folder:
        for name in files:
            Path(folder, name).touch()
        for read in (protocols.fgnet, protocols.morph):
            with or_one_line():
                assert 1 <= len(read(folder).labels) <= len(set(files))


numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=9)
keys = st.text(max_size=5)


def nested(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)


plain = st.recursive(leaves, nested, max_leaves=8)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool])


@few
@given(plain, st.lists(st.integers(0, 4), max_size=3), dtypes)
def test_what_is_saved_is_what_is_loaded(values, shape, dtype):
    tensor = (torch.randn(shape) * 9).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint({'values': values, 'tensor': tensor}, Path(folder, 'w.pth'))
        assert [path.name for path in Path(folder).iterdir()] == ['w.pth']
        state = load_checkpoint(Path(folder, 'w.pth'), {'values': object, 'tensor': torch.Tensor})
    assert state['values'] == values
    assert torch.equal(state['tensor'], tensor) and state['tensor'].dtype == dtype
