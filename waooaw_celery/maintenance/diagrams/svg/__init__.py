"""The pictures as SVG: ``sequence.py`` and ``timeline.py`` draw with ``elements.py``; colours: ``style.py``."""
