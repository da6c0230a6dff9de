"""What every config section shares: strict keys, number coercion, null as default, and tables of known keys.

A section's keys come in four kinds. Fields are honoured. ALIASES are other spellings of a field. NOT_YET are
keys of ai-toolkit that are not honoured yet: they pass at their default and are refused otherwise. IDLE keys
never change what is trained here (plumbing, or a parameter of something that is off): they pass with a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from toolkit.errors import did_you_mean

Location = tuple[str | int, ...]


def _number(value: Any) -> Any:
    """A number from what YAML may hold: "2e3" as text is one, true is not."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number")
    if isinstance(value, str):
        try:
            return float(value) if not value.strip().lstrip("+-").isdecimal() else int(value)
        except ValueError:
            raise PydanticCustomError("number", "must be a number") from None
    return value


def _text(value: Any) -> Any:
    """Text as written; YAML's unquoted yes/no/on/off arrive as booleans and are not text."""
    if isinstance(value, bool):
        raise PydanticCustomError("text", "must be text (write yes, no, on, off, true and false in quotes)")
    return value


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, BeforeValidator(_text)]


def one_of(kind: str, names: Mapping[str, str] | Iterable[str], not_yet: Iterable[str] = ()) -> list[Any]:
    """Annotations for a text that must be one of `names`; a mapping gives each spelling's canonical name."""
    table = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
    later = frozenset(not_yet)

    def check(value: Any) -> str:
        text = str(_text(value)).strip()
        name = text if text in table else text.lower()
        if name in table:
            return table[name]
        if name in later:
            raise PydanticCustomError(
                "not_yet",
                "{kind} '{text}' is not supported yet (supported: {known})",
                {"kind": kind, "text": text, "known": ", ".join(table)},
            )
        guess = did_you_mean(name, [*table, *later])
        hint = f"did you mean '{guess}'?" if guess else f"known: {', '.join(table)}"
        raise PydanticCustomError(
            "unknown_name", "unknown {kind} '{text}'; {hint}", {"kind": kind, "text": text, "hint": hint}
        )

    return [BeforeValidator(check), WithJsonSchema({"type": "string", "enum": list(table)})]


class Section(BaseModel):
    """Base of all sections. Unknown keys are errors; a null is the same as leaving the key out."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        protected_namespaces=(),
        defer_build=True,
    )

    ALIASES: ClassVar[Mapping[str, str]] = {}
    NOT_YET: ClassVar[Mapping[str, Any]] = {}
    IDLE: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    NULL_MEANS: ClassVar[Mapping[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        cleaned: dict[str, Any] = {}
        for key, value in data.items():
            if value is None and key not in cls.NULL_MEANS:
                if key not in cls.known_keys():
                    cleaned[key] = value
                continue
            if key in cls.IDLE or (key in cls.NOT_YET and is_default(value, cls.NOT_YET[key])):
                continue
            name = cls.ALIASES.get(key, key)
            value = cls.NULL_MEANS[key] if value is None else value
            if name in cleaned and cleaned[name] != value:
                raise PydanticCustomError(
                    "alias", "'{key}' and '{name}' mean the same and differ", {"key": key, "name": name}
                )
            cleaned[name] = value
        return cls.prepare(cleaned)

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Rewrite raw keys before validation (legacy forms, defaults that depend on another section)."""
        return data

    @classmethod
    def known_keys(cls) -> list[str]:
        """Every key that may be written in this section."""
        return [*cls.model_fields, *cls.ALIASES, *cls.NOT_YET, *cls.IDLE]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The fields' schema, with the keys that merely parse added so that an editor knows them."""
        result = handler.resolve_ref_schema(handler(schema))
        properties = result.setdefault("properties", {})
        for alias, name in cls.ALIASES.items():
            properties.setdefault(alias, {"description": f"Another spelling of {name}."})
        later = {
            key: (default, "not supported yet, only its default passes")
            for key, default in cls.NOT_YET.items()
        }
        for key, (default, reason) in (later | dict(cls.IDLE)).items():
            value = default.values[0] if isinstance(default, AnyOf) else default
            properties.setdefault(key, {"default": value, "description": f"Has no effect here: {reason}."})
        return result


class AnyOf:
    """Several defaults of one key (the fork's and upstream's)."""

    def __init__(self, *values: Any) -> None:
        self.values = values


def is_default(value: Any, default: Any) -> bool:
    """Whether a raw value says no more than leaving the key out: 0, 0.0, "0" and false are one."""
    if isinstance(default, AnyOf):
        return any(is_default(value, each) for each in default.values)
    if value is None or value == default:
        return True
    if default in (None, False) and value in ("", [], {}, "false"):
        return True
    if isinstance(default, int | float) and isinstance(value, str):
        try:
            return float(value) == default
        except ValueError:
            return str(default).lower() == value.lower()
    return False


def is_set(section: Section, key: str) -> bool:
    """Whether a field was given another value than its default."""
    default = type(section).model_fields[key].get_default(call_default_factory=True)
    return key in section.model_fields_set and getattr(section, key) != default


def section_of(annotation: Any) -> list[type[Section]]:
    """The section classes inside a field's annotation: itself, or in a list, an optional or a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in get_args(annotation) for found in section_of(part)]


def subsections(section: type[Section]) -> dict[str, type[Section]]:
    """Field name -> section class, for the fields that hold one section or a list of them."""
    found = {name: section_of(field.annotation) for name, field in section.model_fields.items()}
    return {name: classes[0] for name, classes in found.items() if len(classes) == 1}


def section_at(section: type[Section], location: Location) -> type[Section] | None:
    """The section class that holds the last key of a location, or None outside of every section."""
    for part in location[:-1]:
        if isinstance(part, str):
            inner = subsections(section).get(section.ALIASES.get(part, part))
            if inner is None:
                return None
            section = inner
    return section


def walk_raw(
    section: type[Section], data: Any, location: Location = ()
) -> Iterator[tuple[Location, type[Section], Mapping[str, Any]]]:
    """Every mapping in raw data that stands for a section: (location, its class, the mapping)."""
    if isinstance(data, list):
        for index, item in enumerate(data):
            yield from walk_raw(section, item, (*location, index))
    if not isinstance(data, Mapping):
        return
    yield location, section, data
    for name, inner in subsections(section).items():
        yield from walk_raw(inner, data.get(name), (*location, name))


def as_written(section: type[Section], data: Any, location: Location) -> Location:
    """A location with each canonical key replaced by the alias that raw data uses for it."""
    written: list[str | int] = []
    holder: type[Section] | None = section
    for part in location:
        name = part
        if isinstance(part, str) and holder is not None and isinstance(data, Mapping):
            spellings = [part, *(alias for alias, field in holder.ALIASES.items() if field == part)]
            name = next((each for each in spellings if each in data), part)
            holder = subsections(holder).get(part)
        written.append(name)
        try:
            data = data[name]
        except (KeyError, IndexError, TypeError):
            data = None
    return tuple(written)
