# Nothing belongs here: what fails in boot.py keeps main.py from being run, and no guard sees it. See docs/board.md.
