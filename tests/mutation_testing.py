"""Mutation testing: how many random changes of a subpackage make its own unit tests fail.

python3 dev.py mutants [subpackage or module ...] [--sample 60] [--seed 1]

The files in tests/unit that are named after a subpackage, such as `limits`, test it and its modules, such as
`limits.grammar`. They must need no server. Cosmic Ray changes the code. Each mutant is tested in a forked process
that imports the changed source from memory, so that no file is written. A mutant that survives is shown with its
line: either a test is missing, or the change does not matter. A random sample of each subpackage is tested;
`--sample 0` tests all.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "waooaw_celery"
#: Subpackages that are tested if none is named, and the share of mutants that their tests must kill.
SUBPACKAGES = ("limits", "wire")
MIN_KILLED = 0.85
#: Third-party modules that every mutant needs: imported once, before the processes are forked.
PRELOADED = (
    "pytest",
    "hypothesis",
    "celery.app.base",
    "redis",
    "sqlalchemy",
    "msgpack",
    "pydantic",
    "xdist.plugin",
)
#: Operators that are not used: they need a list of variables.
SKIPPED_OPERATORS = ("VariableInserter", "VariableReplacer")
#: Comparisons are negated or moved by one. The other replacements raise TypeError or change nothing.
COMPARISONS = (
    *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
    *("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt"),
)
#: Where code begins and ends: lines and columns.
Spans: TypeAlias = list[tuple[tuple[int, int], tuple[int, int]]]


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes:
        path: The file of the module.
        line: The changed line.
        operator: Cosmic Ray's name of the operator.
        occurrence: Which of the places where the operator applies.
    """

    path: Path
    line: int
    operator: str
    occurrence: int

    @property
    def module(self) -> str:
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    @cached_property
    def source(self) -> str | None:
        """The changed source; None: the change is not possible or is not valid Python."""
        try:
            changed = mutate_code(self.path.read_text(), get_operator(self.operator)(), self.occurrence)
            compile(changed, str(self.path), "exec")
        except (SyntaxError, TypeError, AttributeError):  # the last: Cosmic Ray replaces only names of exceptions
            return None
        return str(changed)

    def __str__(self) -> str:
        before, after = self.path.read_text().splitlines(), (self.source or "").splitlines()
        changes = [line for line in difflib.unified_diff(before, after, lineterm="", n=0) if line[0] in "+-"]
        shown = "\n".join(f"    {line}" for line in changes[2:8])
        return f"{self.path.relative_to(ROOT)}:{self.line} {self.operator.removeprefix('core/')}\n{shown}"


def main() -> int:
    """Test mutants, print those that survive, and return 1 if too many do."""
    parser = argparse.ArgumentParser(prog="dev.py mutants", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", default=SUBPACKAGES, help="subpackages or modules, such as limits or wire.caps"
    )
    parser.add_argument("--sample", type=int, default=60, help="mutants per subpackage, 0 for all (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (default: 1)")
    options = parser.parse_args()
    preload()
    scores = [test_mutants(name, options.sample, options.seed) for name in options.names]
    return int(min(scores) < MIN_KILLED)


def preload() -> None:
    """Import what all mutants need, and forget the package: Kombu has imported it for its serializer."""
    for name in PRELOADED:
        importlib.import_module(name)
    for name in [each for each in sys.modules if each.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_mutants(name: str, sample: int, seed: int) -> float:
    """Test the mutants of a subpackage or module, and return the share that is killed."""
    tests = tests_of(name)
    duration = baseline(tests)
    rng = random.Random(seed)  # noqa: S311 - nothing here is secret
    mutants = [mutant for path in modules_of(name) for mutant in mutants_of(path, rng)]
    rng.shuffle(mutants)
    mutants = list(islice((mutant for mutant in mutants if mutant.source is not None), sample or None))
    print(
        f"{name}: {len(mutants)} mutants, {' '.join(path.name for path in tests)} in {duration:.1f} s", flush=True
    )
    survivors = []
    for mutant, survived in run_mutants(mutants, tests, 10 + 8 * duration):
        if survived:
            survivors.append(mutant)
            print(f"  survived: {mutant}", flush=True)
    killed = 1 - len(survivors) / len(mutants)
    lost = Counter(mutant.module for mutant in survivors)
    for module, count in Counter(mutant.module for mutant in mutants).items():
        print(f"  {module}: {count - lost[module]} of {count} killed")
    print(f"{name}: {killed:.0%} killed", flush=True)
    return killed


def tests_of(name: str) -> list[Path]:
    """Return the unit tests of a subpackage or module: test_wire*.py for both wire and wire.caps."""
    parts = name.split(".")
    if len(parts) > 1 and not (ROOT / PACKAGE / Path(*parts)).is_dir():
        parts.pop()
    for count in range(len(parts), 0, -1):
        if found := sorted((ROOT / "tests" / "unit").glob(f"test_{'_'.join(parts[:count])}*.py")):
            return found
    raise SystemExit(f"tests/unit has no test_{parts[0]}*.py")


def modules_of(name: str) -> list[Path]:
    """Return the source files of a subpackage or a module."""
    place = ROOT / PACKAGE / name.replace(".", "/")
    found = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    if not all(path.exists() for path in found) or not found:
        raise SystemExit(f"there is no subpackage or module {name!r}")
    return found


def mutants_of(path: Path, rng: random.Random) -> Iterator[Mutant]:
    """Yield the mutants of a module: one for each place and kind of operator."""
    source = path.read_text()
    nodes = list(ast_nodes(get_ast(source)))
    skipped = skipped_spans(source)
    binary = spans([node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.BinOp | ast.AugAssign)])
    choices: dict[tuple[int, int, str], list[tuple[str, int]]] = {}
    for operator_name in sorted(operator_names()):
        kind = operator_name.removeprefix("core/")
        if kind in SKIPPED_OPERATORS or (kind.startswith("ReplaceComparison") and not kind.endswith(COMPARISONS)):
            continue
        operator = get_operator(operator_name)()
        positions = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, column) in enumerate(positions):
            # Cosmic Ray takes the * of parameters for an operator.
            is_operator = is_within((line, column), binary) or not kind.startswith("ReplaceBinary")
            if is_operator and not is_within((line, column), skipped):
                choices.setdefault((line, column, kind.partition("_")[0]), []).append((operator_name, occurrence))
    for (line, _, _), operators in sorted(choices.items()):
        operator_name, occurrence = rng.choice(operators)
        yield Mutant(path, line, operator_name, occurrence)


def skipped_spans(source: str) -> Spans:
    """Return where the code begins and ends that no test can see.

    That is annotations, which are never evaluated, the options of dataclasses, and ``@abstractmethod``.
    """
    nodes: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(source)):
        decorators = getattr(node, "decorator_list", [])
        nodes += [each for each in decorators if ast.unparse(each).startswith(("dataclass", "abstractmethod"))]
        if isinstance(node, ast.AnnAssign | ast.arg):
            nodes.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes.append(node.returns)
    return spans([node for node in nodes if node is not None])


def spans(nodes: Sequence[Any]) -> Spans:
    """Return where nodes begin, with the ``@`` of a decorator, and end."""
    return [((each.lineno, each.col_offset - 1), (each.end_lineno, each.end_col_offset)) for each in nodes]


def is_within(position: tuple[int, int], places: Spans) -> bool:
    """Whether a position is within one of several places."""
    return any(start <= position < end for start, end in places)


def baseline(tests: Sequence[Path]) -> float:
    """Return the seconds that the tests take without a mutant."""
    start = time.monotonic()
    process = fork(lambda: run_tests(tests))
    _, status = os.waitpid(process, 0)
    if status:
        raise SystemExit(f"the tests fail without a mutant: {' '.join(map(str, tests))}")
    return time.monotonic() - start


def run_mutants(mutants: Sequence[Mutant], tests: Sequence[Path], timeout: float) -> Iterator[tuple[Mutant, bool]]:
    """Test mutants, as many at a time as there are processors; yield each one and whether it survives.

    Args:
        mutants: The mutants.
        tests: Test files.
        timeout: Seconds after which the tests of a mutant count as failed.
    """
    waiting = list(reversed(mutants))
    running: dict[int, tuple[Mutant, float, int]] = {}
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            mutant = waiting.pop()
            process = fork(lambda mutant=mutant: run_mutant(mutant, tests))
            running[os.pidfd_open(process)] = mutant, time.monotonic() + timeout, process
        deadline = min(end for _, end, _ in running.values())
        ended, _, _ = select.select(list(running), [], [], max(deadline - time.monotonic(), 0))
        for handle, (mutant, end, process) in list(running.items()):
            late = time.monotonic() > end
            if late and handle not in ended:
                os.killpg(process, signal.SIGKILL)
            if late or handle in ended:
                _, status = os.waitpid(process, 0)
                os.close(handle)
                del running[handle]
                yield mutant, status == 0


def fork(work: Callable[[], int]) -> int:
    """Run a function in a forked process of its own group, and return its process id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(quiet, descriptor)
        code = work()
    finally:
        os._exit(code)


def run_mutant(mutant: Mutant, tests: Sequence[Path]) -> int:
    """Import the mutant in place of the module, and run the tests."""
    sys.meta_path.insert(0, MutantFinder(mutant))
    return run_tests(tests)


def run_tests(tests: Sequence[Path]) -> int:
    """Run the tests in this process, up to the first failure."""
    import pytest
    from hypothesis import Phase, settings

    settings.register_profile(
        "mutants", database=None, derandomize=True, phases=[Phase.explicit, Phase.generate]
    )  # a failure need not be made small
    settings.load_profile("mutants")
    os.chdir(ROOT)
    return int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--assert=plain", *map(str, tests)]))


class MutantFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and loads the changed source of one module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.mutant.module:
            return None
        is_package = self.mutant.path.name == "__init__.py"
        locations = [str(self.mutant.path.parent)] if is_package else None
        return importlib.util.spec_from_file_location(
            name, self.mutant.path, loader=self, submodule_search_locations=locations
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.source or "", str(self.mutant.path), "exec"), module.__dict__)  # noqa: S102


if __name__ == "__main__":
    sys.exit(main())
