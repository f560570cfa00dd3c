"""Frames: every cut of a byte stream gives the same frames, and nothing illegal is buffered."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube_mesh.tls.frames import MAX_BODY_BYTES, Frame, FrameDecoder, FrameError, FrameType, encode_frame

FRAMES = [Frame(FrameType.REQUEST, b"r" * 50), Frame(FrameType.AUX, b""), Frame(FrameType.RESULT, b"x" * 300)]
WIRE = b"".join(encode_frame(*frame) for frame in FRAMES)


def _all(decoder: FrameDecoder) -> list[Frame]:
    return list(iter(decoder.next_frame, None))


def test_the_wire_form() -> None:
    assert encode_frame(FrameType.AUTHENTICATOR, b"abc") == bytes.fromhex("02 00000003 616263")


@given(st.lists(st.integers(0, len(WIRE)), max_size=6))
def test_any_segmentation_gives_the_same_frames(cuts: list[int]) -> None:
    decoder, got = FrameDecoder(), []
    edges = [0, *sorted(cuts), len(WIRE)]
    for start, end in itertools.pairwise(edges):
        decoder.feed(WIRE[start:end])
        got += _all(decoder)
    assert got == FRAMES
    assert decoder.buffered == 0


def test_byte_by_byte_with_trailing_data() -> None:
    decoder, got = FrameDecoder(), []
    for byte in WIRE + b"\x01":
        decoder.feed(bytes((byte,)))
        got += _all(decoder)
    assert got == FRAMES
    assert decoder.take_rest() == b"\x01"
    assert decoder.buffered == 0


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"\x00", "frame_type"),
        (b"\x05", "frame_type"),
        (b"\x08", "frame_type"),
        (b"POST / HTTP/1.1\r\n", "frame_type"),
        (b"\x01" + (MAX_BODY_BYTES + 1).to_bytes(4, "big"), "frame_size"),
        (b"\x03\xff\xff\xff\xff", "frame_size"),
    ],
)
def test_illegal_headers_are_refused_before_their_body(wire: bytes, code: str) -> None:
    decoder = FrameDecoder()
    decoder.feed(wire)
    with pytest.raises(FrameError) as caught:
        decoder.next_frame()
    assert caught.value.code == code


def test_the_largest_body_passes_and_one_more_does_not() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(FrameType.AUX, bytes(MAX_BODY_BYTES)))
    frame = decoder.next_frame()
    assert frame is not None and len(frame.body) == MAX_BODY_BYTES
    with pytest.raises(FrameError, match="AUX body"):
        encode_frame(FrameType.AUX, bytes(MAX_BODY_BYTES + 1))


def test_the_total_of_a_connection_is_bounded() -> None:
    decoder = FrameDecoder(max_total_bytes=10)
    decoder.feed(bytes(10))
    with pytest.raises(FrameError) as caught:
        decoder.feed(b"\x01")
    assert caught.value.code == "frame_total"
