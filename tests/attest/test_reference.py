"""Reference values in the policy or in files: read, named, put together; and every way to write them wrongly."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from attest.errors import PolicyFormatError
from attest.reference import MAX_FILES, MAX_POLICY_BYTES, merged, read_text, read_toml, with_values

ONE, TWO = '[sev-snp]\nmeasurements = ["a"]\n', 'id = "two"\n[sev-snp]\nmeasurements = ["a", "b"]\n'
FILES = {"d/one.toml": ONE, "two.toml": TWO, "copy/one.toml": TWO.replace('id = "two"\n', "")}


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _entries(*entries: dict[str, str]) -> dict[str, Any]:
    return {"id": "p", "reference_values_files": list(entries)}


def test_without_any() -> None:
    document = {"id": "p", "reference_values": {"a": 1}, "any_of": "text", "all_of": ["text"]}
    assert with_values(document, {}, "p") == (document, ())


def test_one_file_is_named_by_its_name_or_its_id() -> None:
    for file, name in (("d/one.toml", "one"), ("two.toml", "two")):
        filled, (used,) = with_values({"id": "p", "reference_values_file": file}, FILES, "p")
        assert (used.id, used.digest) == (name, _sha(FILES[file]))
        assert filled == {"id": "p", "reference_values": {"sev-snp": read_toml(FILES[file], "x")["sev-snp"]}}


def test_several_are_put_together() -> None:
    entries = _entries({"id": "one", "file": "d/one.toml", "sha256": _sha(ONE)}, {"id": "two", "file": "two.toml"})
    filled, used = with_values(entries, FILES, "p")
    assert [file.id for file in used] == ["one", "two"]
    assert filled["reference_values"] == {"sev-snp": {"measurements": ["a", "b"]}}


def test_members_of_compositions_have_their_own() -> None:
    member = {"id": "m", "reference_values_file": "d/one.toml"}
    filled, (used,) = with_values({"id": "p", "any_of": [{"id": "n", "all_of": [member, member]}]}, FILES, "p")
    assert used.id == "one"
    assert "reference_values" in filled["any_of"][0]["all_of"][1]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "not handed in": ({"reference_values_file": "x.toml"}, "was not handed in"),
    "a name that is none": ({"reference_values_file": 1}, "reference_values_file: Expected"),
    "entries that are none": ({"reference_values_files": ["x"]}, "reference_values_files: Expected"),
    "both ways": ({"reference_values_file": "two.toml", "reference_values": {}}, "in the policy or in the file"),
    "another id": (_entries({"id": "one", "file": "two.toml"}), "has the id two, not one"),
    "another digest": (_entries({"id": "two", "file": "two.toml", "sha256": "00" * 32}), "has SHA-256"),
    "one id for two": (
        {"id": "p", "any_of": [{"reference_values_file": "d/one.toml"}, {"reference_values_file": "copy/one.toml"}]},
        "two files of reference values have the id one",
    ),
    "too many": (
        {"any_of": [{"reference_values_file": f"{n}.toml"} for n in range(MAX_FILES + 1)]}, "above 16",
    ),
    "an id that is none": ({"reference_values_file": "odd.toml"}, "reference values: id"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrongly(case: str) -> None:
    document, words = WRONG[case]
    files = FILES | {f"{n}.toml": ONE for n in range(MAX_FILES + 1)} | {"odd.toml": "id = 1\n"}
    with pytest.raises(PolicyFormatError) as caught:
        with_values(document, files, "p")
    assert words in str(caught.value)


def test_two_files_may_not_disagree() -> None:
    assert merged([{"a": {"b": [1]}, "c": 1}, {"a": {"b": [1, 2], "d": [3]}}], "p") == {
        "a": {"b": [1, 2], "d": [3]}, "c": 1,
    }  # fmt: skip
    for one, two in (({"a": 1}, {"a": 1}), ({"a": [1]}, {"a": {}}), ({"a": {}}, {"a": [1]})):
        with pytest.raises(PolicyFormatError, match="stands in two files"):
            merged([one, two], "p")


@pytest.mark.parametrize("text", ["a = []", "a = {}", 'a = ""', "a = [[]]", "[a]\nb = [{}]", ""])
def test_nothing_empty(text: str) -> None:
    with pytest.raises(PolicyFormatError, match="is empty"):
        read_toml(text, "p")


@pytest.mark.parametrize("text", ["a", "a = " + "[" * 5000, "a = " + "9" * 5000])
def test_not_toml(text: str) -> None:
    with pytest.raises(PolicyFormatError, match="p: "):
        read_toml(text, "p")


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with pytest.raises(PolicyFormatError, match="No such file"):
        read_text(file)
    for content, words in ((b"\xff", "not UTF-8"), (b"#" * (MAX_POLICY_BYTES + 1), "above")):
        file.write_bytes(content)
        with pytest.raises(PolicyFormatError, match=words):
            read_text(file)
    file.write_text(ONE)
    assert read_text(file) == ONE
