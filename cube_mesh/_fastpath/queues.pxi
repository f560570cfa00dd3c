# What the observers of an exchange hand on, on their common path: its event, its log line, its numbers.


cdef class EventQueue:
    """Events of this turn of the loop, and who waits for them to be on record. ``flush``, the subclass's, is called by
    ``soon`` when the turn ends.
    """

    cdef LineBuffer _out
    cdef readonly Py_ssize_t waiting  # events, for ``take``
    cdef list _done
    cdef object _soon

    def __init__(self, soon):
        self._out = LineBuffer.__new__(LineBuffer)
        self._done = []
        self._soon = soon

    def append(self, bytes event not None):
        """Take one event; it is written in this turn of the running loop."""
        self._out.put(event)
        return self._appended()

    cdef EventQueue _appended(self):
        self.waiting += 1
        if self.waiting == 1:
            self._soon(self.flush)
        return self

    cdef EventQueue _append(self, EventLines writer, Exchange exchange):
        """The event of an exchange, or no byte of it."""
        cdef Py_ssize_t size = self._out._size
        try:
            writer._write(self._out, exchange)
        except BaseException:
            self._out._size = size
            raise
        return self._appended()

    def then(self, done):
        self._done.append(done)

    def take(self):
        """(events as they are written, their number, who waits for them); what comes now is of the next turn."""
        cdef list done = self._done
        cdef Py_ssize_t events = self.waiting
        self._done = []
        self.waiting = 0
        return self._out.taken(), events, done


cdef class AuditStage:
    """``audit``: the event of every exchange to the sink; ``_failed`` makes the refusal of an answer without."""

    cdef EventLines _writer
    cdef EventQueue _queue
    cdef object _append

    def __init__(self, EventLines writer not None, sink):
        self._writer = writer
        self._queue = sink if isinstance(sink, EventQueue) else None
        self._append = sink.append

    def leave(self, Exchange exchange not None):
        try:
            if self._queue is not None:
                return self._queue._append(self._writer, exchange)
            return self._append(self._writer.line(exchange))
        except Exception as error:
            raise self._failed(error)


cdef class LineQueue:
    """Encoded lines that wait for ``flush``, the subclass's: at ``piece`` bytes, or when ``_wait`` has it called.

    ``mark`` goes into each line: behind its brace when it is a JSON object, else before it. Of more than ``most``
    bytes, lines are dropped and counted as ``lost``. ``queue(line)`` is ``queue.write(line)``.
    """

    cdef LineBuffer _out
    cdef public bytes _rest  # taken, and not written yet
    cdef public Py_ssize_t lost
    cdef public object _loop
    cdef public object _timer
    cdef bytes _mark
    cdef Py_ssize_t _piece
    cdef Py_ssize_t _most

    def __init__(self, bytes mark not None, Py_ssize_t piece, Py_ssize_t most):
        self._out = LineBuffer.__new__(LineBuffer)
        self._rest = b""
        self._mark = mark
        self._piece = piece
        self._most = most

    def __call__(self, bytes line not None):
        self.write(line)

    @property
    def waiting(self):
        """Bytes."""
        return self._out._size + PyBytes_GET_SIZE(self._rest)

    def write(self, bytes line not None):
        """Take one line, with its newline."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(line), brace = 0
        if self._room(size):
            if size and PyBytes_AS_STRING(line)[0] == c'{':
                brace = 1
            self._out.raw(PyBytes_AS_STRING(line), brace)
            self._out.put(self._mark)
            self._out.raw(PyBytes_AS_STRING(line) + brace, size - brace)
            self._wrote()

    cdef int _log(self, LogLines lines, Exchange exchange, str level) except -1:
        """The line of an exchange, or no byte of it."""
        cdef Py_ssize_t size = self._out._size
        if self._room(0):
            try:
                lines._write(self._out, self._mark, exchange, level)
            except BaseException:
                self._out._size = size
                raise
            self._wrote()
        return 0

    cdef bint _room(self, Py_ssize_t size):
        """Whether ``size`` bytes more may wait; else the line is lost. One of ours is small beside ``most``."""
        if self._out._size + PyBytes_GET_SIZE(self._rest) + PyBytes_GET_SIZE(self._mark) + size > self._most:
            self.lost += 1
            return False
        return True

    cdef int _wrote(self) except -1:
        if self._loop is None or (self._out._size >= self._piece and PyBytes_GET_SIZE(self._rest) == 0):
            self.flush()  # a reader that stalls is asked by the timer
        elif self._timer is None:
            self._wait()
        return 0

    def take(self):
        """All that waits."""
        cdef bytes data = self._rest
        if PyBytes_GET_SIZE(data):
            data = data + self._out.taken()
        else:
            data = self._out.taken()
        self._rest = b""
        return data


cdef class LogStage:
    """``logging``: the level of a line, and whether it is written at all. ``_text_line`` makes the one that is no JSON.
    """

    cdef LogLines _lines
    cdef object _write
    cdef LineQueue _queue
    cdef bint _json
    cdef int _least

    def __init__(self, LogLines lines not None, write, bint json, int least):
        self._lines = lines
        self._write = write
        self._queue = write if isinstance(write, LineQueue) and json else None
        self._json = json
        self._least = least

    def leave(self, Exchange exchange not None):
        cdef str level = "info"
        cdef int rank = 1
        if exchange.status >= 500 or exchange.outcome == "failed":
            level, rank = "error", 3
        elif exchange.outcome == "refused":
            level, rank = "warn", 2
        if rank < self._least:
            return
        if self._queue is not None:
            self._queue._log(self._lines, exchange, level)
        else:
            self._write(self._lines.json(exchange, level) if self._json else self._text_line(exchange, level))


cdef class ExchangeCounts:
    """``metrics``: each exchange to the cell of its labels, one of ``cells`` or what ``_cell`` makes. ``domains`` are
    those that have a label of their own, each its own value."""

    cdef dict _domains
    cdef readonly dict cells

    def __init__(self, dict domains not None):
        self._domains = domains
        self.cells = {}

    def observe(self, Exchange exchange not None):
        cdef object endpoint = exchange.endpoint, cell
        cdef tuple key
        domain = self._domains.get(exchange.domain_id, "other")
        if endpoint is None:
            key = (domain, "other", "other", exchange.status, exchange.outcome)
        else:
            key = (domain, endpoint.name, endpoint.method, exchange.status, exchange.outcome)
        cell = self.cells.get(key)
        if cell is None:
            cell = self._cell(key)
        (<SlabCell?>cell)._observe(exchange)
