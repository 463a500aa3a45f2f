"""`python -m dfud.daemon`: the same as the command `dfud`."""

from dfud.daemon.main import main

main(prog_name="dfud")
