"""Errors of requests, with the body that OpenAI's clients read."""

from typing import Any

_TYPES = {
  401: 'authentication_error',
  403: 'permission_error',
  429: 'rate_limit_error',
}


class ApiError(Exception):
  """A request that is refused, or cannot be answered.

  Attributes:
    status: of the reply.
    message: what was wrong, what was expected.
    param: field of the request; None for none.
    code: a word for programs; None for none.
    retry_after: seconds after which to try again; None for no advice.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after: int | None = None,
  ):
    super().__init__(message)
    self.status = status
    self.message = message
    self.param = param
    self.code = code
    self.retry_after = retry_after

  @property
  def body(self) -> dict[str, Any]:
    """The reply, for JSON."""
    kind = _TYPES.get(self.status, 'invalid_request_error')
    if self.status >= 500:
      kind = 'server_error'
    return {
      'error': {
        'message': self.message,
        'type': kind,
        'param': self.param,
        'code': self.code,
      }
    }

  @property
  def headers(self) -> dict[str, str]:
    """Headers of the reply."""
    found = {}
    if self.retry_after is not None:
      found['Retry-After'] = str(self.retry_after)
    if self.status == 401:
      found['WWW-Authenticate'] = 'Bearer'
    return found


class ClientGoneError(Exception):
  """The client closed the connection before it had the whole reply."""


def refused(field: str, message: str) -> ApiError:
  """A field of a request that cannot be taken (400)."""
  return ApiError(400, f'{field}: {message}', param=field)


def name_taken(name: str) -> ApiError:
  """There is a table of this name already (409)."""
  return ApiError(409, f'name: there is a model {name!r} already', param='name')


def no_table(name: str) -> ApiError:
  """There is no table of this name (404)."""
  return ApiError(
    404, f'no model {name[:200]!r} is loaded', code='model_not_found'
  )


def backend_failed(message: str) -> ApiError:
  """A backend is not there, or breaks off (502)."""
  return ApiError(502, message, code='backend_failed', retry_after=1)
