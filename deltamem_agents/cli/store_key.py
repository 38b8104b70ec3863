"""``deltamem store rotate-key``: encrypt a store, change its key, or remove the encryption."""

import os
from typing import Annotated

import typer

from ..errors import StoreError, StoreKeyError
from .opening import open_there
from .options import TENANT, JsonOption, StoreOption, examples
from .results import print_json

app = typer.Typer()
NEW_KEY = "DELTAMEM_STORE_NEW_KEY"


@app.command(
    "rotate-key",
    epilog=examples(
        "deltamem store rotate-key --generate",
        f"{NEW_KEY}=$(cat new.key) deltamem store rotate-key",
        "deltamem store rotate-key --decrypt",
    ),
)
def rotate_key(
    generate: Annotated[
        bool, typer.Option("--generate", help="Make a new key, and print it: stdout holds nothing else.")
    ] = False,
    decrypt: Annotated[bool, typer.Option("--decrypt", help="Remove the encryption.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encrypt all texts and states of a store, of all tenants, under a new key.

    DELTAMEM_STORE_KEY holds the key that the store has now (unset: it is not encrypted); the new one comes from
    DELTAMEM_STORE_NEW_KEY or --generate. Other processes that use the store need both keys FIRST
    (DELTAMEM_STORE_KEY=NEW,OLD; restart them), or they cannot read what is under the new one. When a store is
    encrypted for the first time, or decrypted, stop them. Run again, with the same key, what was stopped.
    """
    from ..store.cipher import keys_from, new_key

    given = os.environ.get(NEW_KEY, "").strip()
    if [bool(given), generate, decrypt].count(True) != 1:
        raise StoreError(f"which new key? Set {NEW_KEY}, or give --generate or --decrypt: one of the three")
    if generate and as_json:
        raise StoreError(f"--generate prints the key alone: leave --json out, or give the key as {NEW_KEY}")
    opened = open_there(store, TENANT)
    if decrypt and not opened.policy.encrypted:
        raise StoreKeyError(f"store {opened.location} is not encrypted: there is nothing to decrypt")
    key = new_key() if generate else given
    try:
        keys = [] if decrypt else keys_from(key)
    except StoreKeyError as error:
        raise StoreKeyError(f"{NEW_KEY}: {error}") from error
    if generate:
        typer.echo("deltamem: keep this key: it is shown once, and nothing can be read without it", err=True)
        typer.echo(key)  # before anything is encrypted under it
    rows = opened.rotate(keys)
    if as_json:
        print_json({"location": opened.location, "encrypted": bool(keys), "rows": rows})
    else:
        now = "under the new key" if keys else "not encrypted any more"
        after = "" if decrypt else ". Set DELTAMEM_STORE_KEY to the new key"
        typer.echo(f"store {opened.location}: {rows} rows changed, it is {now}{after}", err=generate)
