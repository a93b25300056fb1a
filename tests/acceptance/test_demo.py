"""The demo, `up` and beat as real processes: what they show, and that they leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import shlex
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
from waooaw_celery.testing.embedded import end_all, free_port

pytestmark = pytest.mark.timeout(400)  # the demo takes half a minute, and minutes on a busy computer

Start = Callable[..., "subprocess.Popen[str]"]


def _obey_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def waooaw(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts `waooaw` with its own temporary folder; the process ends with the test."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "tmp").mkdir()

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "waooaw_celery", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The program must not use servers that these variables name.
            env=os.environ
            | {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0"}
            | {"TMPDIR": str(tmp_path / "tmp"), "COLUMNS": "80"},
            start_new_session=True,
            # A shell that runs the tests in the background has them ignore Ctrl-C, and they would pass that on.
            preexec_fn=_obey_ctrl_c,
        )
        started.append(process)
        return process

    yield start
    end_all(started)  # type: ignore[arg-type]
    for process in started:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def leftovers(tmp_path: Path) -> tuple[list[str], list[str]]:
    """Return the files in the program's temporary folder, and the processes whose TMPDIR is in it."""
    mark = f"TMPDIR={tmp_path / 'tmp'}".encode()
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                processes.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended, or belongs to another user
    return [str(path) for path in (tmp_path / "tmp").iterdir()], processes


def assert_nothing_is_left(tmp_path: Path) -> None:
    try:
        until(lambda: leftovers(tmp_path) == ([], []), "the end of all processes", 20)
    finally:
        assert leftovers(tmp_path) == ([], [])


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder with thirty texts, two near-duplicates, a README, an unreadable file and a hidden file."""
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
    """Every document is measured, URGENT overtakes LOW, all agents answer, all messages are handled."""
    demo = waooaw("demo", "--input", str(documents), "--json")
    output, errors = demo.communicate(timeout=300)
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
    assert overtaking["receipt"]["status"] == "handled"
    assert {"analyst-1", "analyst-2", "archivist", "orchestrator"} <= set(result["survey"])
    assert all(answer["error"] is None for answer in result["survey"].values())
    checked = {check["agent"]: check["status"] for check in result["health"]}
    assert checked == dict.fromkeys(("orchestrator", "analyst-1", "analyst-2", "archivist", "dashboard"), 200)
    outside = result["outside"]
    assert (outside["answer"], outside["status"], outside["from_agent"]) == (12, "handled", "edge")
    assert outside["identity"].startswith("a2a:")
    assert "words" in outside["skills"]
    failures = result["failures"]
    assert (failures["rate_limit"]["answered"], failures["rate_limit"]["refused"]) == (3, 5)
    assert 0 < failures["rate_limit"]["retry_after"] <= 12.01
    assert failures["invalid_document"]["reason"] == "KeyError: 'text'"
    killed = failures["killed_workflow"]
    assert killed["recorded"] >= 10
    assert killed["documents"] == killed["asked"] == 40
    assert killed["result"] == {"title": "A report", "words": 20_000, "documents": 40, "approved_by": "Ada"}
    assert killed["refused"] == "compensated: Ada refused 'Another report'"
    assert killed["filed"] == ["A report"]
    hung = failures["hanging_agent"]
    assert hung["timed_out"] >= 3
    assert hung["refused_after"] < 0.3  # it did not wait for its timeout
    assert 0 < hung["retry_after"] <= 1
    lost = failures["lost_messages"]
    assert lost["republished"] > 0
    assert lost["sent"] == lost["handled"] == 60
    assert lost["begun_twice"] == 0
    assert all(set(statuses) == {"handled"} for statuses in result["messages"].values())
    [topic] = result["topics"]
    subscribers = {each["subscriber"]: each for each in topic["subscribers"]}
    # Thirty texts are long; the two twins and the README are not.
    assert (topic["topic"], topic["published"]) == ("document.measured", 33)
    assert subscribers["dashboard.count"]["handled"] == 33
    assert subscribers["dashboard.note_long"]["handled"] == subscribers["dashboard.note_long"]["messages"] == 30
    assert result["messages"]["archivist"]["handled"] >= 33
    assert_nothing_is_left(tmp_path)


@pytest.mark.slow
def test_the_demo_tells_a_story_in_80_columns(waooaw: Start, documents: Path) -> None:
    """It introduces the agents, shows what happened with whole ids and no warning, and ends with a command."""
    demo = waooaw("demo", "--input", str(documents))
    output, errors = demo.communicate(timeout=300)
    assert demo.returncode == 0, errors
    for part in (
        "archivist     stores the analysts' reports",
        "text-07.txt",
        "broken.txt was skipped",
        "2. Every message has a status",
        "URGENT README.md overtook",
        "(subscribers)",
        "dashboard.note_long",
        "answered requests     3",
        "KeyError: 'text'",
        "reports that stay filed",
        "published again",
    ):
        assert part in output
    assert re.search(r"begun +\d\d:\d\d:\d\d\.\d{3} +number \d+ of \d+", output)
    assert re.search(r"message +[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n", re.sub(" +\n", "\n", output))
    assert re.search(r"dead letter +\d+-\d+\n", output)
    assert errors == ""
    *story, command = output.splitlines()
    assert max(map(len, story)) <= 80
    assert "…" not in output.split("1. The result")[1]
    # Started as `python -m`: the last line names the program beside this Python, if there is one.
    script = Path(sys.executable).with_name("waooaw")
    program = shlex.split(command.removesuffix(" up"))
    assert Path(program[0]).resolve() == (script if script.exists() else Path(sys.executable)).resolve()


@pytest.mark.slow
def test_the_console_stays_open_at_the_end(waooaw: Start, tmp_path: Path) -> None:
    """With --console, each printed address answers until Ctrl-C, which ends all processes."""
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in range(12):
        (documents / f"{number}.txt").write_text("some words " * 100)
    demo = waooaw("demo", "--input", str(documents), "--console")
    assert demo.stdout is not None
    addresses: list[str] = []
    for line in demo.stdout:
        addresses += re.findall(r"http://\S+", line)
        if len(addresses) == 3:
            break
    for address in addresses:
        with urllib.request.urlopen(address, timeout=20) as answer:  # noqa: S310 - http
            assert answer.status == 200
    assert "conversations/" in addresses[1]
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 0
    assert_nothing_is_left(tmp_path)


@pytest.mark.slow
def test_a_folder_without_documents_is_an_error(waooaw: Start, tmp_path: Path) -> None:
    """With an empty folder, the demo ends with an error of one sentence and stops all processes."""
    (tmp_path / "empty").mkdir()
    demo = waooaw("demo", "--input", str(tmp_path / "empty"))
    _, errors = demo.communicate(timeout=300)
    assert demo.returncode == 1
    assert "there are no text documents in" in errors
    assert_nothing_is_left(tmp_path)


def up(waooaw: Start, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start `waooaw up`, wait until it is ready, and return it with its output."""
    process = waooaw("up", *arguments)
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("Logs:"):
            return process, output
    pytest.fail(f"waooaw up ended: {output}{process.stderr and process.stderr.read()}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_up_runs_until_a_signal(waooaw: Start, tmp_path: Path, number: signal.Signals) -> None:
    """Broker, console and Flower answer at the printed addresses; Ctrl-C and a closed terminal stop everything."""
    port = free_port()
    process, output = up(waooaw, "--port", str(port))
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert f"export CELERY_BROKER_URL=redis://127.0.0.1:{port}/0" in output
    page = re.search(r"Flower: +(http://\S+)", output)
    assert page is not None
    console = re.search(r"Console: +(http://\S+)", output)
    assert console is not None
    with urllib.request.urlopen(console[1], timeout=20) as answer:  # noqa: S310 - http
        assert "analyst-1" in answer.read().decode()

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{page[1]}/healthcheck", timeout=5) as response:  # noqa: S310 - http
                return bool(response.status == 200)
        except OSError:
            return False

    until(answers, "Flower's page")
    done = subprocess.run(
        [sys.executable, "-m", "waooaw_celery", "request", "dashboard", "survey"],
        env=os.environ | dict(re.findall(r"export (\w+)=(\S+)", output)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["archivist"]["status"] == {"stored": 0}
    process.send_signal(number)
    process.wait(60)
    assert_nothing_is_left(tmp_path)


@pytest.mark.slow
def test_a_process_that_dies_ends_all_with_its_output(waooaw: Start, tmp_path: Path) -> None:
    """When a worker is killed, the error of `up` names it, and all processes are stopped."""
    process, _ = up(waooaw)
    worker = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "archivist@"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    os.kill(int(worker), signal.SIGKILL)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "archivist ended with exit code -9" in errors
    assert_nothing_is_left(tmp_path)


def test_a_port_in_use_is_an_error_before_anything_starts(waooaw: Start, tmp_path: Path) -> None:
    """`up` on a port in use ends with an error of one sentence."""
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


@pytest.mark.slow
def test_beat_and_the_system_worker_expire_messages(redis_url: str, tmp_path: Path) -> None:
    """With real beat and worker processes, a message to an agent without a worker becomes EXPIRED."""
    broker = Broker(redis_url, redis_url, tmp_path)
    absent = broker.name()
    app = broker.app(waooaw_agents=[absent])
    message = Message(from_agent="tests", to_agent=absent, ttl_seconds=1)
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
