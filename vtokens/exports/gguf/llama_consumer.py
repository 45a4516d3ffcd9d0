"""Runs exports in llama.cpp, through its server."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vtokens.exports.gguf import llama_server
from vtokens.host import errors
from vtokens.serving import plug
from vtokens.serving.artifact import Meta

# Seconds that a request may take, for long prompts on slow machines.
_PATIENCE = 1800
# Ignores a proxy in the environment.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class LlamaConsumer:
  """A model in llama.cpp; see `gate.Consumer`.

  Args:
    address: address of a server that `serve` started.
    tokenizer: tokenizer of the export.
    meta: metadata of the export.
  """

  def __init__(self, address: str, tokenizer: Any, meta: Meta):
    self._address = address
    self._tokenizer = tokenizer
    self._meta = meta

  def prompt_ids(
    self, passages: Sequence[dict[str, str]], question: str
  ) -> list[int]:
    """See `gate.Consumer`."""
    k = self._meta.num_trained
    return plug.prompt_ids(self._tokenizer, passages, question, k, self._meta)

  def virtual_ids(self) -> list[int]:
    """See `gate.Consumer`."""
    return list(self._meta.tokens.ids)

  def tokenize(self, text: str) -> list[int]:
    """Ids of a text whose special tokens are parsed, without bos."""
    ids: list[int] = post(
      self._address, '/tokenize', {'content': text, 'parse_special': True}
    )['tokens']
    return ids

  def answer(self, ids: Sequence[int], most: int) -> list[int]:
    """See `gate.Consumer`."""
    found: list[int] = self.complete(ids, most, temperature=0)['tokens']
    return found

  def sample(self, ids: Sequence[int], number: int, seed: int) -> list[int]:
    """See `gate.Consumer`."""
    found: list[int] = self.complete(
      ids,
      number,
      temperature=1,
      samplers=['temperature'],
      seed=seed,
      ignore_eos=True,
    )['tokens']
    return found

  def complete(
    self, ids: Sequence[int], most: int, **settings: Any
  ) -> dict[str, Any]:
    """The answer of `/completion` to a prompt of ids."""
    answer: dict[str, Any] = post(
      self._address,
      '/completion',
      {
        'prompt': list(ids),
        'n_predict': most,
        'return_tokens': True,
        # With a cache the steps of computing a prompt depend on earlier ones.
        'cache_prompt': False,
        **settings,
      },
    )
    return answer

  def log_probabilities(
    self, ids: Sequence[int], count: int, size: int
  ) -> Float[np.ndarray, 'T V']:
    """Log probabilities of all ids after each of the last `count` tokens.

    Args:
      ids: ids of a text.
      count: number of tokens, T.
      size: size of the vocabulary, V.
    """
    logs = np.full((count, size), -np.inf)
    for row, end in zip(logs, range(len(ids) - count, len(ids)), strict=True):
      # One position at a time, with eos forced: the server leaves out positions
      # where the text ends within a character. The log probabilities it returns
      # are without the bias.
      found = self.complete(
        ids[: end + 1],
        1,
        temperature=0,
        n_probs=size,
        logit_bias=[[self._tokenizer.eos_token_id, 1e6]],
        cache_prompt=True,
      )
      (position,) = found['completion_probabilities']
      for one in position['top_logprobs']:
        row[one['id']] = one['logprob']
    return logs

  def hidden(self, ids: Sequence[int]) -> Float[np.ndarray, 'T D']:
    """Hidden states before the head, array of shape [T, D], float32."""
    found = post(self._address, '/embedding', {'content': list(ids)})
    return np.array(found[0]['embedding'], np.float32)


@contextlib.contextmanager
def serve(path: pathlib.Path, context: int, mode: str) -> Iterator[str]:
  """Runs the server of llama.cpp and gives its address.

  Args:
    path: a GGUF file.
    context: most tokens of prompt and answer.
    mode: see `llama_server.main`.

  Raises:
    errors.UserError: the server does not start, or dies.
  """
  command = [sys.executable, '-m', llama_server.__name__]
  with tempfile.TemporaryFile('w+') as log:
    process = subprocess.Popen(
      [*command, str(path), str(context), mode],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
      # Threads that spin while they wait take the cores from others.
      env={'OMP_WAIT_POLICY': 'passive', **os.environ},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
      for line in process.stdout:
        if line.startswith(llama_server.READY):
          yield line.removeprefix(llama_server.READY).strip()
          break
      else:
        raise _Died
    except _Died:
      code = process.wait()
      log.seek(0)
      said = log.read().strip().splitlines()[-3:]
      raise errors.UserError(
        f'{path}: llama.cpp fails on it (status {code}): ' + ' | '.join(said)
      ) from None
    finally:
      process.stdin.close()
      try:
        process.wait(timeout=30)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
      process.stdout.close()


class _Died(Exception):
  """The server has died."""


def post(address: str, route: str, body: dict[str, Any]) -> Any:
  """Posts JSON to the server and returns its answer.

  Raises:
    errors.UserError: the server refuses the request.
  """
  request = urllib.request.Request(
    address + route,
    data=json.dumps(body).encode(),
    headers={'Content-Type': 'application/json'},
  )
  try:
    with _open(request, timeout=_PATIENCE) as response:
      return json.load(response)
  except urllib.error.HTTPError as e:
    text = e.read().decode(errors='replace')
    raise errors.UserError(f'llama.cpp refuses {route}: {text[:300]}') from None
  except (OSError, ValueError):
    # The connection ended, so the process has died.
    raise _Died from None
