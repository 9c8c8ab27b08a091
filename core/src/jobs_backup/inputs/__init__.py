"""Sources of events: files, standard input and HTTP."""
