"""`python -m dino_lib train ...` is `dino train ...`."""

from dino_lib.cli import main

if __name__ == "__main__":
    main()
