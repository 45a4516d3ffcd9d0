"""Counts the programs that XLA compiles."""

import contextlib
from collections.abc import Iterator

import jax

_COMPILED = '/jax/core/compile/backend_compile_duration'


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
  """A list that grows by the name of each program compiled in the block."""
  found: list[str] = []

  def note(event: str, _: float, **about: str | int) -> None:
    if event == _COMPILED:
      found.append(str(about.get('fun_name')))

  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(note)
