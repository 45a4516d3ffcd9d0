r"""Replaces control characters, in the same way for all formats.

Published files have control characters where one encoding was taken for
another, e.g. U+0091 for a quotation mark of Windows-1252. Control characters
U+0080 to U+009F become the characters of Windows-1252 with these codes. Codes
that it does not define, other control characters (except \t \n \r) and lone
surrogates become a space. All other characters stay, including byte order
marks, U+2028 and noncharacters.
"""

import re

NOTE = 'rows with control characters, which were replaced'
# Control characters (category Cc) except \t \n \r, and surrogates: json.loads
# turns '\ud800' into a lone surrogate, which no tokenizer encodes.
_BAD = re.compile(r'[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]')
_WINDOWS = {
  chr(byte): bytes([byte]).decode('cp1252', 'replace').replace('\ufffd', ' ')
  for byte in range(0x80, 0xA0)
}


def clean(text: str) -> str:
  """Replaces control characters and lone surrogates, one for one.

  Returns the same object if there are none.
  """
  if not _BAD.search(text):
    return text
  return _BAD.sub(lambda bad: _WINDOWS.get(bad[0], ' '), text)
