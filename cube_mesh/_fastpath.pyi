from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Self, final

from typing_extensions import Buffer

from cube_mesh.errors import CubeMeshError
from cube_mesh.message import Response
from cube_mesh.ports import ChannelAttestation, Done, Endpoint, Grant, Principal, Recording, Route, Target

FRAMING_NONE: int
FRAMING_LENGTH: int
FRAMING_CHUNKED: int
FRAMING_UNTIL_CLOSE: int

class FieldSet:
    def __init__(self, names: tuple[bytes, ...] = ..., prefixes: tuple[bytes, ...] = ...) -> None: ...
    def __contains__(self, name: bytes, /) -> bool: ...

class Head:
    @property
    def raw(self) -> bytes: ...
    @property
    def end(self) -> int: ...
    @property
    def minor(self) -> int: ...
    @property
    def framing(self) -> int: ...
    @property
    def content_length(self) -> int: ...
    @property
    def keep_alive(self) -> bool: ...
    @property
    def field_count(self) -> int: ...
    def get(self, name: bytes) -> bytes | None: ...
    def count(self, name: bytes) -> int: ...
    def fields(self) -> list[tuple[bytes, bytes]]: ...

class RequestHead(Head):
    @property
    def method(self) -> str: ...
    @property
    def target(self) -> bytes: ...
    @property
    def path(self) -> str: ...
    @property
    def query(self) -> bytes: ...
    @property
    def expect_continue(self) -> bool: ...
    def render(
        self,
        target: bytes,
        fixed: bytes,
        drop: FieldSet,
        length: int,
        data: bytes = ...,
        pos: int = ...,
        end: int = ...,
    ) -> bytes: ...

class ResponseHead(Head):
    @property
    def status(self) -> int: ...
    @property
    def event_stream(self) -> bool: ...
    def render(
        self,
        fixed: bytes,
        drop: FieldSet,
        length: int,
        close: bool,
        data: bytes = ...,
        pos: int = ...,
        end: int = ...,
    ) -> bytes: ...

class ChunkedReader:
    @property
    def pos(self) -> int: ...
    @property
    def done(self) -> bool: ...
    def feed(self, data: bytes, pos: int) -> bytes: ...

def scan_request(data: bytes, pos: int, max_head: int, max_fields: int) -> RequestHead | None: ...
def scan_response(data: bytes, pos: int, max_head: int, max_fields: int, to_head: bool) -> ResponseHead | None: ...
def frame_chunk(payload: bytes, last: bool) -> bytes: ...
def scan_members(data: bytes, pos: int, end: int, wanted: dict[bytes, str]) -> dict[str, bytes]: ...
def value_end(data: bytes, pos: int) -> int: ...

SLAB_ROW_BYTES: int
SLAB_KEY_BYTES: int
SLAB_SPARE_ROWS: int

@final
class Slab:
    def __new__(cls, memory: Buffer, bounds: Sequence[float]) -> Self: ...
    @property
    def overflowed(self) -> int: ...
    def rows(self) -> list[SlabRow]: ...
    def row(self, key: bytes, spare: bool = ...) -> SlabRow | None: ...

@final
class SlabRow:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    @property
    def key(self) -> bytes: ...
    def add(self, number: int, more: int) -> None: ...
    def put(self, number: int, value: int) -> None: ...
    def put_real(self, number: int, value: float) -> None: ...
    def time(self, seconds: float) -> None: ...
    def numbers(self) -> bytes: ...

@final
class SlabCell:
    def __init__(self, counts: SlabRow, seconds: SlabRow, first: SlabRow) -> None: ...
    def observe(
        self,
        started: float,
        forwarded: float,
        first: float,
        ended: float,
        size_in: int,
        size_out: int,
        tokens_in: int | None,
        tokens_out: int | None,
    ) -> None: ...

class Exchange:
    head: RequestHead
    method: str
    path: str
    client_ip: str
    client_tls_version: str
    client_subject: str
    peer_id: str
    domain_id: str
    upstream_target: bytes
    request_id: str
    trace_id: str
    span_id: str
    parent_span_id: str
    tracestate: str
    principal: Principal | None
    grant: Grant | None
    endpoint: Endpoint | None
    route: Route | None
    target: Target | None
    upstream: str
    model: str | None
    max_tokens: int | None
    temperature: float | None
    error: CubeMeshError | None
    outcome: str
    answer_fields: bytes
    input_tokens: int | None
    output_tokens: int | None
    attestation: ChannelAttestation | None
    sampled: bool
    stream: bool
    streamed: bool
    left: bool
    status: int
    upstream_status: int
    request_size: int
    response_size: int
    started_wall: float
    started_at: float
    body_at: float
    forwarded_at: float
    first_byte_at: float
    ended_at: float
    def __init__(self, head: RequestHead, client_ip: str) -> None: ...

def note_members(exchange: Exchange, data: bytes, pos: int, end: int) -> bool: ...

class EventLines:
    def __init__(self, stamp: Callable[[float], str], node: bytes) -> None: ...
    def line(self, exchange: Exchange) -> bytes: ...

class LogLines:
    def __init__(self, stamp: Callable[[float], str], node_id: str, unsafe: bool) -> None: ...
    def json(self, exchange: Exchange, level: str) -> bytes: ...

class HexIds:
    def __init__(self, length: int, random: Callable[[int], bytes]) -> None: ...
    def __call__(self) -> str: ...

class IdGate:
    def __init__(self, random: Callable[[int], bytes], ratio: float) -> None: ...
    def enter(self, exchange: Exchange) -> None: ...

class TenantGate:
    def __init__(
        self,
        prefix: bytes,
        exact: dict[str, dict[str, Endpoint]],
        find: Callable[[str, str], Endpoint | None],
    ) -> None: ...
    def enter(self, exchange: Exchange) -> None: ...

class AdmissionCounts:
    running: int
    max_running: int

class LoadGate:
    def __init__(self, counts: AdmissionCounts) -> None: ...
    def enter(self, exchange: Exchange) -> None: ...

class AuthnGate:
    def __init__(self, authenticate: Callable[[bytes], Principal | Awaitable[Principal]]) -> None: ...
    def enter(self, exchange: Exchange) -> None | Awaitable[None]: ...

class ForwardGate:
    def __init__(self, targets: Mapping[str, Target], max_json: int, max_body: int) -> None: ...
    def limit(self, json: bool) -> int: ...
    def enter(self, exchange: Exchange) -> None: ...

class ChainCore:
    _gates: tuple[Callable[[Exchange], Response | None | Awaitable[Response | None]], ...]
    _observers: tuple[Callable[[Exchange], Recording | None], ...]
    in_flight: int
    def enter(self, exchange: Exchange) -> Response | None | Awaitable[Response | None]: ...
    def leave(self, exchange: Exchange, done: Done) -> None: ...

class HopHead:
    def __init__(self, fixed: bytes, drop: FieldSet, mesh: bool) -> None: ...
    def head(self, exchange: Exchange, length: int, data: bytes = ..., pos: int = ..., end: int = ...) -> bytes: ...
