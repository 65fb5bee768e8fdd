"""Deploying over SSH: a server of asyncssh on the loopback, and OpenSSH's where there is one."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from engines.bundle import Bundle
from engines.errors import DeployError
from runtime.deploy_cli import main
from runtime.deploy_ssh import (
    RemoteTarget,
    SshOptions,
    deploy_over_ssh,
    list_over_ssh,
    parse_remote,
    roll_back_over_ssh,
)
from tests.runtime.helpers import eventually
from tests.toy import write_toy_bundle

asyncssh = pytest.importorskip("asyncssh", reason="SSH needs splitrt[deploy]")

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"


class Robot:
    """A robot: its home, its SSH server, and keys for it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.keys = folder / "keys"
        for path in (self.home, self.bin, self.keys):
            path.mkdir()
        command = self.bin / "split-deploy"
        code = "from runtime.deploy_cli import main; main()"
        command.write_text(
            f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' -c '{code}' \"$@\"\n"
        )
        command.chmod(0o755)
        for name in ("host", "user", "stranger"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(str(self.keys / name))
            key.write_public_key(str(self.keys / f"{name}.pub"))
            (self.keys / name).chmod(0o600)
        self.port = 0
        self.written: list[str] = []
        self.dropped: str | None = None
        """A file at whose writing the link breaks."""

    def know(self, key: str = "host") -> None:
        public = (self.keys / f"{key}.pub").read_text()
        (self.keys / "known_hosts").write_text(f"[{HOST}]:{self.port} {public}")

    def options(self, identity: str = "user", remote_bin: str | None = None) -> SshOptions:
        return SshOptions(
            port=self.port,
            identity=str(self.keys / identity),
            known_hosts=str(self.keys / "known_hosts"),
            remote_bin=str(self.bin) if remote_bin is None else remote_bin,
        )

    def target(self, name: str = "models") -> RemoteTarget:
        return RemoteTarget(getpass.getuser(), HOST, str(self.home / name))

    def deploy(self, bundle: Bundle, name: str = "models", *more: str) -> Any:
        arguments = more or ("--no-prepare",)
        return deploy_over_ssh(bundle, self.target(name), self.options(), arguments=arguments)

    def current(self, name: str = "models") -> str:
        return Bundle.open(self.home / name).digest

    def left(self, name: str = "models") -> list[str]:
        """List what lies beside the releases."""
        return [
            path.name for path in (self.home / name / "releases").iterdir() if len(path.name) != 12
        ]


class _Asyncssh:
    """asyncssh's server in a thread: a greeting, then the command by the user's shell; SFTP."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._run(ready))
        self._thread.start()
        assert ready.wait(30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self, ready: threading.Event) -> None:
        try:
            self._loop.run_until_complete(self._serve(ready))
        finally:
            self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        robot = self._robot

        class Files(asyncssh.SFTPServer):  # type: ignore[misc]
            def map_path(self, path: bytes) -> bytes:
                return os.path.join(os.fsencode(robot.home), path)

            def open(self, path: bytes, pflags: int, attrs: Any) -> Any:
                if pflags & asyncssh.FXF_WRITE:
                    name = os.path.basename(os.fsdecode(path))
                    if name == robot.dropped:
                        self.channel.get_connection().abort()
                    robot.written.append(name)
                return super().open(path, pflags, attrs)

        async def command(process: Any) -> None:
            env = {"HOME": str(robot.home), "PATH": os.environ["PATH"]}
            line = f"echo Welcome; {process.command}"
            running = await asyncio.create_subprocess_shell(
                line,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=robot.home,
                env=env,
            )
            out, err = await running.communicate((await process.stdin.read()).encode())
            process.stdout.write(out.decode())
            process.stderr.write(err.decode())
            process.exit(running.returncode)

        server = await asyncssh.listen(
            HOST,
            0,
            server_host_keys=[str(robot.keys / "host")],
            authorized_client_keys=str(robot.keys / "user.pub"),
            process_factory=command,
            sftp_factory=Files,
        )
        robot.port = server.get_port()
        ready.set()
        await self._stop.wait()
        server.close()
        await server.wait_closed()


class _OpenSSH:
    """A real sshd on a free port, with keys and configuration of its own."""

    def __init__(self, robot: Robot, program: str) -> None:
        with socket.socket() as sock:
            sock.bind((HOST, 0))
            robot.port = sock.getsockname()[1]
        config = robot.keys / "sshd_config"
        config.write_text(
            f"ListenAddress {HOST}\nPort {robot.port}\nHostKey {robot.keys / 'host'}\n"
            f"AuthorizedKeysFile {robot.keys / 'user.pub'}\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPidFile none\nPermitRootLogin prohibit-password\n"
            "Subsystem sftp internal-sftp\n"
        )
        self._log = robot.keys / "sshd.log"
        self._running = subprocess.Popen([program, "-D", "-f", str(config), "-E", str(self._log)])
        eventually(self._listens, "sshd that listens")

    def _listens(self) -> bool:
        assert self._running.poll() is None, self._log.read_text()
        return "listening" in (self._log.read_text() if self._log.exists() else "").lower()

    def close(self) -> None:
        self._running.terminate()
        self._running.wait()


@pytest.fixture(params=["asyncssh", "openssh"])
def robot(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Robot]:
    server: Any
    made = Robot(tmp_path, request.param)
    if request.param == "asyncssh":
        server = _Asyncssh(made)
    else:
        program = os.environ.get("SPLITRT_SSHD") or shutil.which("sshd", path="/usr/sbin:/sbin")
        if not program:
            pytest.skip("no sshd here; name one in SPLITRT_SSHD")
        server = _OpenSSH(made, program)
    made.know()
    try:
        yield made
    finally:
        server.close()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("other") / "other.bundle", seed=1)


def _watched(robot: Robot) -> list[str]:
    """Return the files that were sent, where the server tells, and forget them."""
    if robot.kind != "asyncssh":
        pytest.skip("sshd does not tell what it was sent")
    found, robot.written = robot.written, []
    return found


def test_a_bundle_is_sent_verified_and_made_current(robot: Robot, toy: Bundle) -> None:
    release = robot.deploy(toy)
    assert release.key == toy.digest[:12]
    assert release.current
    assert release.folder == robot.home / "models" / "releases" / release.key
    assert robot.current() == toy.digest
    assert robot.left() == []


def test_list_and_roll_back(robot: Robot, toy: Bundle, other: Bundle) -> None:
    robot.deploy(toy)
    robot.deploy(other)
    found = list_over_ssh(robot.target(), robot.options())
    assert {r.key: (r.current, r.previous) for r in found} == {
        toy.digest[:12]: (False, True),
        other.digest[:12]: (True, False),
    }
    assert roll_back_over_ssh(robot.target(), robot.options()).key == toy.digest[:12]
    assert robot.current() == toy.digest


def test_only_what_changed_is_sent(robot: Robot, toy: Bundle, other: Bundle) -> None:
    seen: list[tuple[int, int]] = []
    robot.deploy(toy)
    deploy_over_ssh(
        other,
        robot.target(),
        robot.options(),
        arguments=["--no-prepare"],
        progress=lambda done, of: seen.append((done, of)),
    )
    assert robot.current() == other.digest
    same = [
        entry.bytes
        for name, entry in other.manifest.files.items()
        if entry.sha256 in {e.sha256 for e in toy.manifest.files.values()}
    ]
    assert same, "the two bundles have nothing in common"
    assert seen[0][0] == sum(same)
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_is_there_is_not_sent_again(robot: Robot, toy: Bundle, other: Bundle) -> None:
    robot.deploy(toy)
    assert "manifest.json" in _watched(robot)
    robot.deploy(other)
    _watched(robot)
    robot.deploy(toy)
    assert _watched(robot) == []
    assert robot.current() == toy.digest


def test_a_damaged_file_on_the_robot_is_not_copied_from(robot: Robot, toy: Bundle) -> None:
    release = robot.deploy(toy)
    _watched(robot)
    (release.folder / "graph" / "weights.bin").write_bytes(b"damaged")
    robot.deploy(toy)
    assert _watched(robot) == ["weights.bin", "manifest.json", "manifest.sha256"]
    assert robot.current() == toy.digest


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "graph/weights.bin"])
def test_a_release_that_lost_a_file_is_replaced(robot: Robot, toy: Bundle, name: str) -> None:
    release = robot.deploy(toy)
    (release.folder / name).unlink()
    robot.deploy(toy)
    assert robot.current() == toy.digest
    assert robot.left() == []


def test_a_link_that_breaks_leaves_current_and_the_rest_is_sent_later(
    robot: Robot, toy: Bundle, other: Bundle
) -> None:
    robot.deploy(toy)
    _watched(robot)
    robot.dropped = "manifest.json"
    with pytest.raises(DeployError, match=r"broken off: .*--list .* says what is current"):
        robot.deploy(other)
    assert robot.current() == toy.digest
    assert "weights.bin" in _watched(robot)
    robot.dropped = None
    robot.deploy(other)
    assert _watched(robot) == ["manifest.json", "manifest.sha256"]
    assert robot.current() == other.digest
    assert robot.left() == []


def test_an_unknown_robot_is_sent_nothing(robot: Robot, toy: Bundle) -> None:
    (robot.keys / "known_hosts").write_text("")
    with pytest.raises(DeployError, match=r"host key is not known.*--known-hosts"):
        robot.deploy(toy)
    assert list(robot.home.iterdir()) == []


def test_a_robot_with_another_host_key_is_sent_nothing(robot: Robot, toy: Bundle) -> None:
    robot.know("stranger")
    with pytest.raises(DeployError, match="host key is not known, nothing was sent"):
        robot.deploy(toy)
    assert list(robot.home.iterdir()) == []


def test_a_stranger_is_not_let_in(robot: Robot, toy: Bundle) -> None:
    with pytest.raises(DeployError, match=r"no key was accepted.*ssh-copy-id"):
        deploy_over_ssh(toy, robot.target(), robot.options("stranger"))


def test_no_server_is_one_line(robot: Robot, toy: Bundle) -> None:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        robot.port = sock.getsockname()[1]
    with pytest.raises(DeployError, match="cannot be reached") as caught:
        robot.deploy(toy)
    assert "\n" not in str(caught.value)


def test_a_robot_without_splitrt_says_so_before_anything_is_sent(
    robot: Robot, toy: Bundle
) -> None:
    with pytest.raises(DeployError, match=r"no /nowhere/split-deploy.*--remote-bin"):
        deploy_over_ssh(toy, robot.target(), robot.options(remote_bin="/nowhere"))
    assert list(robot.home.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["with space", "it's", "$(touch pwned)", "`touch pwned`", "a;touch pwned", "a&&b|c", "-rf",
     "--help", 'say "x"', "back\\slash", "new\nline", "*", "%s"],
)  # fmt: skip
def test_names_mean_nothing_to_the_shell(robot: Robot, toy: Bundle, name: str) -> None:
    robot.deploy(toy, f"{name}/x")
    assert robot.current(f"{name}/x") == toy.digest
    assert [path.name for path in robot.home.iterdir()] == [name]
    assert [r.key for r in list_over_ssh(robot.target(f"{name}/x"), robot.options())] == [
        toy.digest[:12]
    ]


def test_a_relative_path_begins_at_home(robot: Robot, toy: Bundle) -> None:
    if robot.kind != "asyncssh":
        pytest.skip("the home of sshd's user is that of who runs the tests")
    for path in ("", "-here", "~/there"):
        remote = parse_remote(f"me@{HOST}:{path}")
        assert remote is not None
        deploy_over_ssh(toy, remote, robot.options(), arguments=["--no-prepare"])
    for place in (f"splitrt/{toy.manifest.name}", "-here", "there"):
        assert robot.current(place) == toy.digest


def test_a_release_is_proved_and_measured_before_the_switch(robot: Robot, toy: Bundle) -> None:
    release = robot.deploy(toy, "models", "--prepare", "--backend=ort")
    device = release.folder.with_name(f"{release.key}.device")
    assert [path.name for path in device.glob("latency-*.json")]
    assert robot.current() == toy.digest


def test_a_release_that_is_not_ready_leaves_current(
    robot: Robot, toy: Bundle, other: Bundle
) -> None:
    robot.deploy(toy)
    with pytest.raises(DeployError, match=r"is not ready: .*what was current still is") as caught:
        robot.deploy(other, "models", "--prepare", "--backend=none-such")
    assert "\n" not in str(caught.value)
    assert robot.current() == toy.digest
    assert robot.left() == []


def test_a_bundle_that_changes_while_it_is_sent_is_refused(
    robot: Robot, toy_copy: Path, other: Bundle
) -> None:
    robot.deploy(other)
    stale = Bundle.open(toy_copy)
    weights = toy_copy / "graph" / "weights.bin"
    weights.write_bytes(bytes(len(weights.read_bytes())))
    with pytest.raises(DeployError, match=r"weights\.bin: expected SHA-256"):
        robot.deploy(stale)
    assert robot.current() == other.digest
    assert robot.left() == []


def test_the_command(robot: Robot, toy: Bundle, other: Bundle) -> None:
    options = robot.options()
    ssh = ["--port", options.port, "--identity", options.identity,
           "--known-hosts", options.known_hosts, "--remote-bin", options.remote_bin]  # fmt: skip
    place = str(robot.target())

    def run(*args: object) -> Any:
        return CliRunner().invoke(main, [str(arg) for arg in [*args, *ssh]])

    for bundle in (toy, other):
        done = run(bundle.folder, place, "--no-prepare")
        assert done.exit_code == 0, done.stderr
        assert f"current is {bundle.digest[:12]} at {robot.home}" in done.stdout
    assert f"{toy.digest[:12]}  previous\n" in run("--list", place).stdout
    assert json.loads(run("--rollback", place, "--json").stdout)["release"] == toy.digest[:12]
    refused = run("--list", str(robot.target("nothing")))
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"error: {robot.target('nothing')}: ")
    assert "nothing is deployed there" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user@robot", ("user", "robot", "")),
        ("user@robot:", ("user", "robot", "")),
        ("user@robot:/opt/m", ("user", "robot", "/opt/m")),
        ("user@robot:a:b@c/d", ("user", "robot", "a:b@c/d")),
        ("user@robot:~/m", ("user", "robot", "m")),
        ("user@robot:~", ("user", "robot", ".")),
        ("user@[fe80::1%eth0]:m", ("user", "fe80::1%eth0", "m")),
        ("/opt/models", None),
        ("models", None),
        ("./user@robot:m", None),
        ("robot:m", None),
        ("a/b@c", None),
        ("us er@robot", None),
        ("@robot", None),
        ("user@", None),
    ],
)
def test_what_is_remote(text: str, expected: tuple[str, str, str] | None) -> None:
    found = parse_remote(text)
    assert found == (None if expected is None else RemoteTarget(*expected))


def test_a_path_that_exists_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user@robot:m").mkdir()
    assert parse_remote("user@robot:m") is None


def test_without_a_path_there_is_nothing_to_list() -> None:
    with pytest.raises(DeployError, match="write user@robot:PATH"):
        list_over_ssh(RemoteTarget("user", "robot", ""))
