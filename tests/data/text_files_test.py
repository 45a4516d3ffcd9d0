"""Text files become passages, whatever they hold."""

import re

import hypothesis
import pytest
from hypothesis import strategies as st

from vtokens.data import text_files
from vtokens.host import errors


def _letters(text):
  return re.sub(r'\s', '', text)


@hypothesis.given(
  st.text(st.sampled_from('ab .!?"\n\r\t。日é🗼')), st.integers(1, 30)
)
def test_nothing_is_lost_and_no_passage_is_too_long(text, most):
  passages = text_files.cut(text, most)
  assert _letters(''.join(passages)) == _letters(text)
  assert all(0 < len(passage) <= most for passage in passages)
  assert all(passage == passage.strip() for passage in passages)


@pytest.mark.parametrize(
  ('text', 'most', 'expected'),
  [
    # Short paragraphs share a passage; lines of one paragraph are joined.
    ('One\ntwo.\n\nThree.\n \nFour.', 16, ['One two.\nThree.', 'Four.']),
    ('One two.\r\n\r\nThree.', 9, ['One two.', 'Three.']),
    # A long one is cut after the last sentence that fits,
    ('He came. He "saw." He won it.', 20, ['He came. He "saw."', 'He won it.']),
    ('He came. He saw.', 8, ['He came.', 'He saw.']),
    ('山は高い。川は長い。', 6, ['山は高い。', '川は長い。']),
    # not within a number; else between words, else anywhere.
    ('It is 1.25 metres high', 9, ['It is', '1.25', 'metres', 'high']),
    ('abcdefgh ij', 5, ['abcde', 'fgh', 'ij']),
    ('', 5, []),
    (' \n\n\t\n', 5, []),
  ],
)
def test_where_texts_are_cut(text, most, expected):
  assert text_files.cut(text, most) == expected


def test_files_of_a_folder(tmp_path):
  below = tmp_path / 'below'
  below.mkdir()
  (tmp_path / 'Big_Ben.txt').write_bytes(b'\xef\xbb\xbfIt is a bell.')
  (below / 'notes.MD').write_text('One.\n\nTwo.')
  (below / 'empty.txt').write_text('')
  (tmp_path / 'a.pdf').write_bytes(b'%PDF')
  (tmp_path / '.hidden.txt').write_text('no')
  (tmp_path / '.git').mkdir()
  (tmp_path / '.git/x.txt').write_text('no')
  folder = text_files.Folder.open(str(tmp_path))
  assert folder.others == [tmp_path / 'a.pdf']
  found = list(text_files.read_passages(folder, 5))
  assert [(p.id, p.title, p.text) for p in found[:2]] == [
    ('Big_Ben.txt#1', 'Big Ben', 'It is'),
    ('Big_Ben.txt#2', 'Big Ben', 'a'),
  ]
  assert [(p.id, p.title, p.text) for p in found[-2:]] == [
    ('below/notes.MD#1', 'notes', 'One.'),
    ('below/notes.MD#2', 'notes', 'Two.'),
  ]


def test_folders_and_files_that_cannot_be_read(tmp_path):
  with pytest.raises(errors.UserError, match='none: cannot be read'):
    text_files.Folder.open(str(tmp_path / 'none'))
  (tmp_path / 'a.pdf').write_bytes(b'%PDF')
  with pytest.raises(errors.UserError, match=r'no file \*\.txt or \*\.md'):
    text_files.Folder.open(str(tmp_path))
  (tmp_path / 'a.txt').write_bytes(b'caf\xe9')
  folder = text_files.Folder.open(str(tmp_path))
  with pytest.raises(errors.UserError, match=r'a\.txt: byte 3 is not UTF-8'):
    list(text_files.read_passages(folder, 50))
