r"""The one meaning of characters that are no text, for all formats.

Published files have control characters where an encoding was mistaken for
another: U+0091 for a quotation mark of Windows-1252. A control character of
80 to 9F becomes the character that Windows-1252 has there. Those that it does
not define, other control characters (but for \t \n \r) and surrogates
without their other half become a space. All else is kept as it is, marks of
byte order, line separators of Unicode (U+2028) and noncharacters too.
"""

import re

NOTE = 'rows with control characters, which were replaced'
# Unicode's control characters (category Cc) but for \t \n \r, and surrogates:
# json.loads makes a lone surrogate from '\ud800', and no tokenizer encodes it.
_BAD = re.compile(r'[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]')
_WINDOWS = {
  chr(byte): bytes([byte]).decode('cp1252', 'replace').replace('\ufffd', ' ')
  for byte in range(0x80, 0xA0)
}


def clean(text: str) -> str:
  """The text without control characters and lone surrogates.

  It has as many characters as before; the very same object is returned if
  nothing is to be replaced.
  """
  if not _BAD.search(text):
    return text
  return _BAD.sub(lambda bad: _WINDOWS.get(bad[0], ' '), text)
