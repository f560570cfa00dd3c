# Heads: a request or response head to spans, in one forward pass (RFC 9112 sections 2 to 7).

cdef enum Framing:
    NO_BODY = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3

FRAMING_NONE = NO_BODY
FRAMING_LENGTH = LENGTH
FRAMING_CHUNKED = CHUNKED
FRAMING_UNTIL_CLOSE = UNTIL_CLOSE


cdef class Head:
    """Field lines of a head as spans over one ``bytes``; values come without their surrounding white space."""

    cdef readonly bytes raw
    cdef Span *_spans
    cdef unsigned long long _lengths  # bit n: a field name of that length is there
    cdef readonly int field_count
    cdef readonly int end            # offset in the scanned data just past the head
    cdef readonly int minor          # HTTP/1.<minor>
    cdef readonly int framing
    cdef readonly long long content_length   # -1: no Content-Length
    cdef readonly bint keep_alive
    cdef bint _names_in_connection   # Connection names fields to drop
    cdef bint _underscore            # a field name has an underscore

    def __dealloc__(self):
        PyMem_Free(self._spans)

    cdef int _fill(self, bytes_ptr b, Py_ssize_t pos, Py_ssize_t end, Notes *notes, int count) except -1:
        """Take over what a scan of ``b[pos:end]`` found."""
        self.raw = PyBytes_FromStringAndSize(<char *>b + pos, end - pos)
        self._spans = <Span *>PyMem_Malloc((count + 1) * sizeof(Span))
        if self._spans == NULL:
            raise MemoryError
        memcpy(self._spans, SPANS, count * sizeof(Span))
        self._lengths = notes.lengths
        self.field_count = count
        self.end = <int>end
        self.minor = notes.minor
        self.content_length = notes.length
        self.keep_alive = (notes.minor == 1 or notes.keep_alive) and not notes.close
        self._names_in_connection = notes.named
        self._underscore = notes.underscore
        return 0

    cdef Span *_find(self, bytes_ptr name, unsigned int n) noexcept:
        """The first field of that lower-case name, or NULL."""
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef int i
        if self._lengths >> (n if n < 63 else 63) & 1:
            for i in range(self.field_count):
                if self._spans[i].name_len == n and _same(b + self._spans[i].name, name, n):
                    return &self._spans[i]
        return NULL

    def get(self, bytes name not None):
        """Value of the first field of that lower-case name, or None."""
        return self._get(<bytes_ptr>PyBytes_AS_STRING(name), <unsigned int>PyBytes_GET_SIZE(name))

    cdef bytes _get(self, bytes_ptr name, unsigned int n):
        cdef Span *found = self._find(name, n)
        if found == NULL:
            return None
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.raw) + found.value, found.value_len)

    def count(self, bytes name not None):
        """How many field lines have that lower-case name."""
        return self._count(<bytes_ptr>PyBytes_AS_STRING(name), <unsigned int>PyBytes_GET_SIZE(name))

    cdef int _count(self, bytes_ptr want, unsigned int n) noexcept:
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef int i, found = 0
        for i in range(self.field_count):
            if self._spans[i].name_len == n and _same(b + self._spans[i].name, want, n):
                found += 1
        return found

    def fields(self):
        """All field lines in order as (lower-case name, value); for cold paths."""
        cdef int i
        cdef list out = []
        for i in range(self.field_count):
            s = self._spans[i]
            out.append((self.raw[s.name:s.name + s.name_len].lower(), self.raw[s.value:s.value + s.value_len]))
        return out

    cdef bint _named_by_connection(self, bytes_ptr name, Py_ssize_t n):
        """RFC 9110 7.6.1: fields that Connection names are for this hop only."""
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef bytes_ptr v
        cdef int i
        cdef Py_ssize_t at, start, stop, size
        for i in range(self.field_count):
            if self._spans[i].name_len != 10 or not _same(b + self._spans[i].name, b"connection", 10):
                continue
            v = b + self._spans[i].value
            size = self._spans[i].value_len
            at = 0
            while at < size:
                start = at
                while at < size and v[at] != c',':
                    at += 1
                stop = at
                at += 1
                while start < stop and (v[start] == 32 or v[start] == 9):
                    start += 1
                while stop > start and (v[stop - 1] == 32 or v[stop - 1] == 9):
                    stop -= 1
                if stop - start == n and _same_both(v + start, name, n):
                    return True
        return False

    cdef Py_ssize_t _copy_fields(self, unsigned char *out, FieldSet drop):
        """Write the field lines that go on, each as ``name: value CRLF``: not dropped, not named by Connection, and no
        underscore in the name, since there are programs to which x_cube_domain is x-cube-domain."""
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef Py_ssize_t at = 0
        cdef int i
        cdef Span s
        for i in range(self.field_count):
            s = self._spans[i]
            if drop.has(b + s.name, s.name_len):
                continue
            if self._underscore and memchr(b + s.name, c'_', s.name_len) != NULL:
                continue
            if self._names_in_connection and self._named_by_connection(b + s.name, s.name_len):
                continue
            memcpy(out + at, b + s.name, s.name_len)
            at += s.name_len
            out[at] = c':'
            out[at + 1] = c' '
            at += 2
            memcpy(out + at, b + s.value, s.value_len)
            at += s.value_len
            out[at] = 13
            out[at + 1] = 10
            at += 2
        return at


cdef class RequestHead(Head):
    cdef readonly str method
    cdef readonly bytes target       # request-target as received (origin-form)
    cdef readonly str path           # the target up to "?"
    cdef readonly bytes query        # with its "?", or empty
    cdef readonly bint expect_continue

    def render(self, bytes target not None, bytes fixed not None, FieldSet drop not None, long long length,
               bytes data not None=b"", Py_ssize_t pos=0, Py_ssize_t end=0):
        """This request as it goes on: new target, ``fixed`` field lines of ours, the client's fields less ``drop``.

        ``length`` >= 0 writes Content-Length, -1 no body, -2 chunked. A method that is expected to have a body gets a
        Content-Length of 0 rather than none (RFC 9110 8.6): there are servers that would wait for one until the
        connection closes. ``data[pos:end]`` is appended: one copy. Raises ValueError for a span outside ``data``.
        """
        return self._render(target, <bytes_ptr>PyBytes_AS_STRING(fixed), PyBytes_GET_SIZE(fixed), drop, length,
                            data, pos, end)

    cdef bytes _render(self, bytes target, bytes_ptr fixed, Py_ssize_t fixed_size, FieldSet drop, long long length,
                       bytes data, Py_ssize_t pos, Py_ssize_t end):
        cdef Py_ssize_t size = _span_size(data, pos, end)
        cdef Py_ssize_t bound = (PyBytes_GET_SIZE(self.raw) + 2 * self.field_count + PyBytes_GET_SIZE(target)
                                 + fixed_size + 96 + size)
        cdef PyObject *out = PyBytes_New(NULL, bound)
        cdef unsigned char *o = <unsigned char *>PyBytes_Data(out)
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef Py_ssize_t at = 0
        while b[at] != 32:
            o[at] = b[at]
            at += 1
        if length == -1 and b[0] == c'P':  # POST, PUT, PATCH
            length = 0
        o[at] = 32
        at += 1
        memcpy(o + at, PyBytes_AS_STRING(target), PyBytes_GET_SIZE(target))
        at += PyBytes_GET_SIZE(target)
        memcpy(o + at, b" HTTP/1.1\r\n", 11)
        at += 11
        memcpy(o + at, fixed, fixed_size)
        at += fixed_size
        at += self._copy_fields(o + at, drop)
        at += _write_framing(o + at, length)
        o[at] = 13
        o[at + 1] = 10
        at += 2
        memcpy(o + at, PyBytes_AS_STRING(data) + pos, size)
        return _shrink(out, at + size)


cdef class ResponseHead(Head):
    cdef readonly int status
    cdef readonly bint event_stream  # Content-Type is text/event-stream
    cdef Py_ssize_t _line_end

    def render(self, bytes fixed not None, FieldSet drop not None, long long length, bint close,
               bytes data not None=b"", Py_ssize_t pos=0, Py_ssize_t end=0):
        """This response as it goes on to the client; ``length`` as in RequestHead.render; one copy."""
        return self._render(<bytes_ptr>PyBytes_AS_STRING(fixed), PyBytes_GET_SIZE(fixed), drop, length, close,
                            data, pos, end)

    cdef bytes _render(self, bytes_ptr fixed, Py_ssize_t fixed_size, FieldSet drop, long long length, bint close,
                       bytes data, Py_ssize_t pos, Py_ssize_t end):
        cdef Py_ssize_t size = _span_size(data, pos, end)
        cdef Py_ssize_t bound = PyBytes_GET_SIZE(self.raw) + 2 * self.field_count + fixed_size + 128 + size
        cdef PyObject *out = PyBytes_New(NULL, bound)
        cdef unsigned char *o = <unsigned char *>PyBytes_Data(out)
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef Py_ssize_t at = self._line_end
        memcpy(o, b"HTTP/1.1", 8)
        memcpy(o + 8, b + 8, at - 8)
        at += self._copy_fields(o + at, drop)
        memcpy(o + at, fixed, fixed_size)
        at += fixed_size
        at += _write_framing(o + at, length)
        if close:
            memcpy(o + at, b"connection: close\r\n", 19)
            at += 19
        o[at] = 13
        o[at + 1] = 10
        at += 2
        if length == -2 and size:
            at += _write_chunk(o + at, <bytes_ptr>PyBytes_AS_STRING(data) + pos, size)
        else:
            memcpy(o + at, PyBytes_AS_STRING(data) + pos, size)
            at += size
        return _shrink(out, at)


cdef Py_ssize_t _span_size(bytes data, Py_ssize_t pos, Py_ssize_t end) except -1:
    if not 0 <= pos <= end <= PyBytes_GET_SIZE(data):
        raise ValueError("span outside the data")
    return end - pos


cdef Py_ssize_t _stop(bytes data, Py_ssize_t pos, Py_ssize_t max_head) except -1:
    """Where the scan has to stop: at the end of the data, or where a head would be too large."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    if not 0 <= pos <= n:
        raise ValueError("offset outside the data")
    return n if n - pos <= max_head else pos + max_head


cdef object _more(Py_ssize_t pos, Py_ssize_t stop, Py_ssize_t max_head):
    """The head is not complete: None, unless it could not be completed within its bound."""
    if stop - pos >= max_head:
        raise FramingError("head_too_large", "The request head is too large.", 431)
    return None


def scan_request(bytes data not None, Py_ssize_t pos, Py_ssize_t max_head, int max_fields):
    """A RequestHead, or None when the head is not complete yet. Raises FramingError.

    One CRLF before the request-line is skipped (RFC 9112 2.2). ``head.end`` is where the body starts. A refusal comes
    with the first byte that makes the head wrong, however the bytes were cut. Not checked: whether Host names this
    node, and whether the rest of the fields make sense.
    """
    return _scan_request(data, pos, max_head, max_fields)


cdef object _scan_request(bytes data, Py_ssize_t pos, Py_ssize_t max_head, int max_fields):
    cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(data)
    cdef Py_ssize_t at, start, query, stop = _stop(data, pos, max_head)
    cdef Py_ssize_t end
    cdef int count
    cdef Notes notes
    cdef str method
    cdef RequestHead head
    if b[pos] == 13:
        if pos + 1 >= stop:
            return _more(pos, stop, max_head)
        if b[pos + 1] == 10:
            pos += 2
            stop = _stop(data, pos, max_head)
    at = pos
    while TCHAR[b[at]]:
        at += 1
    if at >= stop:
        return _more(pos, stop, max_head)
    if at == pos or b[at] != 32:
        raise FramingError("bad_request_line", "The request-line is malformed.")
    method = _method(b + pos, at - pos)
    if method is None:
        raise FramingError("method_not_implemented", "The method is not implemented.", 501)
    start = at + 1
    end = _scan_target(b, start, stop, &query)
    if end == 0:
        return _more(pos, stop, max_head)
    _begin(&notes)
    at = _scan_version(b, end + 1, stop, &notes.minor)
    if at != 0:
        at = _scan_line_end(b, at, stop, "bad_request_line", "The request-line is malformed.")
    if at != 0:
        at = _scan_fields(b + pos, b, at, stop, max_fields, True, &notes, &count)
    if at == 0:
        return _more(pos, stop, max_head)
    head = RequestHead.__new__(RequestHead)
    head.method = method
    if query < 0:
        query = end
    head.target = PyBytes_FromStringAndSize(<char *>b + start, end - start)
    head.path = PyUnicode_DecodeASCII(<char *>b + start, query - start, NULL)
    head.query = PyBytes_FromStringAndSize(<char *>b + query, end - query)
    head.framing = _request_framing(&notes, method)
    head.expect_continue = notes.expect and notes.minor == 1
    head._fill(b, pos, at, &notes, count)
    return head


cdef void _begin(Notes *notes) noexcept:
    memset(notes, 0, sizeof(Notes))
    notes.length = -1


cdef int _request_framing(Notes *notes, str method) except -1:
    """Rules over the whole head: RFC 9112 3.2 (Host), 6.1 and 6.3 (framing)."""
    if notes.hosts == 0 and notes.minor == 1:
        raise FramingError("bad_host", "There must be exactly one Host field.")
    if notes.chunked and notes.length >= 0:
        raise FramingError("ambiguous_framing", "Transfer-Encoding and Content-Length exclude each other.")
    if notes.chunked and notes.minor == 0:
        raise FramingError("bad_transfer_encoding", "HTTP/1.0 has no transfer codings.")
    if not notes.chunked and notes.length <= 0:
        return NO_BODY
    if method == "GET" or method == "HEAD" or method == "OPTIONS":
        # RFC 9110 9.3.1: no agreed meaning, and servers that do not expect a body take it for the next request.
        raise FramingError("unexpected_body", "A request of this method must not have a body.")
    return CHUNKED if notes.chunked else LENGTH


def scan_response(bytes data not None, Py_ssize_t pos, Py_ssize_t max_head, int max_fields, bint to_head):
    """A ResponseHead, or None when not complete. ``to_head``: it answers a HEAD request, so there is no body.

    Framing by RFC 9112 6.3; 101 is refused, the other 1xx have no body and are the caller's to skip.
    """
    return _scan_response(data, pos, max_head, max_fields, to_head)


cdef object _scan_response(bytes data, Py_ssize_t pos, Py_ssize_t max_head, int max_fields, bint to_head):
    cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(data)
    cdef Py_ssize_t at, line_end, stop = _stop(data, pos, max_head)
    cdef int count, status = 0
    cdef Notes notes
    cdef ResponseHead head
    _begin(&notes)
    at = _scan_version(b, pos, stop, &notes.minor)
    if at != 0:
        at = _scan_status(b, at, stop, &status)
    line_end = at
    if at != 0:
        at = _scan_fields(b + pos, b, at, stop, max_fields, False, &notes, &count)
    if at == 0:
        return _more(pos, stop, max_head)
    head = ResponseHead.__new__(ResponseHead)
    head.status = status
    head._line_end = line_end - pos
    head._fill(b, pos, at, &notes, count)
    _settle_response(head, &notes, to_head)
    return head


cdef Py_ssize_t _scan_status(bytes_ptr b, Py_ssize_t at, Py_ssize_t stop, int *status) except -1:
    """Past SP, three digits from 100 to 599, the reason phrase if there is one, and CRLF."""
    cdef int i
    for i in range(4):
        if at + i >= stop:
            return 0
        if not (b[at] == 32 if i == 0 else 49 <= b[at + 1] <= 53 if i == 1 else 48 <= b[at + i] <= 57):
            raise FramingError("bad_status_line", "The status-line is malformed.", 502)
    status[0] = (b[at + 1] - 48) * 100 + (b[at + 2] - 48) * 10 + (b[at + 3] - 48)
    at += 4
    if at < stop and b[at] != 32 and b[at] != 13:
        raise FramingError("bad_status_line", "The status-line is malformed.", 502)
    while VALUE[b[at]] and b[at] < 0x80:
        at += 1
    return _scan_line_end(b, at, stop, "bad_status_line", "The status-line is malformed.")


cdef int _settle_response(ResponseHead head, Notes *notes, bint to_head) except -1:
    cdef Span *kind
    cdef bint bodyless = head.status < 200 or head.status == 204
    if notes.chunked and (notes.length >= 0 or notes.minor == 0):
        raise FramingError("ambiguous_framing", "The upstream's framing is ambiguous.", 502)
    if head.status == 101:
        raise FramingError("unexpected_upgrade", "The upstream switched protocols.", 502)
    if bodyless and (notes.chunked or notes.length > 0):
        raise FramingError("ambiguous_framing", "The upstream frames a body where there is none.", 502)
    if bodyless or head.status == 304 or to_head or notes.length == 0:
        head.framing = NO_BODY
    elif notes.chunked:
        head.framing = CHUNKED
    elif notes.length > 0:
        head.framing = LENGTH
    else:
        head.framing = UNTIL_CLOSE
        head.keep_alive = False
    kind = head._find(b"content-type", 12)
    head.event_stream = kind != NULL and kind.value_len >= 17 and _same(
        <bytes_ptr>PyBytes_AS_STRING(head.raw) + kind.value, b"text/event-stream", 17)
    return 0
