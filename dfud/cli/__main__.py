"""`python -m dfud.cli`: the same as the command `dfuctl`."""

from dfud.cli.main import main

main(prog_name="dfuctl")
