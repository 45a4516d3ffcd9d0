"""The page of the server in a real browser."""

import contextlib

import browser
import pytest
import tiny_service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from vtokens.server import page

# Text that would run if it were not shown as text.
EVIL = '<img src=x onerror="window.ran=1"><script>window.ran=1</script>&amp;'
KEY = 'a-key-for-the-page'
# BM25 leaves out the other words.
QUESTION = 'When was the title completed?'


@pytest.fixture(scope='module')
def driver(tmp_path_factory):
  with browser.headless(tmp_path_factory.mktemp('chromium')) as found:
    yield found


@pytest.fixture(scope='module')
def server(engine, place):
  passage = {'id': 'p', 'title': f'Title {EVIL}', 'text': f'When {EVIL}'}
  index = tiny_service.make_index(place / 'index', [passage])
  with tiny_service.serving(engine, place, index=index) as found:
    yield found


@contextlib.contextmanager
def _opened(driver, url):
  driver.get_log('browser')
  driver.get(url)
  yield driver
  assert driver.get_log('browser') == []
  assert driver.execute_script('return window.ran') is None


def _one(driver, name):
  return driver.find_element(By.ID, name)


def _text(driver, name):
  script = 'return document.getElementById(arguments[0]).textContent'
  return driver.execute_script(script, name)


def _ask(driver, question=QUESTION):
  field = _one(driver, 'question')
  field.clear()
  field.send_keys(question)
  _one(driver, 'ask').click()
  wait = WebDriverWait(driver, 120)
  wait.until(lambda d: _text(d, 'with-note') and _text(d, 'without-note'))
  wait.until(lambda d: _one(d, 'ask').is_enabled())


def _reply(server, model, **extra):
  found = server.client().chat.completions.create(
    model=model,
    messages=[{'role': 'user', 'content': QUESTION}],
    extra_body=extra,
  )
  return found.choices[0].message.content


@pytest.mark.slow
def test_answers_side_by_side(driver, server):
  found = [{'title': f'Title {EVIL}', 'text': f'When {EVIL}'}]
  with _opened(driver, server.url):
    WebDriverWait(driver, 30).until(lambda d: _text(d, 'k-shown') == '5')
    options = Select(_one(driver, 'table')).options
    assert [option.text for option in options] == list(tiny_service.NAMES)
    _ask(driver)
    assert _text(driver, 'with-title') == 'With 5 virtual tokens'
    assert _text(driver, 'found') == ''.join(found[0].values())
    assert _text(driver, 'with') == _reply(server, 'one', passages=found)
    assert _text(driver, 'without') == _reply(server, 'base', passages=found)
    assert 's in all' in _text(driver, 'with-note')
    assert not _one(driver, 'problem').is_displayed()
    # Another table, and fewer tokens.
    Select(_one(driver, 'table')).select_by_visible_text('two')
    driver.execute_script(
      'const k = document.getElementById("k"); k.value = 2;'
      'k.dispatchEvent(new Event("input"))'
    )
    assert _text(driver, 'k-shown') == '2'
    _ask(driver)
    expected = _reply(server, 'two', passages=found, k=2)
    assert _text(driver, 'with') == expected
    # Passages of one's own.
    _one(driver, 'own').find_element(By.TAG_NAME, 'summary').click()
    _one(driver, 'passages').send_keys('It was in 1859.\n\nAnother.')
    _ask(driver)
    assert len(_one(driver, 'found').find_elements(By.TAG_NAME, 'li')) == 2
    own = [{'text': 'It was in 1859.'}, {'text': 'Another.'}]
    assert _text(driver, 'with') == _reply(server, 'two', passages=own, k=2)


def test_a_problem_is_told(driver, server):
  with _opened(driver, server.url):
    WebDriverWait(driver, 30).until(lambda d: _text(d, 'k-shown') == '5')
    _one(driver, 'question').send_keys('q' * 400)
    _one(driver, 'ask').click()
    WebDriverWait(driver, 60).until(lambda d: _one(d, 'problem').is_displayed())
    assert 'max_suffix_tokens' in _text(driver, 'problem')
    # The browser itself notes that a request failed.
    noted = driver.get_log('browser')
    assert all('400 (Bad Request)' in one['message'] for one in noted)


def test_a_key(driver, engine, place):
  with tiny_service.serving(engine, place, key=KEY) as server:
    driver.get_log('browser')
    driver.get(server.url)
    WebDriverWait(driver, 30).until(lambda d: _one(d, 'key').is_displayed())
    assert 'API key' in _text(driver, 'problem')
    _one(driver, 'key').send_keys(KEY)
    _one(driver, 'question').click()
    WebDriverWait(driver, 30).until(lambda d: _text(d, 'k-shown') == '5')
    assert not _one(driver, 'problem').is_displayed()
    _one(driver, 'passages').send_keys('It was in 1859.')
    _ask(driver)
    assert _text(driver, 'with')
    messages = [one['message'] for one in driver.get_log('browser')]
    assert all('401 (Unauthorized)' in one for one in messages)


def test_nothing_comes_from_elsewhere(driver, server):
  """Nothing else can: the policy of the page forbids it."""
  with _opened(driver, server.url):
    WebDriverWait(driver, 30).until(lambda d: _text(d, 'k-shown') == '5')
    names = driver.execute_script(
      'return performance.getEntriesByType("resource").map(e => e.name)'
    )
    assert names and all(name.startswith(server.url) for name in names)
    assert {name.removeprefix(server.url) for name in names} == {
      *page.FILES.keys() - {'/'},
      '/v1/models',
    }
  driver.get_log('browser')
  for script in (
    'const s = document.createElement("script"); s.textContent = "ran = 1";'
    'document.body.append(s)',
    'document.body.innerHTML = "<p>"',
    'const i = new Image(); i.src = "http://127.0.0.1:9/x.png"',
  ):
    with contextlib.suppress(Exception):
      driver.execute_script(script)
  assert driver.execute_script('return window.ran') is None
  refused = ' '.join(one['message'] for one in driver.get_log('browser'))
  assert 'TrustedScript' in refused and 'img-src' in refused
