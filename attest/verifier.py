"""The relying party's door: evidence in, result out. Pure: no fetching, no clock, no state between calls.

The steps are numbered; each either gives what the next one needs or raises an AttestError with its own code.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence

from cryptography import x509

from attest.appraise import AttestationResult, Verified, appraise, join
from attest.binding import Expected, Phase, ak_report_data, check_binding, data_hash, snp_report_data
from attest.chain import load_certificate
from attest.collateral import Endorsements, parse_collateral, sort_endorsements
from attest.composition import try_branches
from attest.errors import BindingMismatch, EndorsementUnavailable, UnsupportedEvidence
from attest.evidence import (
    AUX_DIGEST,
    AUX_DIGEST_TYPE,
    AZURE_HCL_TYPE,
    ENDORSEMENTS,
    ENDORSEMENTS_TYPE,
    HARDWARE,
    LAUNCH_ENDORSEMENT,
    LAUNCH_ENDORSEMENT_TYPE,
    SNP_REPORT_TYPE,
    TDX_QUOTE_TYPE,
    TOKEN,
    TOKEN_TYPE,
    TPM2_QUOTE_TYPE,
    TPM_QUOTE,
    Evidence,
    Part,
    decode_certificates,
    decode_evidence,
    split_aux,
)
from attest.jws import Jwk, parse_token
from attest.plugins import Scheme, SchemeResult, check_scheme, judge
from attest.policy import EvidencePolicy, parse_policy
from attest.schemes.azure import verify as azure
from attest.schemes.azure.maa import VerifiedMaaToken, own_issuer, verify_maa
from attest.schemes.azure.maa_appraise import measurement_of, vm_id
from attest.schemes.gcp.certificate import Instance, verify_ak_instance
from attest.schemes.gcp.launch import Launch, verify_launch
from attest.schemes.gcp.token import VerifiedSpaceToken, verify_oidc_token, verify_pki_token
from attest.schemes.sev_snp.verify import (
    PRODUCTS,
    Root,
    VerifiedReport,
    amd_roots,
    check_report_data,
    verify_report,
)
from attest.schemes.tdx import eventlog as tdx_eventlog
from attest.schemes.tdx import verify as tdx
from attest.schemes.vtpm.eventlog import VerifiedLog, verify_event_log
from attest.schemes.vtpm.verify import VerifiedQuote, verify_quote

__all__ = ["Verifier", "launch_of", "policy_from_result"]


MAX_COLLATERAL = 16  # sets that one verifier remembers, and that one call may hand in


class Verifier:
    """Appraises evidence under one policy. Safe to share between threads: from one call to the next it keeps TDX
    collateral that it has verified, which it uses in its time only, and nothing else.

    ``allow_simulated`` also trusts the testkit's roots; results from them say ``simulated`` and are not confidential.
    ``token_keys``: keys of the issuers of tokens (``jws.parse_jwks``), by configuration; none refuses such tokens.
    ``schemes``: third parties' (``plugins.load_scheme``); a policy with ``[schemes.NAME]`` of one that is not given
    here is UnsupportedEvidence at once.
    """

    def __init__(
        self,
        policy: EvidencePolicy,
        *,
        allow_simulated: bool = False,
        token_keys: Sequence[Jwk] = (),
        schemes: Sequence[Scheme] = (),
    ) -> None:
        self.policy = policy
        self._schemes = {scheme.name: check_scheme(scheme.name, scheme) for scheme in schemes}
        if missing := set(policy.schemes) - set(self._schemes):
            raise UnsupportedEvidence(f"not enabled: {', '.join(sorted(missing))}", code="scheme_not_enabled")
        self._views = {
            id(view): Verifier(view, allow_simulated=allow_simulated, token_keys=token_keys, schemes=schemes)
            for branch in policy.branches
            for view in branch.views
        }
        self._wanted = self._wanted_parts()
        self._optional = {ENDORSEMENTS: ENDORSEMENTS_TYPE}
        if policy.vtpm is not None or policy.tdx is not None:
            self._optional[AUX_DIGEST] = AUX_DIGEST_TYPE
        if policy.sev_snp is not None or policy.tdx is not None:
            self._optional[LAUNCH_ENDORSEMENT] = LAUNCH_ENDORSEMENT_TYPE
        self._token_keys = tuple(token_keys)
        self._snp_roots = _snp_roots(allow_simulated) if policy.sev_snp is not None else {}
        self._tdx_roots = _tdx_roots(allow_simulated) if policy.tdx is not None else ()
        self._collateral: dict[bytes, tdx.VerifiedCollateral] = {}
        self._ak_roots = [load_certificate(pem.encode()) for pem in policy.reference_values.vtpm.ak_roots]

    def appraise(
        self, raw: bytes, expected: Expected, *, now: float, endorsements: Sequence[bytes] = ()
    ) -> AttestationResult:
        """Verify and appraise encoded evidence: a collection, perhaps joined with an event log (``evidence.join_aux``).

        Rules that need an event log are not asked of a passport, which is never the last word about a peer.

        ``expected``: what the caller knows of channel and peer. ``now``: Unix seconds. ``endorsements``: certificates
        and launch endorsements beside those that the evidence carries, revocation lists, collateral for TDX
        (``collateral.sort_endorsements``).
        Raises an AttestError for everything but acceptance. Not checked: revocation of AMD's intermediates when no
        list is handed in (a rule can ask for one), of AK certificates ever; that the TLS peer holds the key in
        ``expected`` (the channel's work).
        """
        # 1. One strict collection.
        collection, aux = split_aux(raw)
        evidence = decode_evidence(collection)
        # 2. The claims are those of this channel, peer and time.
        claims = check_binding(evidence.claims, expected, now, self.policy.max_lifetime_s)
        if self.policy.branches:
            return self._any_branch(raw, expected, now, endorsements)
        # 3. Exactly the parts that the policy asks for.
        self._check_parts(evidence)
        # 4. Signatures and chains; each part speaks for the hash of these very claims.
        given = _endorsements(evidence, () if self.policy.schemes else endorsements)
        hashed = data_hash(evidence.claims)
        quote, instance, quote_expires = self._verify_quote(
            evidence.parts.get(TPM_QUOTE), hashed, given.certificates, now
        )
        hcl, report, td_quote = self._verify_hardware(evidence.parts.get(HARDWARE), quote, hashed, given, now)
        log, td_log = self._verify_log(evidence.parts.get(AUX_DIGEST), aux, quote, td_quote)
        if hcl is not None and self.policy.azure is not None and self.policy.azure.require_ak_certificate:
            quote_expires = min(quote_expires, azure.verify_ak_certificate(hcl, given.certificates, now))
        maa, space = self._verify_token(evidence.parts.get(TOKEN), hashed, now)
        _check_one_machine(hcl, report, td_quote, maa, space)
        launch = launch_of(self.policy, report, td_quote, given, now)
        other = self._verify_other(evidence.parts.get(HARDWARE), hashed, endorsements, now)
        # 5. The policy's rules.
        verified = Verified(
            claims=claims,
            evidence_digest=hashlib.sha256(raw).hexdigest(),
            expires=min(
                float(claims.not_after),
                quote_expires,
                *(v.expires for v in (report, td_quote, maa, space, launch) if v),
                *_end(other),
            ),
            quote=quote,
            instance=instance,
            launch=launch,
            report=report,
            td_quote=td_quote,
            hcl=hcl,
            maa=maa,
            space=space,
            other=other,
            log=log,
            td_log=td_log,
            log_comes_later=expected.phase is Phase.PASSPORT and not aux,
        )
        return appraise(verified, self.policy)

    def _any_branch(
        self, raw: bytes, expected: Expected, now: float, endorsements: Sequence[bytes]
    ) -> AttestationResult:
        """Steps 3 to 5 for each branch of a composition until one accepts; each view verifies for itself."""

        def one(view: EvidencePolicy) -> AttestationResult:
            return self._views[id(view)].appraise(raw, expected, now=now, endorsements=endorsements)

        branch, results = try_branches(self.policy, one)
        return join(branch, results)

    def _wanted_parts(self) -> dict[int, str]:
        """The media type of each part that the policy asks for."""
        policy = self.policy
        wanted = {
            TPM_QUOTE: TPM2_QUOTE_TYPE if policy.vtpm is not None else None,
            HARDWARE: AZURE_HCL_TYPE
            if policy.azure
            else SNP_REPORT_TYPE
            if policy.sev_snp
            else TDX_QUOTE_TYPE
            if policy.tdx
            else self._schemes[next(iter(policy.schemes))].media_type
            if policy.schemes
            else None,
            TOKEN: TOKEN_TYPE if policy.maa or policy.gcp else None,
        }
        return {key: media_type for key, media_type in wanted.items() if media_type is not None}

    def _check_parts(self, evidence: Evidence) -> None:
        for key, media_type in self._wanted.items():
            if key not in evidence.parts:
                raise UnsupportedEvidence(f"the policy asks for {media_type}, there is none", code="part_missing")
        for key, part in evidence.parts.items():
            accepted = self._wanted.get(key) or self._optional.get(key)
            if part.media_type != accepted:
                raise UnsupportedEvidence(f"part {key} ({part.media_type}) is not in the policy", code="part_unknown")

    def _verify_quote(
        self, part: Part | None, hashed: bytes, certificates: Sequence[x509.Certificate], now: float
    ) -> tuple[VerifiedQuote | None, Instance | None, float]:
        if part is None:
            return None, None, math.inf
        allow_sha1 = self.policy.vtpm is not None and self.policy.vtpm.unsafe_allow_sha1
        quote = verify_quote(part.body, hashed, unsafe_allow_sha1=allow_sha1)
        if not self._ak_roots:
            return quote, None, math.inf
        return quote, *verify_ak_instance(quote, certificates, self._ak_roots, now)

    def _verify_hardware(
        self, part: Part | None, quote: VerifiedQuote | None, hashed: bytes, given: Endorsements, now: float
    ) -> tuple[azure.VerifiedHcl | None, VerifiedReport | None, tdx.VerifiedQuote | None]:
        if self.policy.azure is not None:
            return self._verify_hcl(part, quote, given, now)
        if part is None:
            return None, None, None
        # With a vTPM beside it, the hardware names the AK, which thereby needs no other trust.
        bound = ak_report_data(quote.ak_public, hashed) if quote else snp_report_data(hashed)
        return None, self._verify_report(part, bound, given, now), self._verify_td_quote(part, bound, given, now)

    def _verify_hcl(
        self, part: Part | None, quote: VerifiedQuote | None, given: Endorsements, now: float
    ) -> tuple[azure.VerifiedHcl, VerifiedReport | None, tdx.VerifiedQuote | None]:
        """On Azure the hardware names the AK through the runtime claims; the claims of this channel are the quote's."""
        if part is None or quote is None or self.policy.azure is None:  # _check_parts and the policy see to it
            raise UnsupportedEvidence("an HCL report without a vTPM quote", code="part_missing")
        td_quote = None
        if self.policy.tdx is not None:
            raw_hcl, raw_quote = azure.split_tdx_part(part.body)
            td_quote = self._with_fitting_collateral(raw_quote, given.collateral, now)
            hcl = azure.verify_hcl_tdx(raw_hcl, td_quote.quote.report.report_data)
        else:
            hcl = azure.verify_hcl_snp(part.body, given.certificates, now, self._snp_roots, crls=given.crls)
        azure.check_ak(hcl, quote)
        return hcl, hcl.report, td_quote

    def _verify_log(
        self, part: Part | None, aux: bytes, quote: VerifiedQuote | None, td_quote: tdx.VerifiedQuote | None
    ) -> tuple[VerifiedLog | None, tdx_eventlog.VerifiedLog | None]:
        """The event log, when it is the one that the collection names and the quoted registers come of it. There is
        one: beside a TPM's quote it is the TPM's.
        """
        if part is None and not aux:
            return None, None
        if part is None or not hmac.compare_digest(part.body, hashlib.sha256(aux).digest()):
            raise BindingMismatch("the event log is not the one that the evidence names", code="aux_digest")
        if quote is not None:
            return verify_event_log(aux, quote), None
        assert td_quote is not None and self.policy.tdx is not None  # _check_parts takes a log for one of the two only
        return None, tdx_eventlog.verify_event_log(aux, td_quote.quote.report, self.policy.tdx.event_log_rtmrs)

    def _verify_token(
        self, part: Part | None, hashed: bytes, now: float
    ) -> tuple[VerifiedMaaToken | None, VerifiedSpaceToken | None]:
        """The token's nonce is the hash of this channel's claims. Keys and issuers are configuration, never its own."""
        maa, gcp = self.policy.maa, self.policy.gcp
        if part is None:
            return None, None
        if maa is not None:
            issuers = maa.issuers or own_issuer(part.body)
            return verify_maa(part.body, self._token_keys, issuers=issuers, now=now, nonce=hashed), None
        audiences = gcp.audiences or None if gcp is not None else ()
        if "x5c" in parse_token(part.body).header:
            return None, verify_pki_token(part.body, audiences=audiences, now=now, nonce=hashed)
        keys = self._token_keys
        return None, verify_oidc_token(part.body, keys, audiences=audiences, now=now, nonce=hashed)

    def _verify_other(
        self, part: Part | None, hashed: bytes, endorsements: Sequence[bytes], now: float
    ) -> tuple[str, SchemeResult] | None:
        if part is None or not self.policy.schemes:
            return None
        name, rules = next(iter(self.policy.schemes.items()))
        found = judge(self._schemes[name], part.body, bound=hashed, rules=rules, endorsements=endorsements, now=now)
        return name, found

    def _verify_report(self, part: Part, bound: bytes, given: Endorsements, now: float) -> VerifiedReport | None:
        rules = self.policy.sev_snp
        if rules is None:
            return None
        verified = verify_report(
            part.body,
            given.certificates,
            now,
            self._snp_roots,
            crls=given.crls,
            allow_masked_chip_id=rules.unsafe_allow_masked_chip_id,
        )
        check_report_data(verified.report, bound)
        return verified

    def _verify_td_quote(self, part: Part, bound: bytes, given: Endorsements, now: float) -> tdx.VerifiedQuote | None:
        if self.policy.tdx is None:
            return None
        verified = self._with_fitting_collateral(part.body, given.collateral, now)
        tdx.check_report_data(verified.quote, bound)
        return verified

    def _with_fitting_collateral(self, raw: bytes, sets: Sequence[bytes], now: float) -> tdx.VerifiedQuote:
        """A host may hand in the collateral of several kinds of platform: the first that is of this one counts."""
        if len(sets) > MAX_COLLATERAL:
            raise UnsupportedEvidence(f"{len(sets)} sets of collateral", code="ambiguous_endorsement")
        unfitting = EndorsementUnavailable("no collateral for TDX was handed in", code="collateral_missing")
        for collateral in sets:
            try:
                return tdx.verify_quote(raw, self._verified_collateral(collateral, now), now)
            except EndorsementUnavailable as error:
                unfitting = error
        raise unfitting

    def _verified_collateral(self, raw: bytes, now: float) -> tdx.VerifiedCollateral:
        known = self._collateral.get(raw)
        if known is None or not known.start <= now <= known.expires:
            known = tdx.verify_collateral(parse_collateral(raw), now, self._tdx_roots)
            if len(self._collateral) >= MAX_COLLATERAL:
                self._collateral.clear()
            self._collateral[raw] = known
        return known


def launch_of(
    policy: EvidencePolicy,
    report: VerifiedReport | None,
    td_quote: tdx.VerifiedQuote | None,
    given: Endorsements,
    now: float,
) -> Launch | None:
    """What a launch endorsement of ``given`` says of the verified hardware, where the policy asks for one."""
    reference, handed = policy.reference_values, (given.launch, given.certificates, now)
    if report is not None and policy.sev_snp is not None:
        rules, roots = policy.sev_snp.launch_endorsement, reference.sev_snp.launch_roots
        return verify_launch("sev-snp", report.report.measurement, rules, roots, *handed)
    if td_quote is not None and policy.tdx is not None:
        measured = td_quote.quote.report.mr_td
        return verify_launch("tdx", measured, policy.tdx.launch_endorsement, reference.tdx.launch_roots, *handed)
    return None


def _check_one_machine(
    hcl: azure.VerifiedHcl | None,
    report: VerifiedReport | None,
    td_quote: tdx.VerifiedQuote | None,
    maa: VerifiedMaaToken | None,
    space: VerifiedSpaceToken | None,
) -> None:
    """A token beside the hardware's own word tells of that hardware. Both speak for this channel already; this keeps
    two machines that share its key from passing for one that has the virtues of both.
    """
    if report is not None:
        kind, model, measurement = "sevsnpvm", "GCP_AMD_SEV_SNP", report.report.measurement
    elif td_quote is not None:
        kind, model, measurement = "tdxvm", "GCP_INTEL_TDX", td_quote.quote.report.mr_td
    else:
        return
    told_and_seen = [(space.claims.get("hwmodel"), model)] if space is not None else []
    if maa is not None:
        told_and_seen += [(maa.tee_type, kind), (measurement_of(maa).lower(), measurement.hex())]
    if maa is not None and hcl is not None:
        told_and_seen.append((vm_id(maa).lower(), str(hcl.claims.configuration.get("vmUniqueId", "")).lower()))
    if any(told != seen for told, seen in told_and_seen):
        raise BindingMismatch("token and hardware tell of different machines", code="token_of_another_machine")


def _end(other: tuple[str, SchemeResult] | None) -> tuple[float, ...]:
    return () if other is None or other[1].expires is None else (other[1].expires,)


def _endorsements(evidence: Evidence, handed_in: Sequence[bytes]) -> Endorsements:
    """What was handed in, and the certificates and launch endorsement that the evidence carries."""
    part = evidence.parts.get(ENDORSEMENTS)
    carried = decode_certificates(part.body) if part is not None else ()
    given = sort_endorsements(handed_in)
    certificates = (*(load_certificate(der) for der in carried), *given.certificates)
    launch = evidence.parts.get(LAUNCH_ENDORSEMENT)
    endorsed = given.launch if launch is None else (*given.launch, launch.body)
    return Endorsements(certificates, given.crls, given.collateral, endorsed)


def _tdx_roots(allow_simulated: bool) -> tuple[tdx.Root, ...]:
    if not allow_simulated:
        return tdx.intel_roots()
    from attest.testkit.intel import simulated_intel_roots  # the one way by which the testkit's root comes in

    return (*tdx.intel_roots(), *simulated_intel_roots())


def _snp_roots(allow_simulated: bool) -> Mapping[str, Sequence[Root]]:
    roots: dict[str, Sequence[Root]] = {product: amd_roots()[product] for product in PRODUCTS}
    if not allow_simulated:
        return roots
    from attest.testkit.pki import simulated_roots  # the one way by which the testkit's root comes in

    return {product: (*roots[product], *simulated_roots()[product]) for product in PRODUCTS}


def policy_from_result(
    result: AttestationResult, *, policy_id: str, max_lifetime_s: float = 7200.0, pcrs: Sequence[int] | None = None
) -> str:
    """A strict policy (TOML) that pins what ``result`` shows: AK name and PCR values, measurements, chip and TCB.

    The result is trusted as found: look at it before you use the policy. ``pcrs`` limits the PCRs pinned; default: all
    that were quoted. ``unsafe_accept_vtpm_only`` is written for a vTPM without hardware evidence, because such a policy
    could not accept anything otherwise. Raises ValueError without evidence, PolicyFormatError for a bad id.
    """
    lines = [f'id = "{policy_id}"', f"max_lifetime_s = {max_lifetime_s}"]
    values: list[str] = []
    if "ak.name" in result.claims:
        if "measurement" not in result.claims and "mr_td" not in result.claims:
            lines.append("unsafe_accept_vtpm_only = true  # no hardware evidence: integrity, not confidentiality")
        rules, pinned = _vtpm_tables(result.claims, pcrs)
        lines += rules
        values += pinned
    if "measurement" in result.claims:
        rules, pinned = _snp_tables(result.claims)
        lines += rules
        values += pinned
    if "mr_td" in result.claims:
        rules, pinned = _tdx_tables(result.claims)
        lines += rules
        values += pinned
    if not values:
        raise ValueError("a result without evidence gives no policy")
    text = "\n".join([*lines, *values, ""])
    parse_policy(text)
    return text


def _vtpm_tables(claims: Mapping[str, str], pcrs: Sequence[int] | None) -> tuple[list[str], list[str]]:
    names = [name.split(".") for name in claims if name.startswith("pcr.")]
    bank = min(name[1] for name in names)
    quoted = sorted(int(index) for _, its_bank, index in names if its_bank == bank)
    chosen = [index for index in quoted if pcrs is None or index in pcrs]
    rules = ["", "[vtpm]", f'pcr_bank = "{bank}"', f"pcrs = {chosen}"]
    values = ["", "[reference_values.vtpm]", f'ak_names = ["{claims["ak.name"]}"]', ""]
    values += ["[reference_values.vtpm.pcr_values]", *(f'{i} = ["{claims[f"pcr.{bank}.{i}"]}"]' for i in chosen)]
    return rules, values


def _snp_tables(claims: Mapping[str, str]) -> tuple[list[str], list[str]]:
    floor = {name.removeprefix("tcb."): level for name, level in claims.items() if name.startswith("tcb.")}
    rules = [
        "",
        "[sev-snp]",
        f'products = ["{claims["product"]}"]',
        f'signing_keys = ["{claims["signing_key"]}"]',
        f"vmpl = [{claims['vmpl']}]",
        f"min_guest_svn = {claims['guest_svn']}",
        f"min_tcb = {{ {', '.join(f'{name} = {level}' for name, level in floor.items())} }}",
    ]
    if claims["firmware.provisional"] == "true":
        rules.append("permit_provisional_firmware = true  # the host can still go back to the firmware before")
    values = ["", "[reference_values.sev-snp]", f'measurements = ["{claims["measurement"]}"]']
    values.append(f'host_data = ["{claims["host_data"]}"]')
    if claims["signing_key"] == "vcek":
        values.append(f'chip_ids = ["{claims["chip_id"]}"]')
    else:
        values.append(f'csp_ids = ["{claims["csp_id"]}"]')
    return rules, values


def _tdx_tables(claims: Mapping[str, str]) -> tuple[list[str], list[str]]:
    rules = [
        "",
        "[tdx]",
        f'tcb_statuses = ["{claims["tcb.status"]}"]',
        f"min_tcb_evaluation_data_number = {claims['tcb.evaluation_data_number']}",
        f'min_tee_tcb_svn = "{claims["tee_tcb_svn"]}"',
        f"min_qe_svn = {claims['qe.svn']}",
        f"min_pce_svn = {claims['pce_svn']}",
        "rtmrs = [0, 1, 2, 3]",
    ]
    if claims["td_attributes.sept_ve_disable"] == "false":
        rules.append("unsafe_allow_sept_ve = true  # this machine's trust domain lets the host inject #VE")
    pinned = ["mr_td", "mr_config_id", "mr_owner", "mr_owner_config", "mr_seam", "td_attributes", "xfam"]
    if any(digit != "0" for digit in claims.get("mr_service_td", "")):
        pinned.append("mr_service_td")
    values = ["", "[reference_values.tdx]", *(f'{name} = ["{claims[name]}"]' for name in pinned)]
    values += [f'fmspcs = ["{claims["fmspc"]}"]', f'ppids = ["{claims["ppid"]}"]']
    values += ["", "[reference_values.tdx.rtmr_values]", *(f'{n} = ["{claims[f"rtmr{n}"]}"]' for n in range(4))]
    return rules, values
