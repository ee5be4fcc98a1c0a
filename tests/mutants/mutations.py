"""Draws one-token changes of the sources with the operators of cosmic-ray: the same ones as long as a line stays."""

import ast
from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

ARITHMETIC = ("Add_Sub", "Sub_Add", "Mul_FloorDiv", "FloorDiv_Mul", "Div_Mul", "Mod_FloorDiv", "LShift_RShift")
COMPARED = ("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE")
OPERATORS = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in (*ARITHMETIC, "RShift_LShift", "BitAnd_BitOr", "BitOr_BitAnd")),
    *(f"ReplaceComparisonOperator_{one}_{other}" for one in COMPARED for other in COMPARED if one != other),
    *("ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is"),
    *("ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Not", "AddNot", "NumberReplacer"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
)
"""Mistakes that people make. Replacements that fail on any input, such as `loss + x` by `loss | x`, are left out."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A changed file: its path, the changed line before and after, and the whole source after."""

    path: str
    number: int
    before: str
    after: str
    source: str

    @property
    def key(self):
        return self.path, self.before, self.after


def draw(root: Path, paths: list[str], size: int, seed: int) -> list[Mutation]:
    """
    `size` mutations at as many tokens, every token of the files equally likely.

    Tokens are ordered by a hash of their file and line, so a change elsewhere in the sources leaves the others drawn.
    """
    tokens = defaultdict(list)
    for path in paths:
        lines = (root / path).read_text().splitlines()
        nodes = list(ast_nodes(get_ast_from_path(root / path)))
        for name in OPERATORS:
            operator = get_operator(f"core/{name}")()
            places = (place for node in nodes for place in operator.mutation_positions(node))
            for occurrence, (start, _) in enumerate(places):
                line = lines[start[0] - 1]
                same_before = lines[: start[0] - 1].count(line)
                tokens[path, line.strip(), start[1], same_before].append((name, occurrence))
    drawn = []
    for token in sorted(tokens, key=lambda token: _hash(seed, *token)):
        for name, occurrence in sorted(tokens[token], key=lambda change: _hash(seed, *token, *change)):
            mutation = _apply(root, token[0], name, occurrence)
            if mutation is not None:
                drawn.append(mutation)
                break
        if len(drawn) == size:
            return drawn
    raise ValueError(f"{len(drawn)} tokens can be changed in {len(paths)} files, so no {size} can be drawn")


def _apply(root: Path, path: str, operator: str, occurrence: int) -> Mutation | None:
    """None where the change is no Python, or changes nothing but an annotation."""
    old = (root / path).read_text()
    new = mutate_code(old, get_operator(f"core/{operator}")(), occurrence)
    try:
        if new is None or _without_annotations(new) == _without_annotations(old):
            return None
    except SyntaxError:
        return None
    changed = [i for i, (a, b) in enumerate(zip(old.splitlines(), new.splitlines(), strict=False)) if a != b]
    before, after = old.splitlines()[changed[0]], new.splitlines()[changed[0]]
    return Mutation(path=path, number=changed[0] + 1, before=before.strip(), after=after.strip(), source=new)


def _without_annotations(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
    return ast.dump(tree)


def _hash(*parts: object) -> bytes:
    return sha256(repr(parts).encode()).digest()
