"""Commands made from functions of dataclasses: each field with an Option becomes an option of the command."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from attrdrop.lab.cli.terminal import one_sentence
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.settings import Option, Options, Panel, options_of

Preset = dict[str, Any] | Callable[[dict[str, Any], set[str]], dict[str, Any]]


@dataclass(frozen=True)
class _Field:
    """One option, named as the field."""

    name: str
    kind: Any
    option: Option
    default: Any

    @property
    def is_list(self) -> bool:
        """Whether a type is a tuple, which the command line takes as a comma-separated text."""
        return get_origin(self.kind) is tuple

    def parameter(self) -> inspect.Parameter:
        """What typer turns into an option."""
        kind, default, option = self.kind, self.default, self.option
        if option.is_argument:
            argument = typer.Argument(help=option.help, show_default=False)
            return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, argument])
        if self.is_list:
            kind, default = str | None, ",".join(map(_shown, default)) or None
        made = typer.Option(
            *option.names,
            help=option.help,
            rich_help_panel=option.panel.value,
            min=option.min,
            metavar=None if option.min is None else "N",  # its type and bounds would crowd out the name
        )
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, made], default=default
        )

    def parsed(self, value: Any) -> Any:
        """A value from typer, converted to what the dataclass takes."""
        if not self.is_list:
            return value
        try:
            return tuple(get_args(self.kind)[0](part.strip()) for part in value.split(",")) if value else ()
        except ValueError:
            option = f"--{self.name.replace('_', '-')}"
            raise InputError(f"{option}: {value!r} is not a list of numbers separated by commas.") from None


def command(
    presets: Mapping[str, Preset] = MappingProxyType({}),
    preset_help: str = "",
    without: Collection[str] = (),
    **defaults: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function whose parameters are dataclasses.

    It has an option for each of their fields with an Option, but for those `without`. A field that several have is one
    option and stands where it comes first, with the first default, unless `defaults` has another. A preset, where
    there are any, holds for what is not given on the command line; one that is a function is called with all values
    and the names of those. A parameter `given` gets these names.
    """

    def decorated(body: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(body)
        kinds = {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, Options)}
        named = {field.name: field for field in _fields_of(kinds.values(), without, defaults)}
        fields = list(named.values())
        if presets:
            fields.insert(0, _Field("preset", _choice_of(presets) | None, Option(Panel.RESULTS, preset_help), None))

        def run(context: typer.Context, preset: Enum | None = None, **options: Any) -> None:
            given = {name for name in options if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"}
            with one_sentence():
                values = {name: named[name].parsed(value) for name, value in options.items()}
                chosen: Any = presets[preset.value] if preset else {}
                chosen = chosen(values, given) if callable(chosen) else chosen
                values |= {name: value for name, value in chosen.items() if name not in given}
                made = {name: _made(kind, values) for name, kind in kinds.items()}
                body(**made, **({"given": given} if "given" in hints else {}))

        run.__name__, run.__doc__ = body.__name__, body.__doc__
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        order = list(Panel)
        ordered = sorted(fields, key=lambda field: (not field.option.is_argument, order.index(field.option.panel)))
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # which typer reads
            [context, *(field.parameter() for field in ordered)]
        )
        return run

    return decorated


def _shown(part: Any) -> str:
    return f"{part:g}" if isinstance(part, float) else str(part)


def _choice_of(names: Iterable[str]) -> Any:
    members = [(name, name) for name in names]
    return Enum("Choice", members, type=str)  # type: ignore[misc]  # no literals


def _fields_of(kinds: Iterable[type], without: Collection[str], defaults: dict[str, Any]) -> list[_Field]:
    found: dict[str, tuple[Any, Option]] = {}
    usual: dict[str, Any] = {}
    for kind in kinds:
        found |= {name: part for name, part in options_of(kind).items() if name not in found}
        usual = {field.name: field.default for field in fields(kind)} | usual
    return [_Field(name, *found[name], (usual | defaults)[name]) for name in found if name not in without]


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})
