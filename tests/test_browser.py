"""The web page in a real browser, where Chromium and its driver are installed."""

import base64
import re
import threading

import numpy as np
import pytest
from PIL import Image
from test_calibration import stored
from test_verify import Stub, photograph_of

from evaluation.age_thresholds import AgeDecision
from verification import portraits

pytest.importorskip('flask')
pytest.importorskip('waitress')
from verification import page, server  # noqa: E402


@pytest.fixture(scope='module')
def served(matcher, archive):
    """The page's address, served as verify.py serves it."""
    running = server.create_server(page.application(matcher, archive), '127.0.0.1', 0)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    yield f'http://127.0.0.1:{running.effective_port}/'
    running.close()
    thread.join(10)


def submit(browser, address, **files):
    """Fills the form as a person does; returns the page's text once the answer is there."""
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get_log('browser')  # of before
    browser.get(address)
    browser.execute_script(
        'window.unanswered = true'
    )  # gone with the page; an element's own staleness can fail in mid-navigation
    for field, path in files.items():
        browser.find_element('name', field).send_keys(str(path))
    browser.find_element('tag name', 'button').click()
    WebDriverWait(browser, 120, ignored_exceptions=[WebDriverException]).until(
        lambda browser: browser.execute_script(
            'return !window.unanswered && document.readyState === "complete"'
        )
    )
    return browser.find_element('tag name', 'body').text


def test_two_faces_in_a_browser(browser, served, matcher, faces):
    text = submit(browser, served, first=faces[0], second=faces[1])
    a, b = matcher.features([np.asarray(Image.open(path)) for path in faces[:2]])
    assert f'Similarity {a.embedding @ b.embedding:.3f}' in text and a.about in text
    shown = browser.find_elements('css selector', '#people img')
    assert len(shown) == 2 and all(
        browser.execute_script('return arguments[0].naturalWidth', image) == 96 for image in shown
    )
    dot, line = (
        browser.find_element('css selector', f'#answer {part}').rect
        for part in ('circle', 'line[stroke-dasharray]')
    )
    assert (dot['x'] + dot['width'] / 2 > line['x']) == (
        a.embedding @ b.embedding > matcher.decision.threshold
    )
    colour = browser.find_element('css selector', '#answer h2').value_of_css_property(
        'color'
    )  # so the style sheet came through
    assert (
        '27, 120, 55' if matcher.decision.answer(a.embedding @ b.embedding).same else '178, 24, 43'
    ) in colour
    assert not [entry for entry in browser.get_log('browser') if entry['level'] == 'SEVERE']


def test_a_photograph_among_a_folder_in_a_browser(browser, served, faces, tmp_path, monkeypatch):
    points = photograph_of(faces[7], tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(points))
    text = submit(browser, served, first=tmp_path / 'a.png')
    assert 'Most like it, of 36 faces' in text and 'found in a photograph' in text
    assert len(browser.find_elements('css selector', '#answer img')) == page.SHOWN
    photograph = browser.find_element('css selector', 'img.photograph')
    assert (
        browser.execute_script('return arguments[0].naturalHeight', photograph) == portraits.SHOWN
    )


def test_junk_in_a_browser(browser, served, faces, tmp_path):
    (tmp_path / 'junk.jpg').write_bytes(b'junk')
    assert 'junk.jpg: not an image' in submit(
        browser, served, first=tmp_path / 'junk.jpg', second=faces[0]
    )
    (tmp_path / 'large.jpg').write_bytes(bytes(2 * page.LARGEST + 2**17))
    assert 'At most two photographs' in submit(
        browser, served, first=tmp_path / 'large.jpg', second=faces[0]
    )
    assert 'Compare' in browser.find_element('tag name', 'button').text


def quiet(browser):
    """Whether the console has no error: a broken policy would be one."""
    return not [entry for entry in browser.get_log('browser') if entry['level'] == 'SEVERE']


def preview(browser, field):
    """The width of the picture that is shown of what was chosen, once it is there."""
    from selenium.webdriver.support.wait import WebDriverWait

    image = browser.find_element('css selector', f'[data-field={field}] .preview')
    return WebDriverWait(browser, 30).until(
        lambda browser: browser.execute_script(
            'return arguments[0].hidden ? 0 : arguments[0].naturalWidth', image
        )
    )


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
    WebDriverWait = pytest.importorskip('selenium.webdriver.support.wait').WebDriverWait
    WebDriverWait(browser, 60).until(lambda browser: browser.find_elements('id', 'people'))
    assert 'given.jpg: aligned' in browser.find_element('id', 'people').text


def test_ages_may_be_typed_and_the_answer_says_them(browser, matcher, faces):
    decision = matcher.decision._replace(ages=AgeDecision(stored()))
    known = type(matcher)(matcher.model, matcher.info, matcher.device, decision)
    running = server.create_server(page.application(known), '127.0.0.1', 0)
    threading.Thread(target=running.run, daemon=True).start()
    address = f'http://127.0.0.1:{running.effective_port}/'
    text = submit(browser, address, first=faces[0], second=faces[1], first_age=4, second_age=30)
    assert 'the threshold for the ages 4 and 30 is 0.300' in text
    assert 'Probability of one person' in text and quiet(browser)
    running.close()


def test_found_faces_link_to_their_photographs(browser, served, faces):
    submit(browser, served, first=faces[7])
    links = browser.find_elements('css selector', '.found a')
    assert len(links) == page.SHOWN
    images = browser.find_elements('css selector', '.found img')
    assert quiet(browser)
    assert all(browser.execute_script('return arguments[0].naturalWidth', k) == 96 for k in images)
    address = links[0].get_attribute('href')
    browser.get(address)
    shown = browser.find_element('tag name', 'img')
    assert browser.execute_script('return arguments[0].naturalHeight', shown) == 112
    assert address.startswith(f'{served}photograph/')


def test_a_keyboard_and_a_screen_reader_reach_everything(browser, served, faces):
    from selenium.webdriver import ActionChains, Keys

    browser.get(served)
    order = []
    for _ in range(5):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        active = browser.switch_to.active_element
        order.append(active.get_attribute('name') or active.tag_name)
    assert order == ['first', 'first_age', 'second', 'second_age', 'button']
    for field in ('first', 'first_age', 'second', 'second_age'):
        element = browser.find_element('name', field)
        assert element.accessible_name and element.aria_role
    assert browser.find_element('tag name', 'html').get_attribute('lang') == 'en'
    submit(browser, served, first=faces[0], second=faces[1])
    assert browser.switch_to.active_element.get_attribute('id') == 'answer'
    images = browser.find_elements('css selector', '#people img')
    names = [image.get_attribute('alt') for image in images]
    assert names == [f'the aligned face of {path.name}' for path in faces[:2]]
    assert all(image.accessible_name for image in browser.find_elements('css selector', 'svg'))


def luminance(text):
    """Relative luminance of a colour as WCAG 2 defines it."""
    parts = np.array([float(part) / 255 for part in re.findall(r'[0-9.]+', text)[:3]])
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_text_stands_out_and_a_phone_needs_no_sideways_scrolling(browser, served, faces):
    submit(browser, served, first=faces[0], second=faces[1])
    for selector in ('h1', 'h2', 'small', 'label', 'figcaption', '#answer p'):
        for element in browser.find_elements('css selector', selector):
            ink = luminance(element.value_of_css_property('color'))
            assert 1.0 / (ink + 0.05) >= 4.5, selector  # WCAG AA, on a ground of .95 or more
    size = browser.get_window_size()
    try:
        browser.execute_cdp_cmd(
            'Emulation.setDeviceMetricsOverride',
            {'width': 360, 'height': 740, 'deviceScaleFactor': 2, 'mobile': True},
        )
        for path in ({'second': faces[1]}, {}):
            submit(browser, served, first=faces[0], **path)
            wide = browser.execute_script('return document.documentElement.scrollWidth')
            assert wide <= 360
    finally:
        browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
        browser.set_window_size(size['width'], size['height'])


def test_without_its_script_the_form_works(browser, served, faces):
    try:
        browser.execute_cdp_cmd('Emulation.setScriptExecutionDisabled', {'value': True})
        browser.get(served)
        for field, path in (('first', faces[0]), ('second', faces[1])):
            browser.find_element('name', field).send_keys(str(path))
        browser.find_element('tag name', 'button').click()
        wait = pytest.importorskip('selenium.webdriver.support.wait').WebDriverWait(browser, 60)
        wait.until(lambda browser: browser.find_elements('id', 'answer'))
        assert 'Similarity' in browser.find_element('tag name', 'h2').text
    finally:
        browser.execute_cdp_cmd('Emulation.setScriptExecutionDisabled', {'value': False})
