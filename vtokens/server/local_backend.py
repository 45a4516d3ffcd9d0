"""Questions answered by this process."""

import asyncio
import concurrent.futures
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from vtokens import answering
from vtokens.host import errors
from vtokens.server.api_errors import ApiError, name_taken, no_table
from vtokens.server.metrics import Metrics
from vtokens.server.questions import BASE, Piece, Question, Table, Token, Usage
from vtokens.server.scheduler import Job, Running, Scheduler

# New tokens of an answer between two looks at new and dropped questions.
_ROUND = 4


class LocalBackend:
  """See `questions.Backend`.

  Args:
    engine: answers; without tables.
    metrics: counters.
  """

  def __init__(self, engine: answering.Engine, metrics: Metrics):
    self._engine = engine
    self._metrics = metrics
    self._tables: Mapping[str, Table] = {}
    # Passages that were found and encoded, as far as they are counted.
    self._prefixes = (engine.prefixes.hits, engine.prefixes.misses)
    # Tokenizers are not made for several threads.
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'prompts')
    self._scheduler = Scheduler(self._start, engine.batch_size)

  @property
  def tables(self) -> Mapping[str, Table]:
    """See `questions.Backend`."""
    return self._tables

  def load_now(self, name: str, directory: str) -> Table:
    """Adds a table; see `load`."""
    # Another request may have added one since this one came.
    if name in self._tables:
      raise name_taken(name)
    if name not in self._engine.tables:
      self._engine.add(name, directory)
    found = self._engine.tables[name]
    table = Table(
      name=name,
      directory=directory,
      num_trained=found.count,
      max_new_tokens=found.source.decode.max_new_tokens,
      newline=found.source.decode.stop_at_newline,
      created=int(time.time()),
    )
    self._tables = {**self._tables, name: table}
    return table

  async def load(self, name: str, directory: str) -> Table:
    """See `questions.Backend`."""
    table: Table = await self._aside(self.load_now, name, directory)
    return table

  async def unload(self, name: str) -> None:
    """See `questions.Backend`."""
    await self._aside(self._unload_now, name)

  def _unload_now(self, name: str) -> None:
    # In the thread of `load_now`: of two changes at once, one would be lost.
    if name not in self._tables:
      raise no_table(name)
    self._tables = {n: t for n, t in self._tables.items() if n != name}
    self._engine.remove(name)

  async def close(self) -> None:
    """See `questions.Backend`."""
    await asyncio.to_thread(self._scheduler.close)
    self._thread.shutdown(wait=False, cancel_futures=True)

  async def problem(self) -> str:
    """See `questions.Backend`."""
    return '' if self._scheduler.alive else 'the thread of answers has ended'

  async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
    """See `questions.Backend`."""
    try:
      prepared = await self._aside(self._prepare, question)
    except errors.UserError as e:
      raise ApiError(400, str(e)) from None
    job = Job(prepared)
    self._scheduler.submit(job)
    try:
      async for piece in job.pieces():
        yield piece
    finally:
      job.dropped = True

  def _prepare(self, question: Question) -> answering.Prepared:
    # In the thread of `_unload_now`: no table goes meanwhile.
    if question.table != BASE and question.table not in self._tables:
      raise no_table(question.table)
    return self._engine.prepare(self._request(question))

  async def _aside(self, function: Any, *arguments: Any) -> Any:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(self._thread, function, *arguments)

  def _request(self, question: Question) -> answering.Request:
    sampling = question.sampling
    seed = sampling.seed
    if seed is None:
      # Each request draws otherwise.
      seed = random.getrandbits(63)
    fields: dict[str, Any] = {
      'max_new_tokens': sampling.max_tokens,
      'temperature': sampling.temperature,
      'top_p': sampling.top_p,
      'seed': seed,
      'stop': sampling.stop,
      'stop_at_newline': sampling.newline,
      'num_logprobs': sampling.num_top,
      'refusal_bias': sampling.refusal_bias,
    }
    passages = [{'title': p.title, 'text': p.text} for p in question.passages]
    if question.table != BASE:
      fields |= {
        'question': question.text,
        'passages': passages,
        'table': question.table,
        'k': question.k,
      }
    elif passages:
      templated = self._engine.base.tokenizer.has_chat_template
      fields |= {
        'question': question.text,
        'passages': passages,
        # It has the templates; the condition has no virtual tokens.
        'table': next(iter(self._tables), None),
        'condition': (
          'chat_prompt' if question.chat and templated else 'prompt'
        ),
      }
    elif question.chat:
      fields['messages'] = [
        {'role': one.role, 'content': one.content} for one in question.messages
      ]
    else:
      fields['prompt'] = question.text
    return answering.Request(**fields)

  def _start(self, jobs: Sequence[Job]) -> list[Running]:
    """Makes batches of jobs."""
    numbered = [job.work for job in jobs]
    found: list[Running] = []
    for batch in self._engine.start(numbered):
      own = {number: jobs[number] for number in batch.numbers}
      self._metrics.rows.observe(len(own))
      found.append(_Batch(batch, own, self._engine, self._count_prefixes))
    return found

  def _count_prefixes(self) -> None:
    prefixes = self._engine.prefixes
    now = prefixes.hits, prefixes.misses
    for kind, before, value in zip(
      ('found', 'encoded'), self._prefixes, now, strict=True
    ):
      self._metrics.prefixes.labels(kind).inc(value - before)
    self._prefixes = now


class _Batch:
  """See `scheduler.Running`.

  Args:
    batch: generates.
    jobs: by their number in the batch.
    engine: of the batch.
    begun: called once the prompts are encoded.
  """

  def __init__(
    self,
    batch: answering.Batch,
    jobs: Mapping[int, Job],
    engine: answering.Engine,
    begun: Callable[[], None],
  ):
    self._batch = batch
    self._jobs = jobs
    self._engine = engine
    self._on_begun = begun
    self._begun = False

  @property
  def jobs(self) -> Sequence[Job]:
    """See `scheduler.Running`."""
    return list(self._jobs.values())

  @property
  def done(self) -> bool:
    """See `scheduler.Running`."""
    ended: bool = self._batch.done
    return ended

  def advance(self) -> None:
    """See `scheduler.Running`."""
    for number, job in self._jobs.items():
      if job.dropped:
        self._batch.cancel(number)
    # The first token soon, then several at a time.
    increments = self._batch.advance(_ROUND if self._begun else 1)
    if not self._begun:
      self._begun = True
      self._on_begun()
    for increment in increments:
      job = self._jobs[increment.number]
      piece = self._piece(increment, job.work)
      if increment.completion is None:
        job.put(piece)
      else:
        job.put(piece, None)

  def _piece(
    self, increment: answering.Increment, prepared: answering.Prepared
  ) -> Piece:
    text = self._engine.token_text
    tops = increment.top or [()] * len(increment.ids)
    tokens = [
      Token(text(i), value, [(text(j), other) for j, other in top])
      for i, value, top in zip(
        increment.ids, increment.log_probs, tops, strict=True
      )
    ]
    done = increment.completion
    if done is None:
      return Piece(increment.text, tokens)
    return Piece(
      increment.text,
      tokens,
      finish='length' if done.stop == 'length' else 'stop',
      usage=Usage(prepared.prompt_tokens, done.completion_tokens),
      passages_cut=done.passages_cut,
      passages_dropped=done.passages_dropped,
    )
