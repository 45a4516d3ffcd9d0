"""The one exception type that users are meant to read."""


class UserError(Exception):
  """A mistake in what the user gave: a flag, a file, a config field.

  Command-line programs show the message in one piece, without a traceback, and
  exit with status 1. So the message has to stand alone: where the mistake is,
  what was found, what was expected and what to do about it.
  """


class NotWrittenError(UserError):
  """A path that cannot be written: once it can, the command can go on."""
