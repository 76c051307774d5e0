"""Groups of an archive on the page and as JSON: shown, named, joined and split."""

import pytest
from conftest import serving
from test_browser import elements, phone, quiet, wait_for

from verification import page, people_page
from verification.people import place_of
from verification.people_files import COLUMNS, read_people, write_table


@pytest.fixture
def people(archive, tmp_path):
    """people.csv: twelve faces in three groups, the first of them Ada's; one face is unknown."""
    rows = []
    for face in range(12):
        photograph, box = place_of(archive, face)
        row = dict.fromkeys(COLUMNS, '') | {'face': face, 'photograph': photograph, 'box': box}
        row |= {'group': 1 + face // 6 + face // 11, 'name': 'Ada' if face < 6 else ''}
        row |= {'age': 60 - 5 * face if face != 3 else '', 'nearest': 2, 'probability': 0.9}
        rows.append(row | {'nearest_probability': 0.2, 'note': 'mine'})
    gone = {'photograph': 'gone.jpg', 'box': '0 0 9 9', 'group': 1}
    rows.append(dict.fromkeys(COLUMNS, '') | gone)
    write_table(tmp_path / 'people.csv', [*COLUMNS, 'note'], rows)
    return tmp_path / 'people.csv'


@pytest.fixture
def client(matcher, archive, people):
    return page.application(matcher, archive, people=people).test_client()


def change(client, **fields):
    version = client.get('/people.json').json['version']
    return client.post('/people.json', data={'version': version} | fields)


def groups_in(people):
    return [row['group'] for row in read_people(people) if row['face']]


def test_groups_are_shown_by_size_and_faces_by_age(client, archive, monkeypatch, matcher, tmp_path):
    first, second, third = client.get('/people.json').json['groups']
    assert (first['name'], first['group'], second['name']) == ('Ada', '1', '')
    assert [len(one['faces']) for one in (first, second, third)] == [6, 5, 1]
    assert [face['age'] for face in first['faces']] == [35, 40, 50, 55, 60, None]
    assert first['faces'][0]['photograph'] == archive.name(5) and second['nearest'] == '2'
    text = client.get('/people').text
    assert text.index('>Ada') < text.index('>Group 2') < text.index('>Group 3')
    assert text.count('class="found"') == 3 and '/photograph/5.jpg' in text
    assert '/people' in client.get('/').text
    monkeypatch.setattr(people_page, 'GROUPS', 2)
    assert 'Page 1 of 2' in client.get('/people').text
    for wanted in ('page=2', 'page=99', 'group=3'):
        text = client.get(f'/people?{wanted}').text
        assert 'Page 2 of 2' in text and text.count('class="found"') == 1
    client = page.application(matcher, archive, people=tmp_path / 'none.csv').test_client()
    assert client.get('/people').status_code == 404 and '/people' not in client.get('/').text
    assert '--group' in client.get('/people.json').json['error']


def test_names_stay_in_the_file_and_who_has_one_name_is_one_person(client, people):
    found = change(client, do='name', group='3', name='Ada').json
    assert found['group'] == '1' and len(found['faces']) == 7
    assert groups_in(people) == ['1'] * 6 + ['2'] * 5 + ['1']
    answer = change(client, do='name', group='2', name='  Grace \n Hopper ')
    assert answer.json['name'] == 'Grace Hopper'
    rows = read_people(people)
    assert [row['name'] for row in rows[6:11]] == ['Grace Hopper'] * 5 and rows[0]['name'] == 'Ada'
    assert rows[0]['note'] == 'mine' and rows[-1]['photograph'] == 'gone.jpg'
    assert change(client, do='name', group='1', name='').json['name'] == ''


def test_groups_are_joined_but_not_two_names_and_ticked_faces_split_off(client, people):
    assert len(change(client, do='join', group='2', into='1').json['faces']) == 11
    assert {row['name'] for row in read_people(people)[:11]} == {'Ada'}
    change(client, do='name', group='3', name='Grace')
    answer = change(client, do='join', group='3', into='1')
    assert answer.status_code == 400 and 'Ada and Grace are different' in answer.json['error']
    found = change(client, do='split', group='1', face=['0', '4']).json
    assert (found['group'], found['name'], len(found['faces'])) == ('4', '', 2)
    assert groups_in(people)[:6] == ['4', '1', '1', '1', '4', '1']


MEAN_NOTHING = [
    ({'do': 'split', 'group': '1'}, 'tick those faces'),
    ({'do': 'split', 'group': '3', 'face': '11'}, 'not all'),
    ({'do': 'split', 'group': '1', 'face': ['7', '99', 'x']}, 'tick those faces'),
    ({'do': 'join', 'group': '1', 'into': '1'}, 'no other group'),
    ({'do': 'join', 'group': '1', 'into': '77'}, 'no other group'),
    ({'do': 'name', 'group': '77', 'name': 'x'}, 'the number of a group'),
    ({'do': 'erase', 'group': '1'}, 'name, join or split'),
]


def test_changes_that_mean_nothing_or_of_before_a_change(client, people):
    for fields, said in MEAN_NOTHING:
        before = people.read_bytes()
        answer = change(client, **fields)
        assert answer.status_code == 400 and said in answer.json['error']
        assert people.read_bytes() == before
    version = client.get('/people.json').json['version']
    change(client, do='name', group='2', name='Grace')
    fields = {'version': version, 'do': 'join', 'group': '2', 'into': '1'}
    answer = client.post('/people', data=fields)
    assert answer.status_code == 409 and 'have changed since' in answer.text
    for headers in ({'Sec-Fetch-Site': 'cross-site'}, {'Origin': 'http://elsewhere.example'}):
        answer = client.post('/people', data=fields, headers=headers)
        assert answer.status_code == 403


def test_groups_in_a_browser(browser, matcher, archive, people):
    from selenium.webdriver import Keys

    def one(selector):
        return browser.find_element('css selector', selector)

    def until(said):
        wait_for(browser, lambda _: one('#status').text == said)

    with serving(page.application(matcher, archive, people=people)) as port:
        browser.get(f'http://127.0.0.1:{port}/people')
        field = one('#group-2 input[name=name]')
        assert field.accessible_name == 'Name'
        field.send_keys('Grace', Keys.ENTER)
        until('Group 2 is Grace.')
        assert one('#status').aria_role == 'status'
        assert browser.switch_to.active_element.get_attribute('id') == 'group-2'
        box = one('#group-1 input[type=checkbox]')
        assert box.accessible_name.startswith('35 years, p')
        box.send_keys(Keys.SPACE)
        one('#group-1 button[value=split]').click()
        until('Group 4 was split off group 1.')
        assert one('#group-4 input[name=into]').get_attribute('value') == '2'
        one('#group-4 button[value=join]').click()
        until('Group 4 is joined with group 2.')
        assert groups_in(people)[:6].count('2') == 1
        images = elements(browser, '#group-2 img')
        assert len(images) == 6 and all(image.accessible_name for image in images)
        with phone(browser):
            assert browser.execute_script('return document.documentElement.scrollWidth') <= 360
        assert quiet(browser)
        one('#group-2 .found a').click()
        assert browser.current_url.startswith(f'http://127.0.0.1:{port}/photograph/')
