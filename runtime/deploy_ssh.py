"""Deploys over SSH: sends what the robot lacks, then lets its own ``split-deploy`` do the rest.

1. Connect. The robot's host key must be known (``known_hosts``), or nothing is sent.
2. Look at the releases that are there. A file with the same SHA-256 as one of ours is copied on
   the robot; only the others are sent. Both go to ``PATH/releases/.send-<digest>``, and what an
   attempt that broke off left there is not sent again.
3. ``split-deploy --move`` on the robot verifies every digest, makes the release ready (plans,
   parity vectors, latency table) and switches ``current``, or says why not and leaves it.

The robot needs SplitRT, ``sh`` and SFTP. Commands reach its ``sh`` by standard input, with every
name quoted, so that neither a name nor the user's login shell can change what they mean.
"""

from __future__ import annotations

import asyncio
import functools
import json
import posixpath
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    Awaitable,
    Callable,
    Dict,
    Iterable,
    List,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

from engines.bundle import MANIFEST, MANIFEST_DIGEST, Bundle, sha256_file
from engines.errors import DeployError, ManifestError
from engines.manifest import decode_manifest
from runtime.deploy import Release

__all__ = [
    "RemoteTarget",
    "SshOptions",
    "deploy_over_ssh",
    "list_over_ssh",
    "parse_remote",
    "roll_back_over_ssh",
]

T = TypeVar("T")

_CONNECT_S = 15.0
_KEEPALIVE_S = 15
"""A robot that says nothing for three times as long is gone; building plans takes minutes."""

_LARGEST_MANIFEST = 64 << 20
_MARK = "splitrt-output-begins"
"""Printed first: what the user's login shell says on its own comes before."""

_NOT_FOUND = 127
_REMOTE = re.compile(
    r"(?P<user>[^@/:\s]+)@(?P<host>\[[^@/\s\[\]]+\]|[^@/:\s\[\]]+)(?::(?P<path>.*))?",
    re.DOTALL,
)


@dataclass(frozen=True)
class RemoteTarget:
    """``user@host[:path]``; a relative path begins in the user's home there.

    Attributes:
        user: Who logs in.
        host: Name or address; names of the user's ssh configuration are known too.
        path: Where releases lie; empty for ``splitrt/<name of the bundle>``.
    """

    user: str
    host: str
    path: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.path}"


@dataclass(frozen=True)
class SshOptions:
    """How to reach the robot. What is none is as ``~/.ssh/config`` says, or ssh's default.

    Attributes:
        port: Port of its SSH server.
        identity: File of the private key to log in with; else the agent's and the usual ones.
        known_hosts: File of the host keys to trust.
        remote_bin: Folder of SplitRT's commands there; else they are looked for in its PATH.
    """

    port: Optional[int] = None
    identity: Optional[str] = None
    known_hosts: Optional[str] = None
    remote_bin: Optional[str] = None


def parse_remote(text: str) -> Optional[RemoteTarget]:
    """Read ``user@host[:path]``; none for a local path: one without a user, or one that exists."""
    found = _REMOTE.fullmatch(text)
    if found is None or Path(text).exists():
        return None
    path = found["path"] or ""
    if path == "~" or path.startswith("~/"):
        path = path[2:] or "."
    return RemoteTarget(found["user"], found["host"].strip("[]"), path)


def deploy_over_ssh(
    bundle: Bundle,
    remote: RemoteTarget,
    options: SshOptions = SshOptions(),
    *,
    arguments: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Release:
    """Send a bundle to a robot and make it current there.

    Args:
        bundle: An opened bundle.
        remote: Where to.
        options: How to reach it.
        arguments: Further ones for the robot's ``split-deploy``, as ``--prepare``.
        progress: Called with (bytes that are there, bytes in all).

    Raises:
        DeployError: It cannot be reached, it is not who it was, no key is accepted, or it refused
            the release. What was current still is.
    """
    if not remote.path:
        remote = RemoteTarget(remote.user, remote.host, f"splitrt/{bundle.manifest.name}")

    async def work(session: _Session) -> Release:
        folder, sent = await _send(session, bundle, progress)
        moving = ["--move"] if sent else []
        try:
            text = await session.split_deploy(*moving, *arguments, "--", folder, session.target)
        finally:
            if sent:
                await session.script([f"rm -rf -- {shlex.quote(folder)}"])
        return _release(_json(session, text))

    return _connected(remote, options, work)


def list_over_ssh(remote: RemoteTarget, options: SshOptions = SshOptions()) -> List[Release]:
    """List what is deployed on a robot; ``DeployError`` as for :func:`deploy_over_ssh`."""

    async def work(session: _Session) -> List[Release]:
        text = await session.split_deploy(f"--list={session.target}")
        return [_release(record) for record in _json(session, text)]

    return _connected(_with_path(remote), options, work)


def roll_back_over_ssh(remote: RemoteTarget, options: SshOptions = SshOptions()) -> Release:
    """Return a robot to its previous release; ``DeployError`` as for :func:`deploy_over_ssh`."""

    async def work(session: _Session) -> Release:
        return _release(_json(session, await session.split_deploy(f"--rollback={session.target}")))

    return _connected(_with_path(remote), options, work)


class _Session:
    """A connection: SFTP, and commands through ``sh``."""

    def __init__(self, connection: Any, sftp: Any, remote: RemoteTarget, remote_bin: str) -> None:
        self._connection = connection
        self.sftp = sftp
        self.remote = remote
        self.target = ""
        self._command = (
            posixpath.join(remote_bin, "split-deploy") if remote_bin else "split-deploy"
        )

    async def begin(self) -> None:
        """Find the target's absolute path, and SplitRT."""
        home = await self.sftp.realpath(".")
        self.target = posixpath.normpath(posixpath.join(home, self.remote.path))
        command = shlex.quote(self._command)
        await self.script([f"command -v {command} >/dev/null || exit {_NOT_FOUND}"])

    async def script(self, lines: Sequence[str]) -> str:
        """Run lines by the robot's ``sh``, up to the first that fails; return what they print."""
        # What pip installs for one user is in no PATH of a shell without a terminal.
        head = [f"echo {_MARK}", 'PATH="$PATH:$HOME/.local/bin"', "set -e"]
        done = await self._connection.run("sh -s", input="\n".join([*head, *lines, ""]))
        if done.exit_status == _NOT_FOUND:
            raise DeployError(
                f"{self.remote}: expected SplitRT there, given no {self._command}: install it "
                "there, or say where it is with --remote-bin"
            )
        if done.exit_status != 0:
            said = (str(done.stderr).strip().splitlines() or ["nothing"])[-1]
            said = said[len("error: ") :] if said.startswith("error: ") else said
            raise DeployError(f"{self.remote}: {said} (status {done.exit_status})")
        return str(done.stdout).partition(f"{_MARK}\n")[2]

    async def split_deploy(self, *arguments: str) -> str:
        """Run ``split-deploy --json`` on the robot."""
        words = [self._command, "--json", *arguments]
        return await self.script([" ".join(map(shlex.quote, words)) + " </dev/null"])


async def _send(
    session: _Session, bundle: Bundle, progress: Callable[[int, int], None]
) -> Tuple[str, bool]:
    """Bring a bundle to the robot.

    Returns:
        The folder that holds all of it there, and whether that is a temporary one.
    """
    wanted = {name: entry.sha256 for name, entry in bundle.manifest.files.items()}
    wanted[MANIFEST] = bundle.digest
    wanted[MANIFEST_DIGEST] = sha256_file(bundle.folder / MANIFEST_DIGEST)
    releases = posixpath.join(session.target, "releases")
    folder = posixpath.join(releases, bundle.digest[:12])
    if await _held(session, folder, wanted) == wanted:
        return folder, False
    folder = posixpath.join(releases, f".send-{bundle.digest[:12]}")
    await _collect(session, folder, wanted, await _known(session, releases, wanted))
    held = await _held(session, folder, wanted)
    names = [name for name in wanted if held.get(name) != wanted[name]]
    sizes = {name: (bundle.folder / name).stat().st_size for name in wanted}
    total = sum(sizes.values())
    there = total - sum(sizes[name] for name in names)
    progress(there, total)
    for name in names:
        sent = functools.partial(_advance, progress, there, total)
        await session.sftp.put(
            str(bundle.folder / name), posixpath.join(folder, name), progress_handler=sent
        )
        there += sizes[name]
    return folder, True


def _advance(
    progress: Callable[[int, int], None], before: int, total: int, *given: object
) -> None:
    """Take what asyncssh says of a file: its two names, bytes that are there, bytes in all."""
    progress(before + int(str(given[2])), total)


async def _held(session: _Session, folder: str, names: Iterable[str]) -> Dict[str, str]:
    """Return the SHA-256 of those files that are in a folder on the robot, by name."""
    names = list(names)
    lines = []
    for name in names:
        path = shlex.quote(posixpath.join(folder, name))
        lines.append(f"if [ -f {path} ]; then sha256sum <{path} || echo none; else echo none; fi")
    found = (await session.script(lines)).splitlines()
    return {name: line.partition(" ")[0] for name, line in zip(names, found)}


async def _collect(
    session: _Session, folder: str, names: Iterable[str], copies: Dict[str, str]
) -> None:
    """Make a folder on the robot, and copy into it what is there elsewhere and not yet in it."""
    parents = {posixpath.dirname(posixpath.join(folder, name)) for name in names}
    lines = [f"mkdir -p -- {shlex.quote(parent)}" for parent in sorted(parents)]
    for name, source in copies.items():
        path = shlex.quote(posixpath.join(folder, name))
        lines.append(f"[ -f {path} ] || cp -- {shlex.quote(source)} {path} || :")
    await session.script(lines)


async def _known(session: _Session, releases: str, wanted: Dict[str, str]) -> Dict[str, str]:
    """Find files of the robot's releases that say they have the content of wanted ones."""
    import asyncssh

    paths: Dict[str, str] = {}
    try:
        keys = [str(key) for key in await session.sftp.listdir(releases)]
    except asyncssh.SFTPError:
        return {}
    for key in sorted(key for key in keys if re.fullmatch("[0-9a-f]{12}", key)):
        where = posixpath.join(releases, key, MANIFEST)
        try:
            if (await session.sftp.stat(where)).size > _LARGEST_MANIFEST:
                continue
            async with session.sftp.open(where, "rb") as file:
                manifest = decode_manifest(await file.read(), where=where)
        except (asyncssh.SFTPError, ManifestError):
            continue  # of another version, or damaged: everything is sent
        for name, entry in manifest.files.items():
            paths[entry.sha256] = posixpath.join(releases, key, name)
    return {name: paths[sha256] for name, sha256 in wanted.items() if sha256 in paths}


def _connected(
    remote: RemoteTarget, options: SshOptions, work: Callable[[_Session], Awaitable[T]]
) -> T:
    """Connect, do some work, and turn what goes wrong into a ``DeployError``."""
    try:
        import asyncssh
    except ImportError as exc:
        raise DeployError(
            f"{remote}: SSH needs asyncssh, which is not installed: pip install 'splitrt[deploy]'"
        ) from exc

    async def run() -> T:
        given: Dict[str, Any] = {"username": remote.user}
        if options.port is not None:
            given["port"] = options.port
        if options.identity is not None:
            given["client_keys"] = [options.identity]
        if options.known_hosts is not None:
            given["known_hosts"] = options.known_hosts
        async with asyncssh.connect(
            remote.host,
            connect_timeout=_CONNECT_S,
            login_timeout=_CONNECT_S,
            keepalive_interval=_KEEPALIVE_S,
            **given,
        ) as connection, connection.start_sftp_client() as sftp:
            session = _Session(connection, sftp, remote, options.remote_bin or "")
            await session.begin()
            return await work(session)

    login = f"{remote.user}@{remote.host}"
    try:
        return asyncio.run(run())
    except asyncssh.HostKeyNotVerifiable as exc:
        raise DeployError(
            f"{login}: its host key is not known, nothing was sent ({exc.reason}); connect once "
            f"with `ssh {login}` and compare the fingerprint, or give --known-hosts FILE"
        ) from exc
    except asyncssh.PermissionDenied as exc:
        raise DeployError(
            f"{login}: no key was accepted ({exc.reason}); `ssh-copy-id {login}`, or give "
            "--identity FILE"
        ) from exc
    except (asyncssh.KeyImportError, asyncssh.ConfigParseError) as exc:
        raise DeployError(f"{login}: a key or ~/.ssh/config cannot be read: {exc}") from exc
    except asyncssh.Error as exc:
        raise DeployError(
            f"{remote}: broken off: {exc.reason}; --list {remote} says what is current, deploying "
            "again sends the rest"
        ) from exc
    except (OSError, asyncio.TimeoutError) as exc:
        said = str(exc) or f"no answer within {_CONNECT_S:.0f} s"
        raise DeployError(f"{login}: cannot be reached: {said}") from exc


def _with_path(remote: RemoteTarget) -> RemoteTarget:
    if not remote.path:
        raise DeployError(
            f"{remote.user}@{remote.host}: expected where releases lie, given no path; "
            f"write {remote.user}@{remote.host}:PATH"
        )
    return remote


def _json(session: _Session, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise DeployError(
            f"{session.remote}: expected JSON of its split-deploy, given {text[:80]!r}; "
            "install the same version of SplitRT on both"
        ) from exc


def _release(record: Any) -> Release:
    return Release(
        str(record["release"]),
        Path(str(record["folder"])),
        current=bool(record["current"]),
        previous=bool(record["previous"]),
    )
