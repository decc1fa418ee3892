"""The processes of the service: they listen on loopback, hang up on who dawdles, come back when killed, and end in peace."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import served_shop
from running_service import Running, running

from pipelines.config import REPOSITORY, Home
from pipelines.errors import StateError
from pipelines.serving import server
from pipelines.serving_policies import LimitPolicy


@pytest.fixture(scope="module")
def service(open_house: tuple[Home, Any]) -> Iterator[Running]:
    home, made = open_house
    with running(made, home, LimitPolicy(slow_seconds=0.3, max_header_bytes=2048)) as found:
        yield found


def exchange(service: Running, *parts: bytes, pause: float = 0.0) -> tuple[bytes, float]:
    """Send parts with pauses; return all that came back until the other side hung up, and how long that took."""
    address = urlsplit(service.address)
    begun, got = time.monotonic(), b""
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while more := connection.recv(65536):
                got += more
        except (ConnectionError, BrokenPipeError):
            pass
    return got, time.monotonic() - begun


def test_who_sends_headers_drop_by_drop_is_hung_up_on(service: Running) -> None:
    got, took = exchange(service, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n", *[b"x: y\r\n"] * 20, pause=0.1)
    assert got == b""
    assert took < 5


def test_who_says_nothing_is_hung_up_on(service: Running) -> None:
    got, took = exchange(service)
    assert (got, took < 5) == (b"", True)


def test_who_dawdles_after_a_good_request_is_hung_up_on(service: Running) -> None:
    good = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    got, took = exchange(service, good, b"GET /healthz HT", pause=0.1)
    assert got.startswith(b"HTTP/1.1 200")
    assert took < 5


def test_headers_that_are_too_long_are_refused(service: Running) -> None:
    got, _ = exchange(service, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 3000 + b"\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 431")
    assert b'"error":"too_long"' in got
    endless, _ = exchange(service, b"GET /healthz HTTP/1.1\r\nx: ", *[b"y" * 60_000] * 3)
    assert b"200" not in endless


def test_what_is_no_http_is_refused_and_others_are_served_meanwhile(service: Running) -> None:
    slow = [threading.Thread(target=exchange, args=(service, b"POST /v1/events HTTP/1.1\r\n"), kwargs={"pause": 0.2}) for _ in range(20)]
    for thread in slow:
        thread.start()
    assert service.get("/healthz")[0] == 200
    assert exchange(service, b"\x16\x03\x01\x00garbage\r\n\r\n")[0].startswith(b"HTTP/1.1 400")
    for thread in slow:
        thread.join()


GOOD = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
LIST = b"GET /v1/trending?k=1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def opened(service: Running, *lines: bytes) -> socket.socket:
    """Return a connection that stays open, after an answer to each line."""
    address = urlsplit(service.address)
    connection = socket.create_connection((address.hostname, address.port), timeout=20)
    for line in lines:
        connection.sendall(line)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    return connection


def closed(connection: socket.socket) -> bool:
    """Tell whether the other side has hung up."""
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_idle_connections_keep_nobody_out_and_the_one_idle_longest_goes_first(open_house: tuple[Home, Any]) -> None:
    home, made = open_house
    with running(made, home, LimitPolicy(max_connections=40, max_requests=2)) as service:
        idle = [opened(service, GOOD) for _ in range(60)]
        again = idle[25]
        again.sendall(GOOD)  # not idle for long
        assert again.recv(65536).startswith(b"HTTP/1.1 200")
        assert exchange(service, LIST)[0].startswith(b"HTTP/1.1 200")
        open_still = [place for place, one in enumerate(idle) if not closed(one)]
        assert 38 <= len(open_still) <= 40
        assert open_still == sorted([*range(60 - len(open_still), 60)])
        more = [opened(service, GOOD) for _ in range(10)]
        assert not closed(again), "who asked a moment ago stays"
        for one in (*idle, *more):
            one.close()


def test_more_requests_than_have_room_are_told_to_come_back_and_the_process_still_says_that_it_lives(open_house: tuple[Home, Any]) -> None:
    home, made = open_house
    with running(made, home, LimitPolicy(slow_seconds=10), limits_of_gate={"max_requests": 2}) as service:
        head = b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
        slow = [opened(service) for _ in range(2)]
        for one in slow:
            one.sendall(head)
        until(lambda: b" 503 " in exchange(service, LIST)[0][:20], 20)
        told = exchange(service, LIST)[0]
        assert b"retry-after: " in told.lower()
        assert b'"error":"overloaded"' in told
        assert service.get("/healthz")[0] == 200
        for one in slow:
            one.sendall(b"{}")
            assert b" 422 " in one.recv(65536)[:20]
        assert exchange(service, LIST)[0].startswith(b"HTTP/1.1 200")
        for one in slow:
            one.close()


def test_an_address_that_is_taken_is_said_so() -> None:
    taken = server.bound("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(StateError, match="name another --port"):
        server.bound("127.0.0.1", taken.getsockname()[1])
    taken.close()


def test_a_second_service_of_a_state_folder_is_refused_and_leaves_the_files_of_the_first(home: Home) -> None:
    kept = [home.serving / "metrics" / "counter_1.db", home.serving / "answers" / "1"]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.touch()
    listening = server.bound("127.0.0.1", 0)
    second = server.Supervisor(server.orders(home, "127.0.0.1"), listening, 1)
    with server.alone(home), pytest.raises(StateError, match=f"process {os.getpid()} serves it already"):
        second.run(lambda _: None)
    assert all(path.is_file() for path in kept)
    with server.alone(home):
        pass
    listening.close()


def test_settings_that_are_wrong_are_told_before_any_process_is_started(home: Home) -> None:
    home.root.mkdir(parents=True)
    (home.root / "reloop.toml").write_text("[serving.limits]\nmax_waiting = 5\n[serving.limits]\nmax_body = 9\n")
    with pytest.raises(StateError, match=r"reloop\.toml.*twice"):
        server.orders(home, "127.0.0.1")


def test_what_processes_of_before_said_of_themselves_is_gone_when_a_service_starts(home: Home) -> None:
    left = [home.serving / name for name in ("holders/7.json", "answers/7", "metrics/counter_7.db", "rates")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert list(server.cleared(home).iterdir()) == []
    assert not any(path.exists() for path in left)


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        body: bytes = answer.read()
    return body


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def until(true: Any, seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def processes(served: Home, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    home = served_shop.copied(served, tmp_path / "var")
    log = tmp_path / "serve.log"
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0", "--workers", "2", "--now", "data"]
    environment = {**os.environ, "RELOOP_HOME": str(home.root), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=REPOSITORY) as process:
        try:
            until(lambda: b"2 of 2 processes answer" in log.read_bytes(), 300)
            yield process, int(log.read_text().split("http://127.0.0.1:", 1)[1].split("/", 1)[0]), log
        finally:
            process.kill()


@pytest.mark.slow
def test_two_processes_answer_as_one_and_come_back_when_killed(processes: tuple[subprocess.Popen[bytes], int, Path]) -> None:
    process, port, _ = processes
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    pids = [process.pid, *workers_of(process.pid)]
    mine = [line.split()[3] for line in listening if any(f"pid={pid}," in line for pid in pids)]
    assert mine
    assert all(address.startswith(("127.", "[::1]")) for address in mine)

    names = [get(port, "/v1/trending?k=3") for _ in range(20)]
    requests = [name.split(b'"', 4)[3].decode() for name in names]
    assert all(b'"found":true' in get(port, f"/v1/requests/{name}/explanation") for name in requests)
    assert b"reloop_workers 2.0" in get(port, "/metrics")

    first = workers_of(process.pid)
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(workers_of(process.pid)) == 2 and workers_of(process.pid) != first)
    until(lambda: b"reloop_workers 2.0" in get(port, "/metrics"))
    assert get(port, "/healthz") == b'{"alive":true}'


@pytest.mark.slow
def test_a_stop_lets_requests_end_and_leaves_nobody_behind(processes: tuple[subprocess.Popen[bytes], int, Path]) -> None:
    process, port, log = processes
    workers, codes, over = workers_of(process.pid), list[int](), threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/users/u00000001/recommendations", timeout=30) as answer:
                    codes.append(answer.status)
            except ConnectionRefusedError:
                return
            except OSError as error:
                codes.append(0 if "refused" not in str(error) else 200)
                if "refused" in str(error):
                    return

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0, log.read_text()[-2000:]
    over.set()
    for thread in asking:
        thread.join()
    assert codes.count(200) > 10
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_workers_end_when_their_supervisor_is_killed(processes: tuple[subprocess.Popen[bytes], int, Path]) -> None:
    process, _, _ = processes
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    until(
        lambda: (
            not [
                pid
                for pid in workers
                if Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
            ]
        ),
        40,
    )
