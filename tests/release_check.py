"""The check-list of a release, which `python3 dev.py release --check` runs. It publishes nothing.

Each check has a name, what it finds, and what to do about it. The exit code is 1 if one of them fails. With names,
such as `python3 dev.py release --check version tree`, only those run.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "waooaw_celery"
STATIC = PACKAGE / "console" / "static"
#: Seconds for the longest step: the installation into empty environments.
STEP_SECONDS = 900

#: What a check has found wrong; empty: nothing.
Problems = list[str]


def version() -> str:
    """Return the version that setup.cfg has."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config["metadata"]["version"]


def call(*command: str | Path, cwd: Path = ROOT) -> tuple[int, str]:
    """Run a program; return its exit code and what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=STEP_SECONDS, check=False)
    return done.returncode, (done.stdout + done.stderr).strip()


def ends_well(*command: str | Path) -> Problems:
    """Run a program of this environment; return the end of its output if it fails."""
    code, output = call(sys.executable, "-m", *command)
    return [] if code == 0 else ["\n".join(output.splitlines()[-8:])]


def check_version() -> Problems:
    """The changelog's first version is that of setup.cfg, and has the day of the release."""
    first = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    heading = first[1] if first else ""
    if re.fullmatch(rf"\[{re.escape(version())}\] - \d{{4}}-\d\d-\d\d", heading):
        return []
    return [f"setup.cfg has {version()}, and the first heading of CHANGELOG.md is {heading!r}"]


def check_tree() -> Problems:
    """Nothing is changed or untracked."""
    code, output = call("git", "status", "--porcelain")
    return [output] if code or output else []


def check_tag() -> Problems:
    """The tag of this version does not exist."""
    code, output = call("git", "tag", "--list", f"v{version()}")
    return [output or "git does not answer"] if code or output else []


def check_migrations() -> Problems:
    """The migrations have one head."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(PACKAGE / "ledger" / "database" / "migrations"))
    heads = ScriptDirectory.from_config(config).get_heads()
    return [] if len(heads) == 1 else [f"heads: {', '.join(heads)}"]


def check_licences() -> Problems:
    """Each bundled file of others is named with its licence beside it."""
    told = (STATIC / "README.md").read_text()
    unnamed = [path.name for path in sorted(STATIC.glob("*.min.*")) if path.name not in told]
    problems = [f"{name} is not in {STATIC.relative_to(ROOT)}/README.md" for name in unnamed]
    if "licence" not in told:
        problems.append(f"{STATIC.relative_to(ROOT)}/README.md names no licence")
    [said] = re.findall(r"`htmx\.min\.js` is htmx (\S+),", told) or [""]
    if f'version:"{said}"' not in (STATIC / "htmx.min.js").read_text():
        problems.append(f"htmx.min.js is not the version {said} that its README.md names")
    return problems


@contextmanager
def built() -> Iterator[Path]:
    """A folder with the sdist and the wheel of what git tracks, built as a distributor builds it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code, output = call("git", "archive", "--format=tar", "--output", folder / "source.tar", "HEAD")
        if code == 0:
            (folder / "source").mkdir()
            code, output = call("tar", "-xf", folder / "source.tar", "-C", folder / "source")
        if code == 0:
            code, output = call(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "source")
        if code:
            raise RuntimeError(output[-2000:])
        yield folder / "dist"


def check_build() -> Problems:
    """Wheel and sdist are built; twine accepts them and the long description; the wheel has every tracked file."""
    with built() as folder:
        files = sorted(folder.iterdir())
        problems = ends_well("twine", "check", "--strict", *files)
        [wheel] = folder.glob("*.whl")
        with ZipFile(wheel) as archive:
            packed = set(archive.namelist())
    _, tracked = call("git", "ls-files", "waooaw_celery")
    problems += [f"not in the wheel: {name}" for name in tracked.splitlines() if name not in packed]
    if not any(name.endswith("/licenses/LICENSE") for name in packed):
        problems.append("not in the wheel: LICENSE")
    return problems


def check_pages() -> Problems:
    """Links, commands and code of the pages, and the form of the changelog."""
    return ends_well("pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests/unit/test_docs.py")


def check_site() -> Problems:
    """The documentation site is built without a warning."""
    with tempfile.TemporaryDirectory() as folder:
        return ends_well("sphinx", *SPHINX, "-d", f"{folder}/doctrees", "docs", f"{folder}/site")


def check_install() -> Problems:
    """Wheel and sdist work in empty environments of each Python on this computer."""
    return ends_well("pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests/acceptance/test_wheel.py")


#: How the site is built: warnings are errors, and all of them are shown.
SPHINX = ("-b", "html", "-q", "-W", "--keep-going", "-j", "auto")

#: Each check, and what to do when it fails.
CHECKS: dict[str, tuple[Callable[[], Problems], str]] = {
    "version": (check_version, "write the version into setup.cfg, and `## [version] - day` into CHANGELOG.md"),
    "tree": (check_tree, "commit or remove what is listed"),
    "tag": (check_tag, "this version is out already: raise the version in setup.cfg"),
    "migrations": (check_migrations, "give the newer migration the other one as its down_revision"),
    "licences": (check_licences, "name the file, its version and its licence in the README.md beside it"),
    "build": (check_build, "list missing files in setup.cfg (package_data) or MANIFEST.in; correct README.md"),
    "pages": (check_pages, "correct what the failed test names: python3 dev.py test tests/unit/test_docs.py"),
    "site": (check_site, "correct the page that the warning names: python3 dev.py docs"),
    "install": (check_install, "python3 dev.py test tests/acceptance/test_wheel.py shows the whole error"),
}


def main(names: list[str]) -> int:
    """Run the checks of these names, or all; print each with its result; return the exit code."""
    unknown = set(names) - set(CHECKS)
    if unknown:
        print(f"no such check: {', '.join(sorted(unknown))}. The checks are: {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or CHECKS:
        check, advice = CHECKS[name]
        problems = check()
        failed += bool(problems)
        print(f"{'FAIL' if problems else 'ok  '} {name}: {(check.__doc__ or '').strip()}", flush=True)
        for problem in problems:
            print("     " + problem.replace("\n", "\n     "))
        if problems:
            print(f"     Do this: {advice}.")
    print(f"{failed} of {len(names or CHECKS)} checks failed." if failed else f"{version()} may be released.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
