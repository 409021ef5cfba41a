"""The command `attrdrop explain`."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from attrdrop.lab.cli.terminal import console, one_sentence
from attrdrop.lab.errors import InputError
from attrdrop.lab.names import RULES

SHOWN = 8  # tokens of a text in the terminal


def explain(
    model: Annotated[str, typer.Option(help="Folder or hub id of a text model, or name of an image model.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; can be repeated.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image file; can be repeated.")] = None,
    weights: Annotated[str, typer.Option(help="Weights of an image model: a file, or pretrained.")] = "",
    image_size: Annotated[
        int | None, typer.Option(help="Side length of images in pixels. Default: the model's own, else 224.", min=1)
    ] = None,
    mean: Annotated[str, typer.Option(help="Mean of images in [0, 1]: one number or three, such as 0.5,0.5,0.5.")] = "",
    std: Annotated[
        str, typer.Option(help="Their standard deviation, like --mean. Default: the model's own, else ImageNet's.")
    ] = "",
    target: Annotated[int | None, typer.Option(help="Class to explain; by default the predicted one.")] = None,
    rule: Annotated[str, typer.Option(help=f"One of {', '.join(RULES)}.")] = RULES[0],
    epsilon: Annotated[float, typer.Option(help="Stabiliser of the epsilon rule.")] = 1e-6,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")] = "auto",
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("runs/explain"),
    overwrite: Annotated[bool, typer.Option(help="Write into a folder that is not empty.")] = False,
) -> None:
    """Show what a prediction relies on: tokens of texts or pixels of images, by relevance (LRP).

    For texts, use a classifier, such as one saved by finetune --save, or
    a language model, whose next token is explained. For images, use a
    model from train-images, torchvision or timm, or one of transformers
    by its folder or hub id. They are normalised by --mean and --std, else
    as a timm model or an image processor specifies, else as for ImageNet.
    """
    with one_sentence():
        if bool(text) == bool(image):
            raise InputError("explain: give either --text or --image.")
        if rule not in RULES:
            raise InputError(f"--rule: {rule!r} is not one of {', '.join(RULES)}.")
        from attrdrop.lab.device import resolve_device
        from attrdrop.lab.runs.results import check_output, replace_files
        from attrdrop.lab.runs.rules import rule_of

        check_output(output, overwrite)
        means = rule_of(rule, epsilon), target, resolve_device(device)
        files = (
            _texts(model, text, *means)
            if text
            else _images(model, weights, image or [], image_size, (mean, std), *means)
        )
        replace_files(output, files)
        console.print(f"Written to [bold]{output}[/]: {', '.join(files)}")


def _texts(model: str, texts: list[str], *means: Any) -> dict[str, bytes]:
    from attrdrop.lab.text.explained import explained
    from attrdrop.plots import text_heatmap

    found = explained(model, texts, *means)
    titles = [f"{name}: {logit:.3f}" for name, logit in zip(found.classes, found.logits, strict=True)]
    for title, tokens, row in zip(titles, found.tokens, found.relevance.tolist(), strict=True):
        most = sorted(zip(tokens, row, strict=False), key=lambda pair: -abs(pair[1]))[:SHOWN]
        console.print(title, markup=False)
        console.print("  ".join(f"{token} {value:+.3f}" for token, value in most), markup=False)
    pages: list[str] = []
    picture = _bytes(lambda target: pages.append(text_heatmap(found.tokens, found.relevance, target, titles)))
    page = f"<!doctype html>\n<meta charset='utf-8'>\n{pages[0]}\n"
    return {"explained.png": picture, "explained.html": page.encode()}


def _images(
    model: str, weights: str, files: list[Path], size: int | None, given: tuple[str, str], *means: Any
) -> dict[str, bytes]:
    from attrdrop.lab.images.explained import explained
    from attrdrop.plots.images import heat_maps

    images, relevance, classes, logits = explained(model, weights, files, size, given, *means)
    titles = [f"{path.name}: {c}, {logit:.3f}" for path, c, logit in zip(files, classes, logits, strict=True)]
    for title in titles:
        console.print(title, markup=False)
    return {"explained.png": _bytes(lambda target: heat_maps(images, relevance, target, titles))}


def _bytes(draw: Callable[[io.BytesIO], object]) -> bytes:
    target = io.BytesIO()
    draw(target)
    return target.getvalue()
