"""What the verbs of the command line do.

A verb is a function of the parsed options that returns an exit code. Its file
imports nothing heavy before it is called: `jaxkd --help` answers at once.
"""
