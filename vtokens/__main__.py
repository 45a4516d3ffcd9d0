"""`python -m vtokens`: the same as the program `vtokens`."""

from vtokens import commands

if __name__ == '__main__':
  commands.main()
