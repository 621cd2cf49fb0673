"""The verbs of the command line, one a file; what is heavy is imported when a verb runs."""
