"""The `zephyrctl` command, and `python -m zephyrctl`.

A process that is spawned to share work imports this module anew: the command itself is imported only where it runs.
"""

import gc


def main() -> None:
    """Run the command line, without collection of garbage until the command's own module is imported: `commands`.

    What is imported here is frozen, as the collection at the end of `--help` would look through it for 40 ms.
    """
    gc.disable()
    from zephyrctl.cli.app import run_from_shell

    gc.freeze()
    run_from_shell()


if __name__ == "__main__":
    main()
