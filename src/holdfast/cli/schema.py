"""`holdfast schema`: what editors need to check a holdfast.toml as it is typed."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--draft4", is_flag=True, help="In JSON Schema draft 4, which editors with Taplo read.")
def schema(draft4: bool) -> None:
    """Print the JSON Schema of the configuration.

    Editors look for it where a line `#:schema ./holdfast.schema.json` at the top of the file says.
    """
    from holdfast.config.schema import json_schema, json_schema_draft4

    click.echo(json.dumps(json_schema_draft4() if draft4 else json_schema(), indent=2, ensure_ascii=False))
