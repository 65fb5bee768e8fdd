"""``split-deploy``: put a bundle where a robot runs it from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional

import click

from engines.bundle import Bundle
from engines.console import command_options, print_json
from engines.errors import DeployError
from runtime.deploy import Release, deploy, releases, rollback

__all__ = ["main"]


@click.command()
@click.argument("bundle", required=False)
@click.argument("target", required=False)
@click.option("--rollback", "go_back", metavar="PATH", help="Return to the previous release.")
@click.option("--list", "listed", metavar="PATH", help="List the releases at PATH.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_options
def main(
    bundle: Optional[str],
    target: Optional[str],
    go_back: Optional[str],
    listed: Optional[str],
    as_json: bool,
) -> None:
    """Copy BUNDLE to TARGET, verify it there and switch TARGET/current to it.

    A failure at any step leaves what was current in use.
    """
    whole = bundle is not None and target is not None
    if [whole, go_back is not None, listed is not None].count(True) != 1 or (
        not whole and bundle is not None
    ):
        raise click.UsageError("expected BUNDLE TARGET, or --rollback PATH, or --list PATH")
    if listed is not None:
        found = [_record(release) for release in releases(Path(listed))]
        if as_json:
            print_json(found)
        for release in [] if as_json else found:
            marks = [name for name in ("current", "previous") if release[name]]
            click.echo(f"{release['release']}  {' '.join(marks)}".rstrip())
        return
    if go_back is not None:
        done = rollback(Path(go_back))
    else:
        assert bundle is not None and target is not None  # noqa: PT018 (counted above)
        if "@" in target.partition(":")[0] and not Path(target).exists():
            raise DeployError(
                f"{target}: expected a local path; copying over SSH is not part of this version"
            )
        done = deploy(Bundle.open(bundle), Path(target))
    if as_json:
        print_json(_record(done))
    else:
        click.echo(f"current is {done.key} at {done.folder}")


def _record(release: Release) -> Dict[str, Any]:
    return {
        "release": release.key,
        "folder": str(release.folder),
        "current": release.current,
        "previous": release.previous,
    }
