"""The machine a program runs on: files, paths, streams, signals, errors."""
