"""Commands about keys: whose signatures count here, and what this place signs with."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.command.output import AsJson, show, table
from deployments.command.refusals import refusing

if TYPE_CHECKING:
    from models.trust import PublicKey

app = typer.Typer(help="The keys whose signatures on versions count here.", no_args_is_help=True)
Expires = Annotated[
    datetime.datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="First day on which its signatures no longer count."),
]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the trusted keys, and which of them this place signs with."""
    with refusing("the trusted keys cannot be listed", as_json):
        from deployments.local.stack import stack

        with stack():
            from models.trust import trust
            from tasks.signing import keyid

            ours = keyid()
            found = [{**_shown(key), "signs": key.keyid == ours} for key in trust().all()]
        show(as_json, {"keys": found}, lambda: table(found))


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A public key, such as an export's key.json.")],
    owner: Annotated[str, typer.Option(help="Whose key it is, in your words.")] = "",
    expires: Expires = None,
    as_json: AsJson = False,
) -> None:
    """Trust a key. Compare its id with its owner's, by another way than the one it came by."""
    with refusing(f"{file} is not trusted", as_json):
        from deployments.local.stack import stack

        with stack():
            from tasks import signing

            key = _read(file)
            key = key.model_copy(update={"owner": owner or key.owner, "expires": _day(expires)})
            signing.add(key)
        show(as_json, _shown(key), lambda: table([_shown(key)]))


@app.command()
def rotate(expires: Expires = None, as_json: AsJson = False) -> None:
    """Sign with a new key from now on; what the old one signed still counts until it is revoked."""
    with refusing("no new key is made", as_json):
        from deployments.local.stack import stack

        with stack():
            from tasks import signing

            key = signing.rotate(_day(expires))
        show(as_json, _shown(key), lambda: table([_shown(key)]))


@app.command()
def revoke(
    keyid: Annotated[str, typer.Argument(help="The key's id, or how it begins.")],
    as_json: AsJson = False,
) -> None:
    """No longer count any signature of a key; the server refuses its versions at the next load."""
    with refusing(f"no key {keyid} is revoked", as_json):
        from deployments.local.stack import stack

        with stack():
            from tasks import signing

            key = signing.revoke(keyid)
        show(as_json, _shown(key), lambda: table([_shown(key)]))


def _read(file: Path) -> "PublicKey":
    """The public key in a file; raises OSError, and TrustError when it holds none."""
    from models.open import first
    from models.trust import PublicKey, TrustError

    try:
        return PublicKey.model_validate_json(file.read_bytes())
    except ValueError as error:
        raise TrustError(f"{file} is no public key: {first(error)}") from None


def _day(moment: datetime.datetime | None) -> datetime.date | None:
    return moment.date() if moment else None


def _shown(key: "PublicKey") -> dict[str, Any]:
    return {
        "keyid": key.keyid,
        "owner": key.owner,
        "expires": str(key.expires or "never"),
        "public": key.public,
    }
