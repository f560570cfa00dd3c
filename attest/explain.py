"""A verdict in words that a person can act on: which check, expected, actual, whose side, what to do."""

from __future__ import annotations

from attest.errors import Mismatch
from attest.offline import Verdict

__all__ = ["explain"]

# What to do about a code, where the message alone does not say it.
_ADVICE = {
    "vcek_missing": "Hand in the chip's VCEK: from the host's certificate table, Azure's THIM, or AMD's KDS.",
    "vlek_missing": "Hand in the VLEK: the guest gets it from the host beside the report (auxblob).",
    "untrusted_chain": "The certificates do not lead to a root that is trusted here. Look whether they belong to this "
    "evidence and product; a certificate of another chip or of a test CA ends up here too.",
    "certificate_expired": "Judge as of the time when it was made (--now), or have the attester fetch a new one.",
    "certificate_not_yet_valid": "Compare the clocks; or --now lies before the evidence.",
    "signature": "The bytes are not those that were signed, or the key is another one. Fetch the evidence again; if it "
    "stays so, do not trust the machine.",
    "report_data": "The evidence is genuine and speaks for somebody else: an old one, or one relayed from another VM.",
    "nonce_mismatch": "Genuine, but made for another challenge: replayed, or the nonce was given in another encoding.",
    "claims_hash": "The runtime claims beside the hardware report were changed, or belong to another VM.",
    "ak_mismatch": "The quote comes from another TPM than the one that the hardware report names.",
    "token_of_another_machine": "Token and hardware evidence must come from one machine: ask it for both again.",
    "ak_not_certified": "Hand in the AK's certificate (GCE: NV 0x01c10000; Azure: NV 0x01C101D0) by --endorsements.",
    "kid_unknown": "Fetch the issuer's key set of the time when the token was made; keys change.",
    "keys_missing": "Fetch the issuer's key set and hand it in by --jwks.",
    "token_expired": "Ask for a new token, or judge an old one as of its time (--now).",
    "collateral_missing": "Hand in Intel's collateral for this platform as JSON by --endorsements.",
    "part_missing": "Hand in the file that the message names.",
    "launch_endorsement_missing": "Hand in Google's endorsement of this measurement by --endorsements.",
    "launch_root_missing": "Hand in GCE-cc-tcb-root_1, Google's root of launch endorsements, by --endorsements.",
    "measurement_not_endorsed": "It is not firmware of Google's, or the endorsement is that of another firmware.",
    "oversize": "No evidence of this kind is so large. Look which file was handed in.",
    "event_log_replay": "The log was cut, changed, or something was measured after it was read. Read it again; leave "
    "out what is measured on for good: let a TPM quote fewer PCRs; for TDX, name the others in event_log_rtmrs.",
    "event_log_missing": "The policy asks what was measured: hand in the log (--event-log), or have the agent send it.",
    "debug": "The machine lets its operator look inside: launch it without debug.",
    "measurement": "Another firmware or image than the policy names was started, or the policy is older than it.",
    "tcb_floor": "The machine's firmware is too old: have it updated, or choose a machine that is.",
    "sha1": "The TPM quotes SHA-1 only. Ask for its SHA-256 bank.",
    "pcr_bank": "The TPM quotes a bank that proves nothing today. Ask for its SHA-256 bank.",
    "malformed_evidence": "The file is not what --scheme says, or was cut. `attest show FILE` tells what it is.",
}
_SIDES = {"attester": "the machine's side", "policy": "your policy's side"}


def explain(verdict: Verdict) -> str:
    """The text, without a line break at its end."""
    if verdict.verdict == "accept":
        head = f"Accepted: this is genuine {verdict.scheme} evidence" + _policy(verdict)
        lines = [head, _confidential(verdict)]
    else:
        word = "Not readable as evidence" if verdict.malformed else "Refused"
        lines = [f"{word}: {verdict.reason}"]
        lines += _mismatches(verdict) if verdict.mismatches else _failure(verdict)
    if verdict.unchecked:
        lines += ["", "Nobody looked at:", *(f"  - {text}" for text in verdict.unchecked)]
    if verdict.unsafe:
        lines += ["", f"The policy skips checks: {', '.join(verdict.unsafe)}"]
    return "\n".join(lines)


def _policy(verdict: Verdict) -> str:
    if not verdict.policy_id:
        return "; no policy was applied."
    branch = f" by its branch {verdict.branch}" if verdict.branch else ""
    return f", and the policy {verdict.policy_id} ({verdict.policy_digest[:12]}) accepts it{branch}."


def _confidential(verdict: Verdict) -> str:
    if verdict.confidential:
        return "Hardware vouches that the machine's operator cannot read its memory."
    return "It does not show that the machine's operator cannot read its memory."


def _failure(verdict: Verdict) -> list[str]:
    lines = [f"  check:    {verdict.detail}"]
    advice = _ADVICE.get(verdict.reason)
    return lines + ([f"  to do:    {advice}"] if advice else [])


def _mismatches(verdict: Verdict) -> list[str]:
    # A branch under which nothing verified has its error as a mismatch of the claim "evidence".
    genuine = any(mismatch.claim != "evidence" for mismatch in verdict.mismatches)
    lines = [f"The evidence is genuine. {len(verdict.mismatches)} rules do not hold:"] if genuine else []
    for mismatch in verdict.mismatches:
        lines += ["", *_mismatch(mismatch)]
    return lines


def _mismatch(mismatch: Mismatch) -> list[str]:
    advice = mismatch.hint or _ADVICE.get(mismatch.code, "")
    lines = [
        f"  check:    {mismatch.claim} ({mismatch.code})",
        f"  expected: {mismatch.expected}",
        f"  actual:   {mismatch.actual}",
        f"  side:     {_SIDES.get(mismatch.side, mismatch.side)}",
    ]
    if mismatch.branch:
        lines.insert(0, f"  branch:   {mismatch.branch}")
    return lines + ([f"  to do:    {advice}"] if advice else [])
