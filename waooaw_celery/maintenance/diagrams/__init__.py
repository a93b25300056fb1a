"""Pictures of a conversation: as a tree, as Mermaid text, as SVG, and as one HTML page.

``diagram_of`` (``building.py``) makes a ``ConversationDiagram`` (``model.py``) of a conversation's records;
``folding.py`` makes a large one small. The drawings take it: ``tree.py``, ``mermaid.py``, ``sequence.py`` and
``timeline.py``. ``page.py`` puts them on an HTML page, with the colours of ``style.py``.
"""
