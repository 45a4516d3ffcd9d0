"""How XLA compiles the tests' programs: to compile quickly.

Those of tiny models take far longer to compile than to run. Set `XLA_FLAGS=''`
to compile them as users' programs are.
"""

import importlib.metadata
import os

# LLVM optimises little.
_QUICK = ['--xla_backend_optimization_level=0']
if importlib.metadata.version('jax').split('.')[:2] == ['0', '10']:
  # Loops of another emitter, of less code: a third of the time. JAX 0.11 has
  # the newer one alone.
  _QUICK.append('--xla_cpu_use_fusion_emitters=false')
QUICK = ' '.join(_QUICK)


def devices(number: int) -> str:
  """For a program of its own with so many CPU devices.

  XLA ends a program whose devices do not all come to a collective within 40
  seconds. On a busy machine some come later.
  """
  flags = [
    os.environ.get('XLA_FLAGS', ''),
    f'--xla_force_host_platform_device_count={number}',
    '--xla_cpu_collective_call_terminate_timeout_seconds=600',
  ]
  return ' '.join(flags).strip()


def planning() -> dict[str, str]:
  """Environment of a `vtokens.plan` for TPUs, in which it compiles quickly.

  Programs then differ a little, in the memory that they need, too.
  """
  if not os.environ.get('XLA_FLAGS'):
    return {}
  return {'JAX_EXEC_TIME_OPTIMIZATION_EFFORT': '-1.0'}
