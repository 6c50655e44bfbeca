"""Plausible mistakes, made from a right answer: one small change of its source at a time."""

import ast
import copy
import itertools

OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {
    "mean": "sum",
    "sum": "mean",
    "max": "min",
    "min": "max",
    "argmax": "argmin",
    "argmin": "argmax",
    "amax": "amin",
    "amin": "amax",
    "softmax": "log_softmax",
    "log_softmax": "softmax",
    "cos": "sin",
    "sin": "cos",
    "ceil": "floor",
    "floor": "ceil",
    "round": "floor",
    "exp": "log",
    "log": "exp",
    "cumsum": "cumprod",
    "cumprod": "cumsum",
    "sort": "argsort",
    "argsort": "sort",
    "mul_": "add_",
    "add_": "mul_",
    "stack": "cat",
    "cat": "stack",
}
DROPPED = ("detach", "clone", "abs", "sqrt", "clamp", "flip", "T")  # x.detach() -> x


def _changes(node):
    """In-place changes of one node, as (what, function)."""
    for field in ("op",):
        old = getattr(node, field, None)
        if type(old) in OPERATORS:
            yield type(old).__name__, lambda n: setattr(n, "op", OPERATORS[type(n.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        yield "comparison", lambda n: n.ops.__setitem__(0, OPERATORS[type(n.ops[0])]())
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "truth", lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "more", lambda n: setattr(n, "value", n.value + (1 if type(n.value) is int else 0.1))
        yield "twice", lambda n: setattr(n, "value", 2 * n.value or -1)
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield "name", lambda n: setattr(n, "attr", NAMES[n.attr])
    if isinstance(node, ast.Call):
        if len(node.args) > 1:
            yield "order", lambda n: n.args.insert(0, n.args.pop(1))
        for k in range(len(node.keywords)):
            yield "keyword", lambda n, k=k: n.keywords.pop(k)
    if isinstance(node, ast.If | ast.IfExp):
        yield "condition", lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    for field in ("body", "orelse"):
        statements = getattr(node, field, None)
        if isinstance(statements, list):
            real = [n for n in statements if not isinstance(getattr(n, "value", n), ast.Constant)]
            for k in range(len(statements) if len(real) > 1 else 0):
                last = isinstance(statements[k], ast.Return)
                text = isinstance(getattr(statements[k], "value", None), ast.Constant)
                if not last and not text:
                    yield "left out", lambda n, f=field, k=k: getattr(n, f).pop(k)
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        yield "decorator", lambda n: n.decorator_list.clear()


class _Drop(ast.NodeTransformer):
    """Without the n-th unary minus, or call of a method in DROPPED."""

    def __init__(self, which):
        self.which, self.count = which, 0

    def _hit(self):
        self.count += 1
        return self.count - 1 == self.which

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        return node.operand if isinstance(node.op, ast.USub) and self._hit() else node

    def visit_Call(self, node):
        self.generic_visit(node)
        method = isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED
        return node.func.value if method and self._hit() else node

    def visit_Attribute(self, node):
        self.generic_visit(node)
        return node.value if node.attr == "T" and self._hit() else node


class _Swap(ast.NodeTransformer):
    """Two arguments of the function, one for the other in its body."""

    def __init__(self, a, b):
        self.other = {a: b, b: a}

    def visit_Name(self, node):
        node.id = self.other.get(node.id, node.id)
        return node


def mutants(source):
    """Distinct sources, each a small change away from `source`, in a fixed order."""
    tree, found = ast.parse(source), {}
    for node in ast.walk(tree):  # zip's `strict`: right either way
        if isinstance(node, ast.Call):
            node.keywords = [k for k in node.keywords if k.arg != "strict"]
    heads = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    given = [default for head in heads for default in head.args.defaults]  # by the stub
    for index, node in enumerate(ast.walk(tree)):
        if node in given:
            continue
        for k, _ in enumerate(_changes(node)):
            changed = copy.deepcopy(tree)
            target = list(ast.walk(changed))[index]
            _, change = list(_changes(target))[k]
            change(target)
            found[ast.unparse(ast.fix_missing_locations(changed))] = None
    for which in range(30):
        changed = _Drop(which).visit(copy.deepcopy(tree))
        found[ast.unparse(ast.fix_missing_locations(changed))] = None
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        names = [a.arg for a in function.args.args if a.arg != "self"]
        for a, b in itertools.combinations(names, 2):
            changed = copy.deepcopy(tree)
            for f in ast.walk(changed):
                if isinstance(f, ast.FunctionDef) and f.name == function.name:
                    f.body = [_Swap(a, b).visit(statement) for statement in f.body]
            found[ast.unparse(ast.fix_missing_locations(changed))] = None
    found.pop(ast.unparse(tree), None)
    return list(found)
