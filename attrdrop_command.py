"""The command `attrdrop` from its first moment: Ctrl-C is no error while PyTorch is imported, which takes seconds."""

import sys


def main() -> int:
    """Entry point of the script; gives its exit code."""
    try:
        from attrdrop.lab.cli.main import main as command

        command()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0
