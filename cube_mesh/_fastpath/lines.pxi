# The two lines of an exchange, audit event and log line, as JSON: written into one buffer that is used again and again.
# Which fields there are, and in which order, is said in audit/event.py and middleware/logging.py; tests compare what is
# written here with an encoder's output of those.

from cube_mesh.text import clean as _clean

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    void *PyUnicode_DATA(object text)

cdef enum:
    MOST_ROOM = 1_048_576

cdef unsigned char PLAIN[256]  # bytes that stand for themselves inside a JSON string, on one line, in ASCII


cdef void _fill_plain():
    cdef int i
    for i in range(256):
        PLAIN[i] = 0x20 <= i < 0x7F and i != c'"' and i != c'\\'


_fill_plain()


cdef inline bint _plain_text8(bytes_ptr p) noexcept nogil:
    """Whether eight bytes are all PLAIN; it may say no where there is one above 0x7F."""
    cdef unsigned long long x, low, quote, slash
    cdef unsigned long long ones = 0x0101010101010101ULL
    memcpy(&x, p, 8)
    low = (x - ones * 0x20) & ~x
    quote = x ^ (ones * 0x22)
    slash = x ^ (ones * 0x5C)
    quote = (quote - ones) & ~quote
    slash = (slash - ones) & ~slash
    return ((x | (x + ones) | low | quote | slash) & (ones * 0x80)) == 0


@cython.internal
@cython.final
cdef class LineBuffer:
    """Bytes that grow. One user at a time; ``begin`` starts anew."""

    cdef unsigned char *_data
    cdef Py_ssize_t _size
    cdef Py_ssize_t _room
    cdef double _real       # written last, and how: most requests have one of few temperatures
    cdef bytes _real_text

    def __dealloc__(self):
        PyMem_Free(self._data)

    cdef unsigned char *need(self, Py_ssize_t size) except NULL:
        """Where the next ``size`` bytes go: there is room for them."""
        cdef unsigned char *data
        if self._data == NULL or self._room - self._size < size:
            data = <unsigned char *>PyMem_Realloc(self._data, 2 * (self._size + size) + 4096)
            if data == NULL:
                raise MemoryError
            self._data = data
            self._room = 2 * (self._size + size) + 4096
        return self._data + self._size

    cdef int raw(self, const char *data, Py_ssize_t size) except -1:
        if self._room - self._size < size:
            self.need(size)
        memcpy(self._data + self._size, data, size)
        self._size += size
        return 0

    cdef int put(self, bytes data) except -1:
        if data is None:
            raise TypeError("bytes are missing")
        return self.raw(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef int number(self, long long value) except -1:
        cdef unsigned char *o = self.need(24)
        cdef Py_ssize_t sign = value < 0
        if sign:
            o[0] = c'-'
        self._size += sign + _write_digits(o + sign, -<unsigned long long>value if sign else <unsigned long long>value)
        return 0

    cdef int millis(self, double seconds) except -1:
        """Milliseconds with the microseconds cut, not rounded: at least one digit behind the point, no zero at the end.
        """
        cdef long long us = <long long>(seconds * 1e6) if -9e12 < seconds < 9e12 else 0
        cdef unsigned char *o
        cdef int rest
        if us < 0:
            self.raw(b"-", 1)
            us = -us
        self.number(us // 1000)
        rest = us % 1000
        o = self.need(4)
        o[0] = c'.'
        o[1] = 48 + rest // 100
        o[2] = 48 + rest // 10 % 10
        o[3] = 48 + rest % 10
        self._size += 4 if o[3] != 48 else 3 if o[2] != 48 else 2
        return 0

    cdef int text(self, str text, Py_ssize_t limit) except -1:
        """A string in quotes, as ``clean`` leaves it: one line, at most ``limit`` characters."""
        cdef const unsigned char *p
        cdef unsigned char *o
        cdef Py_ssize_t n, i
        if text is None:
            raise TypeError("a text is missing")
        if PyUnicode_IS_COMPACT_ASCII(text) and PyUnicode_GET_LENGTH(text) <= limit:
            p = <const unsigned char *>PyUnicode_DATA(text)
            n = PyUnicode_GET_LENGTH(text)
            i = 0
            while i + 8 <= n and _plain_text8(p + i):
                i += 8
            if n >= 8 and i + 8 > n and _plain_text8(p + n - 8):
                i = n
            while i < n and PLAIN[p[i]]:
                i += 1
            if i == n:
                o = self.need(n + 2)
                o[0] = c'"'
                memcpy(o + 1, p, n)
                o[n + 1] = c'"'
                self._size += n + 2
                return 0
        return self._escaped(_clean(text, limit))

    cdef int _escaped(self, str text) except -1:
        """The same for printable text with quotes, backslashes, or characters beyond ASCII."""
        cdef Py_ssize_t n, i, at = 1
        cdef const unsigned char *p = <const unsigned char *>PyUnicode_AsUTF8AndSize(text, &n)
        cdef unsigned char *o = self.need(2 * n + 2)
        o[0] = c'"'
        for i in range(n):
            if p[i] == c'"' or p[i] == c'\\':
                o[at] = c'\\'
                at += 1
            o[at] = p[i]
            at += 1
        o[at] = c'"'
        self._size += at + 1
        return 0

    cdef int text_or_null(self, object text, Py_ssize_t limit) except -1:
        if text is None:
            return self.raw(b"null", 4)
        return self.text(text, limit)

    cdef int any_number(self, object value) except -1:
        """None, an int of any size, or a float; what JSON has no number for is null."""
        cdef double real
        if value is None:
            return self.raw(b"null", 4)
        if type(value) is int:
            return self.put(str(value).encode("ascii"))
        if value - value != 0:  # not finite
            return self.raw(b"null", 4)
        real = value
        if self._real_text is None or memcmp(&real, &self._real, 8) != 0:
            self._real_text = repr(real).encode("ascii")
            self._real = real
        return self.put(self._real_text)

    cdef int tokens(self, object value) except -1:
        """The same for what is a small int almost always."""
        cdef int overflow
        cdef long long small
        if type(value) is int:
            small = PyLong_AsLongLongAndOverflow(value, &overflow)
            if not overflow:
                return self.number(small)
        return self.any_number(value)

    cdef int boolean(self, bint value) except -1:
        if value:
            return self.raw(b"true", 4)
        return self.raw(b"false", 5)

    cdef bytes taken(self):
        """What was written; it begins anew, and gives back what an unusual burst needed."""
        cdef bytes data = PyBytes_FromStringAndSize(<char *>self._data, self._size)
        self._size = 0
        if self._room > MOST_ROOM:
            PyMem_Free(self._data)
            self._data = NULL
            self._room = 0
        return data


cdef Py_ssize_t _write_digits(unsigned char *o, unsigned long long value) noexcept:
    cdef unsigned char digits[20]
    cdef int n = 0, i
    while True:
        digits[n] = <unsigned char>(48 + value % 10)
        value //= 10
        n += 1
        if value == 0:
            break
    for i in range(n):
        o[i] = digits[n - 1 - i]
    return n


@cython.internal
@cython.final
cdef class Moments:
    """Unix seconds as ``2026-01-02T03:04:05.678Z`` in quotes; the calendar part is made once a second."""

    cdef long long _second
    cdef char _text[27]
    cdef object _stamp

    def __cinit__(self, stamp):
        self._second = -1
        self._stamp = stamp

    cdef int write(self, LineBuffer out, double at) except -1:
        cdef long long second = <long long>at
        cdef int ms
        cdef bytes text
        if second != self._second:
            text = self._stamp(at).encode("ascii")
            if PyBytes_GET_SIZE(text) != 24:
                raise ValueError("a year of four digits")
            memcpy(self._text + 1, PyBytes_AS_STRING(text), 24)
            self._text[0] = self._text[25] = c'"'
            self._second = second
        ms = <int>((at - second) * 1000)
        self._text[21] = 48 + ms // 100
        self._text[22] = 48 + ms // 10 % 10
        self._text[23] = 48 + ms % 10
        return out.raw(self._text, 26)


cdef class EventLines:
    """The audit event of an exchange (``audit.event.Request``) with the parts behind it that its subclass keeps
    encoded: ``_caller`` and ``_channel``, asked again only when principal, grant or channel are not those of before.
    """

    cdef LineBuffer _out
    cdef Moments _moments
    cdef bytes _node
    cdef object _principal, _grant, _attestation
    cdef bytes _caller_tail, _channel_tail
    cdef public bytes _plain  # of an exchange without an attested channel, and without an error that could be one's

    def __init__(self, stamp, bytes node not None):
        self._out = LineBuffer.__new__(LineBuffer)
        self._moments = Moments.__new__(Moments, stamp)
        self._node = node

    def line(self, Exchange exchange not None):
        """The event as one JSON object and a newline."""
        cdef LineBuffer out = self._out
        out._size = 0
        self._write(out, exchange)
        return out.taken()

    cdef int _write(self, LineBuffer out, Exchange exchange) except -1:
        self._request(out, exchange)
        if exchange.principal is None or exchange.principal is not self._principal or exchange.grant is not self._grant:
            self._caller_tail = self._caller(exchange)
            self._principal, self._grant = exchange.principal, exchange.grant
        out.put(self._caller_tail)
        if exchange.attestation is None:
            out.put(self._plain if exchange.error is None else self._channel(exchange))
        else:
            if exchange.attestation is not self._attestation:
                self._channel_tail = self._channel(exchange)
                self._attestation = exchange.attestation
            out.put(self._channel_tail)
        return out.put(self._node)

    cdef int _request(self, LineBuffer out, Exchange x) except -1:
        cdef object error = x.error
        out.raw(b'{"timestamp":', 13)
        self._moments.write(out, x.started_wall)
        out.raw(b',"request_id":', 14)
        out.text(x.request_id, 128)
        out.raw(b',"trace_id":', 12)
        out.text(x.trace_id, 32)
        out.raw(b',"domain_id":', 13)
        out.text(x.domain_id, 64)
        out.raw(b',"method":', 10)
        out.text(x.method, 32)
        out.raw(b',"path":', 8)
        out.text(x.path, 1024)
        out.raw(b',"endpoint":', 12)
        out.text_or_null(None if x.endpoint is None else x.endpoint.name, 1024)
        out.raw(b',"client_ip":', 13)
        out.text(x.client_ip, 256)
        out.raw(b',"client_tls_version":', 22)
        out.text(x.client_tls_version, 64)
        out.raw(b',"client_tls_subject":', 22)
        out.text_or_null(x.client_subject or None, 512)
        out.raw(b',"user_agent":', 14)
        self._user_agent(out, x.head)
        out.raw(b',"status_code":', 15)
        out.number(x.status)
        out.raw(b',"outcome":', 11)
        out.text(x.outcome, 64)
        out.raw(b',"error_code":', 14)
        if error is None:
            out.raw(b'null,"error":null', 17)
        else:
            out.text(error.code, 256)
            out.raw(b',"error":', 9)
            out.text(error.detail or error.message, 512)
        out.raw(b',"request_size":', 16)
        out.number(x.request_size)
        out.raw(b',"response_size":', 17)
        out.number(x.response_size)
        out.raw(b',"duration_ms":', 15)
        out.millis(x.ended_at - x.started_at)
        out.raw(b',"upstream_ms":', 15)
        if x.forwarded_at:
            out.millis(x.ended_at - x.forwarded_at)
        else:
            out.raw(b"null", 4)
        out.raw(b',"first_byte_ms":', 17)
        if x.forwarded_at and x.first_byte_at:
            out.millis(x.first_byte_at - x.forwarded_at)
        else:
            out.raw(b"null", 4)
        out.raw(b',"model":', 9)
        out.text_or_null(x.model, 256)
        out.raw(b',"stream":', 10)
        out.boolean(x.stream)
        out.raw(b',"temperature":', 15)
        out.any_number(x.temperature)
        out.raw(b',"max_tokens":', 14)
        out.tokens(x.max_tokens)
        out.raw(b',"input_tokens":', 16)
        out.tokens(x.input_tokens)
        out.raw(b',"output_tokens":', 17)
        out.tokens(x.output_tokens)
        out.raw(b',"route":', 9)
        out.text_or_null(None if x.route is None else x.route.name, 1024)
        out.raw(b',"upstream":', 12)
        out.text_or_null(x.upstream or None, 1024)
        out.raw(b',"upstream_status":', 19)
        out.number(x.upstream_status) if x.upstream_status else out.raw(b"null", 4)
        return 0

    cdef int _user_agent(self, LineBuffer out, object head) except -1:
        cdef bytes agent
        if type(head) is RequestHead:
            agent = (<RequestHead>head)._get(b"user-agent", 10)
        else:
            agent = head.get(b"user-agent")
        if agent is None:
            return out.raw(b"null", 4)
        return out.text(agent.decode("utf-8", "replace") if PyBytes_GET_SIZE(agent) else "-", 256)


cdef class LogLines:
    """The log line of an exchange, as ``middleware.logging.Line``. ``json(exchange, level)`` gives it with its newline.
    """

    cdef LineBuffer _out
    cdef Moments _moments
    cdef bytes _node_id
    cdef bint _unsafe

    def __init__(self, stamp, str node_id not None, bint unsafe):
        self._out = LineBuffer.__new__(LineBuffer)
        self._moments = Moments.__new__(Moments, stamp)
        self._out.text(node_id, 1024)
        self._node_id = self._out.taken()
        self._unsafe = unsafe

    def json(self, Exchange exchange not None, str level not None):
        """One JSON object and a newline."""
        self._out._size = 0
        self._write(self._out, b"", exchange, level)
        return self._out.taken()

    cdef int _write(self, LineBuffer out, bytes mark, Exchange x, str level) except -1:
        """``mark``: members that come first, each with a comma behind it."""
        cdef object error = x.error
        out.raw(b"{", 1)
        out.put(mark)
        out.raw(b'"time":', 7)
        self._moments.write(out, x.started_wall)
        out.raw(b',"level":', 9)
        out.text(level, 16)
        out.raw(b',"msg":"request","request_id":', 30)
        out.text(x.request_id, 128)
        out.raw(b',"trace_id":', 12)
        out.text(x.trace_id, 32)
        out.raw(b',"node_id":', 11)
        out.put(self._node_id)
        out.raw(b',"domain_id":', 13)
        out.text(x.domain_id, 64)
        out.raw(b',"subject":', 11)
        out.text_or_null(None if x.principal is None else x.principal.subject, 256)
        out.raw(b',"method":', 10)
        out.text(x.method, 32)
        out.raw(b',"endpoint":', 12)
        out.text_or_null(None if x.endpoint is None else x.endpoint.name, 1024)
        out.raw(b',"status":', 10)
        out.number(x.status)
        out.raw(b',"outcome":', 11)
        out.text(x.outcome, 64)
        out.raw(b',"error_code":', 14)
        if error is None:
            out.raw(b'null,"error":null', 17)
        else:
            out.text(error.code, 256)
            out.raw(b',"error":', 9)
            out.text(error.detail, 256)
        out.raw(b',"duration_ms":', 15)
        out.millis(x.ended_at - x.started_at)
        out.raw(b',"bytes_in":', 12)
        out.number(x.request_size)
        out.raw(b',"bytes_out":', 13)
        out.number(x.response_size)
        out.raw(b',"upstream":', 12)
        out.text_or_null(x.upstream or None, 1024)
        out.raw(b',"unsafe":', 10)
        out.boolean(self._unsafe)
        return out.raw(b"}\n", 2)
