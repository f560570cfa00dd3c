# The two connections of an exchange on their common path: a request whole in one read, admitted at once, sent on a
# warm upstream connection, answered with a length or in pieces. They call each other in C. Every other case is decided
# in the subclasses, connection.Downstream and upstream.UpstreamConnection, whose names for the parts are kept here.

cdef double NEVER = float("inf")
cdef LineBuffer _FIELDS = LineBuffer.__new__(LineBuffer)  # filled and read within one call, with nothing between


# What one read of an upstream may bring: a client that does not take its answer costs no more than that beyond its
# write buffer. Every connection reads into the same memory, and has copied what it needs before its callback returns.
cdef enum:
    READ_BYTES = 65_536

_READ = bytearray(READ_BYTES)
cdef char *_read_at = PyByteArray_AS_STRING(_READ)


cdef class DownstreamCore


cdef class ServiceCore:
    """What ``service.Service`` keeps for its connections, as C values."""

    cdef public object chain
    cdef public dict local
    cdef public object trust
    cdef public AdmissionCounts admission
    cdef public bint draining
    cdef public Py_ssize_t max_head
    cdef public int max_fields
    cdef public double head_s
    cdef public double total_s
    cdef public double idle_s


cdef class PoolCore:
    """Idle connections of one target, last in, first out; ``upstream.Pool`` opens and closes them."""

    cdef public list _idle
    cdef public Py_ssize_t max_idle
    cdef public Py_ssize_t max_head
    cdef public int max_fields
    cdef public double idle_s
    cdef public double first_byte_s
    cdef public double stream_gap_s

    def acquire(self):
        """A connection ready for one request: a warm one at once, else an awaitable of a new one."""
        return self._acquire()

    cdef object _acquire(self):
        cdef UpstreamCore connection
        while self._idle:
            connection = self._idle.pop()
            if connection.transport.is_closing():
                continue
            if connection.usable_until != NEVER and connection.usable_until <= _clock(CLOCK_REALTIME):
                connection.transport.close()
                continue
            return connection
        return self._connect()

    def release(self, UpstreamCore connection not None):
        """A connection is free for the next request, or closed when there are enough of them."""
        self._release(connection)

    cdef int _release(self, UpstreamCore connection) except -1:
        if len(self._idle) >= self.max_idle or connection.transport.is_closing():
            connection.deadline = NEVER
            connection.transport.close()
            return 0
        connection.deadline = _clock(CLOCK_MONOTONIC) + self.idle_s
        self._idle.append(connection)
        return 0


cdef class UpstreamCore:
    """One connection to an upstream: the request goes out, the response is framed and handed on."""

    cdef public object handler
    cdef public object transport
    cdef public object attestation
    cdef public str peer
    cdef public double deadline
    cdef public double usable_until
    cdef public bint keep_alive
    cdef public PoolCore _pool
    cdef public bytes _buffer
    cdef public ChunkedReader _chunks
    cdef public bint _request_open
    cdef public bint _head_seen
    cdef public bint _to_head
    cdef public int _interim
    cdef public int _framing
    cdef public long long _left

    def request(self, handler, bytes data not None, *, bint to_head, bint complete):
        """Send a rendered head with as much body as there is; ``complete`` when that is the whole request."""
        self._request(handler, data, to_head, complete)

    cdef int _request(self, object handler, bytes data, bint to_head, bint complete) except -1:
        self.handler = handler
        self._head_seen = False
        self._interim = 0
        self._to_head = to_head
        self._request_open = not complete
        self.deadline = _clock(CLOCK_MONOTONIC) + self._pool.first_byte_s if complete else NEVER
        self.transport.write(data)
        return 0

    def get_buffer(self, sizehint):
        """Where the next read goes; at most 64 KiB."""
        return _READ

    def buffer_updated(self, Py_ssize_t size):
        """That many bytes have been read."""
        if not 0 <= size <= READ_BYTES:
            raise ValueError("more than there is room for")
        self._received(PyBytes_FromStringAndSize(_read_at, size))

    def data_received(self, bytes data not None):
        self._received(data)

    cdef int _received(self, bytes data) except -1:
        if self.handler is None:  # nobody asked: not a connection to trust with another request
            self.transport.abort()
            return 0
        try:
            if self._head_seen:
                self._take_body(data, 0, None)
            else:
                self._take_head(data)
        except FramingError as error:
            self._violated(error)
        return 0

    cdef int _take_head(self, bytes data) except -1:
        cdef ResponseHead head
        cdef Py_ssize_t pos = 0
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        while True:
            head = _scan_response(data, pos, self._pool.max_head, self._pool.max_fields, self._to_head)
            if head is None:
                self._buffer = data[pos:]
                return 0
            if head.status >= 200:
                break
            self._interim += 1
            self._check_interim()
            pos = head.end
        self._head_seen = True
        self.keep_alive = head.keep_alive
        self._framing = head.framing
        self._left = head.content_length
        if head.framing == CHUNKED:
            self._chunks = ChunkedReader.__new__(ChunkedReader)
        return self._take_body(data, head.end, head)

    cdef int _take_body(self, bytes data, Py_ssize_t pos, ResponseHead head) except -1:
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data), end = size
        cdef bint done = False
        cdef bytes payload
        cdef object handler = self.handler
        if self._framing == LENGTH:
            if size - pos > self._left:
                end = pos + <Py_ssize_t>self._left
            self._left -= end - pos
            done = self._left == 0
            payload = _piece(data, pos, end)
        elif self._framing == CHUNKED:
            payload = self._chunks._feed(data, pos)
            end = self._chunks.pos
            done = self._chunks.done
        elif self._framing == NO_BODY:
            payload, end, done = b"", pos, True
        else:
            payload = _piece(data, pos, size)
        if done:
            self._done(end != size)
        else:
            self.deadline = _clock(CLOCK_MONOTONIC) + self._pool.stream_gap_s
        if head is not None:
            if isinstance(handler, DownstreamCore):
                (<DownstreamCore>handler)._answer(head, payload, done)
            else:
                handler.on_response(head, payload, done)
        elif done or PyBytes_GET_SIZE(payload):
            if isinstance(handler, DownstreamCore):
                (<DownstreamCore>handler)._more(payload, done)
            else:
                handler.on_body(payload, done)
        return 0

    cdef int _done(self, bint surplus) except -1:
        """The response is whole. Bytes beyond it, or a request still being sent, make the connection unfit for more."""
        self.handler = None
        if self.keep_alive and not surplus and not self._request_open:
            self._pool._release(self)
        else:
            self.deadline = NEVER
            self.transport.abort()  # not close: what it has not taken of the request would be waited for
        return 0


cdef bytes _piece(bytes data, Py_ssize_t pos, Py_ssize_t end):
    if pos == 0 and end == PyBytes_GET_SIZE(data):
        return data
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + pos, end - pos)


cdef class DownstreamCore:
    """One client connection: a request head is scanned, admitted, sent on; the answer goes back, and the exchange ends.
    """

    cdef public object transport
    cdef public bint connected
    cdef public double deadline
    cdef public str peer_id
    cdef public str client_tls
    cdef public str client_subject
    cdef public ServiceCore _service
    cdef public FieldSet _to_client
    cdef public str _client_ip
    cdef public Exchange _exchange
    cdef public bytes _pending
    cdef public bytes _held
    cdef public bytes _last
    cdef public object _read_body
    cdef public object _upstream
    cdef public object _task
    cdef public object _usage
    cdef public object _body
    cdef public list _collected
    cdef public double _total_at
    cdef public Py_ssize_t _lingered
    cdef public Py_ssize_t _skip
    cdef public bint _trusted
    cdef public bint _admitted
    cdef public bint _head_started
    cdef public bint _head_written
    cdef public bint _reading_paused
    cdef public bint _write_paused
    cdef public bint _close_after
    cdef public bint _chunked_out
    cdef public bint _lingering
    cdef public bint _gone

    # -- bytes in

    def data_received(self, bytes data not None):
        if self._exchange is None and not self._lingering and self._skip == 0 and not self._write_paused:
            if PyBytes_GET_SIZE(self._pending):
                data = self._pending + data
                self._pending = b""
            self._head(data)
        else:
            self._received(data)

    def _read_head(self, bytes data not None):
        self._head(data)

    cdef int _head(self, bytes data) except -1:
        cdef ServiceCore service = self._service
        cdef RequestHead head
        cdef Exchange exchange
        cdef str client = self._client_ip
        cdef object chain, local, verdict
        try:
            head = _scan_request(data, 0, service.max_head, service.max_fields)
            if self._trusted and head is not None:
                client = service.trust.client(head, client)
        except FramingError as error:
            self._reject(error)
            return 0
        if head is None:
            self._pending = data
            if not self._head_started and PyBytes_GET_SIZE(data):
                self._head_started = True
                self.deadline = _clock(CLOCK_MONOTONIC) + service.head_s
            return 0
        self._head_started = False
        local = service.local.get(head.path)
        if local is not None:
            self._answer_local(head, local, data)
            return 0
        exchange = Exchange.__new__(Exchange, head, client)
        exchange.peer_id = self.peer_id
        exchange.client_tls_version = self.client_tls
        exchange.client_subject = self.client_subject
        self._exchange = exchange
        self._total_at = self.deadline = exchange.started_at + service.total_s
        service.admission.running += 1
        self._head_written = False
        self._close_after = service.draining or not head.keep_alive
        chain = service.chain
        verdict = (<ChainCore>chain)._enter(exchange) if isinstance(chain, ChainCore) else chain.enter(exchange)
        if verdict is None:
            self._admitted_at_once(exchange, head, data)
        else:
            self._stopped(exchange, verdict, data, head.end)
        return 0

    cdef int _admitted_at_once(self, Exchange exchange, RequestHead head, bytes data) except -1:
        """All gates passed. What is here whole, and alone, goes on now; ``_admit`` takes the rest."""
        cdef Py_ssize_t pos = head.end, left = PyBytes_GET_SIZE(data) - pos
        cdef bint plain = False
        if head.framing == NO_BODY and left == 0:
            self._send(exchange, b"", 0, 0, head.content_length)
            return 0
        if (head.framing == LENGTH and left == head.content_length and exchange.endpoint is not None
                and exchange.endpoint.body == "json"):
            try:
                plain = _note_members(exchange, data, pos, pos + left)
            except FramingError:
                pass  # _admit reads it again and refuses it
            if plain:
                self._send(exchange, data, pos, pos + left, left)
                return 0
        self._admit(exchange, data, pos)
        return 0

    # -- to the upstream

    cdef int _send(self, Exchange exchange, bytes data, Py_ssize_t pos, Py_ssize_t end, long long length) except -1:
        cdef object target = exchange.target, connection
        exchange.request_size = end - pos
        exchange.body_at = _clock(CLOCK_MONOTONIC)
        if target is None:
            self._no_target()
            return 0
        if isinstance(target, HopHead) and (<HopHead>target)._pool is not None:
            connection = (<HopHead>target)._pool._acquire()
        else:
            connection = target.acquire()
        if isinstance(connection, UpstreamCore):
            self._launch(exchange, connection, data, pos, end, length, True)
        else:
            self._wait_for_upstream(exchange, connection, _piece(data, pos, end), length, True)
        return 0

    cdef int _launch(self, Exchange exchange, UpstreamCore connection, bytes data, Py_ssize_t pos, Py_ssize_t end,
                     long long length, bint complete) except -1:
        cdef object target = exchange.target
        cdef bytes head
        exchange.forwarded_at = _clock(CLOCK_MONOTONIC)
        exchange.upstream = connection.peer
        exchange.attestation = connection.attestation
        self._upstream = connection
        if isinstance(target, HopHead):
            head = (<HopHead>target)._head(exchange, length, data, pos, end)
        else:
            head = target.head(exchange, length, data, pos, end)
        return connection._request(self, head, exchange.method == "HEAD", complete)

    # -- the response

    def on_response(self, ResponseHead head not None, bytes payload not None, bint done):
        self._answer(head, payload, done)

    def on_body(self, bytes payload not None, bint done):
        self._more(payload, done)

    cdef int _answer(self, ResponseHead head, bytes payload, bint done) except -1:
        cdef Exchange exchange = self._exchange
        cdef object endpoint
        if exchange is None:
            raise TypeError("an answer to nobody")
        if (not done or head.framing == NO_BODY or head.event_stream or self._read_body is not None
                or (exchange.attestation is not None and head._find(b"x-cube-error", 12) != NULL)):
            self._respond(head, payload, done)
            return 0
        exchange.first_byte_at = _clock(CLOCK_MONOTONIC)
        exchange.status = exchange.upstream_status = head.status
        exchange.streamed = False
        exchange.response_size = PyBytes_GET_SIZE(payload)
        self._last = payload
        endpoint = exchange.endpoint
        if endpoint is not None and endpoint.operation != "" and not _note_usage(exchange, payload):
            self._read_usage(exchange, payload)
        self._chunked_out = False
        if self._service.draining:
            self._close_after = True
        self._finish(exchange, "completed", self._rendered(exchange, head, PyBytes_GET_SIZE(payload), payload), False)
        return 0

    def _render(self, Exchange exchange not None, ResponseHead head not None, long long length, bytes payload not None):
        """The answer's head and ``payload`` as they go to the client."""
        return self._rendered(exchange, head, length, payload)

    cdef bytes _rendered(self, Exchange exchange, ResponseHead head, long long length, bytes payload):
        cdef LineBuffer fields = _FIELDS
        fields._size = 0
        fields.raw(b"x-request-id: ", 14)
        _ascii(fields, exchange.request_id)
        fields.raw(b"\r\n", 2)
        fields.put(exchange.answer_fields)
        if head.event_stream:
            fields.raw(b"x-accel-buffering: no\r\n", 23)
        return head._render(fields._data, fields._size, self._to_client, length, self._close_after, payload, 0,
                            PyBytes_GET_SIZE(payload))

    cdef int _more(self, bytes payload, bint done) except -1:
        cdef Exchange exchange = self._exchange
        cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
        if exchange is None:
            raise TypeError("an answer to nobody")
        if (done or size < 16 or PyBytes_GET_SIZE(self._held)
                or (exchange.streamed and _may_end_stream(<bytes_ptr>PyBytes_AS_STRING(payload), size))):
            self._pass_on(payload, done)
            return 0
        exchange.response_size += size
        if self._usage is not None:
            self._usage.add(payload)
        self._last = payload
        self.transport.write(_frame_chunk(payload, False) if self._chunked_out else payload)
        return 0

    # -- the end

    def _end(self, Exchange exchange not None, str outcome not None, bytes out, *, bint cut=False):
        """The one way out: observers run, then the last bytes go."""
        self._finish(exchange, outcome, out, cut)

    cdef int _finish(self, Exchange exchange, str outcome, bytes out, bint cut) except -1:
        cdef Ending ending
        cdef object chain = self._service.chain
        exchange.outcome = outcome
        exchange.ended_at = _clock(CLOCK_MONOTONIC)
        self.deadline = NEVER
        self._upstream = None
        if self._usage is not None:
            exchange.input_tokens, exchange.output_tokens = self._usage.tokens()
            self._usage = None
        ending = Ending.__new__(Ending)
        ending._down, ending._exchange, ending._out, ending._cut = self, exchange, out, cut
        if isinstance(chain, ChainCore):
            (<ChainCore>chain)._left(exchange, ending)
        else:
            chain.leave(exchange, ending)
        return 0

    def _forget(self):
        self._forgotten()

    cdef void _forgotten(self):
        self._exchange = None
        self._held = b""
        self._service.admission.running -= 1

    def _release(self, bytes out, *, bint cut):
        self._released(out, cut)

    cdef int _released(self, bytes out, bint cut) except -1:
        self._forgotten()
        if self._gone:
            return 0
        if self._read_body is not None:  # answered before the request was whole
            self._read_body = None
            self._lingering = self._close_after = True
        if out:
            self.transport.write(out)
        if self._close_after:
            self._finish_connection(cut)
        elif self._write_paused or self._skip or self._reading_paused or PyBytes_GET_SIZE(self._pending):
            self._await_next()
        else:
            self.deadline = _clock(CLOCK_MONOTONIC) + self._service.idle_s
        return 0


cdef bint _may_end_stream(bytes_ptr p, Py_ssize_t n) noexcept:
    """Whether the last bytes of a piece of 16 or more could be ``[DONE]`` and line ends: ``bodies`` looks closer."""
    cdef Py_ssize_t end = n
    while end > n - 4 and (p[end - 1] == 10 or p[end - 1] == 13):
        end -= 1
    return end < n and p[end - 1] == c']'


@cython.internal
@cython.final
@cython.freelist(64)
cdef class Ending:
    """What is left when the observers have run: the last bytes go, or, when there is no record, an error."""

    cdef DownstreamCore _down
    cdef Exchange _exchange
    cdef bytes _out
    cdef bint _cut

    def __call__(self, error):
        self._over(error)

    cdef int _over(self, object error) except -1:
        if error is None:
            self._down._released(self._out, self._cut)
        else:
            self._down._not_audited(self._exchange, error)
        return 0


def overdue(set members not None, double now):
    """Those whose ``deadline`` lies before ``now``."""
    cdef list found = []
    cdef double deadline
    for member in members:
        if isinstance(member, DownstreamCore):
            deadline = (<DownstreamCore>member).deadline
        elif isinstance(member, UpstreamCore):
            deadline = (<UpstreamCore>member).deadline
        else:
            deadline = member.deadline
        if deadline < now:
            found.append(member)
    return found
