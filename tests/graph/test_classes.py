"""Classes of slots: ties are transitive, pins follow them, and a finished graph does not change."""

import numpy as np

from chipnet.graph.classes import Classes
from chipnet.graph.draft import Draft
from chipnet.graph.facts import Pin, PinCode, Place

WHY = Pin(PinCode.NO_RULE, "why", Place("node", "module.path", "file.py:3"))


def test_ties_are_transitive_and_pins_follow_them():
    g = Classes()
    a, b, c = g.new(3), g.new(3), g.new(2)
    g.tie(a, b)
    g.tie_all(np.array([b[1], c[0]]))
    assert g.find(int(c[0])) == g.find(int(a[1]))
    assert g.find(int(c[1])) != g.find(int(a[1]))
    g.pin(c[:1], WHY)
    assert g.pinned(a).tolist() == [False, True, False]
    g.tie_all(a[:2])
    assert g.pinned(a).tolist() == [True, True, False]
    assert str(next(iter(g.pins.values()))) == "why in 'module.path' (file.py:3)"


def test_owning_an_axis_twice_ties_the_two():
    g = Draft()
    a, b = g.new(3), g.new(3)
    g.own("w", 0, a)
    g.own("w", 0, b)
    assert g.classes(a).tolist() == g.classes(b).tolist()


def test_a_graph_with_more_pins_is_another_graph():
    draft = Draft()
    a, b = draft.new(2), draft.new(2)
    draft.tie(a, b)
    graph = draft.finished({})
    more = graph.with_pins([(b[:1], WHY), (a, Pin(PinCode.EXCLUDED, "later"))])
    assert graph.pinned(a).tolist() == [False, False]
    assert [more.pins[s].reason for s in a.tolist()] == ["why", "later"]
    assert more.classes(b).tolist() == a.tolist()
