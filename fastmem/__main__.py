"""``python -m fastmem`` is the ``fastmem`` command."""

from fastmem.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
