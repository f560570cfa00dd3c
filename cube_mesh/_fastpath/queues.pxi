# What the observers of an exchange hand on, on their common path: its event, its log line, its numbers.


cdef class EventQueue:
    """Events of this turn of the loop, and who waits for them to be on record. ``flush``, the subclass's, is called by
    ``soon`` when the turn ends.
    """

    cdef public list _events
    cdef public list _waiting
    cdef object _soon

    def __init__(self, soon):
        self._events = []
        self._waiting = []
        self._soon = soon

    def append(self, bytes event not None):
        """Take one event; it is written in this turn of the running loop."""
        return self._append(event)

    cdef EventQueue _append(self, bytes event):
        if not self._events:
            self._soon(self.flush)
        self._events.append(event)
        return self

    def then(self, done):
        self._waiting.append(done)


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
        cdef bytes event
        try:
            event = self._writer._line(exchange)
            if self._queue is not None:
                return self._queue._append(event)
            return self._append(event)
        except Exception as error:
            raise self._failed(error)


cdef class LineQueue:
    """Encoded lines that wait for ``flush``, the subclass's: at ``piece`` bytes, or when ``_wait`` has it called.

    ``mark`` goes into each line: behind its brace when it is a JSON object, else before it. Of more than ``most``
    bytes, lines are dropped and counted as ``lost``.
    """

    cdef public list _lines
    cdef public bytes _rest  # taken out, and not written yet
    cdef public Py_ssize_t _size
    cdef public Py_ssize_t lost
    cdef public object _loop
    cdef public object _timer
    cdef bytes _mark
    cdef Py_ssize_t _piece
    cdef Py_ssize_t _most

    def __init__(self, bytes mark not None, Py_ssize_t piece, Py_ssize_t most):
        self._lines = []
        self._rest = b""
        self._mark = mark
        self._piece = piece
        self._most = most

    def write(self, bytes line not None):
        """Take one line, with its newline."""
        cdef Py_ssize_t size = self._size + PyBytes_GET_SIZE(line) + PyBytes_GET_SIZE(self._mark)
        if size > self._most:
            self.lost += 1
            return
        self._lines.append(self._marked(line))
        self._size = size
        if self._loop is None or (size >= self._piece and PyBytes_GET_SIZE(self._rest) == 0):
            self.flush()  # a reader that stalls is asked by the timer
        elif self._timer is None:
            self._wait()

    cdef bytes _marked(self, bytes line):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(line), more = PyBytes_GET_SIZE(self._mark), brace = 0
        cdef bytes marked
        cdef char *o
        if more == 0:
            return line
        if size and PyBytes_AS_STRING(line)[0] == c'{':
            brace = 1
        marked = PyBytes_FromStringAndSize(NULL, size + more)
        o = PyBytes_AS_STRING(marked)
        memcpy(o, PyBytes_AS_STRING(line), brace)
        memcpy(o + brace, PyBytes_AS_STRING(self._mark), more)
        memcpy(o + brace + more, PyBytes_AS_STRING(line) + brace, size - brace)
        return marked


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
