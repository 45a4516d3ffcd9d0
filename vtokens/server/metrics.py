"""Counters for Prometheus."""

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram, exposition

CONTENT_TYPE = exposition.CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
  """The counters of one server.

  Attributes:
    requests: finished requests, by path and status.
    seconds: from a request to the end of its reply, by path.
    first_seconds: from a question to the first text of its answer.
    inside: questions that are answered or wait.
    tokens: tokens of prompts and answers, by model and kind.
    rows: questions of a batch of this process's own backend.
    prefixes: passages of questions to this process's own backend, found in the
      cache or encoded.
    dropped: questions whose client has gone.
    failures: questions that the backend failed to answer.
    tables: tables that are loaded.
  """

  def __init__(self) -> None:
    self._all = prometheus_client.CollectorRegistry()
    self.requests = Counter(
      'vtokens_requests',
      'Finished requests',
      ('path', 'status'),
      registry=self._all,
    )
    self.seconds = Histogram(
      'vtokens_request_seconds',
      'Seconds to the end of the reply',
      ('path',),
      buckets=_SECONDS,
      registry=self._all,
    )
    self.first_seconds = Histogram(
      'vtokens_first_text_seconds',
      'Seconds to the first text of an answer',
      buckets=_SECONDS,
      registry=self._all,
    )
    self.inside = Gauge(
      'vtokens_questions_inside',
      'Questions that are answered or wait',
      registry=self._all,
    )
    self.tokens = Counter(
      'vtokens_tokens',
      'Tokens of prompts and answers',
      ('model', 'kind'),
      registry=self._all,
    )
    self.rows = Histogram(
      'vtokens_batch_rows',
      'Questions of a batch',
      buckets=_ROWS,
      registry=self._all,
    )
    self.prefixes = Counter(
      'vtokens_prefixes',
      'Passages of questions, found in the cache or encoded',
      ('kind',),
      registry=self._all,
    )
    self.dropped = Counter(
      'vtokens_dropped_questions',
      'Questions whose client has gone',
      registry=self._all,
    )
    self.failures = Counter(
      'vtokens_backend_failures',
      'Questions that the backend failed to answer',
      registry=self._all,
    )
    self.tables = Gauge(
      'vtokens_tables', 'Tables that are loaded', registry=self._all
    )

  def text(self) -> bytes:
    """All values, as Prometheus reads them."""
    return prometheus_client.generate_latest(self._all)
