"""Tests with llama-cpp-python and its server."""

import importlib.metadata
import os
import sys

import gguf_place
import llama_cpp
import our_answers
import pytest
import recipes
import server_process
import trained_runs

IN_PYTHON = 'llama-cpp-python (tested here)'
SERVER = 'llama-cpp-python as a server (tested here)'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  root = tmp_path_factory.mktemp('gguf')
  gguf_place.make(root)
  return root


def test_in_python(place, monkeypatch):
  recipes.enter(place, 'gguf', monkeypatch)
  for k in (1, trained_runs.ROWS):
    asked = our_answers.ask(place / 'run', k)
    # Each time the model is loaded.
    for one in (asked[0], *(a for a in asked if a.line != a.text)):
      found = recipes.execute(
        IN_PYTHON, k=k, passages=one.passages, question=one.question
      )
      assert found['answer'] == one.line


def test_server(place, monkeypatch, tmp_path):
  recipes.enter(place, 'gguf', monkeypatch)
  port = server_process.free_port()
  program, *arguments = recipes.command(SERVER, port)
  assert program == 'python'
  address = f'http://127.0.0.1:{port}'
  with server_process.running(
    [sys.executable, *arguments, '--host', '127.0.0.1'],
    f'{address}/v1/models',
    tmp_path / 'log',
    env=dict(os.environ),
    within=120,
  ):
    for k in (1, trained_runs.ROWS):
      for one in our_answers.ask(place / 'run', k):
        found = recipes.execute(
          SERVER, address, k, passages=one.passages, question=one.question
        )
        assert found['answer'] == one.line


def test_the_version_that_the_page_names():
  version = importlib.metadata.version('llama-cpp-python')
  assert llama_cpp.__version__ == version
  page = recipes.PAGE.read_text()
  assert page.count(f'| tested here, {version} |') >= 2
