"""Where h11 or httptools judge a client's bytes otherwise than we do: each place is listed, with its reason.

``differences.txt``: ``CLASS PEER VERDICT COUNT REASON``. VERDICT is ``accepts`` what we refuse, or ``refuses`` or
``reads`` otherwise what we accept; COUNT is in how many cases of the class, exactly. What the gates decide is no
parser's business and not compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.smuggling.cases import CASES, Case, Message
from tests.smuggling.peers import Refused, h11_messages, httptools_messages

LISTED = Path(__file__).with_name("differences.txt")
PEERS: dict[str, Callable[[bytes], list[Message]]] = {"h11": h11_messages, "httptools": httptools_messages}


def verdict(case: Case, peer: Callable[[bytes], list[Message]]) -> str:
    """ "" where the peer agrees. What the gates decide (a status with ``!``) and limits are not a parser's business."""
    wanted = [(method, target, body) for method, target, body in case.messages]
    try:
        found = peer(case.data)
    except Refused:
        return "" if case.status and case.closes else "refuses"
    if case.status:
        return "accepts" if case.closes and len(found) > len(wanted) else ""
    return "" if found == wanted else "reads"


def differences() -> Counter[tuple[str, str, str]]:
    """(class, peer, verdict) of every case that a peer judges otherwise."""
    found: Counter[tuple[str, str, str]] = Counter()
    for name, peer in PEERS.items():
        for case in CASES:
            if case.chain != "proxy" and (judged := verdict(case, peer)):
                found[case.name.split(":")[0], name, judged] += 1
    return found


def test_every_difference_is_listed_with_its_reason_and_no_other() -> None:
    listed = {}
    for line in LISTED.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            place, peer, judged, count, reason = line.split(None, 4)
            assert (place, peer, judged) not in listed and len(reason) > 10
            listed[place, peer, judged] = int(count)
    assert listed == dict(differences())
