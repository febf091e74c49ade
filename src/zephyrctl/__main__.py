"""`python -m zephyrctl` is the `zephyrctl` command."""

from zephyrctl.cli.app import run_from_shell

if __name__ == "__main__":
    run_from_shell()
