"""The `zephyrctl` command, and `python -m zephyrctl`.

A process that is spawned to share work imports this module anew: the command itself is imported only where it runs.
"""

import gc


def main() -> None:
    """Run the command line. Nothing that an import makes is garbage: looking for some takes a seventh of its time."""
    gc.disable()
    from zephyrctl.cli.app import run_from_shell

    gc.freeze()
    gc.enable()
    run_from_shell()


if __name__ == "__main__":
    main()
