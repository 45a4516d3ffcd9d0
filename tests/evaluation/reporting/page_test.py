"""Tests of vtokens.evaluation.reporting.page; most in a real browser."""

import dataclasses
import http.server
import itertools
import json
import re
import threading

import browser
import pytest
import report_data
from report_data import cell
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from vtokens.data.records import Passage
from vtokens.evaluation.asking.cells import Answer
from vtokens.evaluation.reporting import page, report, report_tables, summary

# Text that would run if it were not shown as text.
EVIL = (
  '</script><img src=x onerror="window.ran=1"><script>window.ran=1</script>'
  "<!-- {{ 7 * 7 }} ${7 * 7} & \u2028 ' \\"
)


def _write(directory, results):
  report.write_report(
    directory,
    results,
    report.ReportContext(settings={'note': EVIL}, versions={}),
    summary.Resampling(resamples=50, permutations=9, seed=0),
    reference='prompt',
    page_questions=5000,
  )
  return directory / 'report.html'


def _render(directory, results, max_questions=5000):
  """A page without pictures."""
  found = summary.summarize(results, summary.Resampling(20, 9, 0))
  path = directory / 'page.html'
  exhibits = page.Exhibits(report_tables.main_tables(found), (), {}, {})
  text = page.render(found, results, exhibits, max_questions)
  path.write_text(text, encoding='utf-8')
  return path


def _with_evil(results):
  """The same, all kinds of text of the first question of nq awkward."""
  records = dict(results.records)
  first, *others = records['nq']
  first = dataclasses.replace(
    first,
    question=f'Q {EVIL}',
    answers=(*first.answers, f'A {EVIL}'),
    passages={
      name: (Passage(f'id {EVIL}', f'T {EVIL}', f'P {EVIL}'), *passages[1:])
      for name, passages in first.passages.items()
    },
  )
  records['nq'] = [first, *others]
  cells = {}
  for key, result in results.cells.items():
    if key.dataset == 'nq':
      answers = list(result.answers)
      answers[0] = Answer(f'S {EVIL}', 3, 'newline', answers[0].shown)
      result = dataclasses.replace(result, answers=answers)
    cells[key] = result
  return dataclasses.replace(results, records=records, cells=cells)


@pytest.fixture(scope='session')
def driver(tmp_path_factory):
  """A headless Chromium that logs the console and all requests."""
  with browser.headless(tmp_path_factory.mktemp('chromium')) as found:
    yield found


@pytest.fixture(scope='module')
def results():
  return _with_evil(report_data.large(size=50))


@pytest.fixture(scope='module')
def path(results, tmp_path_factory):
  return _write(tmp_path_factory.mktemp('report'), results)


@pytest.fixture
def opened(driver, path):
  """The page, just opened; at the end the console must be empty."""
  driver.get_log('browser')
  driver.get(path.as_uri())
  yield driver
  assert driver.get_log('browser') == []
  assert driver.execute_script('return window.ran') is None


def _all(driver, selector):
  return driver.find_elements(By.CSS_SELECTOR, selector)


def _one(driver, selector):
  return driver.find_element(By.CSS_SELECTOR, selector)


def _texts(driver, selector):
  return driver.execute_script(
    'return [...document.querySelectorAll(arguments[0])]'
    '.map(e => e.textContent)',
    selector,
  )


def _count(driver):
  """How many questions fit, as the page says."""
  text = _one(driver, '#count').text
  return int(re.match(r'[\d,]+', text)[0].replace(',', ''))


def _press(driver, outcome):
  button = _one(driver, f'[data-outcome={outcome}]')
  button.click()
  assert button.get_attribute('aria-pressed') == 'true'
  return int(_one(button, 'b').text.replace(',', ''))


def _right(results, condition, **where):
  """Dataset and number of a question -> whether a condition has it right."""
  return {
    (name, i): bool(value)
    for name in results.records
    for i, value in enumerate(
      results.cells[cell(name, condition, **where)].values['em']
    )
  }


def _sort_button(driver, name):
  return _one(driver, f'th button[data-sort="{name}"]')


def _order(driver, name):
  heading = _sort_button(driver, name).find_element(By.XPATH, '..')
  return heading.get_attribute('aria-sort')


def test_filters_count_what_python_counts(opened, results):
  prompt = _right(results, 'prompt')
  tokens = _right(results, 'tokens')
  fixed = [q for q in prompt if tokens[q] and not prompt[q]]
  broke = [q for q in prompt if prompt[q] and not tokens[q]]
  assert len({len(fixed), len(broke), len(prompt)}) == 3
  assert _count(opened) == len(prompt) == 180
  label = _one(opened, '[data-outcome=fixed]').text
  assert label.startswith('tokens (ours, k = 5) fixed it')
  assert _press(opened, 'fixed') == _count(opened) == len(fixed)
  ids = _texts(opened, '#table td.dataset')
  expected = [name for name, _ in fixed][:50]
  assert ids == expected
  # In the order of the columns: prompt, then tokens.
  badges = _texts(opened, '#table td.said .badge')
  assert set(badges[::2]) == {'✗ wrong'}
  assert set(badges[1::2]) == {'✓ right'}
  assert _press(opened, 'broke') == _count(opened) == len(broke)
  everyone = [
    prompt,
    tokens,
    _right(results, 'closed_book'),
    _right(results, 'concat'),
    _right(results, 'chat_prompt'),
    _right(results, 'tokens', table='other', k=20),
  ]
  every_right = [q for q in prompt if all(one[q] for one in everyone)]
  every_wrong = [q for q in prompt if not any(one[q] for one in everyone)]
  assert _press(opened, 'right') == len(every_right)
  assert _press(opened, 'wrong') == _count(opened) == len(every_wrong)


def test_any_two_conditions_can_be_compared(opened, results):
  Select(_one(opened, '#first')).select_by_visible_text('tokens (ours, k = 5)')
  Select(_one(opened, '#second')).select_by_visible_text('closed_book')
  tokens, closed = (_right(results, c) for c in ('tokens', 'closed_book'))
  assert _press(opened, 'broke') == sum(
    tokens[q] and not closed[q] for q in tokens
  )
  assert _press(opened, 'fixed') == sum(
    closed[q] and not tokens[q] for q in tokens
  )


def test_dataset_and_search_narrow_down(opened, results):
  Select(_one(opened, '#dataset')).select_by_value('squad')
  assert _count(opened) == 60
  prompt = _right(results, 'prompt')
  tokens = _right(results, 'tokens')
  assert _press(opened, 'fixed') == sum(
    tokens[q] and not prompt[q] for q in prompt if q[0] == 'squad'
  )
  _press(opened, 'all')
  search = _one(opened, '#search')
  search.send_keys('SQUAD: question 1')  # 1, and 10 to 19.
  assert _count(opened) == 11
  # In the text of passages too.
  search.send_keys(Keys.CONTROL + 'a')
  search.send_keys('Nothing, bm25 2')
  assert _count(opened) == 60
  search.send_keys(' no such text')
  assert _count(opened) == 0
  assert _one(opened, '#none').is_displayed()
  assert not _one(opened, '#table').is_displayed()


def test_every_column_sorts_both_ways(opened):
  names = [
    button.get_attribute('data-sort')
    for button in _all(opened, 'th button[data-sort]')
  ]
  assert names[:4] == ['index', 'dataset', 'question', 'answers']
  assert names[-1] == 'difference'
  assert len(names) == 7
  for name in names:
    orders, firsts = [], []
    for _ in range(2):
      _sort_button(opened, name).click()
      orders.append(_order(opened, name))
      firsts.append(_texts(opened, '#table td:first-child')[0])
    assert sorted(orders) == ['ascending', 'descending']
    assert firsts[0] != firsts[1]
  _sort_button(opened, 'question').click()
  assert _order(opened, 'question') == 'ascending'
  # Numbers within text in their order, and the first question under Q.
  expected = [f'nq: question {i}?' for i in range(1, 50)]
  assert _texts(opened, '#table td.question') == [*expected, f'Q {EVIL}']
  _sort_button(opened, 'dataset').click()
  _sort_button(opened, 'dataset').click()
  assert set(_texts(opened, '#table td.dataset')) == {'triviaqa'}


def test_scores_sort_best_first(opened, results):
  tokens = _right(results, 'tokens')
  column = _all(opened, 'th button[data-sort^=said]')[1]
  assert column.text == 'tokens (ours, k = 5)'
  column.click()
  count = min(50, sum(tokens.values()))
  badges = _texts(opened, '#table tr > td:nth-child(6) .badge')
  assert badges == ['✓ right'] * count + ['✗ wrong'] * (50 - count)
  _sort_button(opened, 'difference').click()
  gained = [
    float(text.replace('\u2212', '-'))
    for text in _texts(opened, '#table tr > td:last-child')
  ]
  assert gained == sorted(gained, reverse=True)
  assert gained[0] == 50  # F1 100 instead of 50.


def test_pages(opened):
  assert len(_all(opened, '#table > tbody > tr')) == 50
  assert _one(opened, '#page').text == '1 / 4'
  assert not _one(opened, '#previous').is_enabled()
  _one(opened, '#next').click()
  assert _texts(opened, '#table td:first-child')[0] == '51'
  assert 'rows 51 to 100' in _one(opened, '#count').text
  _one(opened, '#next').click()
  _one(opened, '#next').click()
  assert len(_all(opened, '#table > tbody > tr')) == 30
  assert not _one(opened, '#next').is_enabled()
  # A filter starts at its first page.
  _press(opened, 'fixed')
  assert _one(opened, '#page').text.startswith('1 /')


def test_a_row_opens_to_its_passages(opened, results):
  button = _all(opened, '#table td.question button')[1]
  button.click()
  assert button.get_attribute('aria-expanded') == 'true'
  detail = _one(opened, f'#{button.get_attribute("aria-controls")}')
  record = results.records['nq'][1]
  for passage, item in zip(
    record.passages['bm25'], _all(detail, '.passages li'), strict=True
  ):
    for text in (passage.id, passage.title, passage.text):
      assert text in item.text
  items = [item.text for item in _all(detail, '.passages li')]
  assert all(
    f'rank {i + 1} ' in text.replace('\n', ' ') for i, text in enumerate(items)
  )
  assert ['contains an answer' in text for text in items] == [
    True,
    False,
    False,
  ]
  assert [mark.text for mark in _all(detail, 'mark')] == [report_data.RIGHT]
  rows = [
    [one.text for one in _all(row, 'td')]
    for row in _all(detail, '.inner tbody tr')
  ]
  assert [row[0] for row in rows] == [
    'closed_book',
    'concat',
    'prompt',
    'chat_prompt',
    'tokens (ours, k = 5)',
    'tokens (other, k = 20)',
  ]
  for row, (condition, where) in zip(
    rows,
    [
      ('closed_book', {}),
      ('concat', {}),
      ('prompt', {}),
      ('chat_prompt', {}),
      ('tokens', {}),
      ('tokens', {'table': 'other', 'k': 20}),
    ],
    strict=True,
  ):
    result = results.cells[cell('nq', condition, **where)]
    answer, right = result.answers[1], result.values['em'][1]
    assert row[1:] == [
      answer.text,
      '✓ right' if right else '✗ wrong',
      '100.0' if right else '50.0',
      '100.0',
      str(answer.num_tokens),
      answer.stop,
      '',
    ]
  assert 'Passages shown to concat, prompt' in detail.text
  assert (
    'closed_book' not in [heading.text for heading in _all(detail, 'h4')][2]
  )
  # Open rows stay open when the table is drawn anew.
  _press(opened, 'all')
  assert len(_all(opened, 'tr.detail')) == 1
  _all(opened, '#table td.question button')[1].click()
  assert _all(opened, 'tr.detail') == []


def test_all_works_by_keyboard(opened):
  button = _sort_button(opened, 'question')
  button.send_keys(Keys.ENTER)
  assert _order(opened, 'question') == 'ascending'
  # Focus is still on it, so that pressing again turns the order.
  opened.switch_to.active_element.send_keys(Keys.SPACE)
  assert _order(opened, 'question') == 'descending'
  row = _all(opened, '#table td.question button')[0]
  row.send_keys(Keys.ENTER)
  assert len(_all(opened, 'tr.detail')) == 1
  opened.switch_to.active_element.send_keys(Keys.ENTER)
  assert _all(opened, 'tr.detail') == []
  _one(opened, '[data-outcome=fixed]').send_keys(Keys.ENTER)
  assert (
    _one(opened, '[data-outcome=fixed]').get_attribute('aria-pressed') == 'true'
  )


def test_text_stays_text(opened):
  button = _all(opened, '#table td.question button')[0]
  button.click()
  detail = _texts(opened, 'tr.detail')[0]
  for kind in ('A', 'S', 'P', 'T', 'id'):
    assert f'{kind} {EVIL}' in detail
  assert f'Q {EVIL}' == _texts(opened, '#table td.question')[0]
  assert f'A {EVIL}' in _texts(opened, '#table td.answers')[0]
  assert json.loads(_texts(opened, '#settings')[0])['settings']['note'] == EVIL
  assert len(_all(opened, 'img')) == len(_all(opened, '#pictures img')) == 4
  assert len(_all(opened, 'script')) == 2


def test_all_pictures_and_tables_are_shown(opened):
  for image in _all(opened, '#pictures img'):
    assert image.get_attribute('src').startswith('data:image/png;base64,')
    width = opened.execute_script('return arguments[0].naturalWidth', image)
    assert width == 1500
  titles = _texts(opened, '#tables h3')
  assert titles[0] == 'With retrieval (model lm, m = 3, retriever bm25)'
  assert titles[1].startswith('Without retrieval')
  assert _texts(opened, '#more summary') == [
    'Paired tests',
    'Confidence',
    'All cells',
  ]


def test_all_conditions_as_columns(opened):
  assert len(_all(opened, 'th button[data-sort^=said]')) == 2
  _one(opened, '#all-columns').click()
  assert [b.text for b in _all(opened, 'th button[data-sort^=said]')] == [
    'closed_book',
    'concat',
    'prompt',
    'chat_prompt',
    'tokens (ours, k = 5)',
    'tokens (other, k = 20)',
  ]
  opened.execute_script('scrollTo(0, 0)')
  # The page itself never scrolls sideways.
  assert opened.execute_script(
    'return document.documentElement.scrollWidth <= innerWidth'
  )


def test_on_a_phone(opened):
  opened.execute_cdp_cmd(
    'Emulation.setDeviceMetricsOverride',
    {'width': 360, 'height': 700, 'deviceScaleFactor': 2, 'mobile': True},
  )
  try:
    assert opened.execute_script(
      'return [innerWidth, document.documentElement.scrollWidth]'
    ) == [360, 360]
    sort = Select(_one(opened, '#sort'))
    sort.select_by_visible_text('F1 gained')
    gained = _texts(opened, '#table tr > td:last-child')
    assert gained[0] == '+50.0'
    _all(opened, '#table td.question button')[0].click()
    assert opened.execute_script('return innerWidth') == 360
  finally:
    opened.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_dark_if_the_system_is(opened):
  def background():
    return opened.execute_script(
      'return getComputedStyle(document.body).backgroundColor'
    )

  colors = []
  for scheme in ('light', 'dark'):
    feature = {'name': 'prefers-color-scheme', 'value': scheme}
    opened.execute_cdp_cmd(
      'Emulation.setEmulatedMedia', {'features': [feature]}
    )
    colors.append(sum(map(int, re.findall(r'\d+', background())[:3])))
  opened.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': []})
  assert colors[0] > 600 > 150 > colors[1]


def test_nothing_is_requested(driver, path):
  driver.get('about:blank')
  driver.get_log('performance')
  driver.get(path.as_uri())
  _one(driver, '#next').click()
  _all(driver, '#table td.question button')[0].click()
  events = [
    json.loads(entry['message'])['message']
    for entry in driver.get_log('performance')
  ]
  urls = {
    event['params']['request']['url']
    for event in events
    if event['method'] == 'Network.requestWillBeSent'
  }
  assert {url for url in urls if not url.startswith('data:')} == {path.as_uri()}


def test_nothing_could_be_requested(driver, path):
  hits = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      hits.append(self.path)
      self.send_response(204)
      self.end_headers()

    def log_message(self, *args):
      pass

  script = (
    'const done = arguments[1]; const image = new Image();'
    'image.onload = image.onerror = () => done(); image.src = arguments[0];'
  )
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    blank = path.with_name('blank.html')
    blank.write_text('<!doctype html><title>no policy</title>')
    for page_of, name in ((blank, 'without'), (path, 'with')):
      driver.get(page_of.as_uri())
      driver.execute_async_script(script, f'{url}/{name}')
    server.shutdown()
  assert '/without' in hits
  assert '/with' not in hits
  # The console has the refusal.
  assert any(
    'Content Security Policy' in entry['message']
    for entry in driver.get_log('browser')
  )


def test_a_cut_page_says_so(driver, results, tmp_path):
  driver.get(_render(tmp_path, results, 100).as_uri())
  text = _one(driver, '#cut').text
  assert text.startswith(
    'Only 100 of 180 questions are in this page (nq 33 of 50, squad 33 of 60, '
    'triviaqa 34 of 70)'
  )
  assert _count(driver) == 100
  tokens, prompt = (_right(results, c) for c in ('tokens', 'prompt'))
  kept = [q for q in tokens if q[1] < (34 if q[0] == 'triviaqa' else 33)]
  assert _press(driver, 'fixed') == sum(
    tokens[q] and not prompt[q] for q in kept
  )
  driver.get(_render(tmp_path, results, 0).as_uri())
  assert _count(driver) == 0
  assert _one(driver, '#cut').text.startswith('Only 0 of 180')
  assert len(_all(driver, '#tables table')) > 1
  assert not _one(driver, '#pictures-section').is_displayed()


def test_a_whole_page_says_nothing(opened):
  assert not _one(opened, '#cut').is_displayed()


def test_one_condition_alone(driver, tmp_path):
  records = {'nq': [report_data.record('nq', i) for i in range(2)]}
  results = report_data.build(records, [(cell('nq', 'prompt'), [1, 0])])
  driver.get(_render(tmp_path, results).as_uri())
  assert _count(driver) == 2
  assert not _one(driver, '#pair').is_displayed()
  assert [
    button.get_attribute('data-outcome')
    for button in _all(driver, '#outcomes button')
  ] == ['all', 'right', 'wrong']
  assert _press(driver, 'right') == 1


def test_conditions_that_were_asked_of_one_dataset_only(driver, tmp_path):
  results = report_data.small()
  cells = dict(results.cells)
  del cells[cell('squad', 'tokens')]
  results = dataclasses.replace(results, cells=cells)
  driver.get(_render(tmp_path, results).as_uri())
  # nq alone: tokens 1, 1, 1, 0 and prompt 1, 0, 0, 0.
  assert _press(driver, 'fixed') == 2
  assert _press(driver, 'broke') == 0
  # Of those that were asked: squad's 1 is right in prompt or closed_book only.
  assert _press(driver, 'right') == 0
  assert _press(driver, 'wrong') == 1
  _press(driver, 'all')
  assert _texts(driver, '#table td.said').count('not asked') == 2
  assert driver.get_log('browser') == []


def test_conditions_that_saw_different_passages(driver, tmp_path):
  results = report_data.small()
  key = cell('nq', 'tokens')
  cells = dict(results.cells)
  # One passage did not fit beside the tokens, and the others were shuffled.
  answers = [dataclasses.replace(a, shown=(1, 0)) for a in cells[key].answers]
  answers[1] = dataclasses.replace(answers[1], shown=())
  cells[key] = dataclasses.replace(cells[key], answers=answers)
  results = dataclasses.replace(results, cells=cells)
  driver.get(_render(tmp_path, results).as_uri())
  for number, expected in ((0, [3, 2]), (1, [3, 0])):
    _all(driver, '#table td.question button')[number].click()
    detail = _one(driver, f'#detail-{number}')
    lists = [len(_all(one, 'li')) for one in _all(detail, '.passages')]
    assert lists == expected
    if number == 0:
      # Each with the text of its rank.
      last = _all(detail, '.passages')[-1].text
      assert re.findall(r'rank (\d)', last) == ['2', '1']
      assert last.index('Nothing, bm25 1.') < last.index('It was Paris.')
  assert 'Passages shown to prompt' in detail.text
  assert 'No passages were shown to tokens' in detail.text


@pytest.mark.parametrize(
  'sizes, most, expected',
  [
    ({'a': 5, 'b': 3}, 100, {'a': 5, 'b': 3}),
    ({'a': 50, 'b': 3}, 20, {'a': 17, 'b': 3}),
    ({'a': 50, 'b': 60}, 20, {'a': 10, 'b': 10}),
    ({'a': 50, 'b': 60}, 0, {'a': 0, 'b': 0}),
  ],
)
def test_chosen_questions(sizes, most, expected):
  assert page.chosen(sizes, most) == expected


def test_chosen_questions_are_never_too_many():
  for sizes in itertools.product(range(4), repeat=3):
    for most in range(10):
      numbers = page.chosen(dict(zip('abc', sizes, strict=True)), most)
      assert sum(numbers.values()) == min(most, sum(sizes))
      assert all(n <= s for n, s in zip(numbers.values(), sizes, strict=True))


def test_data_cannot_end_its_script(path):
  text = path.read_text(encoding='utf-8')
  assert text.count('</script>') == 2
  # And in particular not by what HTML makes of comments in scripts.
  (data,) = re.findall(
    r'<script type="application/json" id="data">(.*?)</script>', text, re.S
  )
  assert '<' not in data
  assert json.loads(data)['questions'][0]['question'] == f'Q {EVIL}'
