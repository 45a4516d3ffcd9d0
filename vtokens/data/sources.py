"""Temporary: records of sources."""

import hashlib

from vtokens import paths
from vtokens.data import records


class BadRecords:
  def __init__(self, on_bad_record='error'):
    self.on_bad_record = on_bad_record
    self.messages = []


def read(sources, *, corpus=(), report):
  r = records.read_records(
    [paths.resolve(s) for s in sources], on_bad_record=report.on_bad_record
  )
  report.messages += r.skipped
  yield from r.records


def identity(sources, corpus=()):
  return {
    s: hashlib.sha256(open(paths.resolve(s), 'rb').read()).hexdigest()
    for s in [*sources, *corpus]
  }
