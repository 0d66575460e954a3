"""Commands that prove and compare versions: replay, verify, lineage, compare, export, import."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from deployments.command.output import AsJson, LineName, Number, show, table
from deployments.command.refusals import refusing

app = typer.Typer()
Folder = Annotated[Path, typer.Argument(help="An exported version.")]


@app.command()
def replay(
    line: LineName,
    version: Number,
    stage: Annotated[
        Literal["clean", "train", "evaluate", "compress"] | None,
        typer.Option(help="Only this stage, from its recorded inputs."),
    ] = None,
    from_raw: Annotated[
        bool, typer.Option("--from-raw", help="The stage named and all it needs, from raw objects.")
    ] = False,
    here: Annotated[
        bool,
        typer.Option("--here", help="Use this code and these libraries even where others made it."),
    ] = False,
    install: Annotated[
        bool,
        typer.Option("--install", help="Install the recorded libraries, run the recorded code."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version again from its recipe, with no cache, and compare every stage.

    Exit code 0: identical; 1: a stage differs; 2: it cannot be made again here; 70: a bug.
    """
    with refusing(f"{line} {version} cannot be replayed here", as_json):
        from rich.console import Console

        from deployments.local.stack import PREFECT, STORE, stack
        from tasks import cluster
        from tasks.progress import listening

        console = Console(stderr=as_json)
        with stack(STORE, PREFECT):
            # Prefect reads its environment when it is imported, and that names the services now.
            from deployments.local.terminal import Progress
            from flows.replay import replay as replay_flow
            from tasks.replay import DiffersError

            try:
                with Progress(console) as progress, listening(progress):
                    found = replay_flow(line, version, stage, from_raw, here, install)
            except DiffersError as error:
                found = error.replay
            finally:
                cluster.close()
        stages = [stage.model_dump(exclude={"changed"}) for stage in found.stages]
        show(as_json, found.model_dump(mode="json"), lambda: table(stages))
        if not as_json:
            console.print(
                f"{line} version {version}: [bold]{found.verdict}[/bold], by {found.code}"
            )
            changed = [stage.changed for stage in found.stages if stage.changed]
            for cause in [found.first_cause] if found.first_cause else changed:
                console.print(cause)
    raise typer.Exit(0 if found.verdict == "identical" else 1)


@app.command()
def verify(
    line: Annotated[str, typer.Argument(help="Name of a line, or the folder of an export.")],
    version: Annotated[int | None, typer.Argument(min=1, help="Number of its version.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove signature, provenance and every digest of a version, or of an exported folder.

    Exit code 0: all of it holds; 2: refused, with the file and the reason.
    """
    named = line if version is None else f"{line} {version}"
    with refusing(f"{named} is refused", as_json):
        from deployments.local.stack import STORE, stack

        # A folder needs no store: only the trusted keys of this place.
        wanted = () if version is None else (STORE,)
        with stack(*wanted):
            from models.digests import IntegrityError
            from tasks import verify as verifying
            from tasks.folders import LocalFolder, StoredFolder

            if version is None:
                if not Path(line).is_dir():
                    raise IntegrityError(
                        f"{line} is no folder; of a line, name a version's number too"
                    )
                found = verifying.verify(LocalFolder(Path(line)))
            else:
                from tasks.register import digest_of

                digest = digest_of(line, version)
                found = verifying.verify(StoredFolder(line, digest), line, digest)
        answer: dict[str, Any] = {"verified": True, **found.model_dump(mode="json")}
        show(as_json, answer, lambda: table([{"": n, "found": v} for n, v in answer.items()]))


@app.command()
def lineage(
    origin: Annotated[
        str,
        typer.Argument(
            help="An id of a request or completion, or a version digest or its first 8 digits."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Walk back from an answer or a version to run, code, data and signer, each proven.

    Exit code 2: the version's signature or a digest does not hold.
    """
    from deployments.local.stack import SERVER, STORE, stack

    with refusing(f"the origin of {origin} is refused", as_json), stack(STORE, SERVER):
        from tasks.lineage import lineage as trace

        found = trace(origin)
    shown = {**found, "data": {n: v for n, v in found["data"].items() if n != "objects_named"}}
    show(as_json, found, lambda: table([{"": n, "found": v} for n, v in shown.items() if v]))


@app.command()
def compare(
    line: LineName,
    a: Annotated[int, typer.Argument(min=1, help="Number of one version.")],
    b: Annotated[int, typer.Argument(min=1, help="Number of the version to compare with it.")],
    html: Annotated[
        Path | None, typer.Option(help="Write a page with plots, that needs no network, here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what version B has that A has not: data, code, settings, libraries, metrics, files, cost.

    Exit code 0: compared, whatever differs; 2: one of them does not verify.
    """
    with refusing(f"{line} {a} and {b} cannot be compared", as_json):
        from deployments.local.stack import STORE, stack

        with stack(STORE):
            from deployments.command.difference import print_difference
            from tasks.compare import compare as difference_of
            from tasks.difference_page import page

            found = difference_of(line, a, b)
            if html is not None:
                html.write_text(page(found))
        show(as_json, found.model_dump(mode="json"), lambda: print_difference(found))


@app.command()
def export(
    line: LineName,
    version: Number,
    folder: Annotated[Path, typer.Argument(help="Where to write it; must not exist.")],
    with_data: Annotated[
        bool, typer.Option("--with-data", help="Bring the raw objects too.")
    ] = False,
    openssf: Annotated[
        bool, typer.Option("--openssf", help="Add an OpenSSF model signature (extra `openssf`).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a version as a folder another site can verify, import and replay."""
    with refusing(f"{line} {version} cannot be exported", as_json):
        from deployments.local.stack import STORE, stack

        with stack(STORE):
            from tasks.export import export as write

            exported = write(line, version, folder, data=with_data, openssf=openssf)
        found = exported.model_dump(mode="json")
        show(as_json, {"folder": str(folder), **found}, lambda: table([found]))


@app.command("import")
def import_(folder: Folder, as_json: AsJson = False) -> None:
    """Register an exported version here, once everything in it is proven."""
    with refusing(f"{folder} cannot be imported", as_json):
        from deployments.local.stack import STORE, stack

        with stack(STORE):
            from tasks.export import import_folder

            found, number = import_folder(folder)
        answer = {"version": number, **found.model_dump(mode="json")}
        show(as_json, answer, lambda: table([answer]))
