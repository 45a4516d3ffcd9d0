"""Memory and speed of programs compiled for devices that are not here."""
