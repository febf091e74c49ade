"""The `zephyrctl` command, and `python -m zephyrctl`.

A spawned worker process imports this module too, so the command is imported inside `main`.
"""

import gc


def main() -> None:
    """Run the command line without garbage collection until the command's module is imported (see `cli.commands`).

    What is imported here is frozen: the collection at the end of `--help` would take 40 ms to look through it.
    """
    gc.disable()
    from zephyrctl.cli.app import run_from_shell

    gc.freeze()
    run_from_shell()


if __name__ == "__main__":
    main()
