"""``split-deploy``: put a bundle where a robot runs it from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional

import click

from engines.bundle import Bundle
from engines.console import command_options, print_json, progress_bar
from runtime.deploy import Release, deploy, releases, rollback
from runtime.deploy_ssh import (
    RemoteTarget,
    SshOptions,
    deploy_over_ssh,
    list_over_ssh,
    parse_remote,
    roll_back_over_ssh,
)
from runtime.readiness import make_ready

__all__ = ["main"]


@click.command()
@click.argument("bundle", required=False)
@click.argument("target", required=False)
@click.option("--rollback", "go_back", metavar="TARGET", help="Return to the previous release.")
@click.option("--list", "listed", metavar="TARGET", help="List the releases at TARGET.")
@click.option(
    "--prepare/--no-prepare",
    default=None,
    help="Before the switch, on the target: build the plans it must build, replay the parity "
    "vectors, measure its latency table.  [default: over SSH only]",
)
@click.option(
    "--backend",
    default="ort",
    show_default=True,
    metavar="NAME",
    help="For --prepare: as runs it.",
)
@click.option("--plans", metavar="NAME", help="For --prepare: the bundle's target to build for.")
@click.option("--move", is_flag=True, help="Move BUNDLE instead of copying it.")
@click.option("--port", type=click.IntRange(1, 65535), help="SSH: port.")
@click.option("--identity", type=click.Path(), metavar="FILE", help="SSH: private key.")
@click.option("--known-hosts", type=click.Path(), metavar="FILE", help="SSH: host keys to trust.")
@click.option(
    "--remote-bin", metavar="DIR", help="SSH: where SplitRT's commands are on the robot."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_options
def main(
    bundle: Optional[str],
    target: Optional[str],
    go_back: Optional[str],
    listed: Optional[str],
    prepare: Optional[bool],
    backend: str,
    plans: Optional[str],
    move: bool,
    port: Optional[int],
    identity: Optional[str],
    known_hosts: Optional[str],
    remote_bin: Optional[str],
    as_json: bool,
) -> None:
    """Copy BUNDLE to TARGET, verify it there and switch TARGET/current to it.

    TARGET is a path, or user@robot[:path] over SSH: what the robot lacks is sent, and its own
    split-deploy does the rest. A failure at any step leaves what was current in use.
    """
    whole = bundle is not None and target is not None
    if [whole, go_back is not None, listed is not None].count(True) != 1 or (
        not whole and bundle is not None
    ):
        raise click.UsageError("expected BUNDLE TARGET, or --rollback TARGET, or --list TARGET")
    place = str(listed or go_back or target)
    remote = parse_remote(place)
    ssh = SshOptions(port, identity, known_hosts, remote_bin)
    if remote is None and ssh != SshOptions():
        raise click.UsageError(f"{place}: options of SSH go with user@robot[:path]")
    if remote is not None and move:
        raise click.UsageError("--move goes with a path: over SSH the bundle stays here")
    if listed is not None:
        _show(releases(Path(listed)) if remote is None else list_over_ssh(remote, ssh), as_json)
        return
    if go_back is not None:
        done = rollback(Path(go_back)) if remote is None else roll_back_over_ssh(remote, ssh)
    else:
        opened = Bundle.open(str(bundle))
        if remote is None:
            done = deploy(
                opened,
                Path(place),
                move=move,
                ready=(lambda release: make_ready(release, backend, target=plans))
                if prepare
                else None,
            )
        else:
            done = _send(opened, remote, ssh, prepare is not False, backend, plans)
    if as_json:
        print_json(_record(done))
    else:
        where = "" if remote is None else f" on {remote.host}"
        click.echo(f"current is {done.key} at {done.folder}{where}")


def _send(
    bundle: Bundle,
    remote: RemoteTarget,
    ssh: SshOptions,
    prepare: bool,
    backend: str,
    plans: Optional[str],
) -> Release:
    arguments = ["--prepare", f"--backend={backend}"] if prepare else ["--no-prepare"]
    arguments += [f"--plans={plans}"] if prepare and plans is not None else []
    with progress_bar(f"sending to {remote.host} (bytes)") as advance:
        return deploy_over_ssh(bundle, remote, ssh, arguments=arguments, progress=advance)


def _show(found: List[Release], as_json: bool) -> None:
    if as_json:
        print_json([_record(release) for release in found])
        return
    for release in found:
        marks = [name for name in ("current", "previous") if getattr(release, name)]
        click.echo(f"{release.key}  {' '.join(marks)}".rstrip())


def _record(release: Release) -> Dict[str, Any]:
    return {
        "release": release.key,
        "folder": str(release.folder),
        "current": release.current,
        "previous": release.previous,
    }
