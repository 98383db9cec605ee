"""What the commands do, a file a command.

In come options that the command line has read (`mpcompile.cli`) and the name of a program, a model
or a plan; out go sentences on the terminal, documents and an exit code. A new command is one file
here and one in `mpcompile.cli`. ``load_*.py`` read what a command is given.
"""
