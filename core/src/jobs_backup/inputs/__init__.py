"""Sources of events: files, standard input and HTTP.

A program with another source records with `Backup.record_many`. A new command starts in `cli/__init__.py`, which lists them all.
"""
