# Heads: request-line or status-line and field lines to spans (RFC 9112 section 2 to 7).

cdef enum:
    MAX_FIELDS = 128

cdef enum Framing:
    NO_BODY = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3

FRAMING_NONE = NO_BODY
FRAMING_LENGTH = LENGTH
FRAMING_CHUNKED = CHUNKED
FRAMING_UNTIL_CLOSE = UNTIL_CLOSE

cdef struct Span:
    unsigned int name
    unsigned int name_len
    unsigned int value
    unsigned int value_len


cdef class FieldSet:
    """A fixed set of field names and name prefixes, lower case, for dropping fields while a head is rendered."""

    cdef tuple _names
    cdef tuple _prefixes
    cdef unsigned short _first[65]

    def __init__(self, names=(), prefixes=()):
        cdef Py_ssize_t length
        ordered = sorted(set(names), key=len)
        if any(len(n) > 63 or n != n.lower() for n in ordered):
            raise ValueError("field names must be lower case and shorter than 64 bytes")
        self._names = tuple(ordered)
        self._prefixes = tuple(prefixes)
        for length in range(65):
            self._first[length] = sum(1 for n in ordered if len(n) < length)

    cdef bint has(self, bytes_ptr name, Py_ssize_t n):
        cdef Py_ssize_t i, size
        cdef bytes known
        if n < 64:
            for i in range(self._first[n], self._first[n + 1]):
                known = <bytes>self._names[i]
                if _same(name, <bytes_ptr>PyBytes_AS_STRING(known), n):
                    return True
        for i in range(len(self._prefixes)):
            known = <bytes>self._prefixes[i]
            size = PyBytes_GET_SIZE(known)
            if n >= size and _same(name, <bytes_ptr>PyBytes_AS_STRING(known), size):
                return True
        return False

    def __contains__(self, bytes name):
        return self.has(<bytes_ptr>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


cdef class Head:
    """Field lines of a head as spans over one ``bytes``; values come without their surrounding white space."""

    cdef readonly bytes raw
    cdef Span _spans[MAX_FIELDS]
    cdef readonly int field_count
    cdef readonly int end            # offset in the scanned data just past the head
    cdef readonly int minor          # HTTP/1.<minor>
    cdef readonly int framing
    cdef readonly long long content_length   # -1: no Content-Length
    cdef readonly bint keep_alive
    cdef bint _names_in_connection   # Connection names fields to drop
    cdef bint _close
    cdef bint _chunked
    cdef int _hosts

    cpdef bytes get(self, bytes name):
        """Value of the first field of that lower-case name, or None."""
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef bytes_ptr want = <bytes_ptr>PyBytes_AS_STRING(name)
        cdef unsigned int n = <unsigned int>PyBytes_GET_SIZE(name)
        cdef int i
        for i in range(self.field_count):
            if self._spans[i].name_len == n and _same(b + self._spans[i].name, want, n):
                return PyBytes_FromStringAndSize(<char *>b + self._spans[i].value, self._spans[i].value_len)
        return None

    def count(self, bytes name):
        """How many field lines have that lower-case name."""
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef bytes_ptr want = <bytes_ptr>PyBytes_AS_STRING(name)
        cdef unsigned int n = <unsigned int>PyBytes_GET_SIZE(name)
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
        """Write the field lines that go on: not dropped, not named by Connection; each as ``name: value CRLF``."""
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef Py_ssize_t at = 0
        cdef int i
        cdef Span s
        for i in range(self.field_count):
            s = self._spans[i]
            if drop.has(b + s.name, s.name_len):
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


cdef inline bint _same_both(bytes_ptr a, bytes_ptr b, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if LOWER[a[i]] != LOWER[b[i]]:
            return False
    return True


cdef object _find_end(bytes_ptr b, Py_ssize_t pos, Py_ssize_t n, Py_ssize_t max_head):
    """Offset just past CRLF CRLF, or None for "need more". Refuses early what no further byte can mend."""
    cdef bytes_ptr found = <bytes_ptr>memmem(b + pos, n - pos, b"\r\n\r\n", 4)
    cdef Py_ssize_t i
    if found != NULL and found + 4 - (b + pos) <= max_head:
        return found + 4 - b
    if found != NULL or n - pos > max_head:
        raise FramingError("head_too_large", "The request head is too large.", 431)
    for i in range(pos, n):
        if b[i] == 10 and (i == pos or b[i - 1] != 13):
            raise FramingError("bare_lf", "A line of the head does not end in CRLF.")
        if b[i] == 0 or (b[i] == 13 and i + 1 < n and b[i + 1] != 10):
            raise FramingError("bad_head", "The head contains a control character.")
    return None


cdef int _scan_fields(Head head, Py_ssize_t at, Py_ssize_t end, int max_fields) except -1:
    """Field lines from ``at`` to the empty line. RFC 9112 5: no fold, no white space before the colon, no controls."""
    cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(head.raw)
    cdef Py_ssize_t name, colon, value, stop
    cdef int count = 0
    if max_fields > MAX_FIELDS:
        max_fields = MAX_FIELDS
    while b[at] != 13:
        name = at
        while TCHAR[b[at]]:
            at += 1
        colon = at
        if colon == name or b[colon] != c':':
            raise FramingError("bad_field_name", "A field name is not a token followed by a colon.")
        at += 1
        while b[at] == 32 or b[at] == 9:
            at += 1
        value = at
        while VALUE[b[at]]:
            at += 1
        if b[at] != 13 or b[at + 1] != 10:
            raise FramingError("bad_field_value", "A field value contains a control character.")
        stop = at
        while stop > value and (b[stop - 1] == 32 or b[stop - 1] == 9):
            stop -= 1
        at += 2
        if count == max_fields:
            raise FramingError("too_many_fields", "The head has too many fields.", 431)
        head._spans[count].name = <unsigned int>name
        head._spans[count].name_len = <unsigned int>(colon - name)
        head._spans[count].value = <unsigned int>value
        head._spans[count].value_len = <unsigned int>(stop - value)
        count += 1
        _note_field(head, b + name, colon - name, b + value, stop - value)
    if at + 2 != end:
        raise FramingError("bad_head", "The head contains a misplaced line ending.")
    head.field_count = count
    return 0


cdef int _note_field(Head head, bytes_ptr name, Py_ssize_t n, bytes_ptr value, Py_ssize_t size) except -1:
    """What framing and the connection need to know of a field, by the length of its name first."""
    if n == 4 and _same(name, b"host", 4):
        head._hosts += 1
        return _check_host(value, size)
    if n == 14 and _same(name, b"content-length", 14):
        return _note_length(head, value, size)
    if n == 17 and _same(name, b"transfer-encoding", 17):
        if head._chunked or size != 7 or not _same(value, b"chunked", 7):
            raise FramingError("bad_transfer_encoding", "The only transfer coding is a single chunked.", 501)
        head._chunked = True
    elif n == 10 and _same(name, b"connection", 10):
        _note_connection(head, value, size)
    elif n == 7 and _same(name, b"upgrade", 7):
        raise FramingError("upgrade_not_supported", "Upgrade is not supported.", 501)
    return 0


cdef int _check_host(bytes_ptr value, Py_ssize_t size) except -1:
    cdef Py_ssize_t i
    for i in range(size):
        if not HOSTCH[value[i]]:
            raise FramingError("bad_host", "The Host field is not a host.")
    return 0


cdef int _note_length(Head head, bytes_ptr value, Py_ssize_t size) except -1:
    cdef long long length = 0
    cdef Py_ssize_t i
    if head.content_length >= 0:
        raise FramingError("repeated_content_length", "Content-Length appears more than once.")
    if size == 0 or size > 18:
        raise FramingError("bad_content_length", "Content-Length is not a number.")
    for i in range(size):
        if not 48 <= value[i] <= 57:
            raise FramingError("bad_content_length", "Content-Length is not a number.")
        length = length * 10 + (value[i] - 48)
    head.content_length = length
    return 0


cdef void _note_connection(Head head, bytes_ptr value, Py_ssize_t size):
    if size == 10 and _same(value, b"keep-alive", 10):
        if head.minor == 0:
            head.keep_alive = True
    elif size == 5 and _same(value, b"close", 5):
        head._close = True
    else:  # a list: any "close" in it counts, and the rest names fields
        head._names_in_connection = True
        options = [o.strip().lower() for o in PyBytes_FromStringAndSize(<char *>value, size).split(b",")]
        if b"close" in options:
            head._close = True
        elif b"keep-alive" in options and head.minor == 0:
            head.keep_alive = True


cdef class RequestHead(Head):
    cdef readonly str method
    cdef readonly bytes target       # request-target as received (origin-form)
    cdef readonly str path           # the target up to "?"
    cdef readonly bytes query        # with its "?", or empty
    cdef readonly bint expect_continue

    def render(self, bytes target not None, bytes fixed not None, FieldSet drop not None, long long length,
               bytes data not None=b"", Py_ssize_t pos=0, Py_ssize_t end=0):
        """This request as it goes on: new target, ``fixed`` field lines of ours, the client's fields less ``drop``.

        ``length`` >= 0 writes Content-Length, -1 no body, -2 chunked. ``data[pos:end]`` is appended: one copy.
        """
        cdef Py_ssize_t bound = (PyBytes_GET_SIZE(self.raw) + 2 * self.field_count + PyBytes_GET_SIZE(target)
                                 + PyBytes_GET_SIZE(fixed) + 96 + end - pos)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, bound)
        cdef unsigned char *o = <unsigned char *>PyBytes_AS_STRING(out)
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef Py_ssize_t at = 0
        while b[at] != 32:
            o[at] = b[at]
            at += 1
        o[at] = 32
        at += 1
        memcpy(o + at, PyBytes_AS_STRING(target), PyBytes_GET_SIZE(target))
        at += PyBytes_GET_SIZE(target)
        memcpy(o + at, b" HTTP/1.1\r\n", 11)
        at += 11
        memcpy(o + at, PyBytes_AS_STRING(fixed), PyBytes_GET_SIZE(fixed))
        at += PyBytes_GET_SIZE(fixed)
        at += self._copy_fields(o + at, drop)
        at += _write_framing(o + at, length)
        o[at] = 13
        o[at + 1] = 10
        at += 2
        if end > pos:
            memcpy(o + at, PyBytes_AS_STRING(data) + pos, end - pos)
            at += end - pos
        return _shrink(out, at)


cdef Py_ssize_t _write_framing(unsigned char *o, long long length):
    cdef Py_ssize_t at = 0
    if length >= 0:
        memcpy(o, b"content-length: ", 16)
        at = 16 + _write_number(o + 16, length)
        o[at] = 13
        o[at + 1] = 10
        at += 2
    elif length == -2:
        memcpy(o, b"transfer-encoding: chunked\r\n", 28)
        at = 28
    return at


cdef Py_ssize_t _write_number(unsigned char *o, long long value):
    cdef unsigned char digits[20]
    cdef int n = 0, i
    if value == 0:
        digits[0] = 48
        n = 1
    while value:
        digits[n] = 48 + value % 10
        value //= 10
        n += 1
    for i in range(n):
        o[i] = digits[n - 1 - i]
    return n


cdef str _method(bytes_ptr b, Py_ssize_t n):
    if n == 4 and memcmp(b, b"POST", 4) == 0:
        return "POST"
    if n == 3 and memcmp(b, b"GET", 3) == 0:
        return "GET"
    if n == 4 and memcmp(b, b"HEAD", 4) == 0:
        return "HEAD"
    if n == 3 and memcmp(b, b"PUT", 3) == 0:
        return "PUT"
    if n == 6 and memcmp(b, b"DELETE", 6) == 0:
        return "DELETE"
    if n == 5 and memcmp(b, b"PATCH", 5) == 0:
        return "PATCH"
    if n == 7 and memcmp(b, b"OPTIONS", 7) == 0:
        return "OPTIONS"
    return None


cdef Py_ssize_t _scan_target(bytes_ptr b, Py_ssize_t at, Py_ssize_t *query) except -1:
    """Origin-form only (RFC 9112 3.2.1). Paths that resolve differently in different programs are refused:
    empty and dot segments, encoded slashes, backslashes, dots and NUL, broken percent-encoding."""
    cdef Py_ssize_t segment = at + 1
    cdef unsigned char c
    cdef int value
    query[0] = -1
    if b[at] != c'/':
        raise FramingError("bad_target", "The request-target must start with a slash.")
    at += 1
    while TARGET[b[at]]:
        c = b[at]
        if c == c'%':
            if HEX[b[at + 1]] < 0 or HEX[b[at + 2]] < 0:
                raise FramingError("bad_target", "The request-target has a broken percent-encoding.")
            value = HEX[b[at + 1]] * 16 + HEX[b[at + 2]]
            if value < 32 or value == 127 or (query[0] < 0 and (value == 47 or value == 92 or value == 46)):
                raise FramingError("bad_target", "The request-target has an encoding that is not accepted.")
            at += 2
        elif query[0] < 0 and (c == c'/' or c == c'?'):
            if c == c'/' and segment == at:
                raise FramingError("bad_target", "The path has an empty segment.")
            _check_dots(b, segment, at)
            segment = at + 1
            if c == c'?':
                query[0] = at
        at += 1
    if query[0] < 0:
        _check_dots(b, segment, at)
    return at


cdef int _check_dots(bytes_ptr b, Py_ssize_t start, Py_ssize_t stop) except -1:
    if (stop - start == 1 and b[start] == c'.') or (stop - start == 2 and b[start] == c'.' and b[start + 1] == c'.'):
        raise FramingError("bad_target", "The path has a dot segment.")
    return 0


def scan_request(bytes data not None, Py_ssize_t pos, Py_ssize_t max_head, int max_fields):
    """A RequestHead, or None when the head is not complete yet. Raises FramingError.

    One CRLF before the request-line is skipped (RFC 9112 2.2). ``head.end`` is where the body starts.
    """
    cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t end, at, start, query
    cdef RequestHead head
    if pos + 1 < n and b[pos] == 13 and b[pos + 1] == 10:
        pos += 2
    found = _find_end(b, pos, n, max_head)
    if found is None:
        return None
    end = found
    head = RequestHead.__new__(RequestHead)
    head.end = <int>end
    head.content_length = -1
    head.raw = PyBytes_FromStringAndSize(<char *>b + pos, end - pos)
    b = <bytes_ptr>PyBytes_AS_STRING(head.raw)
    end -= pos
    at = 0
    while TCHAR[b[at]]:
        at += 1
    if at == 0 or b[at] != 32:
        raise FramingError("bad_request_line", "The request-line is malformed.")
    head.method = _method(b, at)
    if head.method is None:
        raise FramingError("method_not_implemented", "The method is not implemented.", 501)
    start = at + 1
    at = _scan_target(b, start, &query)
    if b[at] != 32:
        raise FramingError("bad_target", "The request-target has a character that is not accepted.")
    head.target = PyBytes_FromStringAndSize(<char *>b + start, at - start)
    if query < 0:
        query = at
    head.path = PyUnicode_DecodeASCII(<char *>b + start, query - start, NULL)
    head.query = PyBytes_FromStringAndSize(<char *>b + query, at - query)
    at = _scan_version(b, at + 1, head)
    if b[at] != 13 or b[at + 1] != 10:
        raise FramingError("bad_request_line", "The request-line is malformed.")
    _scan_fields(head, at + 2, end, max_fields)
    _settle_request(head)
    return head


cdef Py_ssize_t _scan_version(bytes_ptr b, Py_ssize_t at, Head head) except -1:
    if memcmp(b + at, b"HTTP/", 5) != 0:
        raise FramingError("bad_request_line", "The request-line is malformed.")
    if memcmp(b + at + 5, b"1.1", 3) == 0:
        head.minor = 1
        head.keep_alive = True
    elif memcmp(b + at + 5, b"1.0", 3) == 0:
        head.minor = 0
        head.keep_alive = False
    else:
        raise FramingError("version_not_supported", "The HTTP version is not supported.", 505)
    return at + 8


cdef int _settle_request(RequestHead head) except -1:
    """Rules over the whole head: RFC 9112 3.2 (Host), 6.1 and 6.3 (framing), RFC 9110 10.1.1 (Expect)."""
    if head._hosts != 1 and (head.minor == 1 or head._hosts > 1):
        raise FramingError("bad_host", "There must be exactly one Host field.")
    if head._chunked:
        if head.content_length >= 0:
            raise FramingError("ambiguous_framing", "Transfer-Encoding and Content-Length exclude each other.")
        if head.minor == 0:
            raise FramingError("bad_transfer_encoding", "HTTP/1.0 has no transfer codings.")
        head.framing = CHUNKED
    elif head.content_length > 0:
        head.framing = LENGTH
    if head._close:
        head.keep_alive = False
    expect = head.get(b"expect")
    if expect is not None:
        if expect.lower() != b"100-continue":
            raise FramingError("expectation_failed", "The only expectation is 100-continue.", 417)
        head.expect_continue = head.minor == 1
    return 0


cdef class ResponseHead(Head):
    cdef readonly int status
    cdef readonly bint event_stream  # Content-Type is text/event-stream
    cdef Py_ssize_t _line_end

    def render(self, bytes fixed not None, FieldSet drop not None, long long length, bint close,
               bytes data not None=b"", Py_ssize_t pos=0, Py_ssize_t end=0):
        """This response as it goes on to the client; ``length`` as in RequestHead.render; one copy."""
        cdef Py_ssize_t bound = (PyBytes_GET_SIZE(self.raw) + 2 * self.field_count + PyBytes_GET_SIZE(fixed)
                                 + 128 + end - pos)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, bound)
        cdef unsigned char *o = <unsigned char *>PyBytes_AS_STRING(out)
        cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(self.raw)
        cdef Py_ssize_t at = self._line_end
        memcpy(o, b"HTTP/1.1", 8)
        memcpy(o + 8, b + 8, at - 8)
        at += self._copy_fields(o + at, drop)
        memcpy(o + at, PyBytes_AS_STRING(fixed), PyBytes_GET_SIZE(fixed))
        at += PyBytes_GET_SIZE(fixed)
        at += _write_framing(o + at, length)
        if close:
            memcpy(o + at, b"connection: close\r\n", 19)
            at += 19
        o[at] = 13
        o[at + 1] = 10
        at += 2
        if length == -2 and end > pos:
            at += _write_chunk(o + at, <bytes_ptr>PyBytes_AS_STRING(data) + pos, end - pos)
        elif end > pos:
            memcpy(o + at, PyBytes_AS_STRING(data) + pos, end - pos)
            at += end - pos
        return _shrink(out, at)


def scan_response(bytes data not None, Py_ssize_t pos, Py_ssize_t max_head, int max_fields, bint to_head):
    """A ResponseHead, or None when not complete. ``to_head``: it answers a HEAD request, so there is no body.

    Framing by RFC 9112 6.3; 101 is refused, the other 1xx have no body and are the caller's to skip.
    """
    cdef bytes_ptr b = <bytes_ptr>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t end, at
    cdef ResponseHead head
    found = _find_end(b, pos, n, max_head)
    if found is None:
        return None
    end = found
    head = ResponseHead.__new__(ResponseHead)
    head.end = <int>end
    head.content_length = -1
    head.raw = PyBytes_FromStringAndSize(<char *>b + pos, end - pos)
    b = <bytes_ptr>PyBytes_AS_STRING(head.raw)
    end -= pos
    if end < 17:
        raise FramingError("bad_status_line", "The status-line is malformed.", 502)
    at = _scan_version(b, 0, head)
    if b[at] != 32 or not (49 <= b[at + 1] <= 53 and 48 <= b[at + 2] <= 57 and 48 <= b[at + 3] <= 57):
        raise FramingError("bad_status_line", "The status-line is malformed.", 502)
    head.status = (b[at + 1] - 48) * 100 + (b[at + 2] - 48) * 10 + (b[at + 3] - 48)
    at += 4
    if b[at] != 32 and b[at] != 13:
        raise FramingError("bad_status_line", "The status-line is malformed.", 502)
    while VALUE[b[at]]:
        at += 1
    if b[at] != 13 or b[at + 1] != 10:
        raise FramingError("bad_status_line", "The status-line is malformed.", 502)
    head._line_end = at + 2
    _scan_fields(head, at + 2, end, max_fields)
    _settle_response(head, to_head)
    return head


cdef int _settle_response(ResponseHead head, bint to_head) except -1:
    cdef bytes kind
    if head._close:
        head.keep_alive = False
    if head._chunked and (head.content_length >= 0 or head.minor == 0):
        raise FramingError("ambiguous_framing", "The upstream's framing is ambiguous.", 502)
    if head.status == 101:
        raise FramingError("unexpected_upgrade", "The upstream switched protocols.", 502)
    if head.status < 200 or head.status == 204 or head.status == 304 or to_head:
        head.framing = NO_BODY
    elif head._chunked:
        head.framing = CHUNKED
    elif head.content_length > 0:
        head.framing = LENGTH
    elif head.content_length == 0:
        head.framing = NO_BODY
    else:
        head.framing = UNTIL_CLOSE
        head.keep_alive = False
    kind = head.get(b"content-type")
    head.event_stream = kind is not None and kind[:17].lower() == b"text/event-stream"
    return 0
