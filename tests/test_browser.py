"""The web page in a real browser, where Chromium and its driver are installed."""

import base64
import contextlib
import re

import numpy as np
import pytest
from conftest import serving
from test_page import similarity
from test_verify import Stub, photograph_of

from verification import page, portraits


@pytest.fixture(scope='module')
def served(matcher, archive):
    """The page's address, served as verify.py serves it."""
    with serving(page.application(matcher, archive)) as port:
        yield f'http://127.0.0.1:{port}/'


def wait_for(browser, condition):
    """Waits until it holds, however the page changes meanwhile."""
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, 120, ignored_exceptions=[WebDriverException]).until(condition)


def elements(browser, selector):
    return browser.find_elements('css selector', selector)


def quiet(browser):
    """Whether the console has no error: a broken policy would be one."""
    return not [entry for entry in browser.get_log('browser') if entry['level'] == 'SEVERE']


def side(browser, image, name='naturalWidth'):
    """A picture's own size, which is 0 where it didn't come through."""
    return browser.execute_script(f'return arguments[0].{name}', image)


@contextlib.contextmanager
def phone(browser):
    size = {'width': 360, 'height': 740, 'deviceScaleFactor': 2, 'mobile': True}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    try:
        yield
    finally:
        browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def submit(browser, address, **files):
    """Fills the form as a person does; returns the page's text once the answer is there."""
    browser.get_log('browser')  # of before
    browser.get(address)
    # gone with the page; an element's own staleness can fail in mid-navigation
    browser.execute_script('window.unanswered = true')
    for field, path in files.items():
        browser.find_element('name', field).send_keys(str(path))
    browser.find_element('tag name', 'button').click()
    answered = 'return !window.unanswered && document.readyState === "complete"'
    wait_for(browser, lambda browser: browser.execute_script(answered))
    return browser.find_element('tag name', 'body').text


def test_two_faces_in_a_browser(browser, served, matcher, faces):
    text = submit(browser, served, first=faces[0], second=faces[1])
    score, first = similarity(matcher, faces[:2]), portraits.read_portrait_file(faces[0])
    assert f'Similarity {score:.3f}' in text
    assert matcher.features([first])[0].age.about in text
    assert [side(browser, image) for image in elements(browser, '#people img')] == [96, 96]
    (dot,) = elements(browser, '#answer circle')
    (line,) = elements(browser, '#answer line[stroke-dasharray]')
    right = dot.rect['x'] + dot.rect['width'] / 2 > line.rect['x']
    assert right == (score > matcher.decision.threshold)
    (head,) = elements(browser, '#answer h2')
    colour = '27, 120, 55' if matcher.decision.answer(score).same else '178, 24, 43'
    assert colour in head.value_of_css_property('color')  # so the style sheet came through
    assert quiet(browser)


def test_a_photograph_among_a_folder(browser, served, faces, tmp_path, monkeypatch):
    points = photograph_of(faces[7], tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(points))
    text = submit(browser, served, first=tmp_path / 'a.png')
    assert 'Most like it, of 36 faces' in text and 'found in a photograph' in text
    (photograph,) = elements(browser, 'img.photograph')
    assert side(browser, photograph, 'naturalHeight') == portraits.SHOWN
    links = elements(browser, '#answer .found a')
    assert len(links) == page.SHOWN and quiet(browser)
    assert all(side(browser, image) == 96 for image in elements(browser, '.found img'))
    address = links[0].get_attribute('href')
    browser.get(address)
    (shown,) = elements(browser, 'img')
    assert side(browser, shown, 'naturalHeight') == 112
    assert address.startswith(f'{served}photograph/')


def test_junk_in_a_browser(browser, served, faces, tmp_path):
    junk, large = tmp_path / 'junk.jpg', tmp_path / 'large.jpg'
    junk.write_bytes(b'junk')
    large.write_bytes(bytes(2 * page.LARGEST + 2**17))
    for path, said in ((junk, 'junk.jpg: not an image'), (large, 'At most two photographs')):
        assert said in submit(browser, served, first=path, second=faces[0])
    assert 'Compare' in browser.find_element('tag name', 'button').text


def preview(browser, field):
    """The width of the picture that is shown of what was chosen, once it is there."""
    (image,) = elements(browser, f'[data-field={field}] .preview')
    shown = 'return arguments[0].hidden ? 0 : arguments[0].naturalWidth'
    return wait_for(browser, lambda browser: browser.execute_script(shown, image))


GIVE = """
    const data = new DataTransfer();
    const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
    data.items.add(new File([bytes], 'given.jpg', {type: 'image/jpeg'}));
    const place = document.querySelector(arguments[2]);
    place.dispatchEvent(arguments[1] === 'paste'
        ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true})
        : new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
"""


def give(browser, path, event, place):
    browser.execute_script(GIVE, base64.b64encode(path.read_bytes()).decode(), event, place)


def test_photographs_are_shown_as_soon_as_they_are_chosen_dragged_or_pasted(browser, served, faces):
    browser.get_log('browser')  # of before
    browser.get(served)
    browser.find_element('name', 'first').send_keys(str(faces[0]))
    assert preview(browser, 'first') == 96
    assert f'{faces[0].name} is chosen' in browser.find_element('id', 'status').text
    give(browser, faces[1], 'drop', '[data-field=second]')
    assert preview(browser, 'second') == 96
    browser.get(served)
    give(browser, faces[0], 'paste', 'body')
    assert preview(browser, 'first') == 96  # the first place that is empty
    give(browser, faces[1], 'paste', 'body')
    assert preview(browser, 'second') == 96
    assert quiet(browser)
    browser.find_element('tag name', 'button').click()
    (people,) = wait_for(browser, lambda browser: elements(browser, '#people'))
    assert 'given.jpg: aligned' in people.text


def test_a_keyboard_a_screen_reader_and_a_phone_reach_everything(browser, served, faces):
    from selenium.webdriver import ActionChains, Keys

    browser.get(served)
    order = []
    for _ in range(5):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        active = browser.switch_to.active_element
        assert active.accessible_name and active.aria_role
        order.append(active.get_attribute('name') or active.tag_name)
    assert order == ['first', 'first_age', 'second', 'second_age', 'button']
    assert browser.find_element('tag name', 'html').get_attribute('lang') == 'en'
    submit(browser, served, first=faces[0], second=faces[1])
    assert browser.switch_to.active_element.get_attribute('id') == 'answer'
    names = [image.get_attribute('alt') for image in elements(browser, '#people img')]
    assert names == [f'the aligned face of {path.name}' for path in faces[:2]]
    assert all(image.accessible_name for image in elements(browser, 'svg'))
    for element in elements(browser, 'h1, h2, small, label, figcaption, #answer p'):
        ink = luminance(element.value_of_css_property('color'))
        assert 1.0 / (ink + 0.05) >= 4.5, element.text  # WCAG AA, on a ground of .95 or more
    with phone(browser):
        for path in ({'second': faces[1]}, {}):
            submit(browser, served, first=faces[0], **path)
            assert browser.execute_script('return document.documentElement.scrollWidth') <= 360


def luminance(text):
    """Relative luminance of a colour as WCAG 2 defines it."""
    parts = np.array([float(part) / 255 for part in re.findall(r'[0-9.]+', text)[:3]])
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_without_its_script_the_form_works(browser, served, faces):
    try:
        browser.execute_cdp_cmd('Emulation.setScriptExecutionDisabled', {'value': True})
        browser.get(served)
        for field, path in (('first', faces[0]), ('second', faces[1])):
            browser.find_element('name', field).send_keys(str(path))
        browser.find_element('tag name', 'button').click()
        wait_for(browser, lambda browser: elements(browser, '#answer'))
        assert 'Similarity' in browser.find_element('tag name', 'h2').text
    finally:
        browser.execute_cdp_cmd('Emulation.setScriptExecutionDisabled', {'value': False})
