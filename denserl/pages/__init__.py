"""Self-contained HTML pages: their skeleton, colours of numbers, coloured segments, charts."""
