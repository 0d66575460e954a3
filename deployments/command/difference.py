"""The difference of two versions in a terminal: one short table, a row for every part."""

from tasks.difference import Change, Difference, FileChange
from tasks.difference_page import summary, value

# More is for --json and --html.
SHOWN = 6


def print_difference(difference: Difference) -> None:
    """What differs, part by part; a part without a row is the same in both."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    a, b = difference.a, difference.b
    table = Table("", f"A: version {a.version}", f"B: version {b.version}")
    for name, before, after in _rows(difference):
        # Names and values are data: nothing in them is markup.
        table.add_row(name, Text(before), Text(after))
    console = Console()
    console.print(table)
    if difference.identical:
        console.print("They are the same version.")
    for part, reason in difference.unknown.items():
        console.print(Text(f"{part}: not known: {reason}"))
    if difference.paired is not None:
        paired = difference.paired
        console.print(
            f"[bold]{paired.finding}[/bold] on {paired.rows:,} rows that A had not seen:"
            f" {summary(paired)}"
        )


def _rows(difference: Difference) -> list[tuple[str, str, str]]:
    a, b = difference.a, difference.b
    replays = [" ".join(r.result for r in side.replays) or "none" for side in (a, b)]
    found = [
        ("digest", a.digest[:16], b.digest[:16]),
        ("gate", a.verdict or "none recorded", b.verdict or "none recorded"),
        ("replays", replays[0], replays[1]),
    ]
    if difference.paired is not None:
        found += [
            (f"{m.name}, same rows", f"{m.a:.4g}", f"{m.b:.4g}") for m in difference.paired.metrics
        ]
    objects, rows = difference.objects, difference.rows
    if objects is not None:
        counted = f"+{objects.added:,} -{objects.removed:,}, {objects.changed:,} changed"
        found.append(("raw objects", f"{objects.a:,}", f"{objects.b:,} ({counted})"))
    if rows is not None:
        new = "" if rows.added is None else f" (+{rows.added:,} -{rows.removed:,})"
        found.append(("rows", _counts(rows.a), _counts(rows.b) + new))
    environment = difference.environment
    for name, changed in (
        ("setting", difference.parameters),
        ("module", difference.code.modules),
        ("platform", environment.platform),
        ("distribution", environment.distributions),
        ("file", difference.files),
    ):
        found += _changes(name, changed)
    found += [_counted(file) for file in difference.code.files[:SHOWN]]
    if difference.served is not None:
        costs = [
            f"{one.form}, {one.size / 1000:,.1f} kB, CPU us "
            + " ".join(f"{spent:.0f} (batch {b})" for b, spent in one.cpu_microseconds.items())
            for one in difference.served
        ]
        found.append(("served", costs[0], costs[1]))
    return found


def _changes(name: str, changed: tuple[Change, ...]) -> list[tuple[str, str, str]]:
    shown = [(f"{name} {c.name}", value(c, "a"), value(c, "b")) for c in changed[:SHOWN]]
    if len(changed) > SHOWN:
        shown.append((f"{name}s", "", f"{len(changed) - SHOWN} more; see --html or --json"))
    return shown


def _counted(file: FileChange) -> tuple[str, str, str]:
    lines = file.diff.splitlines()[2:]
    removed, added = (sum(line.startswith(sign) for line in lines) for sign in "-+")
    return f"code {file.name}", f"-{removed} lines", f"+{added} lines"


def _counts(rows: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in rows.items())
