"""The first section of a report: what passed, what failed, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pyrovi.criticism.diagnose_rows import Check, Verdict
from pyrovi.criticism.report_blocks import Block, Callout, Section, Table

_NONE = "No check failed."
_ORDER: tuple[Verdict, ...] = ("fail", "warn", "pass", "not available")


def headline_section(sections: Sequence[Section]) -> Section:
    """Verdicts of all sections, the worst first.

    Parameters
    ----------
    sections
        The other sections.
    """
    import pandas as pd

    checks = [(section.title, check) for section in sections for check in section.checks]
    number = Counter(check.verdict for _, check in checks)
    blocks: list[Block] = [Callout(_overall(number), _words(number, len(checks)))]
    judged = sorted(
        (c for c in checks if c[1].verdict in ("fail", "warn")),
        key=lambda c: _ORDER.index(c[1].verdict),
    )
    if judged:
        rows = pd.DataFrame(
            [
                {
                    "verdict": check.verdict,
                    "section": section,
                    "found": _found(check),
                    "what to do": check.advice,
                }
                for section, check in judged
            ],
            index=pd.Index([check.what for _, check in judged], name="check"),
        )
        blocks.append(Table(rows, "What to look at first."))
    counts = pd.DataFrame(
        [
            {
                "verdict": section.verdict,
                **{name: sum(check.verdict == name for check in section.checks) for name in _ORDER},
            }
            for section in sections
            if section.checks
        ],
        index=pd.Index([section.title for section in sections if section.checks], name="section"),
    )
    if len(counts):
        blocks.append(Table(counts, "Number of checks of each section, by verdict."))
    return Section("Verdict", blocks)


def _overall(number: Counter[Verdict]) -> Verdict:
    """The worst verdict; no pass where as many checks could not be made as were."""
    worst: Verdict = next((verdict for verdict in _ORDER if number[verdict]), "not available")
    made = number["pass"] + number["warn"] + number["fail"]
    if worst == "pass" and number["not available"] >= made:
        return "not available"
    return worst


def _words(number: Counter[Verdict], total: int) -> str:
    if not total:
        return "No section with checks was asked for."
    parts = [f"{number['pass']} passed"]
    if number["warn"]:
        parts.append(f"{number['warn']} need{'s' * (number['warn'] == 1)} a look")
    if number["not available"]:
        parts.append(f"{number['not available']} could not be made")
    head = f"{number['fail']} of {total} checks failed" if number["fail"] else _NONE[:-1]
    return f"{head}; {', '.join(parts)}."


def _found(check: Check) -> str:
    return check.text or "–"
