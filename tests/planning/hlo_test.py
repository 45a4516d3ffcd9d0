"""Tests of vtokens.planning.hlo on text as XLA writes it."""

import pytest

from vtokens.planning import hlo

_LOOP = """HloModule jit_step, is_scheduled=true

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %all-gather.1 = f32[16,4]{1,0} all-gather(%x), channel_id=3, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}, metadata={op_name="jit(step)/while/body/gather"}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %x)
}

%condition (p.1: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %p.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i.1, %limit), direction=LT
}

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8,4]) -> f32[] {
  %x.1 = f32[8,4]{1,0} parameter(0)
  %while.1 = (s32[], f32[8,4]{1,0}) while(%init), condition=%condition, body=%body@NOTED@
  %all-reduce.2 = (f32[], bf16[3,5]{1,0}) all-reduce(%y, %z), channel_id=4, replica_groups={{0,1},{2,3}}, to_apply=%sum
  ROOT %r = f32[] get-tuple-element(%all-reduce.2), index=0
}
"""


def _by_kind(text):
  return {c.kind: c for c in hlo.collectives(text)}


@pytest.mark.parametrize(
  'noted, times',
  [
    ('', 7),
    (', backend_config={"known_trip_count":{"n":"9"}}', 9),
  ],
)
def test_loops(noted, times):
  found = _by_kind(_LOOP.replace('@NOTED@', noted))
  gather = found['all-gather']
  assert (gather.times, gather.in_loop_of_unknown_length) == (times, False)
  assert gather.arrays == (16 * 4 * 4,)
  assert gather.groups == ((0, 2), (1, 3))
  assert gather.op_name == 'jit(step)/while/body/gather'
  reduce = found['all-reduce']
  assert (reduce.times, reduce.arrays) == (1, (4, 3 * 5 * 2))
  assert reduce.nbytes == 34
  assert reduce.groups == ((0, 1), (2, 3))


def test_a_loop_that_values_end():
  text = _LOOP.replace('@NOTED@', '').replace('constant(7)', 'parameter(1)')
  gather = _by_kind(text)['all-gather']
  assert (gather.times, gather.in_loop_of_unknown_length) == (1, True)


@pytest.mark.parametrize(
  'written, groups',
  [
    ('replica_groups=[1,4]<=[4]', ((0, 1, 2, 3),)),
    ('replica_groups={}', ()),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}",
      ((0, 2), (1, 3)),
    ),
  ],
)
def test_groups(written, groups):
  text = _LOOP.replace('@NOTED@', '').replace(
    'replica_groups=[2,2]<=[2,2]T(1,0)', written
  )
  assert _by_kind(text)['all-gather'].groups == groups


def test_parts_of_one_collective():
  """As TPUs' compiler spreads one over several fusions."""
  line = next(x for x in _LOOP.splitlines() if 'all-gather.1' in x)
  again = line.replace('all-gather.1', 'all-gather.9')
  text = _LOOP.replace('@NOTED@', '').replace(line, f'{line}\n{again}')
  assert len(hlo.collectives(text)) == 2
  other = again.replace('channel_id=3', 'channel_id=5')
  text = _LOOP.replace('@NOTED@', '').replace(line, f'{line}\n{other}')
  assert len(hlo.collectives(text)) == 3


def test_started_and_done():
  text = _LOOP.replace('@NOTED@', '').replace(
    'f32[16,4]{1,0} all-gather(', '(f32[8,4], f32[16,4]) all-gather-start('
  )
  assert _by_kind(text)['all-gather'].arrays == (16 * 4 * 4,)


@pytest.mark.parametrize(
  'dtype, size',
  [('f32', 256), ('f8e4m3fn', 64), ('f8e8m0fnu', 64), ('f4e2m1fn', 32)],
)
def test_bytes_of_an_array(dtype, size):
  text = _LOOP.replace('@NOTED@', '').replace('f32[16,4]', f'{dtype}[16,4]')
  assert _by_kind(text)['all-gather'].arrays == (size,)


@pytest.mark.parametrize(
  'old, new',
  [
    (
      'replica_groups=[2,2]<=[2,2]T(1,0)',
      "replica_groups=mesh['a'=4] {'a':(1)2}",
    ),
    ('replica_groups=[2,2]<=[2,2]T(1,0)', 'replica_groups=new'),
    ('f32[16,4]', 'f99[16,4]'),
    ('ENTRY ', ''),
  ],
)
def test_what_is_not_known_is_an_error(old, new):
  with pytest.raises(ValueError, match=r'known|no HLO'):
    hlo.collectives(_LOOP.replace('@NOTED@', '').replace(old, new))


def test_between_slices():
  handler = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
  send = (
    '  %send.1 = (f32[2,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%x.1, '
    '%after-all), channel_id=4, is_host_transfer=true, frontend_attributes='
    f'{{{handler},_xla_megascale_transfer_type="ALL_REDUCE"}}\n  ROOT %r'
  )
  text = _LOOP.replace('@NOTED@', '')
  found = _by_kind(text.replace('  ROOT %r', send))
  assert found[hlo.BETWEEN_SLICES].arrays == (2 * 8 * 128 * 4,)
  # Its channel has the number of a collective's.
  assert found['all-reduce'].nbytes == 34
  # To the host alone.
  other = send.replace('xla_megascale_runtime', 'host')
  assert hlo.BETWEEN_SLICES not in _by_kind(text.replace('  ROOT %r', other))
