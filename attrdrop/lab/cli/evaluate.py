"""The command `attrdrop evaluate`."""

from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.terminal import console
from attrdrop.lab.text.settings import Evaluation


@command()
def evaluate(options: Evaluation) -> None:
    """Score a saved model on any set: of its own task, by name, or from a file; write its predictions.

    MODEL is a folder that --save left, such as runs/finetune/models/plain,
    any other model folder of transformers, or a hub id.
    """
    from attrdrop.lab.text.saved import evaluate

    for shown in evaluate(options):
        console.print(shown, soft_wrap=isinstance(shown, str))
