"""Insertion: the proof that a template does nothing with content but write it down.

What lives here: a walk over a template's syntax tree that follows what messages say. What does not: using the proof
(`skeleton`).

Where it holds, the rendering of two conversations with the same roles differs only in what is written at the places of
their contents, as long as each content is plain: not empty, without any of the strings that the template looks for,
and without whitespace at either end where the template strips. Content may also be written as JSON, which is seen when
the template runs with a quotation mark in it. Then the template runs once per sequence of roles instead of once a row.

    find_insertion(ChatTemplate("{{ '<|user|>' + m.content | trim }}"))    -> Insertion(sought=frozenset(), strips=True)
    find_insertion(ChatTemplate("{{ m.content | length }}"))               -> None
"""

from __future__ import annotations

from dataclasses import dataclass

import jinja2.nodes as nodes

from tunesmith.chat.template import REASONING_KEYS, ChatTemplate, parse_template

_SAID = frozenset(("content", *REASONING_KEYS))
"""Keys of a message that hold what it says."""
_STRIPS = frozenset(("strip", "lstrip", "rstrip"))
_LOOKS = frozenset(("startswith", "endswith"))
_WHOLE_LIST_FILTERS = frozenset(("length", "reverse", "list", "first", "last", "count"))
_TYPE_TESTS = frozenset(("string", "defined", "undefined", "none", "mapping", "iterable", "sequence", "number", "true"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
    """A template that only writes contents down."""

    sought: frozenset[str]
    """Strings that it looks for in contents: a content with one of them is not plain."""
    strips: bool
    """Whether it strips contents: then one with whitespace at either end is not plain."""


_OPAQUE = (
    nodes.Macro,
    nodes.CallBlock,
    nodes.FilterBlock,
    nodes.AssignBlock,
    nodes.With,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.Extends,
    nodes.Block,
)
"""Statements that are not followed."""


class _Uses(Exception):
    """The template uses content in a way that is not insertion."""


def find_insertion(template: ChatTemplate) -> Insertion | None:
    """Return the proof, or `None` where the template may do more with content than write it down."""
    walk = _Walk(parse_template(template.text))
    try:
        return walk.run()
    except _Uses:
        return None


class _Walk:
    """Follows content through assignments, expressions and conditions."""

    def __init__(self, tree: nodes.Template) -> None:
        self._tree = tree
        self._said: set[str] = set()
        """Variables, and namespace attributes as `ns.attribute`, that may hold content."""
        self._lists: set[str] = {"messages"}
        """Variables that may hold messages."""
        self._items: set[str] = set()
        """Variables that may hold one message."""
        self._joined: set[str] = set()
        """Variables that may hold content within other text."""
        self._sought: set[str] = set()
        self._strips = False

    def run(self) -> Insertion:
        if any(True for _ in self._tree.find_all(_OPAQUE)):
            raise _Uses
        size = -1
        while size != (size := sum(map(len, (self._said, self._lists, self._items, self._joined)))):
            for assign in self._tree.find_all(nodes.Assign):
                self._note(assign.target, assign.node)
            for loop in self._tree.find_all(nodes.For):
                self._note_loop(loop)
        self._visit(self._tree)
        return Insertion(sought=frozenset(self._sought), strips=self._strips)

    def _note(self, target: nodes.Node, value: nodes.Node) -> None:
        name = target.name if isinstance(target, nodes.Name) else None
        if isinstance(target, nodes.NSRef):
            name = f"{target.name}.{target.attr}"
        if name is None:
            if isinstance(value, nodes.Tuple) or self._is_said(value) or self._is_list(value) or self._is_item(value):
                raise _Uses
            return
        if self._is_said(value):
            self._said.add(name)
        if self._is_joined(value):
            self._joined.add(name)
        if self._is_split(value):
            self._said.add(f"{name}[]")
        if self._is_list(value):
            self._lists.add(name)
        if self._is_item(value):
            self._items.add(name)

    def _note_loop(self, loop: nodes.For) -> None:
        if self._is_said(loop.iter) or self._is_split(loop.iter):
            raise _Uses
        if self._is_list(loop.iter):
            if not isinstance(loop.target, nodes.Name) or loop.recursive:
                raise _Uses
            self._items.add(loop.target.name)

    def _is_list(self, node: nodes.Node | None) -> bool:
        """Whether an expression may be the messages, or some of them."""
        if isinstance(node, nodes.Name):
            return node.name in self._lists
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Slice) and self._is_list(node.node)
        if isinstance(node, nodes.Filter):
            return node.name in ("reverse", "list") and self._is_list(node.node)
        if isinstance(node, nodes.CondExpr):
            return self._is_list(node.expr1) or self._is_list(node.expr2)
        return False

    def _is_item(self, node: nodes.Node | None) -> bool:
        """Whether an expression may be one message."""
        if isinstance(node, nodes.Name):
            return node.name in self._items
        if isinstance(node, nodes.Getitem):
            return not isinstance(node.arg, nodes.Slice) and self._is_list(node.node)
        if isinstance(node, nodes.Filter):
            return node.name in ("first", "last") and self._is_list(node.node)
        if isinstance(node, nodes.CondExpr):
            return self._is_item(node.expr1) or self._is_item(node.expr2)
        return False

    def _is_said(self, node: nodes.Node | None) -> bool:
        """Whether an expression may hold content, as it is or within other text."""
        if isinstance(node, nodes.Name):
            return node.name in self._said
        if isinstance(node, nodes.Getattr):
            if isinstance(node.node, nodes.Name) and f"{node.node.name}.{node.attr}" in self._said:
                return True
            return node.attr in _SAID
        if isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Const) and node.arg.value in _SAID:
                return True
            return self._is_split(node.node)
        if isinstance(node, (nodes.Add, nodes.And, nodes.Or)):
            return self._is_said(node.left) or self._is_said(node.right)
        if isinstance(node, nodes.Concat):
            return any(self._is_said(item) for item in node.nodes)
        if isinstance(node, nodes.CondExpr):
            return self._is_said(node.expr1) or self._is_said(node.expr2)
        if isinstance(node, nodes.Filter):
            return node.name in ("trim", "tojson") and self._is_said(node.node)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            return node.node.attr in _STRIPS and self._is_said(node.node.node)
        return False

    def _is_joined(self, node: nodes.Node | None) -> bool:
        """Whether an expression may hold content with other text beside it."""
        if isinstance(node, (nodes.Add, nodes.Concat)):
            return self._is_said(node)
        if isinstance(node, nodes.Name):
            return node.name in self._joined
        if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
            return f"{node.node.name}.{node.attr}" in self._joined
        if isinstance(node, (nodes.And, nodes.Or)):
            return self._is_joined(node.left) or self._is_joined(node.right)
        if isinstance(node, nodes.CondExpr):
            return self._is_joined(node.expr1) or self._is_joined(node.expr2)
        if isinstance(node, nodes.Filter):
            return self._is_joined(node.node)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            return self._is_joined(node.node.node)
        return False

    def _is_split(self, node: nodes.Node | None) -> bool:
        """Whether an expression is `content.split(...)`, which for plain content is a list of the content alone."""
        if isinstance(node, nodes.Name):
            return f"{node.name}[]" in self._said
        called = node.node if isinstance(node, nodes.Call) else None
        return isinstance(called, nodes.Getattr) and called.attr == "split" and self._is_said(called.node)

    def _visit(self, node: nodes.Node) -> None:
        """Check that every use of content below `node` is one of those that insertion allows."""
        if isinstance(node, nodes.Compare):
            self._visit_compare(node)
        elif isinstance(node, nodes.Call):
            self._visit_call(node)
        elif isinstance(node, nodes.Filter):
            self._visit_filter(node)
        elif isinstance(node, nodes.Test):
            if (self._is_said(node.node) or self._is_item(node.node)) and node.name not in _TYPE_TESTS:
                raise _Uses
            self._visit(node.node)
        elif isinstance(node, nodes.Getitem):
            self._visit_getitem(node)
        elif isinstance(node, nodes.Getattr):
            if self._is_said(node.node) or self._is_list(node.node):
                raise _Uses
            self._visit_base(node.node)
        elif isinstance(node, (nodes.Add, nodes.Concat, nodes.And, nodes.Or, nodes.Not, nodes.CondExpr)):
            self._visit_children(node)
        elif isinstance(node, nodes.BinExpr | nodes.UnaryExpr | nodes.List | nodes.Dict | nodes.Tuple):
            if any(self._is_said(child) or self._is_item(child) for child in node.iter_child_nodes()):
                raise _Uses
            self._visit_children(node)
        elif isinstance(node, nodes.Name):
            if node.ctx == "load" and (node.name in self._lists or node.name in self._items):
                raise _Uses
        else:
            self._visit_statement(node)

    def _visit_statement(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.For):
            if not self._is_list(node.iter):
                self._visit(node.iter)
            for child in (*node.body, *node.else_, *([node.test] if node.test else [])):
                self._visit(child)
        elif isinstance(node, nodes.Assign):
            if not (self._is_list(node.node) or self._is_item(node.node)):
                self._visit(node.node)
        elif isinstance(node, nodes.If):
            for child in (node.test, *node.body, *node.elif_, *node.else_):
                if not self._is_list(child):
                    self._visit(child)
        else:
            self._visit_children(node)

    def _visit_children(self, node: nodes.Node) -> None:
        for child in node.iter_child_nodes():
            if not self._is_list(child) or not isinstance(node, (nodes.And, nodes.Or, nodes.Not, nodes.CondExpr)):
                self._visit(child)

    def _visit_base(self, node: nodes.Node) -> None:
        """Visit what an attribute or item is taken of: a message may stand here, and nowhere else."""
        if isinstance(node, nodes.Name) and node.name in self._items:
            return
        if self._is_item(node) and isinstance(node, nodes.Getitem):
            self._visit(node.arg)
            return
        self._visit(node)

    def _visit_getitem(self, node: nodes.Getitem) -> None:
        if self._is_item(node.node):
            if not isinstance(node.arg, nodes.Const):
                raise _Uses
            self._visit_base(node.node)
        elif self._is_split(node.node):
            if not isinstance(node.arg, (nodes.Const, nodes.Neg)):
                raise _Uses
            self._visit(node.node)
        elif self._is_list(node.node):
            self._visit(node.arg)
        elif self._is_said(node.node) or self._holds_said(node.node):
            raise _Uses
        else:
            self._visit_children(node)

    def _holds_said(self, node: nodes.Node) -> bool:
        """Whether an expression is a namespace one of whose attributes may hold content."""
        return isinstance(node, nodes.Name) and any(said.startswith(f"{node.name}.") for said in self._said)

    def _visit_compare(self, node: nodes.Compare) -> None:
        for operand in node.ops:
            if self._is_said(operand.expr):
                if operand.op not in ("in", "notin", "eq", "ne") or not isinstance(node.expr, nodes.Const):
                    raise _Uses
                self._seek(node.expr.value, operand.expr)
            elif self._is_item(operand.expr):
                if operand.op not in ("in", "notin") or not isinstance(node.expr, nodes.Const):
                    raise _Uses
                continue
            self._visit(operand.expr)
        if self._is_said(node.expr):
            for operand in node.ops:
                if not isinstance(operand.expr, nodes.Const) or operand.op not in ("eq", "ne"):
                    raise _Uses
                self._seek(operand.expr.value, node.expr)
        self._visit(node.expr)

    def _seek(self, value: object, content: nodes.Expr) -> None:
        """Note that a template looks for a string in content; a string beside other text cannot be looked for."""
        if self._is_joined(content):
            raise _Uses
        if isinstance(value, str):
            self._sought.add(value)

    def _visit_call(self, node: nodes.Call) -> None:
        method = node.node
        if isinstance(method, nodes.Getattr) and self._is_said(method.node):
            texts = [arg.value for arg in node.args if isinstance(arg, nodes.Const) and isinstance(arg.value, str)]
            if len(texts) != len(node.args) or node.kwargs:
                raise _Uses
            if method.attr in _STRIPS:
                if any(text.strip() for text in texts):
                    raise _Uses
                self._strips = True
            elif method.attr in _LOOKS or (method.attr == "split" and texts):
                for text in texts:
                    self._seek(text, method.node)
            else:
                raise _Uses
            self._visit(method.node)
            return
        if isinstance(method, nodes.Getattr) and (self._is_item(method.node) or self._is_list(method.node)):
            raise _Uses
        arguments = [*node.args, *(keyword.value for keyword in node.kwargs)]
        if any(self._is_said(arg) or self._is_item(arg) or self._is_list(arg) for arg in arguments):
            raise _Uses
        self._visit_children(node)

    def _visit_filter(self, node: nodes.Filter) -> None:
        if node.node is None or self._is_item(node.node):
            raise _Uses
        if self._is_said(node.node) and (node.name not in ("trim", "tojson") or node.args or node.kwargs):
            raise _Uses
        if self._is_said(node.node) and node.name == "trim":
            self._strips = True
        if self._is_list(node.node):
            if node.name not in _WHOLE_LIST_FILTERS:
                raise _Uses
        else:
            self._visit(node.node)
        for arg in node.args:
            if self._is_said(arg) or self._is_item(arg):
                raise _Uses
            self._visit(arg)
