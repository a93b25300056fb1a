"""All commands for developers: `dev.py demo | test | lint | docs | bench | faults | soak | mutants | release`.

Needs only Python 3.11 or newer. Creates the virtual environment `.venv`, installs the project with what the
command needs, and runs it. Further arguments go to the command: `python3 dev.py test -k priority`,
`python3 dev.py bench --quick`, `python3 dev.py bench questions`, `python3 dev.py faults --rounds 10 --write`.
`python3 dev.py docs` builds the site into build/site. `python3 dev.py release --check` runs the check-list of a
release. `python3 dev.py mutants limits` shows which random changes of a subpackage no unit test notices. It is
not part of CI.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"

#: The extras that tests need: all but that for other stores of large payloads.
ALL_FOR_TESTS = "embedded,testing,flower,protobuf,zstd,crypto,pydantic-ai,prometheus,otel,console,a2a,mcp,http"
#: What each command needs: extras of the project, and dependency groups of pyproject.toml.
NEEDS = {
    "demo": ("embedded,console,a2a", ()),
    "test": (ALL_FOR_TESTS, ("test",)),
    "lint": (ALL_FOR_TESTS, ("test", "lint")),
    "docs": ("all", ("docs",)),
    "release": ("all", ("test", "release")),
    "bench": ("embedded,protobuf,zstd,prometheus,otel,console,a2a,mcp,http", ("peers",)),
    "faults": ("embedded,protobuf,zstd,crypto", ("test",)),
    "soak": ("embedded,protobuf,zstd,crypto", ("test",)),
    "mutants": (ALL_FOR_TESTS, ("test", "mutants")),
}


def main(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    if sys.version_info < (3, 11):  # noqa: UP036 - older Pythons must be able to print this
        print(f"Python 3.11 or newer is required; this is {sys.version.split()[0]}.", file=sys.stderr)
        return 2
    if not arguments or arguments[0] not in NEEDS:
        wanted = bool({"-h", "--help", "help"} & set(arguments[:1]))
        print(__doc__, file=sys.stdout if wanted else sys.stderr)
        return 0 if wanted else 2
    command, *rest = arguments
    install(*NEEDS[command])
    commands = {
        "demo": demo,
        "test": test,
        "lint": lint,
        "docs": docs,
        "release": release,
        "bench": bench,
        "faults": faults,
        "soak": soak,
        "mutants": mutants,
    }
    return commands[command](rest)


def demo(arguments: list[str]) -> int:
    """Run the demo."""
    return become([str(PYTHON), "-m", "waooaw_celery", "demo", *arguments])


def test(arguments: list[str]) -> int:
    """Run the quick tests, or all of them with ``--all``; four files at a time, as they wait for processes."""
    os.chdir(ROOT)
    # The tests start some thousand processes: each would compile the package again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    selection = [] if "--all" in arguments else ["--quick"]
    rest = [argument for argument in arguments if argument != "--all"]
    # In the order of their folders: the many short unit tests come last, and fill the gaps beside the long ones.
    spread = ("-n", "4", "--dist", "loadfile", "--no-loadscope-reorder")
    return become([str(PYTHON), "-m", "pytest", *spread, *selection, *rest])


def lint(arguments: list[str]) -> int:
    """Check style, format and types."""
    steps = (["ruff", "check", *arguments], ["ruff", "format", "--check"], ["mypy"])
    return max([run([str(PYTHON), "-m", *step]) for step in steps])


def docs(arguments: list[str]) -> int:
    """Build the documentation site into build/site; a warning is an error."""
    strict = ("-b", "html", "-q", "-W", "--keep-going", "-j", "auto")
    code = run([str(PYTHON), "-m", "sphinx", *strict, "-d", "build/doctrees", "docs", "build/site", *arguments])
    if code == 0:
        print(f"Open {ROOT / 'build' / 'site' / 'index.html'}")
    return code


def release(arguments: list[str]) -> int:
    """Run the check-list of a release: `release --check`; nothing is published."""
    if arguments[:1] != ["--check"]:
        print("python3 dev.py release --check runs the check-list. Publishing is done by hand.", file=sys.stderr)
        return 2
    return run([str(PYTHON), str(ROOT / "tests" / "release_check.py"), *arguments[1:]])


def bench(arguments: list[str]) -> int:
    """Compare with plain Celery and other projects: `bench --quick`; or run one benchmark: `bench ledger`."""
    if arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
        if name == "questions":
            name, rest = "ledger", ["--only", "queries", *rest]
        if (ROOT / "benchmarks" / f"{name}.py").exists():
            return run([str(PYTHON), "-m", f"benchmarks.{name}", *rest])
        arguments = ["--only", name, *rest]
    return run([str(PYTHON), "-m", "benchmarks.suite", *arguments])


def faults(arguments: list[str]) -> int:
    """Cause every fault many times, on each broker and with plain Celery, and account for every message."""
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(ROOT / "tests")
    return become([str(PYTHON), "-m", "faults", *arguments])


def soak(arguments: list[str]) -> int:
    """Run agents under load while processes are killed and connections are cut: `soak --minutes 30`."""
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(ROOT / "tests")
    return become([str(PYTHON), "-m", "soak", *arguments])


def mutants(arguments: list[str]) -> int:
    """Mutate subpackages, such as `limits`, or modules, such as `wire.caps`, and run their unit tests."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return become([str(PYTHON), str(ROOT / "tests" / "mutation_testing.py"), *arguments])


def install(extras: str, groups: tuple[str, ...]) -> None:
    """Create the virtual environment and install the project, if something changed since the last time."""
    what = f"{extras} {groups} {(ROOT / 'setup.cfg').read_text()} {(ROOT / 'pyproject.toml').read_text()}"
    stamp = VENV / f"installed-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    if stamp.exists():
        return
    if not PYTHON.exists():
        make_venv()
    pip("install", "--upgrade", "pip>=25.1")  # the first that reads dependency groups
    options = [argument for group in groups for argument in ("--group", group)]
    pip("install", "--editable", f".[{extras}]", *options)
    stamp.touch()


def make_venv() -> None:
    """Create the virtual environment, or exit with the reason if that fails."""
    print(f"Creating {VENV.name} …", file=sys.stderr)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode:
        print(made.stdout + made.stderr, file=sys.stderr)
        raise SystemExit(
            "The virtual environment could not be created. On Debian and Ubuntu: apt install python3-venv"
        )


def pip(*arguments: str) -> None:
    """Run pip in the virtual environment, or exit if it fails."""
    if run([str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]):
        raise SystemExit("pip failed (see above). Fix the cause and run the command again.")


def become(command: list[str]) -> int:
    """Replace this process by a program, so that every signal reaches the program."""
    os.environ["PATH"] = f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execv(command[0], command)  # noqa: S606 - no shell is needed


def run(command: list[str]) -> int:
    """Run a program in the project's folder, with the virtual environment first on PATH."""
    env = os.environ | {"PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    try:
        return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    except KeyboardInterrupt:  # the program got the signal too, and has ended
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
