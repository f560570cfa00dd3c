# The exchange: what one request accumulates on its way. Described field by field in cube_mesh/exchange.py; here, so
# that the stages, the encoders and the connections read and write it without a look-up.

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC
    enum: CLOCK_REALTIME
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *at)


cdef inline double _clock(int which) noexcept nogil:
    """Seconds, as ``time.perf_counter()`` (CLOCK_MONOTONIC) or ``time.time()`` (CLOCK_REALTIME) gives them."""
    cdef timespec at
    clock_gettime(which, &at)
    return <double>at.tv_sec + <double>at.tv_nsec * 1e-9


@cython.freelist(64)
cdef class Exchange:
    """What one request accumulates; documented in ``cube_mesh.exchange``."""

    cdef public object head
    cdef public str method
    cdef public str path
    cdef public str client_ip
    cdef public str client_tls_version
    cdef public str client_subject
    cdef public str peer_id
    cdef public str domain_id
    cdef public bytes upstream_target
    cdef public str request_id
    cdef public str trace_id
    cdef public str span_id
    cdef public str parent_span_id
    cdef public str tracestate
    cdef public object principal
    cdef public object grant
    cdef public object endpoint
    cdef public object route
    cdef public object target
    cdef public str upstream
    cdef public str model
    cdef public object max_tokens
    cdef public object temperature
    cdef public object error
    cdef public str outcome
    cdef public bytes answer_fields
    cdef public object input_tokens
    cdef public object output_tokens
    cdef public object attestation
    cdef public bint sampled
    cdef public bint stream
    cdef public bint streamed
    cdef public bint left
    cdef public int status
    cdef public int upstream_status
    cdef public long long request_size
    cdef public long long response_size
    cdef public double started_wall
    cdef public double started_at
    cdef public double body_at
    cdef public double forwarded_at
    cdef public double first_byte_at
    cdef public double ended_at

    def __cinit__(self, head, str client_ip not None):
        self.head = head
        if type(head) is RequestHead:
            self.method = (<RequestHead>head).method
            self.path = (<RequestHead>head).path
        else:
            self.method = head.method
            self.path = head.path
        self.client_ip = client_ip
        self.client_tls_version = self.client_subject = self.peer_id = self.domain_id = ""
        self.request_id = self.trace_id = self.span_id = self.parent_span_id = self.tracestate = ""
        self.upstream = self.outcome = ""
        self.upstream_target = self.answer_fields = b""
        self.started_wall = _clock(CLOCK_REALTIME)
        self.started_at = _clock(CLOCK_MONOTONIC)
