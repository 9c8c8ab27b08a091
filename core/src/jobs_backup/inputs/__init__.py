"""Where events come from: files, standard input and HTTP."""
