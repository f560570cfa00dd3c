# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The parser compiled for a fuzzer, with what has to hold for every input beside it. Built by tests/fuzz/build.py only.

The first byte of an input picks what is fuzzed, the second where it is cut, the rest is the data.
"""

include "../../cube_mesh/_fastpath/prelude.pxi"
include "../../cube_mesh/_fastpath/chars.pxi"
include "../../cube_mesh/_fastpath/target.pxi"
include "../../cube_mesh/_fastpath/fields.pxi"
include "../../cube_mesh/_fastpath/render.pxi"
include "../../cube_mesh/_fastpath/body.pxi"
include "../../cube_mesh/_fastpath/head.pxi"
include "../../cube_mesh/_fastpath/json.pxi"
include "../../cube_mesh/_fastpath/exchange.pxi"
include "../../cube_mesh/_fastpath/members.pxi"
include "../../cube_mesh/_fastpath/lines.pxi"

import json

cdef enum:
    MAX_HEAD = 300
    FIELDS = 12

cdef FieldSet DROP = FieldSet(
    names=(b"host", b"connection", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"te"),
    prefixes=(b"x-cube-",),
)
cdef dict NOTED = {
    b"model": "model", b"stream": "stream", b"max_tokens": "max_tokens", b"max_completion_tokens": "max_tokens",
    b"temperature": "temperature",
}
cdef dict WANTED = {b"model": "model", b"stream": "stream", b"max_tokens": "max_tokens"}


class Broken(Exception):
    """An invariant does not hold."""


cdef int hold(bint truth, str what) except -1:
    if not truth:
        raise Broken(what)
    return 0


cdef object scanned(bytes data, Py_ssize_t pos, bint request, bint to_head):
    """A head, None, or the refusal's code."""
    try:
        if request:
            return scan_request(data, pos, MAX_HEAD, FIELDS)
        return scan_response(data, pos, MAX_HEAD, FIELDS, to_head)
    except FramingError as error:
        return error.code


cdef int check_cut(object whole, object part) except -1:
    """What a prefix decides stays decided; what the whole leaves open, no prefix decides."""
    if part is None:
        return 0
    if isinstance(part, str):
        return hold(part == whole, "a prefix is refused otherwise than the whole")
    hold(isinstance(whole, Head), "a prefix is a head and the whole is not")
    return hold((<Head>part).raw == (<Head>whole).raw and (<Head>part).end == (<Head>whole).end, "another head")


cdef int fuzz_request(bytes data, Py_ssize_t cut) except -1:
    cdef object whole = scanned(data, 0, True, False)
    cdef RequestHead head, again
    cdef bytes out
    cdef long long length
    check_cut(whole, scanned(data[:cut], 0, True, False))
    if not isinstance(whole, RequestHead):
        return 0
    head = whole
    again = scan_request(b"xyz" + data, 3, MAX_HEAD, FIELDS)
    hold(again.raw == head.raw and again.end == head.end + 3, "the place of a head matters")
    length = head.content_length if head.framing == LENGTH else -2 if head.framing == CHUNKED else -1
    out = head.render(head.target, b"host: u\r\n", DROP, length)
    again = scan_request(out, 0, 4 * MAX_HEAD, FIELDS + 4)
    hold(again is not None and again.end == len(out), "a rendered head is not one head")
    hold(again.method == head.method and again.target == head.target, "another request-line")
    hold(again.framing == head.framing and (length < 0 or again.content_length == length), "another framing")
    hold(again.get(b"host") == b"u" and again.count(b"host") == 1 and again.keep_alive, "fields of the other hop")
    hold(again.count(b"connection") == 0 and again.count(b"x-cube-domain") == 0, "a dropped field")
    hold(again.render(head.target, b"host: u\r\n", DROP, length) == out, "rendering twice is not rendering once")
    return 0


cdef int fuzz_response(bytes data, Py_ssize_t cut, bint to_head) except -1:
    cdef object whole = scanned(data, 0, False, to_head)
    cdef ResponseHead head, again
    cdef bytes out
    cdef long long length
    check_cut(whole, scanned(data[:cut], 0, False, to_head))
    if not isinstance(whole, ResponseHead):
        return 0
    head = whole
    length = head.content_length if head.framing == LENGTH else -2 if head.framing == CHUNKED else -1
    out = head.render(b"x-request-id: r\r\n", DROP, length, head.framing == UNTIL_CLOSE)
    again = scan_response(out, 0, 4 * MAX_HEAD, FIELDS + 4, to_head)
    hold(again is not None and again.end == len(out), "a rendered head is not one head")
    hold(again.status == head.status and again.event_stream == head.event_stream, "another answer")
    hold(head.framing == NO_BODY or again.framing == head.framing, "another framing")
    hold(again.render(b"", FieldSet(names=(b"x-request-id",)), -1, False).count(b"\r\n") >= 2, "no head")
    return 0


cdef tuple decoded(list pieces):
    """(payload, whether it ended, bytes consumed) or the refusal's code."""
    cdef ChunkedReader reader = ChunkedReader.__new__(ChunkedReader)
    cdef bytes payload = b"", piece
    cdef Py_ssize_t consumed = 0
    try:
        for piece in pieces:
            if not reader.done:
                payload += reader.feed(piece, 0)
                consumed += reader.pos
    except FramingError as error:
        return (error.code,)
    return payload, reader.done, consumed


cdef int fuzz_chunked(bytes data, Py_ssize_t cut) except -1:
    cdef tuple whole = decoded([data])
    cdef bytes payload, framed
    hold(decoded([data[:cut], data[cut:cut + 1], data[cut + 1:]]) == whole, "cuts change a chunked body")
    if len(whole) == 3:
        payload = whole[0]
        framed = frame_chunk(payload[:cut], False) + frame_chunk(payload[cut:], True)
        hold(decoded([framed]) == (payload, True, len(framed)), "a body framed again is another")
    return 0


cdef int fuzz_members(bytes data, Py_ssize_t cut) except -1:
    cdef dict found
    cdef bytes value
    try:
        found = scan_members(data, 0, len(data), WANTED)
    except FramingError:
        return 0
    for value in found.values():
        hold(value_end(value, 0) == len(value), "a member that is no value")
    hold(scan_members(b"{" + data + b"}", 1, len(data) + 1, WANTED) == found, "the place of an object matters")
    if b"}" in data[cut:]:
        try:
            scan_members(data, 0, cut, WANTED)
        except FramingError:
            return 0
        raise Broken("a part of an object is an object")
    return 0


cdef int fuzz_value(bytes data, Py_ssize_t cut) except -1:
    cdef Py_ssize_t end = value_end(data, 0)
    hold(-1 <= end <= len(data) and end != 0, "an end outside the data")
    if end > 0:
        hold(value_end(data[:end], 0) == end, "what comes behind a value matters")
    value_end(data, cut)
    return 0


class Fields:
    """A head's fields as the event line asks for them."""

    def __init__(self, agent):
        self.method, self.path, self.agent = "POST", "/", agent

    def get(self, name):
        return self.agent


cdef LineBuffer LINE = LineBuffer.__new__(LineBuffer)


cdef int fuzz_line(bytes data, Py_ssize_t cut) except -1:
    """A string of a line: one line of JSON, that reads as what ``clean`` leaves of it; numbers and times read back."""
    cdef str text, cleaned
    cdef double seconds
    cdef long long whole = 0
    if cut & 1:
        text = data.decode("utf-8", "replace") if cut & 2 else data.decode("latin-1")
        LINE._size = 0
        LINE.text(text, 256)
        written, cleaned = LINE.taken(), _clean(text, 256)
        hold(json.loads(written) == cleaned, "another text")
        hold(b"\n" not in written and b"\r" not in written and written.isascii() == cleaned.isascii(), "not one line")
    elif PyBytes_GET_SIZE(data) >= 8:
        memcpy(&whole, PyBytes_AS_STRING(data), 8)
        memcpy(&seconds, PyBytes_AS_STRING(data), 8)
        LINE._size = 0
        LINE.number(whole)
        hold(int(LINE.taken()) == whole, "another number")
        for value in (seconds, whole * 1e-9):
            LINE._size = 0
            LINE.millis(value)
            if -9e12 < value < 9e12:
                hold(abs(float(LINE.taken()) - value * 1e3) <= 0.001 + abs(value) * 1e-12, "another time")
            LINE._size = 0
            LINE.any_number(value)
            written = json.loads(LINE.taken())
            hold(written == value if value - value == 0 else written is None, "another real number")
    return 0


cdef int fuzz_note(bytes data, Py_ssize_t cut) except -1:
    """The quick reader of members against the general one, and the reader of usage: what it notes is there."""
    cdef Exchange noted = Exchange.__new__(Exchange, Fields(None), ""), again
    cdef dict found
    cdef bint quick
    try:
        quick = _note_members(noted, data, 0, PyBytes_GET_SIZE(data))
    except FramingError:
        quick = False
    if quick:
        found = scan_members(data, 0, len(data), NOTED)
        again = Exchange.__new__(Exchange, Fields(None), "")
        for name, value in found.items():
            setattr(again, name, float(json.loads(value)) if name == "temperature" else json.loads(value))
        hold(noted.model == again.model and noted.stream == again.stream, "another model or stream")
        hold(noted.max_tokens == again.max_tokens and noted.temperature == again.temperature, "another limit")
    elif noted.model is not None or noted.max_tokens is not None or noted.temperature is not None or noted.stream:
        raise Broken("something is noted of what is not plain")
    noted.input_tokens = noted.output_tokens = None
    if not _note_usage(noted, data):
        hold(noted.input_tokens is None and noted.output_tokens is None, "usage noted of what is not plain")
    return 0


cdef public int fuzz_one(const unsigned char *raw, size_t size) except -1:
    """One execution; -1 with an exception set when something does not hold."""
    cdef bytes data
    cdef Py_ssize_t cut
    if size < 2:
        return 0
    data = PyBytes_FromStringAndSize(<char *>raw + 2, size - 2)
    cut = raw[1] * PyBytes_GET_SIZE(data) // 256
    if raw[0] & 7 < 2:
        fuzz_request(data, cut)
    elif raw[0] & 7 < 4:
        fuzz_response(data, cut, raw[0] & 1)
    elif raw[0] & 7 < 6:
        fuzz_chunked(data, cut)
    elif raw[0] & 7 == 6:
        if raw[0] & 24 == 24:
            fuzz_note(data, cut)
        else:
            fuzz_members(data, cut)
    elif raw[0] & 24 == 24:  # these two call Python's JSON: one input in 32 each
        fuzz_line(data, cut)
    else:
        fuzz_value(data, cut)
    return 0
