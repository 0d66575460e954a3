"""What a run looks like in a terminal: live progress, and one screen at its end."""

from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flows.produce import Production
from tasks.progress import Event
from tasks.publish import compression_table, quality_table


class Progress(AbstractContextManager["Progress"]):
    """A progress listener that draws one line for each stage."""

    def __init__(self, console: Console) -> None:
        self.lines: dict[str, tuple[str, Any]] = {}
        self.live = Live(console=console, refresh_per_second=8)

    def __enter__(self) -> "Progress":
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()
        if not self.live.console.is_terminal:
            # Rich ends its last frame without a newline where it cannot redraw it.
            self.live.console.print()

    def __call__(self, event: Event) -> None:
        """Redraw for the event."""
        if event.kind == "started":
            self.lines[event.stage] = "", Spinner("dots")
        elif event.kind == "progress":
            self.lines[event.stage] = _text(event.detail), self.lines[event.stage][1]
        elif event.kind == "dropped":
            del self.lines[event.stage]
        elif event.kind == "finished":
            run = event.detail["run"]
            how = "unchanged, not computed again" if run.cached else f"{run.seconds:.1f} s"
            said = self.lines[event.stage][0]
            text = f"{how}  {'' if run.cached else said}"
            self.lines[event.stage] = f"{text}  [dim]{run.digest[:12]}[/dim]", "✓"
        table = Table.grid(padding=(0, 1))
        for stage, (text, mark) in self.lines.items():
            table.add_row(mark, f"[bold]{stage}[/bold]", text)
        self.live.update(table)


def _text(detail: dict[str, Any]) -> str:
    if "epoch" in detail:
        figures = [
            f"{name} {value:.4g}"
            for name, value in detail.items()
            if isinstance(value, float) and name != "samples_per_second"
        ]
        speed = f"{detail['samples_per_second']:,} samples/s"
        network = f"{detail['network']}: " if "network" in detail else ""
        epoch = f"{network}epoch {detail['epoch']}/{detail['epochs']}"
        return f"{epoch}  {'  '.join(figures)}  {speed}"
    if "size" in detail:
        return f"{detail['candidate']}: {detail['size'] / 1000:,.0f} kB, loss {detail['loss']:+.2%}"
    if "total" in detail:
        return f"{detail['done']}/{detail['total']} {detail['unit']}"
    return "  ".join(f"{name} {value}" for name, value in detail.items())


def screen(console: Console, title: str, found: Production, example: dict[str, Any]) -> None:
    """One screen: version, data, quality, compression, verdict, and a real request."""
    version, verdict = found.version, found.verdict
    reused = all(stage.cached for stage in found.stages)
    head = Text.assemble(
        (f"{title}, version {version.number}", "bold"),
        f"  digest {version.digest[:16]}\n",
        f"rows: {_rows(found)}\n",
        "nothing changed: no stage was computed again\n" if reused else "",
    )
    color = {"promote": "green", "hold": "yellow", "refuse": "red"}[verdict.decision]
    judged = Text.assemble(
        ("gate: ", "bold"), (verdict.decision, f"bold {color}"), f" - {'; '.join(verdict.reasons)}"
    )
    parts: list[Any] = [
        head,
        _table("Quality on the test rows", quality_table(found.report, verdict)),
        _table("Compression (CPU time of 1, 32 rows)", compression_table(found.artifact)),
        judged,
    ]
    if example:
        parts.append(_request(example))
    console.print(Panel(Group(*parts), expand=False))


def _rows(found: Production) -> str:
    counts = [f"{count:,} {name}" for name, count in found.dataset.rows.items()]
    refused = sum(r.rows for r in found.dataset.refused)
    return ", ".join([*sorted(counts), f"{refused:,} quarantined"])


def _request(example: dict[str, Any]) -> Text:
    lines: list[str | tuple[str, str]] = [("request: ", "bold"), f"POST {example['url']}\n"]
    if example.get("picture"):
        lines.append(example["picture"] + "\n")
    else:
        lines.append(f"{example['payload']}\n")
    true = "" if example["true"] is None else f"   (true: {example['true']})"
    lines += [("answer:  ", "bold"), f"{example['answer']}{true}"]
    return Text.assemble(*lines)


def picture(png: bytes) -> str:
    """A small image in half-block characters, two pixels in each."""
    import io

    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("L")
    dark = np.asarray(image) > 96
    rows = np.pad(dark, ((0, dark.shape[0] % 2), (0, 0)))
    marks = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
    return "\n".join(
        "".join(marks[int(a), int(b)] for a, b in zip(top, bottom, strict=True)).rstrip()
        for top, bottom in zip(rows[::2], rows[1::2], strict=True)
    )


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in rows[0]:
        numeric = isinstance(rows[0][name], int | float)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(f"{v:g}" if isinstance(v, float) else str(v) for v in row.values()))
    return table
