import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar, final

from typing_extensions import Buffer

from cube_mesh.bodies import IncomingBody, UsageTail
from cube_mesh.deadlines import Mortal
from cube_mesh.errors import CubeMeshError
from cube_mesh.forwarded import Trust
from cube_mesh.message import Response
from cube_mesh.ports import (
    AuditSink,
    Authenticator,
    Authorizer,
    Chain,
    ChannelAttestation,
    Done,
    Endpoint,
    Grant,
    Principal,
    Recording,
    Route,
    RouteSource,
    Target,
    Transport,
)
from cube_mesh.upstream import Handler, UpstreamConnection

_M = TypeVar("_M", bound=Mortal)

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
def siphash(key: bytes, data: bytes) -> bytes: ...

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
    def observe(self, exchange: Exchange) -> None: ...

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
    def __new__(cls, head: RequestHead, client_ip: str) -> Self: ...

def note_members(exchange: Exchange, data: bytes, pos: int, end: int) -> bool: ...

class EventLines:
    _plain: bytes
    def __init__(self, stamp: Callable[[float], str], node: bytes) -> None: ...
    def line(self, exchange: Exchange) -> bytes: ...

class EventQueue:
    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None: ...
    @property
    def waiting(self) -> int: ...
    def append(self, event: bytes) -> Recording: ...
    def take(self) -> tuple[bytes, int, list[Done]]: ...
    def then(self, done: Done) -> None: ...

class AuditStage:
    def __init__(self, writer: EventLines, sink: AuditSink) -> None: ...
    def leave(self, exchange: Exchange) -> Recording | None: ...

class LineQueue:
    _rest: bytes
    _loop: asyncio.AbstractEventLoop | None
    _timer: asyncio.TimerHandle | None
    lost: int
    def __init__(self, mark: bytes, piece: int, most: int) -> None: ...
    def __call__(self, line: bytes) -> None: ...
    @property
    def waiting(self) -> int: ...
    def take(self) -> bytes: ...
    def write(self, line: bytes) -> None: ...

class ExchangeCounts:
    def __init__(self, domains: dict[str, str]) -> None: ...
    @property
    def cells(self) -> dict[tuple[str, str, str, int, str], SlabCell]: ...
    def observe(self, exchange: Exchange) -> None: ...

class LogStage:
    def __init__(self, lines: LogLines, write: Callable[[bytes], None], json: bool, least: int) -> None: ...
    def leave(self, exchange: Exchange) -> None: ...

class LogLines:
    def __init__(self, stamp: Callable[[float], str], node_id: str, unsafe: bool) -> None: ...
    def json(self, exchange: Exchange, level: str) -> bytes: ...

class HexIds:
    def __init__(self, length: int, random: Callable[[int], bytes]) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> str: ...  # takes none

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

class PeerGate:
    def __init__(self, exact: dict[str, dict[str, Endpoint]], find: Callable[[str, str], Endpoint | None]) -> None: ...
    @property
    def principals(self) -> dict[str, Principal]: ...
    def enter(self, exchange: Exchange) -> None: ...

class AdmissionCounts:
    running: int
    max_running: int

class LoadGate:
    def __init__(self, counts: AdmissionCounts) -> None: ...
    def enter(self, exchange: Exchange) -> None: ...

class CredentialTable:
    def __init__(self, api_keys: dict[bytes, Principal], now: Callable[[], float]) -> None: ...
    @property
    def api_keys(self) -> dict[bytes, Principal]: ...
    @property
    def tokens(self) -> dict[bytes, tuple[float, Principal]]: ...
    def known(self, token: bytes) -> Principal | None: ...

class AuthnGate:
    def __init__(self, authenticator: Authenticator) -> None: ...
    def enter(self, exchange: Exchange) -> None | Awaitable[None]: ...

class GrantTable:
    def __init__(self, grants: dict[str, dict[str, dict[str, Grant]]]) -> None: ...
    def granted(self, principal: Principal, domain_id: str, permission: str) -> Grant | None: ...

class AuthzGate:
    def __init__(self, authorizer: Authorizer) -> None: ...
    def enter(self, exchange: Exchange) -> None | Awaitable[None]: ...

class KnownRoutes:
    def __init__(self, keep: bool, most: int, longest: int) -> None: ...
    @property
    def keep(self) -> bool: ...
    @property
    def known(self) -> dict[tuple[str, str, bytes], Route | None]: ...
    def match(self, exchange: Exchange) -> Route | None: ...

class RouteGate:
    def __init__(self, source: RouteSource) -> None: ...
    def enter(self, exchange: Exchange) -> None: ...

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

def settle(waiting: list[Done], refusal: CubeMeshError | None, failed: Callable[[Exception], None]) -> None: ...

class HopHead:
    def __init__(self, fixed: bytes, drop: FieldSet, mesh: bool, pool: PoolCore | None) -> None: ...
    def head(self, exchange: Exchange, length: int, data: bytes = ..., pos: int = ..., end: int = ...) -> bytes: ...

class ChannelCore:
    _paused: bool
    _closing: bool
    _aligned: bool
    _deliver: Callable[[bytes], None]
    _tcp_write: Callable[[bytes], None]
    def _bind(self, owner: object, functions: tuple[int, ...], ends: tuple[int, ...]) -> None: ...
    def get_buffer(self, sizehint: int) -> bytearray: ...
    def buffer_updated(self, size: int) -> None: ...
    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def _drain(self) -> None: ...
    def _flush(self) -> None: ...

class ServiceCore:
    chain: Chain
    local: dict[str, Callable[[bytes], Response]]
    trust: Trust | None
    admission: AdmissionCounts
    draining: bool
    max_head: int
    max_fields: int
    head_s: float
    total_s: float
    idle_s: float

class PoolCore:
    _idle: list[UpstreamConnection]
    max_idle: int
    max_head: int
    max_fields: int
    idle_s: float
    first_byte_s: float
    stream_gap_s: float
    def acquire(self) -> UpstreamConnection | Awaitable[UpstreamConnection]: ...
    def release(self, connection: UpstreamCore) -> None: ...

class UpstreamCore:
    handler: Handler | None
    transport: Transport
    attestation: ChannelAttestation | None
    peer: str
    deadline: float
    usable_until: float
    keep_alive: bool
    _pool: PoolCore
    _buffer: bytes
    _chunks: ChunkedReader | None
    _request_open: bool
    _head_seen: bool
    _to_head: bool
    _interim: int
    _framing: int
    _left: int
    def get_buffer(self, sizehint: int) -> bytearray: ...
    def buffer_updated(self, size: int) -> None: ...
    def request(self, handler: Handler, data: bytes, *, to_head: bool, complete: bool) -> None: ...
    def data_received(self, data: bytes) -> None: ...

class DownstreamCore:
    transport: Transport
    connected: bool
    deadline: float
    peer_id: str
    client_tls: str
    client_subject: str
    _service: ServiceCore
    _to_client: FieldSet
    _client_ip: str
    _exchange: Exchange | None
    _pending: bytes
    _held: bytes
    _last: bytes
    _read_body: Callable[[bytes, int], None] | None
    _upstream: UpstreamCore | None
    _task: asyncio.Task[None] | None
    _usage: UsageTail | None
    _body: IncomingBody
    _collected: list[bytes]
    _total_at: float
    _lingered: int
    _skip: int
    _trusted: bool
    _admitted: bool
    _head_started: bool
    _head_written: bool
    _reading_paused: bool
    _write_paused: bool
    _close_after: bool
    _chunked_out: bool
    _lingering: bool
    _gone: bool
    def data_received(self, data: bytes) -> None: ...
    def on_response(self, head: ResponseHead, payload: bytes, done: bool) -> None: ...
    def on_body(self, payload: bytes, done: bool) -> None: ...
    def _read_head(self, data: bytes) -> None: ...
    def _render(self, exchange: Exchange, head: ResponseHead, length: int, payload: bytes) -> bytes: ...
    def _end(self, exchange: Exchange, outcome: str, out: bytes | None, *, cut: bool = ...) -> None: ...
    def _forget(self) -> None: ...
    def _release(self, out: bytes | None, *, cut: bool) -> None: ...

def overdue(members: set[_M], now: float) -> list[_M]: ...
