"""The verbs that this package adds to the command line, one a file; what is heavy is imported when a verb runs."""
