"""Run the command line as `python -m edgekd`."""

from edgekd.cli import main

if __name__ == "__main__":
    main()
