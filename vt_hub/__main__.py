"""`python -m vt_hub` is the command `vt-hub`."""

from .cli.main import main

if __name__ == '__main__':
    main()
