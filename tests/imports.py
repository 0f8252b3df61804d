"""The import graph of launch/: rooms (a package, or a module at the top level), arrows between them, floors, circles.

`python tests/imports.py` prints the figures. What is imported for type checkers only does not count.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The modules of launch/ by name."""
    files = sorted((root / "launch").rglob("*.py"))
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(module: str, file: Path, known: dict[str, Path]) -> set[str]:
    """Which of the `known` modules the file imports, anywhere in it."""
    tree, skipped = ast.parse(file.read_text()), set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
    package, found = module if file.name == "__init__.py" else module.rpartition(".")[0], set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            above = package.split(".")
            base = above[: len(above) - node.level + 1] if node.level else []
            place = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{place}.{alias.name}" if f"{place}.{alias.name}" in known else place for alias in node.names}
    return (found & known.keys()) - {module}


def rooms(root: Path = ROOT) -> dict[str, set[str]]:
    """Each room with those that it imports."""
    known = modules(root)
    places = {module: module if module.count(".") == 1 and "__init__" not in file.name else ".".join(module.split(".")[:2])
              for module, file in known.items()}  # fmt: skip
    found: dict[str, set[str]] = {room: set() for room in places.values()}
    for module, file in known.items():
        found[places[module]] |= {places[other] for other in imported(module, file, known)} - {places[module]}
    return found


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room, above all that it imports. Raises ValueError for a circle, naming it."""
    found: dict[str, int] = {}

    def floor(room: str, path: tuple[str, ...]) -> int:
        if room in path:
            raise ValueError(f"a circle: {' -> '.join((*path[path.index(room) :], room))}")
        if room not in found:
            found[room] = 1 + max((floor(other, (*path, room)) for other in sorted(graph[room])), default=0)
        return found[room]

    for room in graph:
        floor(room, ())
    return found


if __name__ == "__main__":
    graph, known = rooms(), modules()
    heights = floors(graph)
    for room in sorted(graph, key=lambda room: (heights[room], room)):
        print(f"{heights[room]:3} {room} -> {' '.join(sorted(graph[room]))}")
    lines, biggest = max((len(file.read_text().splitlines()), module) for module, file in known.items())
    top = sum(module.count(".") == 1 and file.name != "__init__.py" for module, file in known.items())
    print(f"{len(graph)} rooms on {max(heights.values())} floors, {sum(map(len, graph.values()))} arrows")
    print(f"{top} modules at the top level; biggest file: {biggest}, {lines} lines")
