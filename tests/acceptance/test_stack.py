"""The demo, `up` and beat, as real processes: what they show, and that nothing of them stays."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Broker, until

from waooaw_celery import Message, MessageBus, MessageStatus
from waooaw_celery.embedded import end_all, free_port

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def waooaw(tmp_path: Path) -> Iterator[Start]:
    """Start `waooaw` with a temporary folder of its own; it is ended when the test is over."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "tmp").mkdir()

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "waooaw_celery", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Servers that the user has elsewhere are none of its business.
            env=os.environ
            | {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0"}
            | {"TMPDIR": str(tmp_path / "tmp"), "COLUMNS": "120"},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    end_all(started)  # type: ignore[arg-type]
    for process in started:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def left_behind(tmp_path: Path) -> tuple[list[str], list[str]]:
    """Return the files in the program's temporary folder, and the processes that were told of it."""
    mark = f"TMPDIR={tmp_path / 'tmp'}".encode()  # or a folder in it
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                processes.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
    return [str(path) for path in (tmp_path / "tmp").iterdir()], processes


def assert_nothing_is_left(tmp_path: Path) -> None:
    try:
        until(lambda: left_behind(tmp_path) == ([], []), "the end of everything", 20)
    finally:
        assert left_behind(tmp_path) == ([], [])


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder with thirty texts, two of them nearly the same, one unreadable, one hidden."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(30):
        words = " ".join(f"word{number}x{index % 400}" for index in range(3000))
        (folder / f"text-{number:02}.txt").write_text(f"Document {number} tells of harbours. {words}.")
    twin = " ".join(f"same{index}" for index in range(500))
    (folder / "twin-a.md").write_text(f"The first. {twin}")
    (folder / "twin-b.md").write_text(f"The other. {twin}")
    (folder / "README.md").write_text("# Read me\n\nThis one is urgent.")
    (folder / "broken.txt").write_bytes(b"\xff\xfe\x00")
    (folder / ".hidden.md").write_text("not for anyone")
    return folder


def test_the_demo_does_the_whole_job_and_leaves_nothing(waooaw: Start, documents: Path, tmp_path: Path) -> None:
    """Every document is measured, URGENT overtook LOW, everyone answered, every message was handled."""
    demo = waooaw("demo", "--input", str(documents), "--json")
    output, errors = demo.communicate(timeout=100)
    assert demo.returncode == 0, errors
    result = json.loads(output)
    assert [report["path"] for report in result["documents"]] == sorted(
        path.name for path in documents.iterdir() if path.name not in ("broken.txt", ".hidden.md")
    )
    assert list(result["skipped"]) == ["broken.txt"]
    overtaking = result["overtaking"]
    assert overtaking["path"] == "README.md"
    assert overtaking["overtaken"] >= 1
    assert overtaking["begun_as"] == overtaking["sent_as"] - overtaking["overtaken"]
    assert overtaking["receipt"]["priority"] == "URGENT"
    assert {"analyst-1", "analyst-2", "archivist", "orchestrator"} <= set(result["survey"])
    assert all(answer["error"] is None for answer in result["survey"].values())
    assert (result["limited"]["answered"], result["limited"]["refused"]) == (3, 5)
    assert 0 < result["limited"]["retry_after"] <= 12.01
    assert result["torn"]["reason"] == "KeyError: 'text'"
    forgotten = result["forgotten"]
    assert 0 < forgotten["published_again"] <= forgotten["sent"] == forgotten["handled"]
    assert forgotten["twice"] == 0
    assert all(set(statuses) == {"handled"} for statuses in result["messages"].values())
    [topic] = result["topics"]
    told = {each["subscriber"]: each for each in topic["subscribers"]}
    long = sum(document["words"] >= 1000 for document in result["documents"])
    assert (topic["topic"], topic["published"]) == ("document.measured", len(result["documents"]))
    assert told["dashboard.count"]["handled"] == topic["published"]
    assert told["dashboard.note_long"]["handled"] == told["dashboard.note_long"]["messages"] == long
    assert result["messages"]["archivist"]["handled"] >= len(result["documents"])
    assert_nothing_is_left(tmp_path)


def test_the_demo_shows_its_results(waooaw: Start, documents: Path) -> None:
    """Without --json there are tables, the overtaking with its times, and how long it took."""
    demo = waooaw("demo", "--input", str(documents))
    output, errors = demo.communicate(timeout=100)
    assert demo.returncode == 0, errors
    for part in (
        "text-07.txt",
        "Messages by agent and status",
        "What the ledger tells of that message",
        "URGENT README.md overtook",
        "What the agents told the dashboard",
        "kept as the dead letter",
        "gone from the broker, published again",
        "broken.txt was left out",
        "s in all",
        "waooaw up",
    ):
        assert part in output
    assert re.search(r"begun +\d\d:\d\d:\d\d\.\d{3} +\d+\. of \d+", output)


def test_a_folder_without_documents_is_told(waooaw: Start, tmp_path: Path) -> None:
    """An empty folder ends with a sentence, and everything is stopped."""
    (tmp_path / "empty").mkdir()
    demo = waooaw("demo", "--input", str(tmp_path / "empty"))
    _, errors = demo.communicate(timeout=100)
    assert demo.returncode == 1
    assert "there are no text documents in" in errors
    assert_nothing_is_left(tmp_path)


def up(waooaw: Start, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start `waooaw up` and return it and what it said when it was ready."""
    process = waooaw("up", *arguments)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("Logs:"):
            return process, said
    pytest.fail(f"waooaw up ended: {said}{process.stderr and process.stderr.read()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_up_runs_until_it_is_told_to_stop(waooaw: Start, tmp_path: Path, number: signal.Signals) -> None:
    """The broker and Flower answer where it says; Ctrl-C and a closed terminal end everything."""
    port = free_port()
    process, said = up(waooaw, "--port", str(port))
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert f"export CELERY_BROKER_URL=redis://127.0.0.1:{port}/0" in said
    page = re.search(r"Flower: (http://\S+)", said)
    assert page is not None

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{page[1]}/healthcheck", timeout=5) as response:  # noqa: S310 - http
                return bool(response.status == 200)
        except OSError:
            return False

    until(answers, "Flower's page")
    done = subprocess.run(
        [sys.executable, "-m", "waooaw_celery", "request", "dashboard", "survey"],
        env=os.environ | dict(re.findall(r"export (\w+)=(\S+)", said)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["archivist"]["status"] == {"kept": 0}
    process.send_signal(number)
    process.wait(30)
    assert_nothing_is_left(tmp_path)


def test_a_child_that_dies_ends_the_rest_with_its_last_words(waooaw: Start, tmp_path: Path) -> None:
    """When a worker is killed, `up` says which one and stops everything."""
    process, _ = up(waooaw)
    worker = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "archivist@"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    os.kill(int(worker), signal.SIGKILL)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "archivist ended with exit code -9" in errors
    assert_nothing_is_left(tmp_path)


def test_a_port_in_use_is_told_before_anything_is_started(waooaw: Start, tmp_path: Path) -> None:
    """`up` on a port that something holds is one sentence."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        for option, what in (("--port", "Valkey"), ("--flower-port", "Flower")):
            process = waooaw("up", option, port)
            _, errors = process.communicate(timeout=40)
            assert process.returncode == 1
            assert f"port {port} for {what} cannot be used" in errors
    assert_nothing_is_left(tmp_path)


def test_beat_and_the_system_worker_expire_what_nobody_began(redis_url: str, tmp_path: Path) -> None:
    """With real beat and worker processes, a message to an absent agent ends as EXPIRED by itself."""
    broker = Broker(redis_url, redis_url, tmp_path)
    absent = broker.name()
    app = broker.app(waooaw_agents=[absent])
    message = Message(from_agent="tests", to_agent=absent, ttl_seconds=0.1)
    MessageBus(app).send(message)
    env = os.environ | {"CELERY_BROKER_URL": redis_url, "WAOOAW_SWEEP_SECONDS": "1"}
    root = Path(__file__).parents[2]
    celery = [sys.executable, "-m", "celery", "-A", "beat_schedule"]
    commands = (
        [*celery, "beat", "--schedule", str(tmp_path / "schedule")],
        [*celery, "worker", "-n", f"{broker.name()}@%h", "-c", "1", "--without-mingle", "--without-gossip"],
    )
    processes = [
        subprocess.Popen(
            command,
            cwd=root,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        until(lambda: MessageBus(app).receipt(message.message_id).status is MessageStatus.EXPIRED, "the sweep")
    finally:
        end_all(processes)
        app.close()
        broker.clean()
