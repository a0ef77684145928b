"""Handlers files: TOML, read and checked whole, so that whoever corrects one does it once."""

from __future__ import annotations

import hashlib
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationError

from cli.config_mistakes import Mistake, mistakes_refused, unknown_setting
from cli.config_schema import mistake_of
from cli.config_table import Table
from cli.config_values import as_value_error
from cli.errors import ConfigRefused
from pitr.errors import MalformedValue, PitrError
from pitr.events.handlers import Choice, Handler, Handlers, SinkKind, handler_mistakes
from pitr.events.partition import check_topic
from pitr.events.quarantine import OffsetSpan, QuarantineRule
from pitr.events.upcast import VERSION_MAX, Upcast
from pitr.wal.lsn import LSN

if TYPE_CHECKING:
    from pitr.events.upcast import Change

FILE_BYTES_MAX: Final = 1 << 20
_ENTRIES_MAX: Final = 1_000

_Text = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
_Texts = Annotated[list[_Text], Field(max_length=_ENTRIES_MAX)]
_Sql = Annotated[str, Field(min_length=1, max_length=100_000)]
_Version = Annotated[int, Field(ge=1, le=VERSION_MAX)]
_Offset = Annotated[int, Field(ge=0)]
_Topic = Annotated[str, as_value_error(check_topic)]
_Call = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$")
]
_Choice = Literal["quarantine", "apply", "skip"]


def _with_zone(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("expected a time with its zone, such as 2026-11-23T14:05:00Z")
    return moment


_Moment = Annotated[datetime, AfterValidator(_with_zone)]


class _Sink(Table):
    kind: Literal["sql", "topic", "callable"] = "sql"
    topic: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    call: _Call | None = None
    headers: bool = False


class _Classes(Table):
    unknown: _Choice = "quarantine"
    lost_branch: _Choice = "quarantine"
    tombstone: Literal["quarantine", "skip"] = "quarantine"


class _Handler(Table):
    type: _Text
    version: _Version = 1
    topics: Annotated[list[_Topic], Field(min_length=1, max_length=_ENTRIES_MAX)] | None = None
    sql: _Sql | Annotated[list[_Sql], Field(min_length=1, max_length=100)] | None = None
    keys: Literal["once", "many"] = "once"


class _Upcast(Table):
    type: _Text
    version: _Version
    to: _Version | None = None
    rename: dict[str, str] = Field(default_factory=dict)
    remove: list[str] = Field(default_factory=list)
    defaults: dict[str, Any] = Field(default_factory=dict)
    call: _Call | None = None


class _Offsets(Table):
    topic: _Topic
    partition: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    first: _Offset | None = None
    end: _Offset | None = None


class _Rule(Table):
    name: _Text
    principals: _Texts = Field(default_factory=list)
    keys: _Texts = Field(default_factory=list)
    types: _Texts = Field(default_factory=list)
    schemas: _Texts = Field(default_factory=list)
    offsets: Annotated[list[_Offsets], Field(max_length=_ENTRIES_MAX)] = Field(default_factory=list)
    since: _Moment | None = None
    until: _Moment | None = None
    after_lsn: Annotated[str, as_value_error(lambda text: str(LSN.parse(text)))] | None = None
    stops_key: bool = False


class _File(Table):
    sink: _Sink = Field(default_factory=_Sink)
    classes: _Classes = Field(default_factory=_Classes)
    ignore: _Texts = Field(default_factory=list)
    handler: Annotated[list[_Handler], Field(max_length=_ENTRIES_MAX)] = Field(default_factory=list)
    upcast: Annotated[list[_Upcast], Field(max_length=_ENTRIES_MAX)] = Field(default_factory=list)
    quarantine: Annotated[list[_Rule], Field(max_length=_ENTRIES_MAX)] = Field(default_factory=list)


KNOWN: Final[Mapping[str, Sequence[str]]] = {
    "": tuple(_File.model_fields),
    "sink": tuple(_Sink.model_fields),
    "classes": tuple(_Classes.model_fields),
    "handler": tuple(_Handler.model_fields),
    "upcast": tuple(_Upcast.model_fields),
    "quarantine": tuple(_Rule.model_fields),
    "quarantine.offsets": tuple(_Offsets.model_fields),
}


def read_handlers(path: Path) -> Handlers:
    """Read and check a file.  Raises ConfigRefused with every mistake found."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigRefused(
            f"the handlers file {path} cannot be read",
            detail=error.strerror,
            hint="name one with --handlers or [events.replay] handlers_file; examples/events has one",
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise _refusal(path, [f"it has more than {FILE_BYTES_MAX} bytes: no handlers file"])
    try:
        tables = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise _refusal(path, [f"this is not TOML: {error}"]) from error
    found = parse_handlers(tables, hashlib.sha256(content).hexdigest())
    if isinstance(found, Handlers):
        return found
    raise _refusal(path, [f"{one.name}: {one.text}" for one in found])


def parse_handlers(tables: dict[str, Any], sha256: str) -> Handlers | list[Mistake]:
    """Return the handlers, or every mistake in them."""
    try:
        file = _File.model_validate(tables)
    except ValidationError as error:
        return [_mistake(line) for line in error.errors(include_url=False, include_input=False)]
    try:
        found = _handlers(file, sha256)
    except MalformedValue as error:
        return [Mistake((), error.message)]
    mistakes = [Mistake(place, text) for place, text in handler_mistakes(found)]
    if file.sink.kind != "callable" and file.sink.call is not None:
        mistakes.append(Mistake(("sink", "call"), f"a {file.sink.kind} sink calls none"))
    if file.sink.kind != "topic" and file.sink.topic is not None:
        mistakes.append(Mistake(("sink", "topic"), f"a {file.sink.kind} sink has none"))
    return mistakes or found


def _handlers(file: _File, sha256: str) -> Handlers:
    kind = SinkKind(file.sink.kind)
    return Handlers(
        sink=kind,
        handlers=tuple(
            Handler(
                one.type,
                one.version,
                (one.sql,) if isinstance(one.sql, str) else tuple(one.sql or ()),
                None if one.topics is None else frozenset(one.topics),
                one.keys == "many",
            )
            for one in file.handler
        ),
        upcasts=tuple(
            Upcast(
                one.type,
                one.version,
                one.version + 1 if one.to is None else one.to,
                one.rename,
                tuple(one.remove),
                one.defaults,
                one.call,
            )
            for one in file.upcast
        ),
        rules=tuple(_rule(one) for one in file.quarantine),
        ignored=frozenset(file.ignore),
        target={SinkKind.TOPIC: file.sink.topic, SinkKind.CALLABLE: file.sink.call}.get(kind),
        unknown=Choice(file.classes.unknown),
        lost_branch=Choice(file.classes.lost_branch),
        tombstone=Choice(file.classes.tombstone),
        wants_headers=file.sink.headers,
        sha256=sha256,
    )


def _rule(table: _Rule) -> QuarantineRule:
    return QuarantineRule(
        table.name,
        tuple(table.principals),
        tuple(table.keys),
        tuple(table.types),
        tuple(table.schemas),
        tuple(OffsetSpan(one.topic, one.partition, one.first, one.end) for one in table.offsets),
        table.since,
        table.until,
        None if table.after_lsn is None else LSN.parse(table.after_lsn),
        table.stops_key,
    )


def load_calls(handlers: Handlers, folder: Path) -> tuple[Mapping[str, Change], Callable[..., object] | None]:
    """Import the owner's functions, also from beside the file: of upcasters, and of a callable sink.

    Raises ConfigRefused with all that cannot be imported.
    """
    from pitr.events.sink_callable import load_callable

    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    names = {one.call for one in handlers.upcasts if one.call is not None}
    target = handlers.target if handlers.sink is SinkKind.CALLABLE else None
    found: dict[str, Callable[..., Any]] = {}
    wrong: list[str] = []
    for name in sorted(names | ({target} if target else set())):
        try:
            found[name] = load_callable(name)
        except PitrError as error:
            wrong.append(f"{error.message}: {error.detail}" if error.detail else error.message)
    if wrong:
        raise ConfigRefused("functions of the handlers file are not there", detail="\n".join(wrong))
    return {name: found[name] for name in names}, None if target is None else found[target]


def _mistake(line: Any) -> Mistake:
    """Say a mistake as the configuration's are said."""
    # A text or a list of texts: pydantic names which of both it tried.
    place = tuple(part for part in line["loc"] if part != "str" and not str(part).startswith("list["))
    if line["type"] == "extra_forbidden":
        return Mistake(place, unknown_setting(place, KNOWN))
    return Mistake(place, mistake_of(line).text)


def _refusal(path: Path, mistakes: Sequence[str]) -> ConfigRefused:
    return mistakes_refused(
        f"the handlers file {path}",
        list(dict.fromkeys(mistakes)),
        hint='correct it; docs/events.md tells what may stand there ("Replay")',
    )
