"""How many argument checks are written by hand, at two commits: `python benchmarks/checks.py e785518 HEAD`.

A check is an `if` that does nothing but raise a ConfigError, anywhere in toolkit/. Of the first commit's checks it also
says how many are gone, with their lines: those whose condition stands nowhere in the second commit.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter


def checks(commit: str) -> list[tuple[str, int]]:
    """The condition of every check, and its lines."""
    names = subprocess.check_output(["git", "ls-tree", "-r", "--name-only", commit, "toolkit"], text=True).split()
    found = []
    for name in names:
        if name.endswith(".py"):
            tree = ast.parse(subprocess.check_output(["git", "show", f"{commit}:{name}"], text=True))
            found += [
                (ast.unparse(node.test), (node.end_lineno or 0) - node.lineno + 1)
                for node in ast.walk(tree)
                if isinstance(node, ast.If)
                and not node.orelse
                and isinstance(node.body[-1], ast.Raise)
                and "ConfigError" in ast.unparse(node.body[-1])
            ]
    return found


def main() -> None:
    before, after = (checks(commit) for commit in sys.argv[1:3])
    for commit, found in zip(sys.argv[1:3], (before, after), strict=True):
        print(f"{commit}: {len(found)} checks in {sum(lines for _, lines in found)} lines")
    left = Counter(condition for condition, _ in after)
    gone = [lines for condition, lines in before if not left[condition]]
    print(f"gone: {len(gone)} checks in {sum(gone)} lines")


if __name__ == "__main__":
    main()
