"""The demo in Chromium, without a network: `pytest -m browser tests/demo/test_demo_browser.py`.

Needs Chromium and its driver (Debian: `apt-get install chromium chromium-driver`) and `pip install selenium`. A folder
that VT_HUB_SCREENSHOTS names gets pictures of the page.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from vt_hub.demo import build, start

webdriver = pytest.importorskip('selenium.webdriver', reason='needs selenium: pip install selenium')
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
DRIVER = shutil.which('chromedriver')
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason='needs Chromium and chromedriver'),
]
DESKTOP, PHONE = (1200, 900), (390, 844)
OPTIONS = [
    '--headless=new',
    '--no-sandbox',  # which root may not use
    '--disable-dev-shm-usage',
    '--hide-scrollbars',
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
]


class Page:
    """What a visitor does and sees."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url
        self.wait = WebDriverWait(driver, 120)

    def find(self, selector):
        return self.driver.find_elements('css selector', selector)

    def one(self, selector):
        return self.wait.until(lambda _: next(iter(self.find(selector)), None), selector)

    def see(self, selector, text):
        self.wait.until(lambda _: any(text in element.text for element in self.find(selector)), f'{selector}: {text}')

    def resize(self, width, height):
        metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width == PHONE[0]}
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)

    def open(self, size=DESKTOP):
        self.resize(*size)
        self.driver.get(self.url)
        self.see('#scores', '%')
        self.one('#tokens .vt')

    def upload(self, path):
        button = '#image [aria-label="Remove Image"]'
        if remove := self.find(button):
            remove[0].click()
            self.wait.until_not(lambda _: self.find(button), 'the image goes')
        self.one('#image input[type=file]').send_keys(str(path))

    def clear(self):
        self.one('#image [aria-label="Remove Image"]').click()

    def see_nothing(self):
        """Neither an image nor an answer."""
        self.wait.until(lambda _: not self.find('#image img, #tokens .vt, #overlay img'), 'all is cleared')
        self.wait.until(lambda _: '%' not in self.one('#scores').text, 'the scores are cleared')

    def choose(self, model):
        self.one('#model input').click()
        option = self.wait.until(lambda _: next((o for o in self.find('[role=option]') if model in o.text), None))
        option.click()

    def shown(self):
        """The token in each map and sentence that can be seen."""
        seen = self.driver.execute_script("""
            const all = [...document.querySelectorAll('#tokens .map, #tokens .said span')]
            return all.filter(element => getComputedStyle(element).visibility == 'visible').map(e => e.className)
        """)
        return [int(names.split('of')[-1]) for names in seen]

    def see_token(self, token):
        self.wait.until(lambda _: self.shown() == 3 * [token], f'token {token}')

    def picture(self, name):
        """A picture of the whole page, where pictures are wanted."""
        if folder := os.environ.get('VT_HUB_SCREENSHOTS'):
            Path(folder).mkdir(parents=True, exist_ok=True)
            size = self.driver.execute_script('return [innerWidth, innerHeight]')
            self.resize(size[0], self.driver.execute_script('return document.documentElement.scrollHeight'))
            self.driver.save_screenshot(str(Path(folder, f'{name}.png')))
            self.resize(*size)


@pytest.fixture(scope='module')
def url():
    app = build(['vt_resnet18.dist_in1k', 'vt_resnet10.digits', 'vt_fpn_resnet10t.shapes'])
    yield start(app, '127.0.0.1')
    app.close()


@pytest.fixture(scope='module')
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in [*OPTIONS, f'--user-data-dir={tmp_path_factory.mktemp("chromium")}']:
        options.add_argument(option)
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope='module')
def page(driver, url):
    """The page, which each test leaves with the digits' classifier chosen."""
    page = Page(driver, url)
    driver.get('about:blank')
    driver.get_log('performance')  # what Chromium loads for itself
    page.open()
    page.picture('photograph')
    page.choose('vt_resnet10.digits')
    page.see('#tokens .said', 'to the logit of 2.')
    return page


def test_loads_from_this_machine_alone(page):
    messages = [json.loads(entry['message'])['message'] for entry in page.driver.get_log('performance')]
    asked = [m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent']
    assert asked
    assert [address for address in asked if not address.startswith((page.url, 'data:', 'blob:'))] == []
    assert [entry for entry in page.driver.get_log('browser') if entry['level'] == 'SEVERE'] == []


def test_upload(page, samples):
    for digit in ('7', '3'):
        page.upload(samples / f'digit_{digit}.png')
        page.see('#tokens .said', f'to the logit of {digit}.')
        page.wait.until(lambda _, digit=digit: page.one('#scores').text.split()[1:2] == [digit], digit)


def test_samples(page):
    page.find('#samples button')[3].click()
    page.see('#tokens .said', 'to the logit of 7.')


def test_clear(page, samples):
    """What was cleared leaves no answer: a sample, and what a visitor sent."""
    page.find('#samples button')[2].click()
    page.see('#tokens .said', 'to the logit of 5.')
    page.clear()
    page.see_nothing()
    page.picture('cleared')
    page.upload(samples / 'digit_3.png')
    page.see('#tokens .said', 'to the logit of 3.')
    page.clear()
    page.see_nothing()
    page.find('#samples button')[3].click()
    page.see('#tokens .said', 'to the logit of 7.')


def test_haste(page):
    page.driver.execute_script("""
        const samples = document.querySelectorAll('#samples button')
        for (const number of [0, 3, 2]) samples[number].click()  // faster than the answers
    """)
    page.see('#tokens .said', 'to the logit of 5.')


def test_tokens_by_mouse_and_keys(page):
    page.see_token(page.shown()[0])
    ActionChains(page.driver).move_to_element(page.one('#tokens .pick3')).perform()
    page.see_token(3)
    page.one('#tokens .pick12').click()
    ActionChains(page.driver).move_to_element(page.one('h1')).perform()
    page.see_token(12)
    page.one('#tokens .pick12 input').send_keys(Keys.ARROW_RIGHT)
    page.see_token(13)


def test_segment(page, samples):
    page.choose('vt_fpn_resnet10t.shapes')
    page.see('#scores', 'Share of the pixels')
    page.see('#scores', 'background')
    page.one('#overlay img')
    page.wait.until(lambda _: not page.find('#tokens .vt'))
    page.picture('classes')
    page.upload(samples / 'scene.png')
    before = page.one('#scores').text
    page.wait.until(lambda _: page.one('#scores').text not in (before, '') and page.find('#overlay img'))
    page.choose('vt_resnet10.digits')
    page.see('#tokens .said', 'to the logit of')
    assert page.one('#image img').get_attribute('src').endswith('scene.png')  # what a visitor sent stays


def test_bad_file(page, samples, tmp_path):
    """One sentence, and nothing broken beside it."""
    before = page.one('#image').rect
    (tmp_path / 'letter.png').write_text('no image')
    page.upload(tmp_path / 'letter.png')
    page.see('.toast-body', 'Cannot read letter.png as an image: it is not an image.')
    page.see_nothing()
    assert not page.find('.wrap .error')
    page.picture('bad_file')
    assert page.one('#image').rect == before  # nothing jumps
    page.upload(samples / 'digit_5.png')
    page.see('#tokens .said', 'to the logit of 5.')


def test_phone(page):
    page.open(PHONE)
    assert page.driver.execute_script('return document.documentElement.scrollWidth') == PHONE[0]
    page.picture('phone')
