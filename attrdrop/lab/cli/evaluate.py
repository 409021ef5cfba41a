"""The command `attrdrop evaluate`."""

from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.terminal import console
from attrdrop.lab.text.settings import Evaluation


@command()
def evaluate(options: Evaluation) -> None:
    """Score a saved text model on any data set, by name or from a file, and write its predictions.

    MODEL is a folder written by --save, such as
    runs/finetune/models/plain, any other transformers model folder, or a
    hub id.
    """
    from attrdrop.lab.text.saved import evaluate

    for shown in evaluate(options):
        console.print(shown, soft_wrap=isinstance(shown, str))
