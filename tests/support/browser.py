"""A headless Chromium."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver


@contextlib.contextmanager
def headless(profile: pathlib.Path) -> Iterator[webdriver.Chrome]:
  """Gives a browser that logs the console and all requests.

  A test that asks for it is skipped where there is none, unless
  VTOKENS_REQUIRE_BROWSER is 1.

  Args:
    profile: an empty directory.
  """
  paths = [shutil.which(name) for name in ('chromium', 'chromedriver')]
  if None in paths:
    text = 'chromium and chromedriver are not on PATH'
    if os.environ.get('VTOKENS_REQUIRE_BROWSER') == '1':
      pytest.fail(f'{text}, and VTOKENS_REQUIRE_BROWSER=1')
    pytest.skip(text)
  options = webdriver.ChromeOptions()
  options.binary_location = paths[0]
  for argument in (
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--window-size=1280,1600',
    f'--user-data-dir={profile}',
  ):
    options.add_argument(argument)
  options.set_capability(
    'goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'}
  )
  service = webdriver.ChromeService(paths[1])
  found = webdriver.Chrome(options=options, service=service)
  try:
    yield found
  finally:
    found.quit()
